//! A node without PostgreSQL: it leases jobs and reports them done, as an agent would, through the
//! same use cases. For tests of the API, the duties and the catalogue only; no test that speaks of
//! restored *data* may use it.
//!
//! Its servers have a write-ahead log of numbers: every write appends a range, every flush makes an
//! object of it with the stamps it would have.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_control_plane::ControlPlane;
use holdfast_domain::job::{
    ArchiveWalMode, ArchiveWalOutcome, CompactOutcome, CompactSpec, DropOutcome, HelloRequest,
    JobError, JobKind, JobOutcome, JobResult, JobSpec, JoinRequest, LeaseRef, LeasedJob,
    ManifestRef, NodeInventory, ObjectRef, Placement, Power, PowerOutcome, ProvisionOutcome,
    PruneOutcome, RestoreOutcome, RestoreSpec, RewrittenBackup, ServerObservation, SnapshotOutcome,
    SnapshotSpec, WalGap, WalReport, WrappedKey,
};
use holdfast_domain::redundancy::Vault;
use holdfast_domain::restore::RestoreTarget;
use holdfast_domain::wal::{Stamp, Stamps, TimelineStart, WalObject};
use holdfast_domain::{BackupId, BootId, IncarnationId, Lsn, NodeId, ServerId, Timeline};
use holdfast_vault::layout;

/// What a record of ours takes in the log.
const RECORD: u64 = 0x100;
const SEGMENT: u64 = 16 << 20;
const FIRST_RECORD: Lsn = Lsn(0x0100_0000);
/// What it calls its PostgreSQL.
pub const MINOR: &str = "15.18";

/// What a node does with a job it leased.
#[derive(Debug, Clone)]
pub enum Deed {
    /// Does it and says so.
    Finish,
    /// Dies with it: the lease stays and nothing is ever said.
    Abandon,
    /// Says that it did not work.
    Fail(JobError),
}

/// A failure as an agent reports it.
#[must_use]
pub fn failure(code: &str, retryable: bool) -> Deed {
    Deed::Fail(JobError {
        code: code.to_owned(),
        message: format!("{code} happened on the node."),
        retryable,
    })
}

/// How jobs of a kind go, until said otherwise.
pub type Script = BTreeMap<JobKind, Deed>;

/// One life of a data directory, as far as the catalogue can tell.
#[derive(Debug, Clone)]
struct Life {
    server: ServerId,
    timeline: Timeline,
    /// Where the next record goes.
    end: Lsn,
    durable: Lsn,
    stamps: Option<Stamps>,
    last_counting: Option<Lsn>,
    running: bool,
    /// Timelines that were not reported yet.
    timelines: Vec<TimelineStart>,
    gap: Option<WalGap>,
}

/// A node and what is on it.
pub struct ScriptedNode {
    pub id: NodeId,
    pub boot: BootId,
    pub inventory: NodeInventory,
    pub script: Script,
    /// Leased and neither finished nor reported: [`Deed::Abandon`].
    pub abandoned: Vec<LeasedJob>,
    /// Every job that was leased, in order.
    pub leased: Vec<LeasedJob>,
    /// So much is the clock of this node, and of the servers on it, behind everybody else's.
    pub clock_behind: TimeDelta,
    /// Backups need earlier ones' packs too, of each half as much as the backup before did.
    pub shares: bool,
    /// What each backup names, newest last.
    pub named: Vec<(IncarnationId, BackupId, Vec<ObjectRef>)>,
    lives: BTreeMap<IncarnationId, Life>,
    deaf: bool,
}

/// A vault and a joined node in this place.
pub async fn join(
    control_plane: &ControlPlane,
    region: &str,
    zone: Option<&str>,
    index: u16,
) -> Result<ScriptedNode> {
    let name = zone.map_or_else(|| region.to_owned(), |zone| format!("{region}-{zone}"));
    let inventory = NodeInventory {
        name,
        region: region.to_owned(),
        zone: zone.map(str::to_owned),
        majors: BTreeMap::from([(15, MINOR.to_owned())]),
        port_range: (20_000 + index * 100, 20_099 + index * 100),
        host: "127.0.0.1".to_owned(),
        socket_root: None,
        free_bytes: 1 << 40,
    };
    control_plane
        .register_vaults(&[vault(region, zone, &inventory.name)])
        .await?;
    join_as(control_plane, inventory).await
}

/// A vault in this place.
#[must_use]
pub fn vault(region: &str, zone: Option<&str>, name: &str) -> Vault {
    Vault {
        id: holdfast_domain::VaultId::new(),
        region: region.to_owned(),
        zone: zone.map(str::to_owned),
        url: format!("file:///vaults/{name}"),
        own_copies: 1,
        ordinal: 1,
    }
}

/// A joined node that says this of itself; there is a vault for it already.
pub async fn join_as(
    control_plane: &ControlPlane,
    inventory: NodeInventory,
) -> Result<ScriptedNode> {
    let (name, region) = (&inventory.name, &inventory.region);
    let zone = inventory.zone.as_deref();
    let token = control_plane
        .issue_join_token(name, region, zone, chrono::TimeDelta::hours(1))
        .await?;
    let request = JoinRequest {
        token,
        certificate_request: String::new(),
        inventory: inventory.clone(),
    };
    let id = control_plane.join(&request).await?;
    let node = ScriptedNode {
        id,
        boot: BootId::new(),
        inventory,
        script: Script::new(),
        abandoned: Vec::new(),
        leased: Vec::new(),
        clock_behind: TimeDelta::zero(),
        shares: false,
        named: Vec::new(),
        lives: BTreeMap::new(),
        deaf: false,
    };
    node.hello(control_plane).await?;
    Ok(node)
}

impl ScriptedNode {
    /// Neither hears nor says anything from now on, or does again.
    pub fn silence(&mut self, deaf: bool) {
        self.deaf = deaf;
    }

    pub async fn hello(&self, control_plane: &ControlPlane) -> Result<()> {
        if self.deaf {
            return Ok(());
        }
        let servers = self
            .lives
            .iter()
            .map(|(&incarnation, life)| ServerObservation {
                server: life.server,
                incarnation,
                running: life.running,
                data_bytes: Some(32 << 20),
                problem: None,
            })
            .collect();
        let request = HelloRequest {
            boot: self.boot,
            inventory: self.inventory.clone(),
            servers,
        };
        control_plane.hello(self.id, &request).await?;
        Ok(())
    }

    #[must_use]
    pub fn has(&self, incarnation: IncarnationId) -> bool {
        self.lives.contains_key(&incarnation)
    }

    /// Somebody commits a change on the server and fills a segment with it; nothing of it is durable
    /// before the next flush.
    pub fn write(&mut self, incarnation: IncarnationId, at: DateTime<Utc>) {
        if let Some(life) = self.lives.get_mut(&incarnation) {
            let stamp = Stamp {
                at,
                lsn: life.end,
                end: life.end + RECORD,
            };
            life.last_counting = Some(life.end);
            life.end = stamp.end.segment_end(SEGMENT);
            match &mut life.stamps {
                Some(stamps) => stamps.push(stamp),
                none => *none = Some(Stamps::of(stamp)),
            }
        }
    }

    /// WAL that nobody will ever see: from the durable end to the present one.
    pub fn lose_wal(&mut self, incarnation: IncarnationId) {
        if let Some(life) = self.lives.get_mut(&incarnation) {
            let (start, end) = (life.durable, life.end + RECORD);
            life.gap = Some(WalGap {
                timeline: life.timeline,
                start,
                end,
            });
            (life.end, life.durable, life.stamps) = (end, end, None);
        }
    }

    /// Makes everything of the running servers durable and says so.
    pub async fn stream(&mut self, control_plane: &ControlPlane) -> Result<()> {
        let reports = self.news(control_plane.clock().now());
        if !self.deaf {
            for report in &reports {
                control_plane.wal_report(self.id, self.boot, report).await?;
            }
        }
        Ok(())
    }

    /// Makes everything of the running servers durable; what there is to say of it.
    pub fn news(&mut self, now: DateTime<Utc>) -> Vec<WalReport> {
        let running = self.lives.iter_mut().filter(|(_, life)| life.running);
        running
            .map(|(&incarnation, life)| life.flush(incarnation, now))
            .collect()
    }

    /// Does what there is to do. How many jobs were leased.
    pub async fn work(&mut self, control_plane: &ControlPlane) -> Result<usize> {
        if self.deaf {
            return Ok(0);
        }
        let jobs = control_plane.lease(self.id, self.boot, 100).await?;
        let count = jobs.len();
        for job in jobs {
            self.leased.push(job.clone());
            let deed = self.script.get(&job.spec.kind()).cloned();
            match deed.unwrap_or(Deed::Finish) {
                Deed::Finish => self.finish(control_plane, &job).await?,
                Deed::Abandon => self.abandoned.push(job),
                Deed::Fail(error) => {
                    let failed = JobResult::Failed(error);
                    control_plane
                        .report(self.id, self.lease_of(&job), &failed)
                        .await?;
                }
            }
        }
        Ok(count)
    }

    #[must_use]
    pub fn lease_of(&self, job: &LeasedJob) -> LeaseRef {
        LeaseRef {
            job: job.job,
            epoch: job.epoch,
            boot: self.boot,
        }
    }

    /// Does a leased job and reports it.
    pub async fn finish(&mut self, control_plane: &ControlPlane, job: &LeasedJob) -> Result<()> {
        let outcome = self.outcome(control_plane, job).await?;
        control_plane
            .report(self.id, self.lease_of(job), &JobResult::Done(outcome))
            .await
            .with_context(|| format!("report of {:?}", job.spec.kind()))?;
        self.stream(control_plane).await
    }

    /// Does a leased job without saying so: a reply that got lost.
    pub async fn outcome(
        &mut self,
        control_plane: &ControlPlane,
        job: &LeasedJob,
    ) -> Result<JobOutcome> {
        let now = control_plane.clock().now();
        Ok(match &job.spec {
            JobSpec::Provision(spec) => {
                let life = Life::new(spec.placement.server, Timeline::FIRST, FIRST_RECORD, vec![]);
                self.lives.insert(spec.placement.incarnation, life);
                JobOutcome::Provision(ProvisionOutcome {
                    system_identifier: 7_000_000_000_000_000_000,
                    minor_version: MINOR.to_owned(),
                    timeline: Timeline::FIRST,
                    wrapped_key: wrapped_key(),
                    wal_segment_bytes: SEGMENT,
                })
            }
            JobSpec::Snapshot(spec) => {
                JobOutcome::Snapshot(self.snapshot(control_plane, job, spec).await?)
            }
            JobSpec::ArchiveWal(spec) => {
                let incarnation = spec.placement.incarnation;
                let life = match spec.mode {
                    ArchiveWalMode::Flush => self.lives.get_mut(&incarnation),
                    ArchiveWalMode::Survey => None,
                };
                let report = life.map(|life| life.flush(incarnation, now));
                let unavailable = report.is_none().then(|| "its node is silent".to_owned());
                JobOutcome::ArchiveWal(ArchiveWalOutcome {
                    report,
                    unavailable,
                })
            }
            JobSpec::Restore(spec) => JobOutcome::Restore(Box::new(self.restore(spec, now))),
            JobSpec::Prune(spec) => {
                let lease = self.lease_of(job);
                let deleted = control_plane.validate(self.id, lease, &spec.keys).await?;
                let bytes_freed = deleted.len() as u64;
                JobOutcome::Prune(PruneOutcome {
                    deleted,
                    bytes_freed,
                    left: 0,
                })
            }
            JobSpec::Compact(spec) => JobOutcome::Compact(self.compact(job, spec)),
            JobSpec::Power(spec) => {
                let life = self.life(&spec.placement)?;
                let report = life
                    .running
                    .then(|| life.flush(spec.placement.incarnation, now));
                life.running = spec.to != Power::Stopped;
                let minor_version = MINOR.to_owned();
                JobOutcome::Power(PowerOutcome {
                    minor_version,
                    drained: true,
                    report,
                })
            }
            JobSpec::Drop(spec) => {
                let incarnation = spec.placement.incarnation;
                let report = self
                    .lives
                    .remove(&incarnation)
                    .filter(|life| life.running)
                    .map(|mut life| life.flush(incarnation, now));
                JobOutcome::Drop(DropOutcome {
                    drained: true,
                    report,
                })
            }
        })
    }

    fn life(&mut self, placement: &Placement) -> Result<&mut Life> {
        self.lives
            .get_mut(&placement.incarnation)
            .with_context(|| format!("{} is not on this node", placement.server_name))
    }

    async fn snapshot(
        &mut self,
        control_plane: &ControlPlane,
        job: &LeasedJob,
        spec: &SnapshotSpec,
    ) -> Result<SnapshotOutcome> {
        let incarnation = spec.placement.incarnation;
        let now = control_plane.clock().now() - self.clock_behind;
        let life = self.life(&spec.placement)?;
        let start_lsn = life.end;
        // What PostgreSQL itself logs for a backup is no modification (RELIABILITY §5.5).
        life.end = life.end + RECORD;
        let (stop_lsn, timeline) = (life.end, life.timeline);
        // A backup counts when its WAL is durable (DESIGN §3.4).
        self.stream(control_plane).await?;
        let object = |key| ObjectRef {
            key,
            bytes: 1 << 20,
            living: Some(1 << 20),
        };
        let mut objects = vec![
            object(layout::pack(incarnation, job.job, job.epoch, 0)),
            object(layout::leaves(incarnation, job.job, job.epoch, 0)),
        ];
        let earlier = self.named.iter().rev().find(|(of, ..)| *of == incarnation);
        if let Some((.., earlier)) = earlier.filter(|_| self.shares) {
            let packs = earlier
                .iter()
                .filter(|object| object.key.starts_with("packs/"));
            objects.extend(packs.map(|pack| ObjectRef {
                living: pack.living.map(|living| living / 2),
                ..pack.clone()
            }));
        }
        self.named.push((incarnation, spec.backup, objects.clone()));
        Ok(SnapshotOutcome {
            manifest: ManifestRef {
                backup: spec.backup,
                generation: 1,
                key: layout::manifest(incarnation, spec.backup, 1),
                hash: "ab".repeat(32),
            },
            timeline,
            start_lsn,
            stop_lsn,
            completed_time: now,
            minor_version: MINOR.to_owned(),
            logical_bytes: 32 << 20,
            stored_bytes: 2 << 20,
            objects,
            wal: vec![],
            corrupt_pages: vec![],
        })
    }

    /// All that lives of the objects goes into one pack, which every backup concerned names.
    fn compact(&mut self, job: &LeasedJob, spec: &CompactSpec) -> CompactOutcome {
        let incarnation = spec.placement.incarnation;
        let mut outcome = CompactOutcome {
            bytes_read: 1 << 20,
            bytes_written: 1 << 19,
            ..CompactOutcome::default()
        };
        for asked in &spec.backups {
            let backup = asked.manifest.backup;
            let Some((.., named)) = self.named.iter_mut().find(|(_, of, _)| *of == backup) else {
                continue;
            };
            let (dropped, kept): (Vec<_>, Vec<_>) = named
                .iter()
                .cloned()
                .partition(|object| spec.objects.contains(&object.key));
            if dropped.is_empty() {
                continue;
            }
            let living = dropped
                .iter()
                .filter_map(|object| object.living)
                .sum::<u64>();
            let added = ObjectRef {
                key: layout::pack(incarnation, job.job, job.epoch, 0),
                bytes: 1 << 19,
                living: Some(living.min(1 << 19)),
            };
            *named = kept;
            named.push(added.clone());
            let generation = asked
                .generation_of(job.epoch)
                .expect("epochs begin with one");
            outcome.backups.push(RewrittenBackup {
                manifest: ManifestRef {
                    backup,
                    generation,
                    key: layout::manifest(incarnation, backup, generation),
                    hash: "cd".repeat(32),
                },
                added: vec![added],
                dropped: dropped.into_iter().map(|object| object.key).collect(),
            });
        }
        outcome
    }

    fn restore(&mut self, spec: &RestoreSpec, now: DateTime<Utc>) -> RestoreOutcome {
        let source = &spec.source;
        let switch_lsn = source
            .wal
            .last()
            .map_or(source.backup_stop, |object| object.end);
        let timeline = Timeline(source.timeline.0 + 1);
        let incarnation = spec.placement.incarnation;
        let begins = TimelineStart {
            timeline,
            parent: None,
            switch: switch_lsn,
            history_key: Some(layout::history(incarnation, timeline)),
        };
        let life = Life::new(spec.placement.server, timeline, switch_lsn, vec![begins]);
        self.lives.insert(incarnation, life);
        let restored_to = match &spec.target {
            RestoreTarget::At(at) | RestoreTarget::LatestUntil(at) => *at,
            RestoreTarget::Backup(_) => source.backup_completed_time,
            RestoreTarget::Latest => now,
        };
        RestoreOutcome {
            restored_to,
            target_lsn: None,
            switch_lsn,
            timeline,
            system_identifier: 7_000_000_000_000_000_000,
            minor_version: MINOR.to_owned(),
            wrapped_key: wrapped_key(),
            wal_segment_bytes: SEGMENT,
            bytes_restored: 32 << 20,
            wal_bytes_replayed: source
                .wal
                .iter()
                .map(|object| object.end.bytes_since(object.start))
                .sum(),
            post_restore_tasks: vec!["Check the firewall rules.".to_owned()],
            parameter_differences: BTreeMap::from([("work_mem".to_owned(), "64MB".to_owned())]),
        }
    }
}

impl Life {
    fn new(server: ServerId, timeline: Timeline, from: Lsn, timelines: Vec<TimelineStart>) -> Self {
        Self {
            server,
            timeline,
            // The first checkpoint.
            end: from + RECORD,
            durable: from,
            stamps: None,
            last_counting: None,
            running: true,
            timelines,
            gap: None,
        }
    }

    fn flush(&mut self, incarnation: IncarnationId, now: DateTime<Utc>) -> WalReport {
        let (start, end) = (self.durable, self.end);
        let objects = (start < end).then(|| WalObject {
            timeline: self.timeline,
            start,
            end,
            key: layout::wal(incarnation, self.timeline, start, end),
            plaintext_hash: "cd".repeat(32),
            stored_bytes: end.bytes_since(start),
            stamps: self.stamps.take(),
            last_counting: self.last_counting.filter(|counting| *counting >= start),
            clock_anomaly: None,
        });
        self.durable = end;
        WalReport {
            incarnation,
            timeline: self.timeline,
            durable: end,
            objects: objects.into_iter().collect(),
            superseded: vec![],
            timelines: std::mem::take(&mut self.timelines),
            caught_up_at: Some(now),
            last_counting: self.last_counting,
            held_bytes: 0,
            gap: self.gap.take(),
        }
    }
}

fn wrapped_key() -> WrappedKey {
    WrappedKey {
        kek_version: "1".to_owned(),
        wrapped: "c2VhbGVk".to_owned(),
    }
}
