//! What a node may say about jobs: the agents' gateway. Every effect is fenced by node, boot and
//! epoch, and a report, its effects and what follows from them are one transaction (DESIGN §3.8).

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, Utc};
use holdfast_domain::job::{
    JobError, JobKind, JobResult, JobSpec, JobState, LeaseRef, LeasedJob, Progress,
    ProgressResponse, WalReport,
};
use holdfast_domain::{BootId, IncarnationId, JobId, NodeId};

use crate::store::job::Job;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result, advance, apply, prune, rescue};

/// With the pauses between them two seconds.
const MOST_LOOKS: u32 = 100;
const HELD_ROW_WAIT: Duration = Duration::from_millis(20);

impl ControlPlane {
    /// Work for a node, each job under a lease of its own.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; [`Error::Stale`] for a process that is not the node's newest.
    pub async fn lease(&self, node: NodeId, boot: BootId, capacity: u32) -> Result<Vec<LeasedJob>> {
        self.speaks(node, boot).await?;
        let mut leased = Vec::new();
        // One transaction a job: what is taken is taken even if the next one is not to be had.
        for _ in 0..capacity.min(64) {
            match self.lease_one(node, boot).await {
                Ok(Some(job)) => leased.push(job),
                Ok(None) => break,
                Err(error) if leased.is_empty() => return Err(error),
                Err(error) => {
                    let cause = &error as &dyn std::error::Error;
                    tracing::warn!(node.id = %node, error = cause, "no further job could be leased");
                    break;
                }
            }
        }
        Ok(leased)
    }

    /// Of the jobs that a node works on, those whose next renewal has something to say: they are not wanted
    /// any more, or have another holder.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn to_renew(&self, node: NodeId, running: &[LeaseRef]) -> Result<Vec<JobId>> {
        if running.is_empty() {
            return Ok(Vec::new());
        }
        let mut conn = self.pool().acquire().await?;
        store::job::to_renew(&mut conn, node, running).await
    }

    /// A job whose row a duty holds at this moment is worth a moment: whoever polls learnt just now that it
    /// was queued, and is told nothing when the row is let go.
    async fn lease_one(&self, node: NodeId, boot: BootId) -> Result<Option<LeasedJob>> {
        for _ in 0..MOST_LOOKS {
            match self.try_lease_one(node, boot).await? {
                Claimed::Job(job) => return Ok(Some(*job)),
                Claimed::Unreadable => continue,
                Claimed::Nothing => {}
            }
            let mut conn = self.pool().acquire().await?;
            if !store::job::any_ready(&mut conn, node).await? {
                return Ok(None);
            }
            drop(conn);
            tokio::time::sleep(HELD_ROW_WAIT).await;
        }
        Ok(None)
    }

    async fn try_lease_one(&self, node: NodeId, boot: BootId) -> Result<Claimed> {
        let mut unit = Unit::begin(self).await?;
        let lease = self.policy().lease;
        let Some(job) = store::job::claim(unit.conn(), node, boot, lease).await? else {
            return Ok(Claimed::Nothing);
        };
        let Some(spec) = job.spec else {
            drop(unit);
            self.give_up_unreadable(&job).await?;
            return Ok(Claimed::Unreadable);
        };
        if let Some(backup) = job.backup {
            store::backup::running(unit.conn(), job.subscription, backup).await?;
        }
        if let Some(operation) = job.operation {
            store::operation::running(unit.conn(), job.subscription, operation).await?;
        }
        unit.commit().await?;
        Ok(Claimed::Job(Box::new(LeasedJob {
            job: job.id,
            epoch: job.epoch,
            operation: job.operation,
            lease_s: self.lease_s(),
            attempt: job.attempts,
            spec,
            traceparent: job.caller.traceparent,
        })))
    }

    /// A job that this version cannot read would be the first in its node's queue for ever.
    async fn give_up_unreadable(&self, job: &Job) -> Result<()> {
        let who = (job.id, job.subscription, job.server);
        let Some(mut unit) = Unit::begin(self).await?.holding(who).await? else {
            // Whoever has the server may be ending the job; if not, the next poll comes by here.
            return Err(Error::corrupt(format!("job {} cannot be read", job.id)));
        };
        let Some(job) = store::job::get(unit.conn(), job.id, Hold::Update).await? else {
            return Ok(());
        };
        if job.state != JobState::Queued || job.spec.is_some() {
            return Ok(());
        }
        let error = JobError {
            code: "JobUnreadable".to_owned(),
            message: "This version of the control plane cannot read the work that was queued, \
                      perhaps by another version of it. Ask for it again."
                .to_owned(),
            retryable: false,
        };
        tracing::error!(job.id = %job.id, job.kind = ?job.kind, "a job that cannot be read has failed");
        rescue::failed(self, &mut unit, &job, &error, None).await?;
        follow(self, &mut unit, &job).await?;
        unit.commit().await
    }

    fn lease_s(&self) -> u32 {
        u32::try_from(self.policy().lease.num_seconds()).unwrap_or(60)
    }

    /// Renews a lease and says how far the work is.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; [`Error::Stale`].
    pub async fn progress(
        &self,
        node: NodeId,
        lease: LeaseRef,
        progress: Option<&Progress>,
    ) -> Result<ProgressResponse> {
        self.speaks(node, lease.boot).await?;
        let mut unit = Unit::begin(self).await?;
        let length = self.policy().lease;
        let (cancel, subscription, operation) = store::job::renew(unit.conn(), node, lease, length)
            .await?
            .ok_or(Error::Stale)?;
        if let (Some(operation), Some(progress)) = (operation, progress) {
            if !progress.percent.is_finite() || !(0.0..=100.0).contains(&progress.percent) {
                return Err(Error::Absurd(format!(
                    "progress of {} percent",
                    progress.percent
                )));
            }
            store::operation::set_progress(unit.conn(), subscription, operation, progress).await?;
        }
        unit.commit().await?;
        Ok(ProgressResponse {
            cancel,
            lease_s: self.lease_s(),
        })
    }

    /// The job ended. The same report twice is one report.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; [`Error::Stale`]; [`Error::Absurd`].
    pub async fn report(&self, node: NodeId, lease: LeaseRef, result: &JobResult) -> Result<()> {
        self.speaks(node, lease.boot).await?;
        let hash = fingerprint(result)?;
        let mut unit = Unit::begin(self).await?;
        let job = store::job::get(unit.conn(), lease.job, Hold::None)
            .await?
            .ok_or(Error::Stale)?;
        store::server::by_id(unit.conn(), job.subscription, job.server, Hold::Update).await?;
        let job = store::job::get(unit.conn(), lease.job, Hold::Update)
            .await?
            .ok_or(Error::Stale)?;
        let ours = job.node == node && job.epoch == lease.epoch && job.boot == Some(lease.boot);
        if !ours {
            return Err(Error::Stale);
        }
        if job.state != JobState::Leased {
            let same = job.result_hash.as_deref() == Some(hash.as_slice());
            return if same { Ok(()) } else { Err(Error::Stale) };
        }
        match result {
            JobResult::Done(outcome) => {
                apply::apply(self, &mut unit, &job, outcome).await?;
                let now = unit.now();
                store::job::end(unit.conn(), &job, JobState::Done, None, Some(&hash), now).await?;
            }
            JobResult::Failed(error) => {
                tracing::warn!(job.id = %job.id, job.kind = ?job.kind, error.code, error.message, "job failed");
                rescue::failed(self, &mut unit, &job, error, Some(&hash)).await?;
            }
            JobResult::Canceled => rescue::canceled(self, &mut unit, &job, Some(&hash)).await?,
        }
        follow(self, &mut unit, &job).await?;
        // What waited for this one to end may be leased now.
        unit.wake_node(node);
        unit.wake_operations();
        unit.commit().await
    }

    /// May this lease still delete? Answers with the keys that may go now: unlinked, past their grace,
    /// named by nothing else and held by nobody.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; [`Error::Stale`].
    pub async fn validate(
        &self,
        node: NodeId,
        lease: LeaseRef,
        keys: &[String],
    ) -> Result<Vec<String>> {
        self.speaks(node, lease.boot).await?;
        let mut unit = Unit::begin(self).await?;
        let length = self.policy().lease;
        store::job::renew(unit.conn(), node, lease, length)
            .await?
            .ok_or(Error::Stale)?;
        let job = store::job::get(unit.conn(), lease.job, Hold::None)
            .await?
            .ok_or(Error::Stale)?;
        let (JobKind::Prune, Some(JobSpec::Prune(spec))) = (job.kind, &job.spec) else {
            return Err(Error::Absurd(format!(
                "a {:?} job deletes nothing",
                job.kind
            )));
        };
        let may = prune::deletable(&mut unit, job.subscription, job.server, spec, keys).await?;
        unit.commit().await?;
        let asked = prune::asked(spec);
        Ok(keys
            .iter()
            .filter(|&key| may.contains(key) && asked(key))
            .cloned()
            .collect())
    }

    /// One stream's news, any number of times.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; [`Error::Stale`] for an incarnation that is not on this node or a process
    /// that is not the node's newest; [`Error::Absurd`].
    pub async fn wal_report(&self, node: NodeId, boot: BootId, report: &WalReport) -> Result<()> {
        self.speaks(node, boot).await?;
        let grace = self.policy().prune_grace;
        let mut unit = Unit::begin(self).await?;
        let now = unit.now();
        let subscription = store::incarnation::on_node(unit.conn(), report.incarnation, node)
            .await?
            .ok_or(Error::Stale)?;
        store::wal::take_in(unit.conn(), subscription, report, now, grace).await?;
        unit.commit().await
    }

    /// Which servers are no longer idle. To be called before their reports are taken in.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; [`Error::Stale`] for a process that is not the node's newest.
    pub async fn end_idleness(
        &self,
        node: NodeId,
        boot: BootId,
        ended: &[IncarnationId],
    ) -> Result<()> {
        self.speaks(node, boot).await?;
        let mut conn = self.pool().acquire().await?;
        store::wal::end_idleness(&mut conn, node, boot, ended).await
    }

    /// Which servers are idle now, and up to when everything is durable that the idle ones of the node
    /// committed (ADR 16).
    ///
    /// # Errors
    /// As [`Self::end_idleness`].
    pub async fn idle(
        &self,
        node: NodeId,
        boot: BootId,
        begun: &[IncarnationId],
        until: Option<DateTime<Utc>>,
    ) -> Result<()> {
        self.speaks(node, boot).await?;
        let mut unit = Unit::begin(self).await?;
        if let Some(until) = until {
            store::wal::idle_until(unit.conn(), node, boot, until).await?;
        }
        if !begun.is_empty() {
            store::wal::begin_idleness(unit.conn(), node, boot, begun).await?;
        }
        unit.commit().await
    }

    /// Only the newest process of a node that was not revoked may speak.
    async fn speaks(&self, node: NodeId, boot: BootId) -> Result<()> {
        let mut conn = self.pool().acquire().await?;
        match store::node::boot(&mut conn, node).await? {
            Some(newest) if newest == boot => Ok(()),
            _ => Err(Error::Stale),
        }
    }
}

/// What a look into a node's queue found.
enum Claimed {
    Job(Box<LeasedJob>),
    /// Something that could not be given to anybody, and has ended; look again.
    Unreadable,
    Nothing,
}

/// Moves the job's operation on, if it has one.
pub(crate) async fn follow(control_plane: &ControlPlane, unit: &mut Unit, job: &Job) -> Result<()> {
    let Some(operation) = job.operation else {
        return Ok(());
    };
    let record = store::operation::get(unit.conn(), job.subscription, operation, Hold::Update)
        .await?
        .ok_or_else(|| Error::corrupt(format!("operation {operation} is missing")))?;
    advance::step(control_plane, unit, &record).await?;
    Ok(())
}

fn fingerprint(result: &JobResult) -> Result<Vec<u8>> {
    let text = serde_json::to_vec(result)
        .map_err(|error| Error::Absurd(format!("result cannot be written: {error}")))?;
    Ok(digest(&SHA256, &text).as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use holdfast_domain::operation::OperationState;
    use holdfast_domain::{EventId, JobId};

    use super::*;
    use crate::story::{World, at, caller, idem, minutes, wish};
    use crate::{PutMode, store};

    #[tokio::test]
    async fn claiming_neither_scans_nor_sorts() {
        // RELIABILITY §3.4
        let mut world = World::new().await;
        world.create("pg1").await;
        sqlx::raw_sql(
            "insert into job (subscription_id, id, server_id, incarnation_id, node_id, kind, state, priority, run_at,
                              spec, max_attempts, deadline, caller, created_at, ended_at, error)
             select subscription_id, gen_random_uuid(), server_id, incarnation_id, node_id, 'power',
                    case when n % 20 = 0 then 'queued'::job_state else 'done' end, n % 3,
                    run_at + n * interval '1 second', case when n % 20 = 0 then '{}'::jsonb end, 3, deadline, caller,
                    created_at, case when n % 20 = 0 then null else created_at end, null
               from (select * from job limit 1) one, generate_series(1, 20000) n;
             analyze job;",
        )
        .execute(world.pool())
        .await
        .expect("many jobs");
        let plan: Vec<(String,)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "explain {}j.id",
            store::job::CLAIM
                .replace("$1", &format!("'{}'", world.node))
                .replace("$2", &format!("'{}'", world.boot))
                .replace("$3", "interval '60 s'")
        )))
        .fetch_all(world.pool())
        .await
        .expect("explains");
        let plan = plan
            .into_iter()
            .map(|(line,)| line)
            .collect::<Vec<_>>()
            .join("\n");
        // The clock of tests is a table of one row; a wall clock is a function.
        let jobs: Vec<&str> = plan
            .lines()
            .filter(|line| !line.contains("test_clock"))
            .collect();
        assert!(plan.contains("Index Scan using job_ready"), "{plan}");
        assert!(
            !jobs
                .iter()
                .any(|line| line.contains("Seq Scan") || line.contains("Sort")),
            "{plan}"
        );
    }

    #[tokio::test]
    async fn a_job_whose_row_is_held_is_waited_for() {
        let world = World::new().await;
        let asked = world
            .control_plane
            .put_server(&caller(), at("pg1"), &wish(), PutMode::Create, &idem())
            .await;
        let operation = asked.expect("accepted").operation.id;
        let mut duty = world.pool().begin().await.expect("begins");
        sqlx::query("select from job where operation_id = $1 for no key update")
            .bind(operation.0)
            .execute(&mut *duty)
            .await
            .expect("held");
        let mut poll = std::pin::pin!(world.lease_one());
        let early = tokio::time::timeout(Duration::from_millis(100), &mut poll).await;
        assert!(early.is_err(), "it waits: {early:?}");
        duty.commit().await.expect("let go");
        assert_eq!(poll.await.expect("taken").operation, Some(operation));
    }

    #[tokio::test]
    async fn a_report_of_an_older_epoch_changes_nothing() {
        // DESIGN §3.8
        let mut world = World::new().await;
        let asked = world
            .control_plane
            .put_server(&caller(), at("pg1"), &wish(), PutMode::Create, &idem())
            .await
            .expect("accepted");
        let first = world.lease_one().await.expect("provision");
        let outcome = world.outcome(&first).await;
        world.pass(minutes(2)).await;
        assert_eq!(
            world.control_plane.rescue_leases().await.expect("rescued"),
            1
        );
        world.pass(minutes(1)).await;
        let second = world.lease_one().await.expect("again");
        assert_eq!(
            (second.job, second.epoch, second.attempt),
            (first.job, first.epoch + 1, 2)
        );
        let late = world
            .report(&first, &JobResult::Done(outcome.clone()))
            .await;
        assert!(matches!(late, Err(Error::Stale)), "{late:?}");
        let renewed = world
            .control_plane
            .progress(world.node, world.lease_ref(&first), None)
            .await;
        assert!(matches!(renewed, Err(Error::Stale)), "{renewed:?}");
        // Another process of the node is no better than another epoch.
        let stranger = LeaseRef {
            boot: BootId::new(),
            ..world.lease_ref(&second)
        };
        let foreign = world
            .control_plane
            .report(world.node, stranger, &JobResult::Canceled)
            .await;
        assert!(matches!(foreign, Err(Error::Stale)), "{foreign:?}");
        world
            .report(&second, &JobResult::Done(outcome.clone()))
            .await
            .expect("the newest may");
        // The same report twice is one report; another one is not.
        world
            .report(&second, &JobResult::Done(outcome))
            .await
            .expect("the same again");
        assert!(matches!(
            world.report(&second, &JobResult::Canceled).await,
            Err(Error::Stale)
        ));
        let operation = world
            .control_plane
            .get_operation(
                asked.operation.subscription,
                "northcentralus",
                asked.operation.id,
            )
            .await
            .expect("readable");
        assert_eq!(operation.state, OperationState::Succeeded);
    }

    #[tokio::test]
    async fn a_job_that_cannot_be_read_fails_and_lets_the_next_one_by() {
        let world = World::new().await;
        let put = async |name| {
            world
                .control_plane
                .put_server(&caller(), at(name), &wish(), PutMode::Create, &idem())
                .await
                .expect("accepted")
                .operation
        };
        let (first, second) = (put("pg1").await, put("pg2").await);
        let spoilt =
            sqlx::query("update job set spec = '{\"kind\": \"Sing\"}' where operation_id = $1")
                .bind(first.id.0)
                .execute(world.pool())
                .await
                .expect("spoilt");
        assert_eq!(spoilt.rows_affected(), 1);
        let job = world.lease_one().await.expect("the other one");
        assert_eq!(job.operation, Some(second.id));
        world.duties().await;
        let failed = world
            .control_plane
            .get_operation(first.subscription, "northcentralus", first.id)
            .await
            .expect("readable");
        assert_eq!(failed.state, OperationState::Failed);
        assert_eq!(failed.failure.expect("says why").code, "JobUnreadable");
    }

    #[tokio::test]
    async fn a_password_is_forgotten_when_its_job_ends() {
        let mut world = World::new().await;
        world.create("pg1").await;
        let left = world
            .count("select count(*) from (select spec::text t from job union all select input::text from operation) x where t like '%correct horse%'")
            .await;
        assert_eq!(left, 0);
        let specs = world
            .count("select count(*) from job where ended_at is not null and spec is not null")
            .await;
        assert_eq!(specs, 0);
    }

    #[tokio::test]
    async fn the_trace_of_a_request_reaches_its_job() {
        let world = World::new().await;
        let who = caller();
        let asked = world
            .control_plane
            .put_server(&who, at("pg1"), &wish(), PutMode::Create, &idem())
            .await;
        asked.expect("accepted");
        let job = world.lease_one().await.expect("provision");
        assert_eq!(job.traceparent, who.traceparent);
    }

    #[tokio::test]
    async fn a_node_that_was_revoked_is_not_heard() {
        let mut world = World::new().await;
        world.create("pg1").await;
        assert!(
            world
                .control_plane
                .revoke_node(world.node)
                .await
                .expect("known")
        );
        let answer = world.control_plane.lease(world.node, world.boot, 1).await;
        assert!(matches!(answer, Err(Error::UnknownNode(_))), "{answer:?}");
        let unknown = LeaseRef {
            job: JobId::new(),
            epoch: 1,
            boot: world.boot,
        };
        let answer = world
            .control_plane
            .report(world.node, unknown, &JobResult::Canceled)
            .await;
        assert!(matches!(answer, Err(Error::UnknownNode(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn backups_of_one_life_are_written_one_at_a_time() {
        // DESIGN §3.9
        let mut world = World::new().await;
        world.create("pg1").await;
        for name in ["b1", "b2"] {
            world
                .control_plane
                .request_backup(&caller(), at("pg1"), name, &idem())
                .await
                .expect("ok");
        }
        let first = world.lease_one().await.expect("one");
        world.duties().await;
        assert!(world.lease_one().await.is_none(), "the second waits");
        let outcome = world.outcome(&first).await;
        world
            .report(&first, &JobResult::Done(outcome))
            .await
            .expect("done");
        world.run_until_idle().await;
        assert_eq!(world.backups("pg1").await, 3);
    }

    #[tokio::test]
    async fn a_report_about_a_foreign_life_is_refused() {
        let mut world = World::new().await;
        world.create("pg1").await;
        let mut report = WalReport {
            incarnation: holdfast_domain::IncarnationId::new(),
            timeline: holdfast_domain::Timeline(1),
            durable: holdfast_domain::Lsn(1),
            objects: Vec::new(),
            superseded: Vec::new(),
            timelines: Vec::new(),
            caught_up_at: None,
            last_counting: None,
            held_bytes: 0,
            gap: None,
        };
        let answer = world
            .control_plane
            .wal_report(world.node, world.boot, &report)
            .await;
        assert!(matches!(answer, Err(Error::Stale)), "{answer:?}");
        report.incarnation = world.life_of("pg1").await;
        report.durable = holdfast_domain::Lsn(u64::MAX);
        let answer = world
            .control_plane
            .wal_report(world.node, world.boot, &report)
            .await;
        assert!(matches!(answer, Err(Error::Absurd(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn idle_servers_follow_the_instant_of_their_node() {
        // ADR 16
        let mut world = World::new().await;
        world.create("pg1").await;
        world.create("pg2").await;
        world.run_until_idle().await;
        let (one, two) = (world.life_of("pg1").await, world.life_of("pg2").await);
        let (node, boot) = (world.node, world.boot);
        let latest = async |world: &World, name| world.server(name).await.latest_restore;
        let at_first = [latest(&world, "pg1").await, latest(&world, "pg2").await];
        let now = world.control_plane.clock().now();
        let later = |minutes| Some(now + TimeDelta::minutes(minutes));
        world.pass(minutes(10)).await;
        let control_plane = world.control_plane.clone();
        let idle = async |begun: &[IncarnationId], until| {
            control_plane
                .idle(node, boot, begun, until)
                .await
                .expect("heard");
        };
        idle(&[one], later(1)).await;
        assert_eq!(latest(&world, "pg1").await, later(1));
        assert_eq!(latest(&world, "pg2").await, at_first[1]);
        idle(&[two], later(2)).await;
        idle(&[], later(1)).await;
        assert_eq!(latest(&world, "pg1").await, later(2), "never back");
        // What ended stays where it was.
        let ended = world.control_plane.end_idleness(node, boot, &[one]).await;
        ended.expect("heard");
        idle(&[], later(3)).await;
        assert_eq!(latest(&world, "pg1").await, later(2));
        assert_eq!(latest(&world, "pg2").await, later(3));
        // A new process of the node knows nothing of it, and nothing is lost.
        world.boot = BootId::new();
        world.hello().await;
        assert_eq!(latest(&world, "pg2").await, later(3));
        let old = world
            .control_plane
            .idle(node, boot, &[one, two], later(4))
            .await;
        assert!(matches!(old, Err(Error::Stale)), "{old:?}");
        // What the old one said holds for no server that only the new one speaks of.
        let control_plane = &world.control_plane;
        control_plane
            .idle(node, world.boot, &[one], None)
            .await
            .expect("heard");
        assert_eq!(latest(&world, "pg1").await, later(2));
        let ended = control_plane.end_idleness(node, world.boot, &[one]).await;
        ended.expect("heard");
        let foreign = [IncarnationId::new()];
        control_plane
            .idle(node, world.boot, &foreign, later(5))
            .await
            .expect("heard");
        assert_eq!(latest(&world, "pg1").await, later(2));
        assert_eq!(latest(&world, "pg2").await, later(3));
    }

    #[tokio::test]
    async fn progress_never_goes_back() {
        let world = World::new().await;
        let asked = world
            .control_plane
            .put_server(&caller(), at("pg1"), &wish(), PutMode::Create, &idem())
            .await
            .expect("accepted");
        let job = world.lease_one().await.expect("provision");
        for percent in [40.0, 10.0] {
            let progress = Progress {
                phase: EventId::new().to_string(),
                percent,
                ..Progress::default()
            };
            let lease = world.lease_ref(&job);
            world
                .control_plane
                .progress(world.node, lease, Some(&progress))
                .await
                .expect("renewed");
        }
        let operation = world
            .control_plane
            .get_operation(
                asked.operation.subscription,
                "North Central US",
                asked.operation.id,
            )
            .await
            .expect("readable");
        assert_eq!(operation.state, OperationState::Running);
        assert!((operation.progress.expect("told").percent - 40.0).abs() < 1e-9);
    }
}
