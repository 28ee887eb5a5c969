//! Restores.
use chrono::{DateTime, Utc};
use holdfast_domain::BackupId;
use holdfast_domain::activity::Caller;
use holdfast_domain::job::WalGap;
use holdfast_domain::resource_id::ServerResourceId;
use holdfast_domain::restore::{Bounds, RestoreTarget};
use holdfast_domain::server::ServerWish;

use crate::{Accepted, ControlPlane, Error, Idempotency, Result, ServerRef};

/// What a restore would use; nothing is reserved by asking.
#[derive(Debug, Clone, PartialEq)]
pub struct RestorePreview {
    pub server: String,
    pub bounds: Bounds,
    /// How old the newest restorable instant is now.
    pub age_seconds: f64,
    pub target: RestoreTarget,
    pub backup: BackupId,
    pub backup_name: String,
    pub backup_completed: DateTime<Utc>,
    pub backup_logical_bytes: u64,
    pub backup_stored_bytes: u64,
    /// Bytes of WAL that recovery reads at most, and between which instants they were committed.
    pub wal_bytes: u64,
    pub wal_objects: usize,
    pub wal_from: Option<DateTime<Utc>>,
    pub wal_to: Option<DateTime<Utc>>,
    /// Holes in the write-ahead log that nothing can fill.
    pub gaps: Vec<WalGap>,
}

impl ControlPlane {
    /// The caller's rights on the source were checked before.
    pub async fn restore_server(&self, _caller: &Caller, _target: ServerRef<'_>, _source: &ServerResourceId, _at: Option<DateTime<Utc>>, _wish: &ServerWish, _idem: &Idempotency) -> Result<Accepted> { Err(Error::Corrupt("not yet".into())) }
    pub async fn preview_restore(&self, _source: ServerRef<'_>, _at: Option<DateTime<Utc>>) -> Result<RestorePreview> { Err(Error::Corrupt("not yet".into())) }
}
