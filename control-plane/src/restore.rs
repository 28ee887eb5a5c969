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
    /// How old the newest restorable instant is; it stands still while the server is stopped.
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
    /// What was asked for; after a flush more can be chosen for it than now.
    target: RestoreTarget,
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
        if store::server::find(unit.conn(), target, Hold::None)
            .await?
            .is_some()
        {
            return Err(Refusal::ServerNameAlreadyExists {
                name: target.name.to_owned(),
            }
            .into());
        }
        name::new_server(target.name)?;
        lock::allow(&mut unit, target.subscription, &target.id(), Verb::Write).await?;
        let source_at = ServerRef {
            subscription: source.subscription,
            group: &source.group,
            name: &source.name,
        };
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
            input: Some(Input::Restore {
                source_subscription: from.subscription,
                source: from.id,
                incarnation: answer.catalogue.incarnation,
                target: answer.target,
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
        let Answer {
            server,
            catalogue,
            bounds,
            chosen,
            ..
        } = answer(&mut unit, source, at, Hold::None).await?;
        let backup = store::backup::by_id(unit.conn(), server.subscription, chosen.backup.id)
            .await?
            .ok_or_else(|| Error::corrupt(format!("backup {} vanished", chosen.backup.id)))?;
        let stamps = || chosen.wal.iter().filter_map(|object| object.stamps);
        Ok(RestorePreview {
            age_seconds: (server.window_end(now) - bounds.latest)
                .as_seconds_f64()
                .max(0.0),
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
    let no_backup = || Refusal::NoBackupYet {
        server: server.name.clone(),
    };
    let incarnation = server.incarnation.ok_or_else(no_backup)?;
    let catalogue =
        store::catalogue::load(unit.conn(), server.subscription, incarnation, Depth::Whole)
            .await?
            .ok_or_else(no_backup)?;
    let bounds = bounds(
        &catalogue,
        server.settings.retention,
        server.window_end(now),
    );
    // The caller's clock is compared with the one clock that all API processes share.
    let database = store::server::database_clock(unit.conn()).await?;
    let target = interpret(at, database, bounds, &catalogue)?;
    let chosen = choose(&catalogue, target)?;
    let bounds = bounds.ok_or_else(no_backup)?;
    Ok(Answer {
        server,
        catalogue,
        bounds,
        target,
        chosen,
    })
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use holdfast_domain::job::{ArchiveWalMode, JobKind, JobSpec};
    use holdfast_domain::operation::OperationState;
    use holdfast_domain::server::ServerState;

    use super::*;
    use crate::story::{SUBSCRIPTION, World, at, caller, idem, minutes, refused};

    fn source() -> ServerResourceId {
        ServerResourceId {
            subscription: SUBSCRIPTION,
            group: "rg1".to_owned(),
            name: "pg1".to_owned(),
        }
    }

    async fn world() -> World {
        let mut world = World::new().await;
        world.create("pg1").await;
        for _ in 0..3 {
            world.pass(minutes(60)).await;
            world.write("pg1").await;
        }
        world
    }

    #[tokio::test]
    async fn a_restore_to_an_instant_makes_a_new_server_like_its_source() {
        // FLX-002, FLX-053, FLX-057
        let mut world = world().await;
        let it = world.control_plane.clone();
        let target = world.now() - minutes(90);
        let preview = it
            .preview_restore(at("pg1"), Some(target))
            .await
            .expect("in the window");
        assert_eq!(preview.target, RestoreTarget::At(target));
        let asked = it
            .restore_server(
                &caller(),
                at("copy"),
                &source(),
                Some(target),
                &ServerWish::default(),
                &idem(),
            )
            .await
            .expect("accepted");
        assert_eq!(world.count("select count(*) from pin").await, 1);
        let shown = it.get_server(at("copy")).await.expect("shown").server;
        assert_eq!(shown.state, ServerState::Provisioning);
        let job = world.lease_one().await.expect("restore");
        let JobSpec::Restore(spec) = &job.spec else {
            panic!("not a restore")
        };
        assert_eq!(spec.target, RestoreTarget::At(target));
        assert_eq!(spec.source.manifest.backup, preview.backup);
        assert!(!spec.source.wal.is_empty());
        let outcome = world.outcome(&job).await;
        let done = holdfast_domain::job::JobResult::Done(outcome);
        world.report(&job, &done).await.expect("taken");
        let operation = it
            .get_operation(SUBSCRIPTION, "northcentralus", asked.operation.id)
            .await
            .expect("there");
        assert_eq!(operation.state, OperationState::Succeeded);
        assert!(operation.result.expect("told")["restoredTo"].is_string());
        assert_eq!(world.count("select count(*) from pin").await, 0);
        let copy = world.server("copy").await.server;
        let source = world.server("pg1").await.server;
        assert_eq!(
            (copy.state, &copy.settings),
            (ServerState::Ready, &source.settings)
        );
        assert_ne!(
            (copy.id, copy.incarnation, copy.port),
            (source.id, source.incarnation, source.port)
        );
        world.run_until_idle().await;
        assert_eq!(world.backups("copy").await, 1, "a first backup of its own");
    }

    #[tokio::test]
    async fn latest_flushes_a_living_source_and_surveys_a_silent_one() {
        // FLX-060, FLX-061
        let mut world = world().await;
        let it = world.control_plane.clone();
        let restore = |name: &'static str| {
            let it = it.clone();
            async move {
                it.restore_server(
                    &caller(),
                    at(name),
                    &source(),
                    None,
                    &ServerWish::default(),
                    &idem(),
                )
                .await
            }
        };
        restore("copy1").await.expect("accepted");
        let job = world.lease_one().await.expect("flush");
        let JobSpec::ArchiveWal(spec) = &job.spec else {
            panic!("no flush: {:?}", job.spec.kind())
        };
        assert_eq!(spec.mode, ArchiveWalMode::Flush);
        let outcome = world.outcome(&job).await;
        // What the flush made durable is part of what is restored.
        world.write("pg1").await;
        world
            .report(&job, &holdfast_domain::job::JobResult::Done(outcome))
            .await
            .expect("taken");
        let job = world.lease_one().await.expect("restore");
        let JobSpec::Restore(spec) = &job.spec else {
            panic!("not a restore")
        };
        let life = world.life_of("pg1").await;
        let durable = world.lives[&life].durable;
        assert_eq!(
            spec.source.wal.last().map(|object| object.end),
            Some(durable)
        );
        let outcome = world.outcome(&job).await;
        world
            .report(&job, &holdfast_domain::job::JobResult::Done(outcome))
            .await
            .expect("taken");
        world.run_until_idle().await;
        // The node that has a silent source cannot be asked; the one that restores looks in the store.
        sqlx::raw_sql(
            "insert into node (id, name, region, zone, host, majors, port_first, port_last, free_bytes, joined_at)
             select gen_random_uuid(), 'lost', region, zone, host, majors, port_first, port_last, free_bytes,
                    joined_at - interval '1 day' from node;
             update server set node_id = (select id from node where name = 'lost') where name = 'pg1';",
        )
        .execute(world.pool())
        .await
        .expect("moved");
        restore("copy3").await.expect("accepted");
        let job = world.lease_one().await.expect("survey");
        let JobSpec::ArchiveWal(spec) = &job.spec else {
            panic!("no survey: {:?}", job.spec.kind())
        };
        assert_eq!(
            (spec.mode, spec.placement.incarnation),
            (ArchiveWalMode::Survey, life)
        );
        let outcome = world.outcome(&job).await;
        world
            .report(&job, &holdfast_domain::job::JobResult::Done(outcome))
            .await
            .expect("taken");
        world.work().await;
        sqlx::raw_sql("update server set node_id = (select id from node where name = 'n1') where name = 'pg1'")
            .execute(world.pool())
            .await
            .expect("moved back");
        // A flush that its node never takes does not hold the restore for ever.
        restore("copy2").await.expect("accepted");
        world.pass_silently(minutes(3)).await;
        world.duties().await;
        let queued = "select count(*) from job where kind = 'restore' and state = 'queued'";
        assert_eq!(world.count(queued).await, 1);
    }

    #[tokio::test]
    async fn a_restore_never_takes_the_place_of_a_server() {
        // FLX-057, FLX-058
        let world = world().await;
        let it = &world.control_plane;
        let answer = it
            .restore_server(
                &caller(),
                at("pg1"),
                &source(),
                None,
                &ServerWish::default(),
                &idem(),
            )
            .await;
        assert!(matches!(
            refused(answer),
            Refusal::ServerNameAlreadyExists { .. }
        ));
        let answer = it
            .restore_server(
                &caller(),
                at("copy"),
                &source(),
                Some(world.now() + TimeDelta::hours(1)),
                &ServerWish::default(),
                &idem(),
            )
            .await;
        assert!(matches!(
            refused(answer),
            Refusal::RestoreTimeOutOfRange { .. }
        ));
        assert_eq!(world.count("select count(*) from server").await, 1);
        assert_eq!(world.count("select count(*) from pin").await, 0);
    }

    #[tokio::test]
    async fn a_failed_restore_shows_no_server_and_lets_go_of_its_backup() {
        let mut world = world().await;
        let it = world.control_plane.clone();
        let before = world.now() - minutes(30);
        let restore = it
            .restore_server(
                &caller(),
                at("copy"),
                &source(),
                Some(before),
                &ServerWish::default(),
                &idem(),
            )
            .await;
        let id = restore.expect("accepted").operation.id;
        let job = world.lease_one().await.expect("restore");
        let error = holdfast_domain::job::JobError {
            code: "WalGap".to_owned(),
            message: "A planned file is missing.".to_owned(),
            retryable: false,
        };
        world
            .report(&job, &holdfast_domain::job::JobResult::Failed(error))
            .await
            .expect("taken");
        let operation = it
            .get_operation(SUBSCRIPTION, "northcentralus", id)
            .await
            .expect("there");
        assert_eq!(operation.failure.expect("says why").code, "WalGap");
        assert!(it.get_server(at("copy")).await.is_err());
        assert_eq!(world.count("select count(*) from pin").await, 0);
        world.run_until_idle().await;
        assert_eq!(world.done.last(), Some(&JobKind::Drop));
        assert!(it.server_name_available("copy").await.expect("answers"));
    }

    #[tokio::test]
    async fn a_backup_that_a_restore_reads_cannot_be_deleted() {
        let mut world = world().await;
        let it = world.control_plane.clone();
        it.request_backup(&caller(), at("pg1"), "b1", &idem())
            .await
            .expect("accepted");
        world.run_until_idle().await;
        let completed = it
            .get_backup(at("pg1"), "b1")
            .await
            .expect("there")
            .backup
            .completed_time;
        it.restore_server(
            &caller(),
            at("copy"),
            &source(),
            Some(completed),
            &ServerWish::default(),
            &idem(),
        )
        .await
        .expect("accepted");
        let answer = it.delete_backup(&caller(), at("pg1"), "b1", &idem()).await;
        assert!(matches!(refused(answer), Refusal::BackupInUse { .. }));
    }
}
