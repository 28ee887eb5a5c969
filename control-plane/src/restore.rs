//! Restores: always a new server, never over an old one (FLX-057, FLX-058).

use chrono::{DateTime, Utc};
use holdfast_domain::activity::Caller;
use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::job::WalGap;
use holdfast_domain::lock::Verb;
use holdfast_domain::operation::OperationKind;
use holdfast_domain::resource_id::ServerResourceId;
use holdfast_domain::restore::{Bounds, Chosen, RestoreTarget, bounds, choose, interpret};
use holdfast_domain::server::{Server, ServerWish, restored};
use holdfast_domain::{BackupId, OperationId, Refusal, name};

use crate::idempotency::replay;
use crate::operation::Ask;
use crate::server::{found, group_of, living};
use crate::store::catalogue::Depth;
use crate::store::operation::Input;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{Accepted, ControlPlane, Error, Idempotency, Result, ServerRef, lock, placement};

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
    /// Bytes of WAL that recovery reads at most.
    pub wal_bytes: u64,
    pub wal_objects: usize,
    /// The first and the last commit in them.
    pub wal_from: Option<DateTime<Utc>>,
    pub wal_to: Option<DateTime<Utc>>,
    /// Holes in the write-ahead log that nothing can fill.
    pub gaps: Vec<WalGap>,
}

/// A source, and what its catalogue says to an instant.
struct Answer {
    server: Server,
    catalogue: Catalogue,
    bounds: Bounds,
    chosen: Chosen,
}

impl ControlPlane {
    /// Restores a server's state at an instant, or its latest one, into a new server. The caller's
    /// rights on the source were checked before.
    ///
    /// The backup that it reads is pinned in the same transaction; the source may go on, stop, or be
    /// dropped meanwhile.
    ///
    /// # Errors
    /// What the domain refuses, with both bounds; a taken name; a lock; no capacity.
    pub async fn restore_server(
        &self,
        caller: &Caller,
        target: ServerRef<'_>,
        source: &ServerResourceId,
        at: Option<DateTime<Utc>>,
        wish: &ServerWish,
        idem: &Idempotency,
    ) -> Result<Accepted> {
        let mut unit = Unit::begin(self).await?;
        let (id, now) = (OperationId::new(), unit.now());
        if let Some(first) = replay(self, &mut unit, caller, target.subscription, idem, id).await? {
            return Ok(first);
        }
        group_of(&mut unit, target).await?;
        if store::server::find(unit.conn(), target, Hold::None).await?.is_some() {
            return Err(Refusal::ServerNameAlreadyExists { name: target.name.to_owned() }.into());
        }
        name::new_server(target.name)?;
        lock::allow(&mut unit, target.subscription, &target.id(), Verb::Write).await?;
        let source_at =
            ServerRef { subscription: source.subscription, group: &source.group, name: &source.name };
        // Holding the source keeps a sweep from unlinking what is being chosen and pinned.
        let answer = answer(&mut unit, source_at, at, Hold::Share).await?;
        let from = &answer.server;
        let settings = restored(wish, &from.settings, &from.region, self.site())?;
        let nodes = placement::nodes(&mut unit).await?;
        let place = placement::find(
            &mut unit,
            &nodes,
            &from.region,
            settings.zone.as_deref(),
            from.placed_zone.as_deref(),
            settings.major,
            settings.redundancy,
        )
        .await?;
        let server = found(&mut unit, target, &from.region, settings, place).await?;
        let ask = Ask {
            id,
            kind: OperationKind::RestoreServer,
            caller,
            method: idem.method,
            server: &server,
            backup: None,
            resource_id: target.id(),
            input: Some(Input::Restore {
                source_subscription: from.subscription,
                source: from.id,
                incarnation: answer.catalogue.incarnation,
                target: answer.chosen.target,
                administrator_password: wish.administrator_password.clone(),
            }),
        };
        let accepted = self.accept_and_begin(&mut unit, ask).await?;
        let (life, backup) = (answer.catalogue.incarnation, answer.chosen.backup.id);
        let holder = &accepted.operation;
        store::pin::place(unit.conn(), from.subscription, life, backup, holder, now).await?;
        unit.commit().await?;
        Ok(accepted)
    }

    /// What a restore to `at` would use. Reserves nothing.
    ///
    /// # Errors
    /// As [`ControlPlane::restore_server`] would refuse.
    pub async fn preview_restore(
        &self,
        source: ServerRef<'_>,
        at: Option<DateTime<Utc>>,
    ) -> Result<RestorePreview> {
        let mut unit = Unit::begin(self).await?;
        let now = unit.now();
        let Answer { server, catalogue, bounds, chosen } =
            answer(&mut unit, source, at, Hold::None).await?;
        let backup = store::backup::by_id(unit.conn(), server.subscription, chosen.backup.id)
            .await?
            .ok_or_else(|| Error::corrupt(format!("backup {} vanished", chosen.backup.id)))?;
        let stamps = || chosen.wal.iter().filter_map(|object| object.stamps);
        Ok(RestorePreview {
            age_seconds: (now - bounds.latest).as_seconds_f64().max(0.0),
            server: server.name,
            bounds,
            target: chosen.target,
            backup: chosen.backup.id,
            backup_name: chosen.backup.name.clone(),
            backup_completed: chosen.backup.completed_time,
            backup_logical_bytes: backup.logical_bytes,
            backup_stored_bytes: backup.stored_bytes,
            wal_bytes: chosen.wal_bytes(),
            wal_objects: chosen.wal.len(),
            wal_from: stamps().map(|stamps| stamps.first.at).min(),
            wal_to: stamps().map(|stamps| stamps.largest.at).max(),
            gaps: catalogue.gaps,
        })
    }
}

async fn answer(
    unit: &mut Unit,
    source: ServerRef<'_>,
    at: Option<DateTime<Utc>>,
    hold: Hold,
) -> Result<Answer> {
    let now = unit.now();
    let server = living(unit, source, hold).await?;
    let no_backup = || Refusal::NoBackupYet { server: server.name.clone() };
    let incarnation = server.incarnation.ok_or_else(no_backup)?;
    let catalogue =
        store::catalogue::load(unit.conn(), server.subscription, incarnation, Depth::Whole)
            .await?
            .ok_or_else(no_backup)?;
    let bounds = bounds(&catalogue, server.settings.retention, server.window_end(now));
    let target = interpret(at, now, bounds, &catalogue)?;
    let chosen = choose(&catalogue, target)?;
    let bounds = bounds.ok_or_else(no_backup)?;
    Ok(Answer { server, catalogue, bounds, chosen })
}
