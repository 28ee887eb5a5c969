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
            if self.schedule(subscription, server, candidate.incarnation, slot).await? {
                scheduled += 1;
            }
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
        let again = store::snapshot::facts(unit.conn(), Some((subscription, server.id)), now).await?;
        let still_due = again
            .first()
            .is_some_and(|one| matches!(automatic_snapshot(&one.facts), SnapshotDecision::Due { .. }));
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
