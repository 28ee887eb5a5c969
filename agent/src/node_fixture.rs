//! A real node on temporary directories – keys, a `file://` vault, PostgreSQL 15 – for tests of this
//! crate. No control plane: jobs run through `JobContext::unattended`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use holdfast_domain::job::{Placement, ProvisionOutcome, ProvisionSpec, VaultRef};
use holdfast_domain::{IncarnationId, ServerId, VaultId};
use holdfast_vault::key::KeyRing;
use tempfile::TempDir;

use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::job::JobContext;
use crate::limits::Limits;
use crate::node::Node;
use crate::postgres::cluster_fixture::connect_as;
use crate::work::provision;

pub(crate) const LOGIN: &str = "boss";
pub(crate) const PASSWORD: &str = "correct-horse-1";

pub(crate) struct TestNode {
    pub(crate) root: TempDir,
    pub(crate) node: Arc<Node>,
}

impl TestNode {
    pub(crate) async fn open() -> Self {
        let root = tempfile::Builder::new()
            .prefix("hf")
            .permissions(std::fs::Permissions::from_mode(0o711))
            .tempdir()
            .expect("a temporary directory");
        KeyRing::create(&root.path().join("keys"), "1").expect("a key");
        let node = Node::open(config(root.path()), Clock::system())
            .await
            .expect("opened");
        Self { root, node }
    }

    /// The next life of the same machine: nothing of the last one's memory, its receivers gone, its
    /// postmasters ended without a shutdown.
    pub(crate) async fn open_again(&mut self) {
        for server in self.node.servers() {
            if let Some(stream) = server.stream() {
                stream.close().await;
            }
        }
        self.node = Node::open(config(self.root.path()), Clock::system())
            .await
            .expect("opened");
    }

    pub(crate) fn context(&self) -> JobContext {
        JobContext::unattended(Arc::clone(&self.node))
    }

    /// Where a new server would be: a port that is free now, one vault.
    pub(crate) fn placement(&self) -> Placement {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        Placement {
            server: ServerId::new(),
            incarnation: IncarnationId::new(),
            server_name: "pg1".into(),
            major: 15,
            port: listener.local_addr().expect("bound").port(),
            vaults: vec![VaultRef {
                id: VaultId::new(),
                url: format!("file://{}", self.root.path().join("vault").display()),
            }],
        }
    }

    pub(crate) async fn provision(&self, placement: &Placement) -> ProvisionOutcome {
        let spec = ProvisionSpec {
            placement: placement.clone(),
            administrator_login: LOGIN.into(),
            administrator_password: Some(PASSWORD.into()),
        };
        provision::run(&self.context(), spec)
            .await
            .expect("provisioned")
    }

    /// A session of the tenant's.
    pub(crate) async fn tenant(&self, placement: &Placement) -> tokio_postgres::Client {
        let server = self.node.server(placement.incarnation).expect("known");
        connect_as(
            &server.socket_dir(),
            server.port(),
            LOGIN,
            PASSWORD,
            "postgres",
        )
        .await
        .expect("the administrator gets in")
    }

    pub(crate) async fn end(self) {
        self.node.shut_down().await;
        let _ = std::fs::remove_dir_all(&self.node.equipment().run_dir);
    }
}

pub(crate) fn config(root: &Path) -> AgentConfig {
    AgentConfig {
        name: "n1".into(),
        region: "eastus2".into(),
        zone: None,
        gateway: "https://127.0.0.1:1".parse().expect("a URL"),
        ca_file: root.join("ca.pem"),
        join_token_file: None,
        state_dir: root.join("state"),
        run_dir: None,
        pg_bin: Vec::new(),
        port_range: (5500, 5599),
        host: "127.0.0.1".into(),
        key_dir: root.join("keys"),
        service_user: "postgres".into(),
        executable: root.join("holdfast"),
        max_jobs: 4,
        frozen_copies: true,
        limits: Limits::default(),
    }
}
