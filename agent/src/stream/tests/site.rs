//! One cluster, its stores, and streams that come and go.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_domain::job::{Placement, VaultRef, WalReport};
use holdfast_domain::wal::WalObject;
use holdfast_domain::{IncarnationId, Lsn, ServerId, Timeline, VaultId};
use holdfast_vault::wal::survey::list_wal;
use holdfast_vault::wal::target::cover;
use holdfast_vault::wal::{Walker, get_wal};
use holdfast_vault::{DataKey, Store};
use tempfile::TempDir;

use super::super::{DrainConfig, StreamConfig, StreamHandle, StreamStatus, Streamer, drain_pg_wal};
use crate::clock::Clock;
use crate::postgres::cluster_fixture::{Cluster, PORT};
use crate::postgres::{AGENT_ROLE, Postmaster, StopMode};

/// For things that take milliseconds and must not hang a test.
pub(super) const SOON: Duration = Duration::from_secs(60);
pub(super) const SEGMENT: u64 = 16 << 20;

pub(super) struct Site {
    pub cluster: Cluster,
    root: TempDir,
    pub stores: Vec<Store>,
    pub data_key: DataKey,
    pub placement: Placement,
}

impl Site {
    pub async fn open(stores: usize) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let urls: Vec<String> = (0..stores)
            .map(|n| format!("file://{}", root.path().join(format!("vault{n}")).display()))
            .collect();
        let stores = urls
            .iter()
            .map(|url| Store::open(url).expect("a store"))
            .collect();
        let vaults = urls
            .into_iter()
            .map(|url| VaultRef {
                id: VaultId::new(),
                url,
            })
            .collect();
        Self {
            cluster: Cluster::create().await,
            stores,
            data_key: DataKey::generate().expect("a key"),
            placement: Placement {
                server: ServerId::new(),
                incarnation: IncarnationId::new(),
                server_name: "pg1".into(),
                major: 15,
                port: PORT,
                vaults,
            },
            root,
        }
    }

    pub fn vault_dir(&self, number: usize) -> PathBuf {
        self.root.path().join(format!("vault{number}"))
    }

    pub async fn start(&self) -> Postmaster {
        let postmaster = Postmaster::spawn(&self.cluster.spec())
            .await
            .expect("started");
        postmaster.wait_ready(SOON).await.expect("ready");
        postmaster
    }

    pub async fn stop(&self, postmaster: &Postmaster) {
        postmaster
            .stop(StopMode::Fast, SOON)
            .await
            .expect("stopped");
    }

    pub async fn stream(&self) -> StreamHandle {
        let control = crate::snapshot::control_file::ControlFile::read(
            &self.cluster.data_dir().join("global/pg_control"),
        )
        .expect("a control file");
        let handle = Streamer::spawn(StreamConfig {
            placement: self.placement.clone(),
            socket_dir: self.cluster.socket_dir(),
            port: PORT,
            user: AGENT_ROLE.to_owned(),
            data_dir: self.cluster.data_dir(),
            state_dir: self.root.path().join("state"),
            stores: self.stores.clone(),
            data_key: self.data_key.clone(),
            system_identifier: control.system_identifier(),
            wal_segment_bytes: SEGMENT,
            now: Clock::system().as_fn(),
        });
        tokio::time::timeout(SOON, handle.wait_slot())
            .await
            .expect("a slot");
        handle
    }

    pub async fn drain(&self) -> WalReport {
        self.try_drain().await.expect("drained")
    }

    pub async fn try_drain(&self) -> super::super::error::Result<WalReport> {
        drain_pg_wal(DrainConfig {
            placement: self.placement.clone(),
            data_dir: self.cluster.data_dir(),
            state_dir: self.root.path().join("state"),
            stores: self.stores.clone(),
            data_key: self.data_key.clone(),
            now: Clock::system().as_fn(),
        })
        .await
    }

    /// One statement after the other, in one session, as a user's tools would send them.
    pub async fn sql(&self, text: &str) {
        let client = self.cluster.connect().await;
        client
            .batch_execute("SET search_path = public")
            .await
            .expect("set");
        for statement in text.split(';') {
            client.batch_execute(statement).await.expect("good SQL");
        }
    }

    /// Runs the statements and says where the log was flushed to afterwards.
    pub async fn commit(&self, text: &str) -> Lsn {
        self.sql(text).await;
        self.flushed().await
    }

    pub async fn flushed(&self) -> Lsn {
        let row = self
            .cluster
            .connect()
            .await
            .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
            .await
            .expect("a position");
        row.get::<_, &str>(0).parse().expect("a position")
    }

    pub async fn objects(&self, store: usize) -> Vec<WalObject> {
        list_wal(
            &self.stores[store],
            &self.data_key,
            self.placement.incarnation,
            None,
        )
        .await
        .expect("a list")
    }

    /// The whole log of a timeline as the first store has it, walked: no hole, every record good.
    pub async fn walk(&self, timeline: Timeline) -> Walked {
        let objects = self.objects(0).await;
        let first = objects
            .iter()
            .filter(|object| object.timeline == timeline)
            .map(|object| object.start)
            .min()
            .expect("an object");
        let (covering, reached) = cover(&objects, timeline, first);
        let mut walker = Walker::at_page(first, SEGMENT);
        let mut commits = Vec::new();
        for object in &covering {
            let opened = get_wal(&self.stores, &self.data_key, object)
                .await
                .expect("opens");
            let skip = walker.position().bytes_since(object.start) as usize;
            walker
                .feed(&opened.bytes[skip..], |record| {
                    commits.extend(record.stamp())
                })
                .expect("good WAL");
        }
        assert_eq!(walker.position(), reached);
        Walked {
            first,
            reached,
            commits,
        }
    }
}

pub(super) struct Walked {
    pub first: Lsn,
    pub reached: Lsn,
    pub commits: Vec<holdfast_domain::wal::Stamp>,
}

/// Waits until the stream's status is so.
pub(super) async fn until(
    handle: &StreamHandle,
    what: &str,
    mut is_so: impl FnMut(&StreamStatus) -> bool,
) -> StreamStatus {
    let mut status = handle.status();
    let seen = tokio::time::timeout(SOON, status.wait_for(|status| is_so(status))).await;
    match seen {
        Ok(Ok(status)) => status.clone(),
        Ok(Err(_)) => panic!("the stream ended before: {what}"),
        Err(_) => panic!(
            "not in time: {what}; {:?}",
            handle.status().borrow().clone()
        ),
    }
}
