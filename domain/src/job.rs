//! What the scheduler and the agents say to each other.
//!
//! A *job* is one piece of work for one node. The agent pulls it by long poll, holds it under a
//! *lease* (epoch, boot id, expiry) and reports under that epoch; whatever carries an older epoch is
//! refused (DESIGN §3.8). These types are the body of every call on the scheduler's agent port; they
//! are JSON there and in the `job` table.
//!
//! Every job may run twice and may die half-way. What each does then stands at its spec.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::leavings::Leavings;
use crate::restore::RestoreTarget;
use crate::wal::{TimelineStart, WalObject};
use crate::{
    BackupId, BootId, IncarnationId, JobId, Lsn, NodeId, OperationId, ServerId, Timeline, VaultId,
};

/// The verbs. One duty or use case makes each, one file in `agent/src/work` does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    Provision,
    Snapshot,
    ArchiveWal,
    Restore,
    Prune,
    Compact,
    Power,
    Drop,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    Queued,
    Leased,
    Done,
    Failed,
    Canceled,
}

impl JobState {
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Canceled)
    }
}

/// The work itself. Self-contained: an agent needs nothing else to do it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobSpec {
    Provision(ProvisionSpec),
    Snapshot(SnapshotSpec),
    ArchiveWal(ArchiveWalSpec),
    Restore(Box<RestoreSpec>),
    Prune(PruneSpec),
    Compact(CompactSpec),
    Power(PowerSpec),
    Drop(DropSpec),
}

impl JobSpec {
    #[must_use]
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Provision(_) => JobKind::Provision,
            Self::Snapshot(_) => JobKind::Snapshot,
            Self::ArchiveWal(_) => JobKind::ArchiveWal,
            Self::Restore(_) => JobKind::Restore,
            Self::Prune(_) => JobKind::Prune,
            Self::Compact(_) => JobKind::Compact,
            Self::Power(_) => JobKind::Power,
            Self::Drop(_) => JobKind::Drop,
        }
    }
}

/// Where a server lives on its node. The same facts for every job of one incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub server: ServerId,
    pub incarnation: IncarnationId,
    /// For people: log lines and the prompt of a connection. Never part of a path.
    pub server_name: String,
    /// PostgreSQL's major version.
    pub major: u16,
    /// The port it keeps for life, out of its node's range.
    pub port: u16,
    /// Vaults that must hold an object before it counts as durable (DESIGN §3.3, §5). Never empty.
    pub vaults: Vec<VaultRef>,
}

/// A vault as an agent reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultRef {
    pub id: VaultId,
    /// `file:///…`, `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`.
    pub url: String,
}

/// A data key, wrapped by a key-encryption key. Useless without the latter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Which key-encryption key opens it.
    pub kek_version: String,
    /// Base64 of the sealed data key.
    pub wrapped: String,
}

/// A new, empty server.
/// Twice: an existing directory of this incarnation that is complete is adopted; an incomplete one
/// (no marker file) is removed and made again. Half: the directory has a temporary name until done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionSpec {
    pub placement: Placement,
    pub administrator_login: String,
    /// Never logged; the row that holds it is cleared when the job ends.
    pub administrator_password: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionOutcome {
    pub system_identifier: u64,
    /// `15.18`.
    pub minor_version: String,
    pub timeline: Timeline,
    pub wrapped_key: WrappedKey,
    pub wal_segment_bytes: u64,
}

/// One physical backup of a running server (RELIABILITY §5.2).
/// Twice: a manifest that this job already published is adopted. Half: PostgreSQL ends the backup
/// with its session; objects of the dead attempt carry its epoch and go with the next prune.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    pub placement: Placement,
    pub backup: BackupId,
    /// The newest complete backup, whose unchanged frames are named again; `None`: all is uploaded.
    pub base: Option<ManifestRef>,
    pub wrapped_key: WrappedKey,
}

/// A manifest generation in a vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRef {
    pub backup: BackupId,
    pub generation: u32,
    pub key: String,
    /// BLAKE3 of the stored bytes, 64 hexadecimal digits.
    pub hash: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotOutcome {
    pub manifest: ManifestRef,
    pub timeline: Timeline,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    /// Every commit stamped up to here, and none stamped later, is in the state this backup
    /// restores by itself: the server's clock read before `pg_backup_stop`, raised to the largest
    /// stamp found before the stop LSN.
    pub completed_time: DateTime<Utc>,
    pub minor_version: String,
    /// Bytes of the data directory that the manifest describes.
    pub logical_bytes: u64,
    /// Bytes this attempt added to the store.
    pub stored_bytes: u64,
    /// Every pack and leaf object that the manifest needs, new ones and those of earlier backups:
    /// what prune counts references by.
    pub objects: Vec<ObjectRef>,
    /// The WAL from the segment in which it starts to its stop, as it was found in every vault: a
    /// backup and what it needs enter the catalogue in one transaction (DESIGN §3.4), whichever way
    /// the stream's own news takes.
    #[serde(default)]
    pub wal: Vec<WalObject>,
    /// Pages that failed their checksum although WAL does not repair them (`path:page`).
    pub corrupt_pages: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectRef {
    pub key: String,
    pub bytes: u64,
    /// About how much of it the backup that names it needs; `None`: not known, so all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub living: Option<u64>,
}

/// Makes the newest WAL durable, so that "latest" means what the caller means.
/// Any number of times, half or twice: it only ever adds WAL objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveWalSpec {
    pub placement: Placement,
    pub wrapped_key: WrappedKey,
    pub mode: ArchiveWalMode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveWalMode {
    /// On the server's own node: everything committed until now becomes durable. A server that is
    /// not running is drained from its `pg_wal`; a directory that is gone yields what is durable.
    Flush,
    /// On any node that reaches the vault: list `wal/` for objects that a silent agent never reported.
    Survey,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveWalOutcome {
    /// WAL as far as it is known durable after the job, with all objects not yet acknowledged.
    pub report: Option<WalReport>,
    /// Why the source itself could not be asked, when it could not. Not a failure of the job.
    pub unavailable: Option<String>,
}

/// A restore into a new directory (RELIABILITY §5.4).
/// Twice: each attempt has its own directory (job and epoch in its name); the finished one is
/// adopted. Half: the postmaster of an older attempt is ended and its directory removed first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// The new server.
    pub placement: Placement,
    pub administrator_login: String,
    /// `None`: login and password stay those of the restored state.
    pub administrator_password: Option<String>,
    pub source: RestoreSource,
    pub target: RestoreTarget,
}

/// What a restore reads, chosen by `domain::restore::choose` and pinned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreSource {
    pub server: ServerId,
    pub server_name: String,
    pub incarnation: IncarnationId,
    pub vaults: Vec<VaultRef>,
    pub wrapped_key: WrappedKey,
    pub manifest: ManifestRef,
    pub backup_start: Lsn,
    pub backup_stop: Lsn,
    pub backup_timeline: Timeline,
    pub backup_completed_time: DateTime<Utc>,
    pub wal_segment_bytes: u64,
    /// The timeline on which the target lies; numeric in `recovery_target_timeline`.
    pub timeline: Timeline,
    /// The path from the backup's timeline to the target's, ancestors first.
    pub lineage: Vec<TimelineStart>,
    /// All WAL on that path from the backup's start to the end of what the target can need, in
    /// order. The agent cuts it to the file that holds the target and not one more.
    pub wal: Vec<WalObject>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreOutcome {
    /// The state that was reached contains everything committed up to here.
    pub restored_to: DateTime<Utc>,
    /// The record recovery ended at; `None` when the backup alone was wanted.
    pub target_lsn: Option<Lsn>,
    /// Where the new timeline branched off, read from the new history file.
    pub switch_lsn: Lsn,
    pub timeline: Timeline,
    pub system_identifier: u64,
    pub minor_version: String,
    pub wrapped_key: WrappedKey,
    pub wal_segment_bytes: u64,
    pub bytes_restored: u64,
    pub wal_bytes_replayed: u64,
    /// What the caller still has to do, in plain words (FLX-093…FLX-098).
    pub post_restore_tasks: Vec<String>,
    /// Parameters that the source had set and the new server has not (FLX-094): name → source value.
    pub parameter_differences: BTreeMap<String, String>,
}

/// Looks for leavings, then deletes an explicit list, in order: manifests first, then what only they
/// named, then WAL.
/// Twice: an object that is gone counts as deleted. Half: the rest goes with the next attempt.
/// Before each batch the agent asks whether its lease still stands ([`ValidateRequest`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneSpec {
    pub incarnation: IncarnationId,
    pub vault: VaultRef,
    pub keys: Vec<String>,
    /// Found by listing; each key found is asked about as those of the list are.
    #[serde(default)]
    pub leavings: Leavings,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneOutcome {
    pub deleted: Vec<String>,
    pub bytes_freed: u64,
    /// Leavings that were found and were not allowed to go.
    #[serde(default)]
    pub left: u64,
}

/// Rewrites objects most of which no backup needs: pages and leaves in them that backups do need go into
/// new ones, and each backup that named them gets a manifest of a new generation (DESIGN §3.1, ADR 18).
/// Old manifests and objects stay; the catalogue lets them go when it has taken the new ones in.
/// Twice: each attempt has generations and keys of its own. Half: no catalogue names what it wrote; its
/// manifests are equal to the old ones as long as they are whole, and go with what they name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactSpec {
    pub placement: Placement,
    pub wrapped_key: WrappedKey,
    /// Every complete backup, oldest first.
    pub backups: Vec<CompactedBackup>,
    /// Keys of the packs and leaf objects to rewrite.
    pub objects: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactedBackup {
    /// The generation in use.
    pub manifest: ManifestRef,
    /// The generation that the first attempt writes; each later one writes the next. Reserved for this job.
    pub next_generation: u32,
}

impl CompactedBackup {
    /// What the attempt of this epoch writes; `None`: there is no such attempt.
    #[must_use]
    pub fn generation_of(&self, epoch: i64) -> Option<u32> {
        let later = u32::try_from(epoch.checked_sub(1)?).ok()?;
        self.next_generation.checked_add(later)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactOutcome {
    /// Backups that named some of the objects. The others are as they were.
    pub backups: Vec<RewrittenBackup>,
    /// Of the rewritten objects, what was read to copy it.
    pub bytes_read: u64,
    /// New packs and leaf objects.
    pub bytes_written: u64,
}

/// A backup under a new manifest, and what that names differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewrittenBackup {
    pub manifest: ManifestRef,
    pub added: Vec<ObjectRef>,
    pub dropped: Vec<String>,
}

/// Brings a server to a state of rest or work. Twice: nothing to do the second time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerSpec {
    pub placement: Placement,
    pub wrapped_key: WrappedKey,
    pub to: Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    Running,
    Stopped,
    Restarted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOutcome {
    pub minor_version: String,
    /// For a stop: whether every byte of `pg_wal` is durable. If not, the agent goes on draining.
    pub drained: bool,
    pub report: Option<WalReport>,
}

/// Stops a server for good, drains its last WAL and removes its directory. The vault keeps its
/// backups until `restorable_until`. Twice: a directory that is gone is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropSpec {
    pub placement: Placement,
    /// `None` when the server never got as far as having a key.
    pub wrapped_key: Option<WrappedKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropOutcome {
    pub drained: bool,
    pub report: Option<WalReport>,
}

/// How a job ended, as its agent tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobOutcome {
    Provision(ProvisionOutcome),
    Snapshot(SnapshotOutcome),
    ArchiveWal(ArchiveWalOutcome),
    Restore(Box<RestoreOutcome>),
    Prune(PruneOutcome),
    Compact(CompactOutcome),
    Power(PowerOutcome),
    Drop(DropOutcome),
}

impl JobOutcome {
    #[must_use]
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Provision(_) => JobKind::Provision,
            Self::Snapshot(_) => JobKind::Snapshot,
            Self::ArchiveWal(_) => JobKind::ArchiveWal,
            Self::Restore(_) => JobKind::Restore,
            Self::Prune(_) => JobKind::Prune,
            Self::Compact(_) => JobKind::Compact,
            Self::Power(_) => JobKind::Power,
            Self::Drop(_) => JobKind::Drop,
        }
    }
}

/// A job that did not work. `code` is stable and reaches the user in the operation's error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// `ObjectStoreUnavailable`, `BackupCorrupted`, `WalGap`, `KeyUnavailable`, …
    pub code: String,
    /// What went wrong and what to change; no path, no SQL, no secret.
    pub message: String,
    /// Worth another attempt, or final.
    pub retryable: bool,
}

// ------------------------------------------------------------------------------ the agent's calls

/// `POST /agent/v1/join`, the only call without a client certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// One use, short-lived, bound to node and region.
    pub token: String,
    /// PKCS #10, PEM.
    pub certificate_request: String,
    pub inventory: NodeInventory,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinResponse {
    pub node: NodeId,
    /// PEM; the client certificate of every later call.
    pub certificate: String,
    pub expires: DateTime<Utc>,
}

/// `POST /agent/v1/renew-certificate`, under the certificate in use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewCertificateRequest {
    pub certificate_request: String,
}

/// What a node can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeInventory {
    pub name: String,
    pub region: String,
    pub zone: Option<String>,
    /// PostgreSQL majors found, with their newest minor: 15 → "15.18".
    pub majors: BTreeMap<u16, String>,
    /// Ports that servers of this node may use, first and last.
    pub port_range: (u16, u16),
    /// What a client on this node's network calls it.
    pub host: String,
    /// Where sockets are on the node itself: `{socket_root}/{port}` is a server's socket directory.
    #[serde(default)]
    pub socket_root: Option<String>,
    pub free_bytes: u64,
}

/// `POST /agent/v1/hello`: once at start and then every half minute. Says that the node is up and
/// what it has; answers what it should be running.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HelloRequest {
    pub boot: BootId,
    pub inventory: NodeInventory,
    pub servers: Vec<ServerObservation>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HelloResponse {
    pub node: NodeId,
    pub servers: Vec<Assignment>,
}

/// A server that a node has, and how it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub placement: Placement,
    pub wrapped_key: WrappedKey,
    /// Running or Stopped.
    pub power: Power,
}

/// What an agent sees of one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerObservation {
    pub server: ServerId,
    pub incarnation: IncarnationId,
    pub running: bool,
    pub data_bytes: Option<u64>,
    /// Something that somebody has to know: a drifted setting, a postmaster that will not start.
    pub problem: Option<String>,
}

/// `POST /agent/v1/lease`: a long poll for work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseRequest {
    pub boot: BootId,
    /// How many more jobs this agent would take now.
    pub capacity: u32,
    /// How long the answer may be held back when there is nothing to do, in seconds (≤ 30).
    pub wait_s: u32,
    /// What this agent works on and was not told about yet, see [`LeaseResponse::renew`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub running: Vec<LeaseRef>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LeaseResponse {
    pub jobs: Vec<LeasedJob>,
    /// Of `running`, those that are not wanted any more or have another holder. Their next renewal says
    /// which; it is to be made now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renew: Vec<JobId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeasedJob {
    pub job: JobId,
    pub epoch: i64,
    pub operation: Option<OperationId>,
    /// How long the lease lasts without renewal, in seconds.
    pub lease_s: u32,
    pub attempt: u32,
    pub spec: JobSpec,
    /// W3C trace context of the request that caused this.
    pub traceparent: Option<String>,
}

/// Which lease a call speaks for. Anything but the newest epoch of this boot is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseRef {
    pub job: JobId,
    pub epoch: i64,
    pub boot: BootId,
}

/// `POST /agent/v1/progress`: renews the lease and says how far the work is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProgressRequest {
    pub lease: LeaseRef,
    pub progress: Option<Progress>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProgressResponse {
    /// The job is no longer wanted: stop within a second and report `Canceled`.
    pub cancel: bool,
    pub lease_s: u32,
}

/// What a running job shows in its operation's body (FLX-003, FLX-054).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// `Preparing`, `CopyingData`, `ReplayingWal`, `Finishing`, … in the order in which they come.
    pub phase: String,
    pub bytes_done: u64,
    pub bytes_total: Option<u64>,
    pub wal_bytes_done: u64,
    pub wal_bytes_total: Option<u64>,
    /// Recovery has replayed what was committed up to here.
    pub recovered_up_to: Option<DateTime<Utc>>,
    /// 0 to 100, never falling.
    pub percent: f64,
}

/// `POST /agent/v1/report`: the job ended. The same report twice is one report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportRequest {
    pub lease: LeaseRef,
    pub result: JobResult,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobResult {
    Done(JobOutcome),
    Failed(JobError),
    Canceled,
}

/// `POST /agent/v1/validate`: may this lease still delete? Asked before each batch of deletions;
/// the scheduler re-checks the epoch and every pin, and answers with the keys that may go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ValidateRequest {
    pub lease: LeaseRef,
    pub keys: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ValidateResponse {
    pub may_delete: Vec<String>,
}

/// `POST /agent/v1/wal`: the streams' news, batched. Each report stands for itself: what the answer
/// does not name was kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WalReportRequest {
    pub boot: BootId,
    pub reports: Vec<WalReport>,
    #[serde(default)]
    pub idleness: Idleness,
}

/// News of the streams that have none, all of a node in one instant: what keeps the recovery point of ten
/// thousand idle servers at now, for one row a node (ADR 16). Taken in the order of the fields, reports
/// between the first and the second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idleness {
    /// These have something to say again, or have ended.
    pub ended: Vec<IncarnationId>,
    /// From now on these are idle: nothing differs from their last report but the time.
    pub begun: Vec<IncarnationId>,
    /// All that the idle ones had committed at this instant is durable, and reported.
    pub until: Option<DateTime<Utc>>,
}

impl Idleness {
    #[must_use]
    pub fn says_nothing(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalReportResponse {
    #[serde(default)]
    pub refused: Vec<RefusedWalReport>,
}

/// A report that was not kept, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedWalReport {
    pub incarnation: IncarnationId,
    pub code: String,
    pub message: String,
}

/// The stream of one incarnation since its last acknowledged report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalReport {
    pub incarnation: IncarnationId,
    pub timeline: Timeline,
    /// Everything before this is durable in every vault demanded synchronously.
    pub durable: Lsn,
    /// Objects made since the last report that was acknowledged. Sending one again is harmless.
    pub objects: Vec<WalObject>,
    /// Keys of tails that a complete segment replaced; they go with the next prune.
    pub superseded: Vec<String>,
    /// Timelines whose history file became durable.
    pub timelines: Vec<TimelineStart>,
    /// The newest instant at which everything the server had committed was durable
    /// (RELIABILITY §5.5, "latest").
    pub caught_up_at: Option<DateTime<Utc>>,
    /// The newest record that counts as a modification, durable or not.
    pub last_counting: Option<Lsn>,
    /// WAL that the slot keeps because the store has not taken it yet.
    pub held_bytes: u64,
    /// WAL that is in no store and no `pg_wal`: a hole for ever.
    pub gap: Option<WalGap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalGap {
    pub timeline: Timeline,
    pub start: Lsn,
    pub end: Lsn,
}
