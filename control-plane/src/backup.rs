//! Backups as users see them.
use holdfast_domain::activity::Caller;
use holdfast_domain::backup::CompleteBackup;

use crate::{Accepted, ControlPlane, Error, Idempotency, Result, ServerRef};

/// A complete backup; others are not shown.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupView {
    pub backup: CompleteBackup,
    pub logical_bytes: u64,
    pub stored_bytes: u64,
}

impl ControlPlane {
    pub async fn request_backup(&self, _caller: &Caller, _at: ServerRef<'_>, _name: &str, _idem: &Idempotency) -> Result<Accepted> { Err(Error::Corrupt("not yet".into())) }
    /// None: there is no such backup.
    pub async fn delete_backup(&self, _caller: &Caller, _at: ServerRef<'_>, _name: &str, _idem: &Idempotency) -> Result<Option<Accepted>> { Err(Error::Corrupt("not yet".into())) }
    pub async fn get_backup(&self, _at: ServerRef<'_>, _name: &str) -> Result<BackupView> { Err(Error::Corrupt("not yet".into())) }
    pub async fn list_backups(&self, _at: ServerRef<'_>) -> Result<Vec<BackupView>> { Err(Error::Corrupt("not yet".into())) }
}
