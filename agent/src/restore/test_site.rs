//! A node with a vault on a temporary folder and real PostgreSQL, for tests of the long jobs.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_domain::job::{
    JobError, Placement, ProvisionSpec, RestoreOutcome, RestoreSource, RestoreSpec,
    SnapshotOutcome, SnapshotSpec, VaultRef, WrappedKey,
};
use holdfast_domain::restore::RestoreTarget;
use holdfast_domain::wal::{TimelineStart, WalObject};
use holdfast_domain::{BackupId, IncarnationId, Lsn, ServerId, Timeline, VaultId};
use holdfast_vault::key::KeyRing;
use holdfast_vault::wal::survey::list_wal;
use tempfile::TempDir;

use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::job::JobContext;
use crate::limits::Limits;
use crate::node::Node;
use crate::server::ServerHandle;
use crate::work::{provision, restore, snapshot};

pub(crate) struct Site {
    root: TempDir,
    pub node: Arc<Node>,
    vault: VaultRef,
    major: u16,
}

/// A server of the site, with what the control plane would know of it.
pub(crate) struct Known {
    pub placement: Placement,
    pub wrapped_key: WrappedKey,
    pub server: ServerHandle,
    pub wal_segment_bytes: u64,
    pub first: Timeline,
}

impl Site {
    pub(crate) async fn open() -> Self {
        Self::open_major(15).await
    }

    /// One whose servers are of this major.
    pub(crate) async fn open_major(major: u16) -> Self {
        Self::open_with(major, &std::env::temp_dir(), |_| ()).await
    }

    /// One that keeps everything below `parent`, told what `tell` changes.
    pub(crate) async fn open_with(
        major: u16,
        parent: &Path,
        tell: impl FnOnce(&mut AgentConfig),
    ) -> Self {
        let root = tempfile::Builder::new()
            .prefix("hf")
            .permissions(std::fs::Permissions::from_mode(0o711))
            .tempdir_in(parent)
            .expect("a temporary directory");
        let at = |name: &str| root.path().join(name);
        KeyRing::create(&at("keys"), "1").expect("a key");
        let executable = restore_command(root.path());
        let mut config = AgentConfig {
            name: "n1".into(),
            region: "eastus2".into(),
            zone: None,
            gateway: "https://127.0.0.1:1".parse().expect("a URL"),
            ca_file: at("ca.pem"),
            join_token_file: None,
            state_dir: at("state"),
            run_dir: Some(at("run")),
            pg_bin: Vec::new(),
            port_range: (20_000, 29_999),
            host: "127.0.0.1".into(),
            key_dir: at("keys"),
            service_user: "postgres".into(),
            executable,
            max_jobs: 4,
            frozen_copies: true,
            limits: Limits::default(),
        };
        tell(&mut config);
        let vault = VaultRef {
            id: VaultId::new(),
            url: format!("file://{}", at("vault").display()),
        };
        let node = Node::open(config, Clock::system()).await.expect("a node");
        Self {
            root,
            node,
            vault,
            major,
        }
    }

    pub(crate) fn vault_url(&self) -> &str {
        &self.vault.url
    }

    pub(crate) fn placement(&self, name: &str) -> Placement {
        Placement {
            server: ServerId::new(),
            incarnation: IncarnationId::new(),
            server_name: name.into(),
            major: self.major,
            port: free_port(),
            vaults: vec![self.vault.clone()],
        }
    }

    pub(crate) async fn provision(&self, name: &str) -> Known {
        let placement = self.placement(name);
        let spec = ProvisionSpec {
            placement: placement.clone(),
            administrator_login: "admin1".into(),
            administrator_password: Some("first-Secret-1".into()),
        };
        let made = provision::run(&self.context(), spec)
            .await
            .expect("provisioned");
        Known {
            server: self.node.server(placement.incarnation).expect("known"),
            placement,
            wrapped_key: made.wrapped_key,
            wal_segment_bytes: made.wal_segment_bytes,
            first: made.timeline,
        }
    }

    pub(crate) fn context(&self) -> JobContext {
        JobContext::unattended(Arc::clone(&self.node))
    }

    pub(crate) async fn snapshot(
        &self,
        known: &Known,
        base: Option<&SnapshotOutcome>,
    ) -> SnapshotOutcome {
        let spec = SnapshotSpec {
            placement: known.placement.clone(),
            backup: BackupId::new(),
            base: base.map(|base| base.manifest.clone()),
            wrapped_key: known.wrapped_key.clone(),
        };
        snapshot::run(&self.context(), spec)
            .await
            .expect("a backup")
    }

    /// Everything the vault holds of this server's WAL, after what was committed became durable.
    pub(crate) async fn wal(&self, known: &Known) -> Vec<WalObject> {
        if let Some(stream) = known.server.stream() {
            stream.flush().await.expect("durable");
        }
        let stores = self.node.stores(&known.placement.vaults).expect("a store");
        let key = self
            .node
            .data_key(&known.placement, &known.wrapped_key)
            .expect("a key");
        list_wal(&stores[0], &key, known.placement.incarnation, None)
            .await
            .expect("a list")
    }

    pub(crate) async fn source(&self, known: &Known, backup: &SnapshotOutcome) -> RestoreSource {
        let wal = self.wal(known).await;
        // Where this incarnation's own WAL begins; what was before belongs to another one.
        let lineage = vec![TimelineStart {
            timeline: known.first,
            parent: None,
            switch: Lsn::ZERO,
            history_key: None,
        }];
        RestoreSource {
            server: known.placement.server,
            server_name: known.placement.server_name.clone(),
            incarnation: known.placement.incarnation,
            vaults: known.placement.vaults.clone(),
            wrapped_key: known.wrapped_key.clone(),
            manifest: backup.manifest.clone(),
            backup_start: backup.start_lsn,
            backup_stop: backup.stop_lsn,
            backup_timeline: backup.timeline,
            backup_completed_time: backup.completed_time,
            wal_segment_bytes: known.wal_segment_bytes,
            timeline: backup.timeline,
            lineage,
            wal,
        }
    }

    pub(crate) async fn try_restore(
        &self,
        source: RestoreSource,
        target: RestoreTarget,
    ) -> Result<(Known, RestoreOutcome), (Placement, JobError)> {
        let placement = self.placement("restored");
        let spec = RestoreSpec {
            placement: placement.clone(),
            administrator_login: "admin1".into(),
            administrator_password: None,
            source,
            target,
        };
        self.restore_with(spec)
            .await
            .map_err(|error| (placement, error))
    }

    /// A job whose report got lost runs again.
    pub(crate) async fn restore_again(&self, spec: RestoreSpec) -> (Known, RestoreOutcome) {
        let placement = spec.placement.clone();
        let outcome = restore::run(&self.context(), spec).await.expect("adopted");
        (self.known(placement, &outcome), outcome)
    }

    pub(crate) async fn restore_with(
        &self,
        spec: RestoreSpec,
    ) -> Result<(Known, RestoreOutcome), JobError> {
        let placement = spec.placement.clone();
        let ctx = self.context();
        let outcome = restore::run(&ctx, spec)
            .await
            .inspect_err(|_| self.show_log(placement.incarnation))?;
        let progress = ctx.last_progress().expect("a restore tells how far it is");
        assert_eq!(progress.phase, "Finishing");
        assert_eq!(Some(progress.wal_bytes_done), progress.wal_bytes_total);
        Ok((self.known(placement, &outcome), outcome))
    }

    fn known(&self, placement: Placement, outcome: &RestoreOutcome) -> Known {
        Known {
            server: self.node.server(placement.incarnation).expect("known"),
            placement,
            wrapped_key: outcome.wrapped_key.clone(),
            wal_segment_bytes: outcome.wal_segment_bytes,
            first: outcome.timeline,
        }
    }

    pub(crate) async fn restore(
        &self,
        source: &RestoreSource,
        target: RestoreTarget,
    ) -> (Known, RestoreOutcome) {
        self.try_restore(source.clone(), target)
            .await
            .expect("restored")
    }

    /// The file of an object in the vault.
    pub(crate) fn object_file(&self, key: &str) -> PathBuf {
        self.root.path().join("vault").join(key)
    }

    /// What PostgreSQL said in a recovery that failed.
    fn show_log(&self, incarnation: IncarnationId) {
        for directory in self.directories(incarnation) {
            let log = self
                .node
                .servers_dir()
                .join(format!("{incarnation}{directory}/server.log"));
            eprintln!(
                "{directory}:\n{}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
        }
    }

    /// Names of the directories of one incarnation, without the incarnation itself.
    pub(crate) fn directories(&self, incarnation: IncarnationId) -> Vec<String> {
        let prefix = incarnation.to_string();
        std::fs::read_dir(self.node.servers_dir())
            .expect("listed")
            .filter_map(|entry| {
                Some(
                    entry
                        .expect("an entry")
                        .file_name()
                        .to_str()?
                        .strip_prefix(&prefix)?
                        .to_owned(),
                )
            })
            .collect()
    }

    pub(crate) async fn close(self) {
        self.node.shut_down().await;
    }
}

/// `holdfast` as PostgreSQL would call it: this test binary, told by its environment to be `wal-get`.
fn restore_command(root: &Path) -> PathBuf {
    let script = root.join("hold fast's");
    let this = std::env::current_exe().expect("this binary");
    let text = format!(
        "#!/bin/sh\n[ \"$1 $2 $3\" = 'agent wal-get --plan' ] || exit 255\n\
         HOLDFAST_TEST_WAL_GET=\"$4|$5|$6\" exec '{}' --exact restore::wal_get::tests::entry\n",
        this.display()
    );
    std::fs::write(&script, text).expect("written");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("executable");
    script
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}
