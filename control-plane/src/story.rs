//! The stage of this crate's tests: a PostgreSQL of the test process, a database and a manual clock
//! for each test, and a node that says of every job what a working agent would say.
//!
//! No time passes unless a test says so: `lease_now()` of its database stands still with its clock.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::activity::Caller;
use holdfast_domain::job::*;
use holdfast_domain::redundancy::Vault;
use holdfast_domain::region::Site;
use holdfast_domain::server::ServerWish;
use holdfast_domain::wal::{Stamp, Stamps, WalObject};
use holdfast_domain::{
    BootId, EventId, IncarnationId, Lsn, NodeId, SubscriptionId, Timeline, VaultId,
};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::*;

pub(crate) const SUBSCRIPTION: SubscriptionId = SubscriptionId(Uuid::from_u128(0x5ab));
const SEGMENT: u64 = 16 << 20;
static RUNNING: Mutex<Weak<Cluster>> = Mutex::const_new(Weak::new());

struct Cluster {
    folder: tempfile::TempDir,
}

impl Cluster {
    async fn running() -> Arc<Self> {
        let mut running = RUNNING.lock().await;
        if let Some(cluster) = running.upgrade() {
            return cluster;
        }
        let folder = tempfile::Builder::new()
            .prefix("hfc")
            .tempdir()
            .expect("a folder");
        if let Some(user) = service_user() {
            std::os::unix::fs::chown(folder.path(), Some(user.0), Some(user.1)).expect("as root");
        }
        let cluster = Self { folder };
        cluster.run(
            "initdb",
            &[
                "-U",
                "holdfast",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ],
        );
        let options = format!(
            "-k {} -c listen_addresses= -c fsync=off -c synchronous_commit=off -c max_connections=200 -c shared_buffers=32MB",
            cluster.folder.path().display()
        );
        let log = cluster.folder.path().join("log").display().to_string();
        cluster.run(
            "pg_ctl",
            &["start", "-w", "-s", "-l", &log, "-o", &options, "-D"],
        );
        cluster.make_template().await;
        let cluster = Arc::new(cluster);
        *running = Arc::downgrade(&cluster);
        cluster
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(binaries().join(program));
        if let Some((uid, gid)) = service_user() {
            command.uid(uid).gid(gid);
        }
        let status = command
            .args(arguments)
            .arg(self.folder.path().join("data"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .expect("PostgreSQL's binaries are installed");
        assert!(status.success(), "{program} failed");
    }

    async fn pool(&self, database: &str) -> PgPool {
        let options = PgConnectOptions::new_without_pgpass()
            .socket(self.folder.path())
            .username("holdfast")
            .database(database);
        PgPoolOptions::new()
            .max_connections(16)
            .connect_with(options)
            .await
            .expect("it is up")
    }

    async fn administer(&self, sql: String) {
        let pool = self.pool("postgres").await;
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&pool)
            .await
            .expect("administration");
        pool.close().await;
    }

    async fn make_template(&self) {
        self.administer("create database template_holdfast".to_owned())
            .await;
        let pool = self.pool("template_holdfast").await;
        ControlPlane::migrate(&pool)
            .await
            .expect("migrations apply");
        sqlx::raw_sql(
            "create table test_clock (now timestamptz not null);
             create or replace function lease_now() returns timestamptz language sql volatile
                 as 'select now from test_clock';",
        )
        .execute(&pool)
        .await
        .expect("a clock of the test's own");
        pool.close().await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.run("pg_ctl", &["stop", "-m", "immediate", "-w", "-s", "-D"]);
    }
}

/// Where PostgreSQL's programs are: any major that is fit for a metadata store, as the rest of the
/// product looks for them.
fn binaries() -> PathBuf {
    let listed = std::env::var_os("HOLDFAST_PG_BIN").unwrap_or_default();
    let packaged = (13..=18)
        .rev()
        .map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
    std::env::split_paths(&listed)
        .chain(packaged)
        .find(|bin| bin.join("initdb").is_file() && bin.join("pg_ctl").is_file())
        .expect("PostgreSQL 13 to 18 is installed, or HOLDFAST_PG_BIN says where")
}

/// Postmasters do not run as root.
fn service_user() -> Option<(u32, u32)> {
    nix::unistd::geteuid().is_root().then(|| {
        let user = nix::unistd::User::from_name("postgres")
            .expect("readable")
            .expect("exists");
        (user.uid.as_raw(), user.gid.as_raw())
    })
}

/// One life of a data directory, as far as the catalogue can tell.
#[derive(Clone)]
pub(crate) struct Life {
    pub timeline: Timeline,
    pub durable: Lsn,
}

pub(crate) struct World {
    pub control_plane: ControlPlane,
    pub clock: Clock,
    pub node: NodeId,
    pub boot: BootId,
    pub lives: HashMap<IncarnationId, Life>,
    /// Kinds of the jobs that were finished, in order.
    pub done: Vec<JobKind>,
    inventory: NodeInventory,
    _cluster: Arc<Cluster>,
}

pub(crate) fn minutes(n: i64) -> TimeDelta {
    TimeDelta::minutes(n)
}

pub(crate) fn caller() -> Caller {
    Caller {
        principal: "p1".to_owned(),
        name: "ann@example.com".to_owned(),
        client_address: None,
        client_request_id: None,
        correlation_id: EventId::new().to_string(),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
    }
}

/// A request of its own.
pub(crate) fn idem() -> Idempotency {
    Idempotency {
        client_request_id: Some(EventId::new().to_string()),
        method: "PUT",
        path: "/x".to_owned(),
        body_hash: [0; 32],
    }
}

pub(crate) fn at(name: &str) -> ServerRef<'_> {
    ServerRef {
        subscription: SUBSCRIPTION,
        group: "RG1",
        name,
    }
}

pub(crate) fn wish() -> ServerWish {
    ServerWish {
        location: Some("northcentralus".to_owned()),
        administrator_login: Some("hfadmin".to_owned()),
        administrator_password: Some("correct horse 1".to_owned()),
        ..ServerWish::default()
    }
}

pub(crate) fn key() -> WrappedKey {
    WrappedKey {
        kek_version: "1".to_owned(),
        wrapped: "c2VhbGVk".to_owned(),
    }
}

impl World {
    /// An installation with one node and its vault in a region without zones.
    pub(crate) async fn new() -> Self {
        let cluster = Cluster::running().await;
        let name = format!("test_{}", Uuid::new_v4().simple());
        cluster
            .administer(format!("create database {name} template template_holdfast"))
            .await;
        let pool = cluster.pool(&name).await;
        let beginning: DateTime<Utc> = "2026-03-02T08:00:00Z".parse().expect("a time");
        let clock = Clock::manual(beginning);
        sqlx::query("insert into test_clock values ($1)")
            .bind(beginning)
            .execute(&pool)
            .await
            .expect("the clock stands");
        let control_plane =
            ControlPlane::connect(pool, clock.clone(), Site::built_in(), Policy::default())
                .await
                .expect("connects");
        control_plane
            .ensure_subscription(SUBSCRIPTION)
            .await
            .expect("tenant");
        let groups = control_plane
            .put_resource_group(&caller(), SUBSCRIPTION, "rg1", Some("eastus2"), None)
            .await;
        assert!(groups.expect("group").1);
        let vault = Vault {
            id: VaultId::new(),
            region: "northcentralus".to_owned(),
            zone: None,
            url: "file:///vault".to_owned(),
            own_copies: 1,
            ordinal: 1,
        };
        control_plane
            .register_vaults(&[vault])
            .await
            .expect("vault");
        let inventory = NodeInventory {
            name: "n1".to_owned(),
            region: "northcentralus".to_owned(),
            zone: None,
            majors: BTreeMap::from([(15, "15.18".to_owned())]),
            port_range: (20_000, 20_063),
            host: "127.0.0.1".to_owned(),
            socket_root: None,
            free_bytes: 1 << 40,
        };
        let token = control_plane
            .issue_join_token("n1", "northcentralus", None, minutes(60))
            .await
            .expect("token");
        let request = JoinRequest {
            token,
            certificate_request: String::new(),
            inventory: inventory.clone(),
        };
        let node = control_plane.join(&request).await.expect("joins");
        let world = Self {
            control_plane,
            clock,
            node,
            boot: BootId::new(),
            lives: HashMap::new(),
            done: Vec::new(),
            inventory,
            _cluster: cluster,
        };
        world.hello().await;
        world
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.control_plane.pool()
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub(crate) async fn hello(&self) -> HelloResponse {
        self.say_hello(Vec::new()).await
    }

    /// The node says what is wrong with a server of its own.
    pub(crate) async fn hello_with_problem(&self, server: &str, problem: Option<&str>) {
        let view = self
            .control_plane
            .get_server(at(server))
            .await
            .expect("there");
        self.say_hello(vec![ServerObservation {
            server: view.server.id,
            incarnation: view.server.incarnation.expect("it lives"),
            running: true,
            data_bytes: None,
            problem: problem.map(str::to_owned),
        }])
        .await;
    }

    async fn say_hello(&self, servers: Vec<ServerObservation>) -> HelloResponse {
        let request = HelloRequest {
            boot: self.boot,
            inventory: self.inventory.clone(),
            servers,
        };
        self.control_plane
            .hello(self.node, &request)
            .await
            .expect("known")
    }

    /// Time passes; the node stays up.
    pub(crate) async fn pass(&self, by: TimeDelta) {
        self.pass_silently(by).await;
        self.hello().await;
    }

    pub(crate) async fn pass_silently(&self, by: TimeDelta) {
        self.clock.advance(by);
        sqlx::query("update test_clock set now = $1")
            .bind(self.now())
            .execute(self.pool())
            .await
            .expect("the clock moves");
    }

    /// Every duty once.
    pub(crate) async fn duties(&self) -> usize {
        let it = &self.control_plane;
        let mut done = it.rescue_leases().await.expect("rescue");
        done += it.enforce_deadlines().await.expect("deadlines");
        done += it.advance_operations().await.expect("advance");
        done += it.schedule_snapshots().await.expect("snapshots");
        done + it.sweep().await.expect("sweep")
    }

    /// Duties and node work until nothing is due.
    pub(crate) async fn run_until_idle(&mut self) {
        for _ in 0..100 {
            let moved = self.duties().await;
            if self.work().await + moved == 0 {
                return;
            }
        }
        panic!("never idle");
    }

    /// Does every job that can be leased now.
    pub(crate) async fn work(&mut self) -> usize {
        let mut done = 0;
        while let Some(job) = self.lease_one().await {
            let outcome = self.outcome(&job).await;
            self.report(&job, &JobResult::Done(outcome))
                .await
                .expect("accepted");
            self.done.push(job.spec.kind());
            done += 1;
        }
        done
    }

    pub(crate) async fn lease_one(&self) -> Option<LeasedJob> {
        self.control_plane
            .lease(self.node, self.boot, 1)
            .await
            .expect("may speak")
            .pop()
    }

    pub(crate) fn lease_ref(&self, job: &LeasedJob) -> LeaseRef {
        LeaseRef {
            job: job.job,
            epoch: job.epoch,
            boot: self.boot,
        }
    }

    pub(crate) async fn report(&self, job: &LeasedJob, result: &JobResult) -> Result<()> {
        self.control_plane
            .report(self.node, self.lease_ref(job), result)
            .await
    }

    /// What a working agent says about this job.
    pub(crate) async fn outcome(&mut self, job: &LeasedJob) -> JobOutcome {
        match &job.spec {
            JobSpec::Provision(spec) => {
                self.begin(spec.placement.incarnation, Timeline::FIRST);
                JobOutcome::Provision(ProvisionOutcome {
                    system_identifier: u64::MAX,
                    minor_version: "15.18".to_owned(),
                    timeline: Timeline::FIRST,
                    wrapped_key: key(),
                    wal_segment_bytes: SEGMENT,
                })
            }
            JobSpec::Snapshot(spec) => JobOutcome::Snapshot(self.snapshot(job, spec).await),
            JobSpec::ArchiveWal(_) => JobOutcome::ArchiveWal(ArchiveWalOutcome {
                report: None,
                unavailable: None,
            }),
            JobSpec::Restore(spec) => {
                self.begin(spec.placement.incarnation, Timeline(2));
                JobOutcome::Restore(Box::new(RestoreOutcome {
                    restored_to: self.now(),
                    target_lsn: None,
                    switch_lsn: Lsn(SEGMENT),
                    timeline: Timeline(2),
                    system_identifier: 7,
                    minor_version: "15.18".to_owned(),
                    wrapped_key: key(),
                    wal_segment_bytes: SEGMENT,
                    bytes_restored: 1,
                    wal_bytes_replayed: 1,
                    post_restore_tasks: Vec::new(),
                    parameter_differences: BTreeMap::new(),
                }))
            }
            JobSpec::Prune(spec) => {
                let may = self
                    .control_plane
                    .validate(self.node, self.lease_ref(job), &spec.keys)
                    .await
                    .expect("lease holds");
                JobOutcome::Prune(PruneOutcome {
                    bytes_freed: may.len() as u64,
                    deleted: may,
                    left: 0,
                })
            }
            JobSpec::Compact(_) => JobOutcome::Compact(CompactOutcome::default()),
            JobSpec::Power(_) => JobOutcome::Power(PowerOutcome {
                minor_version: "15.18".to_owned(),
                drained: true,
                report: None,
            }),
            JobSpec::Drop(_) => JobOutcome::Drop(DropOutcome {
                drained: true,
                report: None,
            }),
        }
    }

    fn begin(&mut self, incarnation: IncarnationId, timeline: Timeline) {
        self.lives.insert(
            incarnation,
            Life {
                timeline,
                durable: Lsn(SEGMENT),
            },
        );
    }

    async fn snapshot(&mut self, job: &LeasedJob, spec: &SnapshotSpec) -> SnapshotOutcome {
        let incarnation = spec.placement.incarnation;
        let start = self.lives[&incarnation].durable;
        // A backup writes WAL of its own, which is no modification.
        self.stream(incarnation, 0x200, false).await;
        let own = ObjectRef {
            key: format!("packs/{incarnation}/{}.{}/0", job.job, job.epoch),
            bytes: 1000,
            living: None,
        };
        let shared = ObjectRef {
            key: format!("packs/{incarnation}/shared"),
            bytes: 5000,
            living: None,
        };
        SnapshotOutcome {
            manifest: ManifestRef {
                backup: spec.backup,
                generation: 0,
                key: format!("backups/{incarnation}/{}/manifest.0", spec.backup),
                hash: "0".repeat(64),
            },
            timeline: self.lives[&incarnation].timeline,
            start_lsn: start,
            stop_lsn: self.lives[&incarnation].durable,
            completed_time: self.now(),
            minor_version: "15.18".to_owned(),
            logical_bytes: 6000,
            stored_bytes: 1000,
            objects: vec![own, shared],
            wal: Vec::new(),
            corrupt_pages: Vec::new(),
        }
    }

    /// The stream makes this much more durable; a modification has a commit stamped now.
    pub(crate) async fn stream(&mut self, incarnation: IncarnationId, bytes: u64, modifies: bool) {
        let now = self.now();
        let life = self.lives.get_mut(&incarnation).expect("it lives");
        let (start, end) = (life.durable, life.durable + bytes);
        life.durable = end;
        let stamp = Stamp {
            at: now,
            lsn: start,
            end,
        };
        let report = WalReport {
            incarnation,
            timeline: life.timeline,
            durable: end,
            objects: vec![WalObject {
                timeline: life.timeline,
                start,
                end,
                key: format!(
                    "wal/{incarnation}/{}/{}-{}",
                    life.timeline,
                    start.sortable(),
                    end.sortable()
                ),
                plaintext_hash: "0".repeat(64),
                stored_bytes: bytes,
                stamps: modifies.then(|| Stamps::of(stamp)),
                last_counting: modifies.then_some(start),
                clock_anomaly: None,
            }],
            superseded: Vec::new(),
            timelines: Vec::new(),
            caught_up_at: Some(now),
            last_counting: modifies.then_some(start),
            held_bytes: 0,
            gap: None,
        };
        self.control_plane
            .wal_report(self.node, self.boot, &report)
            .await
            .expect("taken in");
    }

    /// A running server with its first backup.
    pub(crate) async fn create(&mut self, name: &str) -> ServerView {
        let asked = self
            .control_plane
            .put_server(&caller(), at(name), &wish(), PutMode::Create, &idem())
            .await;
        asked.expect("accepted");
        self.run_until_idle().await;
        self.server(name).await
    }

    pub(crate) async fn server(&self, name: &str) -> ServerView {
        self.control_plane
            .get_server(at(name))
            .await
            .expect("lives")
    }

    pub(crate) async fn life_of(&self, name: &str) -> IncarnationId {
        self.server(name)
            .await
            .server
            .incarnation
            .expect("has a life")
    }

    /// A transaction on the server, now.
    pub(crate) async fn write(&mut self, name: &str) {
        let incarnation = self.life_of(name).await;
        self.stream(incarnation, 0x1000, true).await;
    }

    pub(crate) async fn backups(&self, name: &str) -> usize {
        self.control_plane
            .list_backups(at(name))
            .await
            .expect("listed")
            .len()
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(self.pool())
            .await
            .expect("counts")
    }
}

/// The refusal that was the answer.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T>) -> holdfast_domain::Refusal {
    match answer {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}
