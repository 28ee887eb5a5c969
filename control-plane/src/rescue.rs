//! Duty: jobs whose lease ran out go back into the queue with growing patience, or fail. The one place
//! that says what follows when a job does not work.

use chrono::TimeDelta;
use holdfast_domain::activity::{ActivityEvent, ActivityStatus};
use holdfast_domain::job::{JobError, JobState};
use holdfast_domain::operation::Failure;
use holdfast_domain::{BootId, JobId, NodeId, ServerId, SubscriptionId};

use crate::apply::of_service;
use crate::error::one_of_many;
use crate::settle::said;
use crate::store::job::Job;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result, compaction, job};

impl ControlPlane {
    /// # Errors
    /// Only the store's.
    pub async fn rescue_leases(&self) -> Result<usize> {
        let expired = {
            let mut conn = self.pool().acquire().await?;
            store::job::expired(&mut conn).await?
        };
        let mut rescued = 0;
        for lost in expired {
            rescued += one_of_many("rescue", lost.0, self.rescue_one(lost).await)?;
        }
        Ok(rescued)
    }

    async fn rescue_one(&self, lost: (JobId, SubscriptionId, ServerId)) -> Result<usize> {
        let Some(mut unit) = Unit::begin(self).await?.holding(lost).await? else {
            return Ok(0);
        };
        let Some(job) = store::job::get(unit.conn(), lost.0, Hold::Update).await? else {
            return Ok(0);
        };
        // It may have been renewed, or ended, since the list was made.
        if job.state != JobState::Leased || !store::job::is_expired(unit.conn(), &job).await? {
            return Ok(0);
        }
        give_back(self, &mut unit, &job).await?;
        unit.commit().await?;
        Ok(1)
    }
}

impl Unit {
    /// This transaction with the job's server held, unless somebody else has it.
    pub(crate) async fn holding(
        mut self,
        (_, subscription, server): (JobId, SubscriptionId, ServerId),
    ) -> Result<Option<Self>> {
        let held =
            store::server::by_id(self.conn(), subscription, server, Hold::UpdateOrSkip).await?;
        Ok(held.map(|_| self))
    }
}

/// A new process of the node speaks: what its earlier ones had leased is given out again at once.
pub(crate) async fn of_earlier_boots(
    control_plane: &ControlPlane,
    node: NodeId,
    boot: BootId,
) -> Result<()> {
    let lost = {
        let mut conn = control_plane.pool().acquire().await?;
        store::job::of_other_boots(&mut conn, node, boot).await?
    };
    for id in lost {
        let outcome = of_earlier_boot(control_plane, node, boot, id).await;
        one_of_many("rescue", id.0, outcome)?;
    }
    Ok(())
}

async fn of_earlier_boot(
    control_plane: &ControlPlane,
    node: NodeId,
    boot: BootId,
    id: (JobId, SubscriptionId, ServerId),
) -> Result<()> {
    let Some(mut unit) = Unit::begin(control_plane).await?.holding(id).await? else {
        return Ok(());
    };
    let Some(job) = store::job::get(unit.conn(), id.0, Hold::Update).await? else {
        return Ok(());
    };
    if job.state != JobState::Leased || job.boot == Some(boot) {
        return Ok(());
    }
    // An even newer process may have spoken, and leased this, since the list was made.
    if store::node::boot(unit.conn(), node).await? != Some(boot) {
        return Ok(());
    }
    if worth_another_try(&unit, &job) {
        store::job::requeue(unit.conn(), &job, None, None, TimeDelta::zero()).await?;
    } else {
        give_back(control_plane, &mut unit, &job).await?;
    }
    unit.wake_node(node);
    unit.commit().await
}

async fn give_back(control_plane: &ControlPlane, unit: &mut Unit, job: &Job) -> Result<()> {
    tracing::warn!(job.id = %job.id, job.kind = ?job.kind, lease.attempt = job.attempts, "lease lost");
    if job.cancel_asked {
        canceled(control_plane, unit, job, None).await?;
    } else {
        let error = JobError {
            code: "NodeLost".to_owned(),
            message:
                "The node that worked on this stopped answering. Look at its agent and try again."
                    .to_owned(),
            retryable: true,
        };
        failed(control_plane, unit, job, &error, None).await?;
    }
    job::follow(control_plane, unit, job).await
}

fn worth_another_try(unit: &Unit, job: &Job) -> bool {
    !job.cancel_asked && job.attempts < job.max_attempts && unit.now() < job.deadline
}

/// An attempt failed: another one, or the end.
pub(crate) async fn failed(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    job: &Job,
    error: &JobError,
    result_hash: Option<&[u8]>,
) -> Result<()> {
    if error.retryable && worth_another_try(unit, job) {
        let patience = patience(job);
        return store::job::requeue(unit.conn(), job, Some(error), result_hash, patience).await;
    }
    if job.cancel_asked {
        return canceled(control_plane, unit, job, result_hash).await;
    }
    let now = unit.now();
    store::job::end(
        unit.conn(),
        job,
        JobState::Failed,
        Some(error),
        result_hash,
        now,
    )
    .await?;
    compaction::gave_up(unit, job).await?;
    let failure = Failure {
        code: error.code.clone(),
        message: error.message.clone(),
    };
    give_up_backup(unit, job, &failure).await
}

/// A job that is not wanted any more has ended.
pub(crate) async fn canceled(
    _control_plane: &ControlPlane,
    unit: &mut Unit,
    job: &Job,
    result_hash: Option<&[u8]>,
) -> Result<()> {
    let now = unit.now();
    store::job::end(unit.conn(), job, JobState::Canceled, None, result_hash, now).await?;
    compaction::gave_up(unit, job).await?;
    let failure = Failure {
        code: store::backup::CANCELED.to_owned(),
        message: "The server was stopped, restarted or deleted while this backup was being taken."
            .to_owned(),
    };
    give_up_backup(unit, job, &failure).await
}

/// Makes a job unwanted: a queued one ends at once, a leased one when its agent hears of it, which waits in
/// a long poll for that.
pub(crate) async fn cancel(control_plane: &ControlPlane, unit: &mut Unit, job: &Job) -> Result<()> {
    match job.state {
        JobState::Queued => canceled(control_plane, unit, job, None).await,
        _ => {
            store::job::ask_cancel(unit.conn(), job).await?;
            unit.wake_node(job.node);
            Ok(())
        }
    }
}

/// The scheduler's own backup did not come about; a user's ends with its operation.
async fn give_up_backup(unit: &mut Unit, job: &Job, failure: &Failure) -> Result<()> {
    let (Some(backup), None) = (job.backup, job.operation) else {
        return Ok(());
    };
    let now = unit.now();
    store::backup::failed(unit.conn(), job.subscription, backup, failure, now).await?;
    let server = store::server::by_id(unit.conn(), job.subscription, job.server, Hold::None)
        .await?
        .ok_or_else(|| Error::corrupt(format!("server {} is missing", job.server)))?;
    let event = of_service(&server, job, "backups/write", ActivityStatus::Failed, now);
    unit.record(ActivityEvent {
        properties: said(failure),
        ..event
    });
    Ok(())
}

/// 2^n · 5 s ± 50 %, at most ten minutes (RELIABILITY §3.3). The spread comes from the job's own id,
/// which is random enough to keep a fleet's retries apart and lets a test foresee it.
pub(crate) fn patience(job: &Job) -> TimeDelta {
    let doubled = 5_000_i64 << job.attempts.saturating_sub(1).min(7);
    let capped = doubled.min(600_000);
    let spread =
        i64::try_from((job.id.0.as_u128() ^ u128::from(job.attempts)) % 1001).unwrap_or(500);
    TimeDelta::milliseconds((capped * (500 + spread) / 1000).min(600_000))
}

#[cfg(test)]
mod tests {
    use holdfast_domain::job::JobResult;

    use super::*;
    use crate::PutMode;
    use crate::story::{World, at, caller, idem, minutes, wish};

    fn retryable() -> JobResult {
        JobResult::Failed(JobError {
            code: "ObjectStoreUnavailable".to_owned(),
            message: "The store does not answer.".to_owned(),
            retryable: true,
        })
    }

    #[tokio::test]
    async fn what_fails_is_tried_again_with_growing_patience_and_then_given_up() {
        let mut world = World::new().await;
        world.create("pg1").await;
        let it = world.control_plane.clone();
        it.request_backup(&caller(), at("pg1"), "b1", &idem())
            .await
            .expect("accepted");
        let mut waits = Vec::new();
        for attempt in 1..=10 {
            let job = world.lease_one().await.expect("queued");
            assert_eq!(job.attempt, attempt);
            world.report(&job, &retryable()).await.expect("taken");
            world
                .report(&job, &retryable())
                .await
                .expect("the same again");
            assert!(world.lease_one().await.is_none(), "not at once");
            let mut waited = 0;
            while attempt < 10 && waited < 700 {
                world.pass(TimeDelta::seconds(1)).await;
                waited += 1;
                let (due,): (bool,) = sqlx::query_as(
                    "select exists (select from job where state = 'queued' and run_at <= lease_now())",
                )
                .fetch_one(world.pool())
                .await
                .expect("answers");
                if due {
                    break;
                }
            }
            waits.push(waited);
        }
        for (n, waited) in waits[..9].iter().enumerate() {
            let nominal = (5 << n).min(600);
            assert!(
                (nominal / 2..=nominal * 3 / 2 + 1).contains(waited),
                "{waits:?}"
            );
        }
        assert_eq!(
            world
                .count("select count(*) from backup where state = 'failed'")
                .await,
            1
        );
        assert_eq!(
            world
                .count("select count(*) from operation where state = 'failed'")
                .await,
            1
        );
    }

    #[tokio::test]
    async fn a_restarted_agent_gets_its_work_back_at_once() {
        let mut world = World::new().await;
        let it = world.control_plane.clone();
        it.put_server(&caller(), at("pg1"), &wish(), PutMode::Create, &idem())
            .await
            .expect("ok");
        let first = world.lease_one().await.expect("provision");
        let old = world.lease_ref(&first);
        world.boot = BootId::new();
        world.hello().await;
        let again = world.lease_one().await.expect("at once");
        assert_eq!((again.job, again.attempt), (first.job, 2));
        let answer = it.progress(world.node, old, None).await;
        assert!(matches!(answer, Err(Error::Stale)), "{answer:?}");
    }

    #[tokio::test]
    async fn two_schedulers_rescue_a_lease_once() {
        let world = World::new().await;
        let it = world.control_plane.clone();
        it.put_server(&caller(), at("pg1"), &wish(), PutMode::Create, &idem())
            .await
            .expect("ok");
        world.lease_one().await.expect("provision");
        world.pass(minutes(2)).await;
        let (one, other) = tokio::join!(it.rescue_leases(), it.rescue_leases());
        assert_eq!(one.expect("one") + other.expect("other"), 1);
    }
}
