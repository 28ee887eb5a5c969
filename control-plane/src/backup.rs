//! Backups as users see them: listed, asked for, deleted.

use holdfast_domain::activity::Caller;
use holdfast_domain::backup::{BackupKind, BackupState, CompleteBackup, may_delete, may_request};
use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::lock::Verb;
use holdfast_domain::operation::OperationKind;
use holdfast_domain::restore::{RestoreTarget, choose};
use holdfast_domain::{BackupId, OperationId, Refusal, name};

use crate::idempotency::replay;
use crate::operation::Ask;
use crate::server::living;
use crate::store::backup::Backup;
use crate::store::catalogue::Depth;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{Accepted, ControlPlane, Idempotency, Result, ServerRef, lock};

/// A complete backup; others are not shown.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupView {
    pub backup: CompleteBackup,
    /// Bytes of the data directory that it describes.
    pub logical_bytes: u64,
    /// Bytes that it added to the store.
    pub stored_bytes: u64,
}

impl BackupView {
    fn of(backup: Backup) -> Option<Self> {
        Some(Self {
            backup: backup.complete?,
            logical_bytes: backup.logical_bytes,
            stored_bytes: backup.stored_bytes,
        })
    }
}

fn id_of(at: ServerRef<'_>, name: &str) -> String {
    format!("{}/backups/{name}", at.id())
}

impl ControlPlane {
    /// Takes an on-demand backup. Up to seven a server, counted from acceptance; they run one after
    /// the other (FLX-101, FLX-109).
    ///
    /// # Errors
    /// What [`may_request`] refuses; a lock.
    pub async fn request_backup(
        &self,
        caller: &Caller,
        at: ServerRef<'_>,
        name: &str,
        idem: &Idempotency,
    ) -> Result<Accepted> {
        let mut unit = Unit::begin(self).await?;
        let (id, now) = (OperationId::new(), unit.now());
        if let Some(first) = replay(self, &mut unit, caller, at.subscription, idem, id).await? {
            return Ok(first);
        }
        // Holding the server makes counting and inserting one step.
        let server = living(&mut unit, at, Hold::Update).await?;
        let name = name::new_backup(name)?;
        let target = id_of(at, &name);
        lock::allow(&mut unit, at.subscription, &target, Verb::Write).await?;
        let taken =
            store::backup::named(unit.conn(), server.subscription, server.id, &name).await?.is_some();
        let present =
            store::backup::count_on_demand(unit.conn(), server.subscription, server.id).await?;
        may_request(&server, taken, &name, present)?;
        let incarnation = server.incarnation.ok_or_else(|| Refusal::ServerIsNotReady {
            server: server.name.clone(),
            state: server.state,
            wanted: "Ready",
        })?;
        let backup = Backup {
            subscription: server.subscription,
            id: BackupId::new(),
            server: server.id,
            incarnation,
            kind: BackupKind::OnDemand,
            state: BackupState::Requested,
            name: Some(name.clone()),
            complete: None,
            logical_bytes: 0,
            stored_bytes: 0,
            delete_after: None,
        };
        if !store::backup::insert(unit.conn(), &backup, None, now).await? {
            return Err(Refusal::BackupAlreadyExists { server: server.name, backup: name }.into());
        }
        let ask = Ask {
            id,
            kind: OperationKind::CreateBackup,
            caller,
            method: idem.method,
            server: &server,
            backup: Some(backup.id),
            resource_id: target,
            input: None,
        };
        let accepted = self.accept_and_begin(&mut unit, ask).await?;
        unit.commit().await?;
        Ok(accepted)
    }

    /// Deletes an on-demand backup (FLX-104). Its bytes go after the grace – at once unlinked when an
    /// earlier backup reaches the same instants, else as soon as the window no longer needs it.
    /// `None`: there is no such backup.
    ///
    /// # Errors
    /// What [`may_delete`] refuses; [`Refusal::ServerIsBusy`] while it is being taken; a lock.
    pub async fn delete_backup(
        &self,
        caller: &Caller,
        at: ServerRef<'_>,
        name: &str,
        idem: &Idempotency,
    ) -> Result<Option<Accepted>> {
        let mut unit = Unit::begin(self).await?;
        let (id, now) = (OperationId::new(), unit.now());
        if let Some(first) = replay(self, &mut unit, caller, at.subscription, idem, id).await? {
            return Ok(Some(first));
        }
        let server = living(&mut unit, at, Hold::Update).await?;
        let found = store::backup::named(unit.conn(), server.subscription, server.id, name).await?;
        let Some(backup) = found else {
            return Ok(None);
        };
        let target = id_of(at, name);
        lock::allow(&mut unit, at.subscription, &target, Verb::Delete).await?;
        let pins = store::pin::on(unit.conn(), backup.subscription, backup.incarnation).await?;
        let pinned = pins.iter().any(|held| held.backup == backup.id);
        may_delete(backup.kind, name, pinned, server.settings.retention.days())?;
        if backup.state != BackupState::Complete {
            return Err(Refusal::ServerIsBusy { server: server.name }.into());
        }
        let catalogue =
            store::catalogue::load(unit.conn(), backup.subscription, backup.incarnation, Depth::Whole)
                .await?;
        if catalogue.is_some_and(|catalogue| can_be_spared(&catalogue, backup.id)) {
            let after = now + self.policy().prune_grace;
            store::backup::expire(unit.conn(), backup.subscription, &[backup.id], after).await?;
        } else {
            store::backup::hide(unit.conn(), backup.subscription, backup.id, now).await?;
        }
        let ask = Ask {
            id,
            kind: OperationKind::DeleteBackup,
            caller,
            method: idem.method,
            server: &server,
            backup: Some(backup.id),
            resource_id: target,
            input: None,
        };
        let accepted = self.accept_and_begin(&mut unit, ask).await?;
        unit.commit().await?;
        Ok(Some(accepted))
    }

    /// # Errors
    /// [`Refusal::ResourceNotFound`], also while it is being taken.
    pub async fn get_backup(&self, at: ServerRef<'_>, name: &str) -> Result<BackupView> {
        let mut unit = Unit::begin(self).await?;
        let server = living(&mut unit, at, Hold::None).await?;
        store::backup::named(unit.conn(), server.subscription, server.id, name)
            .await?
            .and_then(BackupView::of)
            .ok_or_else(|| {
                Refusal::ResourceNotFound {
                    kind: "Microsoft.DBforPostgreSQL/flexibleServers/backups",
                    name: format!("{}/{name}", at.name),
                    group: at.group.to_owned(),
                }
                .into()
            })
    }

    /// Complete ones, oldest first.
    ///
    /// # Errors
    /// [`Refusal::ResourceNotFound`] for the server.
    pub async fn list_backups(&self, at: ServerRef<'_>) -> Result<Vec<BackupView>> {
        let mut unit = Unit::begin(self).await?;
        let server = living(&mut unit, at, Hold::None).await?;
        let backups = store::backup::visible(unit.conn(), server.subscription, server.id).await?;
        Ok(backups.into_iter().filter_map(BackupView::of).collect())
    }
}

/// Whether every instant is still reached without this backup: an earlier one and WAL without a gap
/// lead to where it ended (FLX-104: point-in-time restore in the window still works).
pub(crate) fn can_be_spared(catalogue: &Catalogue, id: BackupId) -> bool {
    let Some(backup) = catalogue.backup(id) else {
        return true;
    };
    let mut without = catalogue.clone();
    without.backups.retain(|other| other.id != id);
    choose(&without, RestoreTarget::At(backup.completed_time)).is_ok()
        && catalogue.latest_restorable() == without.latest_restorable()
}
