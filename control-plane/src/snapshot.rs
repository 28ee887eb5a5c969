//! Duty: automatic backups. When one is due is said in `domain::schedule`.

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::activity::{ActivityEvent, ActivityStatus, Caller};
use holdfast_domain::backup::{BackupKind, BackupState};
use holdfast_domain::resource_id::ServerResourceId;
use holdfast_domain::schedule::{SnapshotDecision, SnapshotFacts, automatic_snapshot};
use holdfast_domain::server::ServerState;
use holdfast_domain::{BackupId, EventId, IncarnationId, ServerId, SubscriptionId};

use crate::activity::event;
use crate::compose::{self, Composed};
use crate::error::one_of_many;
use crate::store::backup::Backup;
use crate::store::job::{FOR_A_BACKUP, NewJob};
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Result};

/// Attempts inside one job; then the backup has failed, and the schedule's own patience begins.
const ATTEMPTS: u32 = 3;
const TIME_LIMIT: TimeDelta = TimeDelta::hours(48);

impl ControlPlane {
    /// Schedules the first backup, the daily one and the one after a suspension or a hole. Answers how
    /// many were scheduled. On-demand ones go first; an automatic one waits for its turn.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn schedule_snapshots(&self) -> Result<usize> {
        let now = self.clock().now();
        let candidates = {
            let mut conn = self.pool().acquire().await?;
            store::snapshot::facts(&mut conn, None, now).await?
        };
        let mut scheduled = 0;
        for candidate in candidates {
            let SnapshotDecision::Due { slot } = automatic_snapshot(&candidate.facts) else {
                continue;
            };
            let (subscription, server) = (candidate.subscription, candidate.facts.server);
            let outcome = self
                .schedule(subscription, server, candidate.incarnation, slot)
                .await;
            scheduled += usize::from(one_of_many("snapshot", server, outcome)?);
        }
        Ok(scheduled)
    }

    async fn schedule(
        &self,
        subscription: SubscriptionId,
        server: ServerId,
        incarnation: IncarnationId,
        slot: DateTime<Utc>,
    ) -> Result<bool> {
        let mut unit = Unit::begin(self).await?;
        let now = unit.now();
        let held =
            store::server::by_id(unit.conn(), subscription, server, Hold::UpdateOrSkip).await?;
        let Some(server) = held.filter(|server| {
            server.state == ServerState::Ready && server.incarnation == Some(incarnation)
        }) else {
            return Ok(false);
        };
        // The facts again, now that nobody else can change them: another scheduler may have been here.
        let again =
            store::snapshot::facts(unit.conn(), Some((subscription, server.id)), now).await?;
        let still_due = again.first().is_some_and(|one| {
            matches!(automatic_snapshot(&one.facts), SnapshotDecision::Due { .. })
        });
        if !still_due {
            return Ok(false);
        }
        let backup = Backup {
            subscription,
            id: BackupId::new(),
            server: server.id,
            incarnation,
            kind: BackupKind::Automatic,
            state: BackupState::Requested,
            name: None,
            complete: None,
            logical_bytes: 0,
            stored_bytes: 0,
            delete_after: None,
        };
        if !store::backup::insert(unit.conn(), &backup, Some(slot), now).await? {
            return Ok(false);
        }
        let life = store::incarnation::get(unit.conn(), subscription, incarnation).await?;
        let vaults = store::node::vaults(unit.conn()).await?;
        let composed = compose::snapshot(&mut unit, &server, &life, &vaults, backup.id).await?;
        let Composed::Order(order) = composed else {
            return Ok(false);
        };
        let caller = Caller::service(EventId::new().to_string());
        let job = NewJob {
            subscription,
            operation: None,
            server: server.id,
            incarnation: order.incarnation,
            backup: Some(backup.id),
            base: order.base,
            node: order.node,
            priority: FOR_A_BACKUP,
            spec: &order.spec,
            max_attempts: ATTEMPTS,
            deadline: now + TIME_LIMIT,
            caller: &caller,
        };
        if store::job::queue(unit.conn(), job, now).await?.is_none() {
            // Another backup of this life is under way.
            return Ok(false);
        }
        unit.wake_node(order.node);
        let id = ServerResourceId {
            subscription,
            group: server.group.clone(),
            name: server.name.clone(),
        };
        let started: ActivityEvent = event(
            subscription,
            &server.group,
            &id.to_string(),
            "Microsoft.DBforPostgreSQL/flexibleServers/backups/write",
            ActivityStatus::Started,
            &caller,
            now,
        );
        unit.record(started);
        unit.commit().await?;
        Ok(true)
    }
}

/// Facts with whose they are.
pub(crate) struct Candidate {
    pub subscription: SubscriptionId,
    pub incarnation: IncarnationId,
    pub facts: SnapshotFacts,
}

#[cfg(test)]
mod tests {
    use holdfast_domain::job::{JobError, JobResult, Power};

    use super::*;
    use crate::story::{World, at, caller, idem, minutes};

    #[tokio::test]
    async fn the_first_backup_is_scheduled_when_the_server_is_ready() {
        // FLX-001, FLX-013
        let mut world = World::new().await;
        let view = world.create("pg1").await;
        assert_eq!(world.backups("pg1").await, 1);
        assert_eq!(view.earliest_restore, Some(world.now()));
    }

    #[tokio::test]
    async fn five_written_days_have_five_backups() {
        // FLX-014
        let mut world = World::new().await;
        world.create("pg1").await;
        for _ in 0..5 * 24 {
            world.pass(minutes(60)).await;
            world.write("pg1").await;
            world.run_until_idle().await;
        }
        assert_eq!(world.backups("pg1").await, 6);
    }

    #[tokio::test]
    async fn an_idle_server_is_suspended_until_something_is_modified() {
        // FLX-015, FLX-016
        let mut world = World::new().await;
        world.create("pg1").await;
        let life = world.life_of("pg1").await;
        for _ in 0..3 * 24 {
            world.pass(minutes(60)).await;
            // Checkpoints are WAL and no modification.
            world.stream(life, 0x100, false).await;
            world.run_until_idle().await;
        }
        assert_eq!(world.backups("pg1").await, 1);
        world.write("pg1").await;
        assert_eq!(
            world
                .control_plane
                .schedule_snapshots()
                .await
                .expect("looks"),
            1
        );
        world.run_until_idle().await;
        assert_eq!(world.backups("pg1").await, 2);
    }

    #[tokio::test]
    async fn two_schedulers_take_one_backup() {
        // F06
        let mut world = World::new().await;
        world.create("pg1").await;
        world.pass(TimeDelta::days(1)).await;
        world.write("pg1").await;
        let it = world.control_plane.clone();
        let (one, other) = tokio::join!(it.schedule_snapshots(), it.schedule_snapshots());
        assert_eq!(one.expect("one") + other.expect("other"), 1);
        let open = "select count(*) from job where kind = 'snapshot' and ended_at is null";
        assert_eq!(world.count(open).await, 1);
    }

    #[tokio::test]
    async fn a_failed_backup_is_taken_again_with_patience() {
        let mut world = World::new().await;
        world.create("pg1").await;
        world.pass(TimeDelta::days(1)).await;
        world.write("pg1").await;
        world.duties().await;
        let job = world.lease_one().await.expect("due");
        let error = JobError {
            code: "X".to_owned(),
            message: "x".to_owned(),
            retryable: false,
        };
        world
            .report(&job, &JobResult::Failed(error))
            .await
            .expect("taken");
        assert_eq!(
            world
                .control_plane
                .schedule_snapshots()
                .await
                .expect("looks"),
            0
        );
        world.pass(minutes(2)).await;
        world.run_until_idle().await;
        assert_eq!(world.backups("pg1").await, 2);
        let failed = "select count(*) from activity_event where status = 'Failed' and action like '%backups/write'";
        assert_eq!(world.count(failed).await, 1);
    }

    #[tokio::test]
    async fn a_stopped_server_gets_no_backups() {
        // FLX-145
        let mut world = World::new().await;
        world.create("pg1").await;
        world.write("pg1").await;
        let it = world.control_plane.clone();
        it.power_server(&caller(), at("pg1"), Power::Stopped, &idem())
            .await
            .expect("accepted");
        world.run_until_idle().await;
        for _ in 0..3 {
            world.pass(TimeDelta::days(1)).await;
            world.run_until_idle().await;
        }
        assert_eq!(world.backups("pg1").await, 1);
    }
}
