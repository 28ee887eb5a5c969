//! Duty: what has left the retention window is unlinked, and after its grace deleted. What may go is
//! said in `domain::retention`; deleting is [`crate::prune`], rewriting [`crate::compaction`].

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use holdfast_domain::activity::{ActivityEvent, ActivityStatus, Caller};
use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::resource_id::ServerResourceId;
use holdfast_domain::retention::{Held, sweep};
use holdfast_domain::server::Server;
use holdfast_domain::{BackupId, EventId, IncarnationId, ServerId, SubscriptionId};

use crate::activity::event;
use crate::backup::can_be_spared;
use crate::error::one_of_many;
use crate::store::catalogue::Depth;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Result, compaction, prune};

/// Clocks that differ by more than this are not believed when something is to be taken away.
const CLOCKS_AGREE: TimeDelta = TimeDelta::hours(1);

impl ControlPlane {
    /// One transaction a server. Answers how many backups and WAL objects were unlinked and how many
    /// prune jobs queued.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn sweep(&self) -> Result<usize> {
        let now = self.clock().now();
        let (to_sweep, mut to_purge, database) = {
            let mut conn = self.pool().acquire().await?;
            (
                store::server::to_sweep(&mut conn, now).await?,
                store::server::to_purge(&mut conn, now, now - prune::LEAVINGS_KEPT_FOR).await?,
                store::server::database_clock(&mut conn).await?,
            )
        };
        if !to_purge.is_empty() && (now - database).abs() > CLOCKS_AGREE {
            tracing::error!(%now, %database, "nothing of dropped servers is deleted: this clock and the database's do not agree");
            to_purge.clear();
        }
        let mut done = 0;
        for (which, over) in to_sweep
            .into_iter()
            .map(|which| (which, false))
            .chain(to_purge.into_iter().map(|which| (which, true)))
        {
            done += one_of_many("retention", which.1, self.let_go(which, over).await)?;
        }
        Ok(done)
    }

    async fn let_go(
        &self,
        (subscription, server): (SubscriptionId, ServerId),
        over: bool,
    ) -> Result<usize> {
        let Some((mut unit, server)) = self.hold(subscription, server).await? else {
            return Ok(0);
        };
        let Some(incarnation) = server.incarnation else {
            return Ok(0);
        };
        let mut done = if over {
            purge(&mut unit, &server, incarnation).await?
        } else {
            self.sweep_one(&mut unit, &server, incarnation).await?
                + compaction::queue(&mut unit, &server, incarnation).await?
        };
        done += prune::queue(self, &mut unit, &server, incarnation, over).await?;
        unit.commit().await?;
        Ok(done)
    }

    async fn hold(
        &self,
        subscription: SubscriptionId,
        server: ServerId,
    ) -> Result<Option<(Unit, Server)>> {
        let mut unit = Unit::begin(self).await?;
        let held =
            store::server::by_id(unit.conn(), subscription, server, Hold::UpdateOrSkip).await?;
        Ok(held.map(|server| (unit, server)))
    }

    /// Phase one: unlink. From here on nothing chooses what is let go, and its bytes wait for the grace.
    async fn sweep_one(
        &self,
        unit: &mut Unit,
        server: &Server,
        incarnation: IncarnationId,
    ) -> Result<usize> {
        let now = unit.now();
        let subscription = server.subscription;
        let Some(mut catalogue) =
            store::catalogue::load(unit.conn(), subscription, incarnation, Depth::Whole).await?
        else {
            return Ok(0);
        };
        let held = store::pin::on(unit.conn(), subscription, incarnation).await?;
        let former = store::server::former_retention(unit.conn(), server).await?;
        let retention = server.settings.retention;
        let kept = former.map_or(retention, |former| former.max(retention));
        let window_start = kept.start(swept_window_end(server, &catalogue, now));
        let names: BTreeMap<BackupId, String> = catalogue
            .backups
            .iter()
            .map(|backup| (backup.id, backup.name.clone()))
            .collect();
        let hidden = store::backup::hidden(unit.conn(), subscription, incarnation).await?;
        let mut expire = spared(&mut catalogue, &hidden, &held);
        let swept = sweep(&catalogue, window_start, &held);
        for (backup, keep) in &swept.keep {
            tracing::debug!(server.id = %server.id, backup.id = %backup, ?keep, "kept");
        }
        expire.extend(&swept.expire);
        let after = now + self.policy().prune_grace;
        let backups = store::backup::expire(unit.conn(), subscription, &expire, after).await?;
        let objects =
            store::wal::expire(unit.conn(), subscription, incarnation, &swept.wal, after).await?;
        if backups + objects > 0 {
            tracing::info!(server.id = %server.id, backups, objects, %window_start, "unlinked");
        }
        if backups > 0 {
            let names = expire.iter().filter_map(|id| names.get(id).cloned());
            let unlinked = Unlinked {
                names: names.collect(),
                reason: "No instant of the retention window needs them any more.",
                window_start: Some(window_start),
                delete_after: after,
            };
            unlinked.record(unit, server);
        }
        Ok(usize::try_from(backups + objects).unwrap_or(usize::MAX))
    }
}

/// Where the window ends for sweeping: where it ends, but never far after what the stream last made
/// durable. A scheduler's clock that jumped ahead then keeps more, never less (ADR 12; F60).
fn swept_window_end(server: &Server, catalogue: &Catalogue, now: DateTime<Utc>) -> DateTime<Utc> {
    let end = server.window_end(now);
    let running = server.stopped_at.is_none() && server.dropped_at.is_none();
    match catalogue.caught_up_at.map(|at| at + CLOCKS_AGREE) {
        Some(bound) if running && bound < end => {
            tracing::warn!(server.id = %server.id, %end, %bound, "swept for an earlier window: WAL was last complete long before this clock's now");
            bound
        }
        _ => end,
    }
}

/// Which backups leave the list, why, and how long they can still be looked for in the store.
struct Unlinked {
    names: Vec<String>,
    reason: &'static str,
    window_start: Option<DateTime<Utc>>,
    delete_after: DateTime<Utc>,
}

impl Unlinked {
    /// One event for all of them, in the transaction that unlinks them (RELIABILITY §4.7). Deleting
    /// starts with it; that their bytes are gone is the prune job's event.
    fn record(self, unit: &mut Unit, server: &Server) {
        let id = ServerResourceId {
            subscription: server.subscription,
            group: server.group.clone(),
            name: server.name.clone(),
        };
        let started: ActivityEvent = event(
            server.subscription,
            &server.group,
            &id.to_string(),
            "Microsoft.DBforPostgreSQL/flexibleServers/backups/delete",
            ActivityStatus::Started,
            &Caller::service(EventId::new().to_string()),
            unit.now(),
        );
        let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Micros, true);
        let mut properties = BTreeMap::from([
            ("backupNames".to_owned(), self.names.join(", ")),
            ("reason".to_owned(), self.reason.to_owned()),
            ("deleteAfter".to_owned(), time(self.delete_after)),
        ]);
        if let Some(start) = self.window_start {
            properties.insert("windowStart".to_owned(), time(start));
        }
        unit.record(ActivityEvent {
            properties,
            ..started
        });
    }
}

/// Backups that their users deleted and that no instant needs any more; taken out of the catalogue.
fn spared(catalogue: &mut Catalogue, hidden: &[BackupId], held: &[Held]) -> Vec<BackupId> {
    let mut spared = Vec::new();
    for id in hidden {
        if !held.iter().any(|held| held.backup == *id) && can_be_spared(catalogue, *id) {
            catalogue.backups.retain(|backup| backup.id != *id);
            spared.push(*id);
        }
    }
    spared
}

/// A tombstone's time is over: everything may go, at once (FLX-144). A server that was never made has
/// nothing that anybody was promised.
async fn purge(unit: &mut Unit, server: &Server, incarnation: IncarnationId) -> Result<usize> {
    let now = unit.now();
    let subscription = server.subscription;
    if !store::pin::on(unit.conn(), subscription, incarnation)
        .await?
        .is_empty()
    {
        return Ok(0);
    }
    let complete =
        store::backup::complete(unit.conn(), &[subscription.0], &[incarnation.0]).await?;
    let ids: Vec<BackupId> = complete.iter().map(|(_, backup)| backup.id).collect();
    let backups = store::backup::expire(unit.conn(), subscription, &ids, now).await?;
    if backups > 0 {
        let unlinked = Unlinked {
            names: complete
                .into_iter()
                .map(|(_, backup)| backup.name)
                .collect(),
            reason: "The server was dropped and its backups were kept as long as promised.",
            window_start: None,
            delete_after: now,
        };
        unlinked.record(unit, server);
    }
    store::backup::hasten(unit.conn(), subscription, incarnation, now).await?;
    store::superseded::hasten(unit.conn(), subscription, incarnation, now).await?;
    let objects = store::wal::expire_all(unit.conn(), subscription, incarnation, now).await?;
    Ok(usize::try_from(backups + objects).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use holdfast_domain::job::{JobKind, JobResult, Power};
    use holdfast_domain::resource_id::ServerResourceId;
    use holdfast_domain::server::ServerWish;
    use holdfast_domain::{IncarnationId, Refusal};

    use crate::story::{SUBSCRIPTION, World, at, caller, idem, refused};

    async fn live(world: &mut World, days: u32, name: &str) {
        for _ in 0..days {
            world.pass(TimeDelta::days(1)).await;
            world.write(name).await;
            world.run_until_idle().await;
        }
    }

    fn source(name: &str) -> ServerResourceId {
        ServerResourceId {
            subscription: SUBSCRIPTION,
            group: "rg1".to_owned(),
            name: name.to_owned(),
        }
    }

    #[tokio::test]
    async fn what_leaves_the_window_goes_in_two_phases() {
        // FLX-039, FLX-040, FLX-042
        let mut world = World::new().await;
        world.create("pg1").await;
        live(&mut world, 20, "pg1").await;
        let now = world.now();
        let view = world.server("pg1").await;
        assert_eq!(view.earliest_restore, Some(now - TimeDelta::days(7)));
        let kept = world.backups("pg1").await;
        assert!((8..=9).contains(&kept), "{kept}");
        let expiring = "select count(*) from backup where state = 'expiring'";
        assert!(
            world.count(expiring).await >= 1,
            "unlinked and waiting for the grace"
        );
        assert!(
            world
                .count("select count(*) from backup where state = 'gone'")
                .await
                >= 10
        );
        let orphans = "select count(*) from backup_object o join backup b on b.id = o.backup_id where b.state = 'gone'";
        assert_eq!(world.count(orphans).await, 0);
        // What every backup shares is still named and was never deleted.
        assert!(
            world
                .count("select count(*) from backup_object where key like '%shared'")
                .await
                >= 8
        );
        // Every instant of the window is answered.
        for hours in (0..7 * 24).step_by(5) {
            let t = now - TimeDelta::hours(hours) + TimeDelta::milliseconds(1);
            world
                .control_plane
                .preview_restore(at("pg1"), Some(t))
                .await
                .expect("in the window");
        }
        let early = Some(now - TimeDelta::days(7) - TimeDelta::seconds(2));
        let answer = world.control_plane.preview_restore(at("pg1"), early).await;
        assert!(matches!(
            refused(answer),
            Refusal::RestoreTimeOutOfRange { .. }
        ));
    }

    #[tokio::test]
    async fn a_prune_deletes_nothing_that_became_needed_meanwhile() {
        // F50
        let mut world = World::new().await;
        world.create("pg1").await;
        live(&mut world, 8, "pg1").await;
        let life: IncarnationId = world.life_of("pg1").await;
        world.pass(TimeDelta::hours(23)).await;
        live(&mut world, 1, "pg1").await;
        world.pass(TimeDelta::hours(25)).await;
        assert!(world.duties().await > 0);
        let job = loop {
            let job = world.lease_one().await.expect("a prune job");
            if job.spec.kind() == JobKind::Prune {
                break job;
            }
            let outcome = world.outcome(&job).await;
            world
                .report(&job, &JobResult::Done(outcome))
                .await
                .expect("done");
            world.duties().await;
        };
        let holdfast_domain::job::JobSpec::Prune(spec) = &job.spec else {
            unreachable!("checked")
        };
        let it = world.control_plane.clone();
        let lease = world.lease_ref(&job);
        let foreign = vec![
            format!("backups/{life}/x/manifest.0"),
            format!("packs/{life}/shared"),
        ];
        assert!(
            it.validate(world.node, lease, &foreign)
                .await
                .expect("asked")
                .is_empty()
        );
        let may = it
            .validate(world.node, lease, &spec.keys)
            .await
            .expect("asked");
        assert_eq!(&may, &spec.keys);
        // A restore now holds a backup: WAL stays altogether.
        it.restore_server(
            &caller(),
            at("copy"),
            &source("pg1"),
            None,
            &ServerWish::default(),
            &idem(),
        )
        .await
        .expect("accepted");
        let may = it
            .validate(world.node, lease, &spec.keys)
            .await
            .expect("asked");
        assert!(may.iter().all(|key| !key.starts_with("wal/")), "{may:?}");
    }

    #[tokio::test]
    async fn a_stopped_servers_window_stands_still() {
        // FLX-038, FLX-146
        let mut world = World::new().await;
        world.create("pg1").await;
        live(&mut world, 8, "pg1").await;
        let it = world.control_plane.clone();
        it.power_server(&caller(), at("pg1"), Power::Stopped, &idem())
            .await
            .expect("accepted");
        world.run_until_idle().await;
        let before = (
            world.backups("pg1").await,
            world.server("pg1").await.earliest_restore,
        );
        for _ in 0..40 {
            world.pass(TimeDelta::days(1)).await;
            world.run_until_idle().await;
        }
        assert_eq!(
            (
                world.backups("pg1").await,
                world.server("pg1").await.earliest_restore
            ),
            before
        );
        it.power_server(&caller(), at("pg1"), Power::Running, &idem())
            .await
            .expect("accepted");
        world.run_until_idle().await;
        live(&mut world, 2, "pg1").await;
        assert!(world.backups("pg1").await < before.0);
    }

    #[tokio::test]
    async fn a_longer_retention_brings_nothing_back_and_a_shorter_one_lets_go() {
        // FLX-041
        let mut world = World::new().await;
        world.create("pg1").await;
        live(&mut world, 12, "pg1").await;
        let it = world.control_plane.clone();
        let set = |days| ServerWish {
            retention_days: Some(days),
            ..ServerWish::default()
        };
        let earliest = world
            .server("pg1")
            .await
            .earliest_restore
            .expect("has backups");
        it.update_server(&caller(), at("pg1"), &set(35), false, &idem())
            .await
            .expect("ok");
        live(&mut world, 10, "pg1").await;
        let kept = world.backups("pg1").await;
        assert!(world.server("pg1").await.earliest_restore.expect("has") <= earliest);
        it.update_server(&caller(), at("pg1"), &set(7), false, &idem())
            .await
            .expect("ok");
        live(&mut world, 3, "pg1").await;
        assert!(world.backups("pg1").await < kept - 5);
    }

    #[tokio::test]
    async fn a_dropped_servers_backups_are_purged_after_five_days() {
        // FLX-144
        let mut world = World::new().await;
        world.create("pg1").await;
        live(&mut world, 2, "pg1").await;
        let it = world.control_plane.clone();
        it.delete_server(&caller(), at("pg1"), &idem())
            .await
            .expect("ok")
            .expect("there");
        world.run_until_idle().await;
        assert!(matches!(
            refused(it.get_server(at("pg1")).await),
            Refusal::ResourceNotFound { .. }
        ));
        assert!(
            it.delete_server(&caller(), at("pg1"), &idem())
                .await
                .expect("ok")
                .is_none()
        );
        // Its name and its port are free at once.
        world.create("pg1").await;
        world.pass(TimeDelta::days(5) - TimeDelta::minutes(1)).await;
        world.run_until_idle().await;
        let kept = "select count(*) from backup b join server s on s.id = b.server_id where s.state = 'dropped' and b.state = 'complete'";
        assert!(world.count(kept).await > 0);
        world.pass(TimeDelta::minutes(1)).await;
        world.run_until_idle().await;
        assert_eq!(world.count(kept).await, 0);
        let purged =
            "select count(*) from server where state = 'dropped' and purged_at is not null";
        assert_eq!(world.count(purged).await, 1);
        let left = "select count(*) from wal_object w join incarnation i on i.id = w.incarnation_id join server s on s.id = i.server_id where s.state = 'dropped'";
        assert_eq!(world.count(left).await, 0);
        assert!(
            world.backups("pg1").await > 0,
            "the new server of that name has its own"
        );
    }
}
