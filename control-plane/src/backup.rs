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
        // A backup's name says which request it was, so only an id makes a repetition the same one
        // (DESIGN §2); without it the name is taken from acceptance on.
        if idem.client_request_id.is_some()
            && let Some(first) = replay(self, &mut unit, caller, at.subscription, idem, id).await?
        {
            return Ok(first);
        }
        // Holding the server makes counting and inserting one step.
        let server = living(&mut unit, at, Hold::Update).await?;
        let name = name::new_backup(name)?;
        let target = id_of(at, &name);
        lock::allow(&mut unit, at.subscription, &target, Verb::Write).await?;
        let taken = store::backup::named(unit.conn(), server.subscription, server.id, &name)
            .await?
            .is_some();
        let present =
            store::backup::count_on_demand(unit.conn(), server.subscription, server.id).await?;
        may_request(&server, taken, &name, present)?;
        let incarnation = server
            .incarnation
            .ok_or_else(|| Refusal::ServerIsNotReady {
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
            return Err(Refusal::BackupAlreadyExists {
                server: server.name,
                backup: name,
            }
            .into());
        }
        let ask = Ask {
            id,
            kind: OperationKind::CreateBackup,
            caller,
            method: idem.method,
            server: &server,
            backup: Some((backup.id, &name)),
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
            return Err(Refusal::ServerIsBusy {
                server: server.name,
            }
            .into());
        }
        let catalogue = store::catalogue::load(
            unit.conn(),
            backup.subscription,
            backup.incarnation,
            Depth::Whole,
        )
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
            backup: Some((backup.id, backup.name.as_deref().unwrap_or(name))),
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

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use futures::future::join_all;
    use holdfast_domain::job::{JobKind, Power};
    use holdfast_domain::server::Tier;

    use super::*;
    use crate::PutMode;
    use crate::story::{World, at, caller, idem, refused, wish};

    #[tokio::test]
    async fn of_twenty_backups_asked_for_at_once_seven_are_accepted() {
        // FLX-109
        let mut world = World::new().await;
        world.create("pg1").await;
        let who = caller();
        let requests: Vec<_> = (0..20).map(|n| (format!("b{n}"), idem())).collect();
        let it = world.control_plane.clone();
        let asked = requests
            .iter()
            .map(|(name, idem)| it.request_backup(&who, at("pg1"), name, idem));
        let answers = join_all(asked).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 7);
        for answer in answers.into_iter().filter(Result::is_err) {
            assert!(matches!(
                refused(answer),
                Refusal::OnDemandBackupLimitReached { limit: 7, .. }
            ));
        }
        world.run_until_idle().await;
        assert_eq!(
            world.backups("pg1").await,
            8,
            "seven and the first automatic one"
        );
        let one = it
            .list_backups(at("pg1"))
            .await
            .expect("lists")
            .pop()
            .expect("there")
            .backup
            .name;
        it.delete_backup(&who, at("pg1"), &one, &idem())
            .await
            .expect("accepted")
            .expect("there");
        it.request_backup(&who, at("pg1"), "one-more", &idem())
            .await
            .expect("there is room again");
    }

    #[tokio::test]
    async fn a_name_is_taken_until_its_backup_is_deleted() {
        // FLX-105
        let mut world = World::new().await;
        world.create("pg1").await;
        let it = world.control_plane.clone();
        let first = idem();
        it.request_backup(&caller(), at("pg1"), "Before", &first)
            .await
            .expect("accepted");
        let again = it
            .request_backup(&caller(), at("pg1"), "Before", &first)
            .await
            .expect("the same");
        assert!(again.replayed);
        let answer = it
            .request_backup(&caller(), at("pg1"), "before", &idem())
            .await;
        assert!(matches!(
            refused(answer),
            Refusal::BackupAlreadyExists { .. }
        ));
        let answer = it.get_backup(at("pg1"), "before").await;
        assert!(
            matches!(refused(answer), Refusal::ResourceNotFound { .. }),
            "not yet complete"
        );
        world.run_until_idle().await;
        assert_eq!(
            it.get_backup(at("pg1"), "BEFORE")
                .await
                .expect("there")
                .backup
                .name,
            "Before"
        );
        it.delete_backup(&caller(), at("pg1"), "before", &idem())
            .await
            .expect("ok")
            .expect("there");
        assert!(
            it.delete_backup(&caller(), at("pg1"), "before", &idem())
                .await
                .expect("ok")
                .is_none()
        );
        it.request_backup(&caller(), at("pg1"), "before", &idem())
            .await
            .expect("free again");
    }

    #[tokio::test]
    async fn an_automatic_backup_cannot_be_deleted() {
        // FLX-106
        let mut world = World::new().await;
        world.create("pg1").await;
        let it = world.control_plane.clone();
        let name = it.list_backups(at("pg1")).await.expect("lists")[0]
            .backup
            .name
            .clone();
        let answer = it.delete_backup(&caller(), at("pg1"), &name, &idem()).await;
        assert!(matches!(
            refused(answer),
            Refusal::AutomaticBackupCannotBeDeleted {
                retention_days: 7,
                ..
            }
        ));
    }

    #[tokio::test]
    async fn a_burstable_server_has_no_on_demand_backups() {
        // FLX-107
        let mut world = World::new().await;
        let wish = holdfast_domain::server::ServerWish {
            sku_name: Some("Standard_B1ms".to_owned()),
            sku_tier: Some(Tier::Burstable),
            ..wish()
        };
        let it = world.control_plane.clone();
        it.put_server(&caller(), at("pg1"), &wish, PutMode::Create, &idem())
            .await
            .expect("accepted");
        world.run_until_idle().await;
        let answer = it.request_backup(&caller(), at("pg1"), "b1", &idem()).await;
        assert!(matches!(
            refused(answer),
            Refusal::OnDemandBackupNotSupported { .. }
        ));
    }

    #[tokio::test]
    async fn a_stop_waits_for_an_on_demand_backup_and_cancels_an_automatic_one() {
        let mut world = World::new().await;
        world.create("pg1").await;
        let it = world.control_plane.clone();
        it.request_backup(&caller(), at("pg1"), "b1", &idem())
            .await
            .expect("accepted");
        let answer = it
            .power_server(&caller(), at("pg1"), Power::Stopped, &idem())
            .await;
        assert!(matches!(refused(answer), Refusal::ServerIsBusy { .. }));
        world.run_until_idle().await;
        world.pass(TimeDelta::days(1)).await;
        world.write("pg1").await;
        assert_eq!(it.schedule_snapshots().await.expect("due"), 1);
        let running = world.lease_one().await.expect("the automatic one");
        it.power_server(&caller(), at("pg1"), Power::Stopped, &idem())
            .await
            .expect("accepted");
        let renewed = it
            .progress(world.node, world.lease_ref(&running), None)
            .await
            .expect("still leased");
        assert!(renewed.cancel);
        let canceled = holdfast_domain::job::JobResult::Canceled;
        world.report(&running, &canceled).await.expect("taken");
        world.run_until_idle().await;
        assert_eq!(world.done.last(), Some(&JobKind::Power));
        // What made way is no failure: the next one is not put off.
        it.power_server(&caller(), at("pg1"), Power::Running, &idem())
            .await
            .expect("accepted");
        world.work().await;
        assert_eq!(it.schedule_snapshots().await.expect("due"), 1);
    }

    #[tokio::test]
    async fn a_deleted_backup_that_the_window_needs_stays_until_it_does_not() {
        // FLX-104
        let mut world = World::new().await;
        world.create("pg1").await;
        let it = world.control_plane.clone();
        world.pass(TimeDelta::hours(2)).await;
        world.write("pg1").await;
        it.request_backup(&caller(), at("pg1"), "b1", &idem())
            .await
            .expect("accepted");
        world.run_until_idle().await;
        let before = world.server("pg1").await;
        it.delete_backup(&caller(), at("pg1"), "b1", &idem())
            .await
            .expect("ok")
            .expect("there");
        assert_eq!(world.backups("pg1").await, 1);
        let after = world.server("pg1").await;
        assert_eq!(
            (after.earliest_restore, after.latest_restore),
            (before.earliest_restore, before.latest_restore)
        );
        world.pass(TimeDelta::hours(25)).await;
        world.run_until_idle().await;
        assert_eq!(
            world
                .count("select count(*) from backup where name = 'b1' and state = 'gone'")
                .await,
            1
        );
    }
}
