//! What a node may say about jobs: the agents' gateway. Every effect is fenced by node, boot and
//! epoch, and a report, its effects and what follows from them are one transaction (DESIGN §3.8).

use aws_lc_rs::digest::{SHA256, digest};
use holdfast_domain::job::{
    JobKind, JobResult, JobSpec, JobState, LeaseRef, LeasedJob, Progress, ProgressResponse, WalReport,
};
use holdfast_domain::{BootId, NodeId};

use crate::store::job::Job;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result, advance, apply, prune, rescue};

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
            let mut unit = Unit::begin(self).await?;
            let lease = self.policy().lease;
            let Some(job) = store::job::claim(unit.conn(), node, boot, lease).await? else {
                break;
            };
            if let Some(backup) = job.backup {
                store::backup::running(unit.conn(), job.subscription, backup).await?;
            }
            if let Some(operation) = job.operation {
                store::operation::running(unit.conn(), job.subscription, operation).await?;
            }
            unit.commit().await?;
            leased.push(LeasedJob {
                job: job.id,
                epoch: job.epoch,
                operation: job.operation,
                lease_s: self.lease_s(),
                attempt: job.attempts,
                spec: job.spec.ok_or_else(|| Error::corrupt(format!("job {} has no spec", job.id)))?,
                traceparent: job.caller.traceparent,
            });
        }
        Ok(leased)
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
        let (cancel, subscription, operation) =
            store::job::renew(unit.conn(), node, lease, length).await?.ok_or(Error::Stale)?;
        if let (Some(operation), Some(progress)) = (operation, progress) {
            if !progress.percent.is_finite() || !(0.0..=100.0).contains(&progress.percent) {
                return Err(Error::Absurd(format!("progress of {} percent", progress.percent)));
            }
            store::operation::set_progress(unit.conn(), subscription, operation, progress).await?;
        }
        unit.commit().await?;
        Ok(ProgressResponse { cancel, lease_s: self.lease_s() })
    }

    /// The job ended. The same report twice is one report.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; [`Error::Stale`]; [`Error::Absurd`].
    pub async fn report(&self, node: NodeId, lease: LeaseRef, result: &JobResult) -> Result<()> {
        self.speaks(node, lease.boot).await?;
        let hash = fingerprint(result)?;
        let mut unit = Unit::begin(self).await?;
        let job = store::job::get(unit.conn(), lease.job, Hold::None).await?.ok_or(Error::Stale)?;
        store::server::by_id(unit.conn(), job.subscription, job.server, Hold::Update).await?;
        let job = store::job::get(unit.conn(), lease.job, Hold::Update).await?.ok_or(Error::Stale)?;
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
        store::job::renew(unit.conn(), node, lease, length).await?.ok_or(Error::Stale)?;
        let job = store::job::get(unit.conn(), lease.job, Hold::None).await?.ok_or(Error::Stale)?;
        let (JobKind::Prune, Some(JobSpec::Prune(spec))) = (job.kind, &job.spec) else {
            return Err(Error::Absurd(format!("a {:?} job deletes nothing", job.kind)));
        };
        let may = prune::deletable(&mut unit, job.subscription, job.server, spec.incarnation, keys).await?;
        unit.commit().await?;
        Ok(keys
            .iter()
            .filter(|key| may.contains(*key) && spec.keys.contains(key))
            .cloned()
            .collect())
    }

    /// The streams' news. Any number of times.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; [`Error::Stale`] for an incarnation that is not on this node;
    /// [`Error::Absurd`].
    pub async fn wal_report(
        &self,
        node: NodeId,
        boot: BootId,
        reports: &[WalReport],
    ) -> Result<()> {
        self.speaks(node, boot).await?;
        let grace = self.policy().prune_grace;
        let mut unit = Unit::begin(self).await?;
        let now = unit.now();
        for report in reports {
            let subscription =
                store::incarnation::on_node(unit.conn(), report.incarnation, node)
                    .await?
                    .ok_or(Error::Stale)?;
            store::wal::take_in(unit.conn(), subscription, report, now, grace).await?;
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

/// Moves the job's operation on, if it has one.
pub(crate) async fn follow(control_plane: &ControlPlane, unit: &mut Unit, job: &Job) -> Result<()> {
    let Some(operation) = job.operation else {
        return Ok(());
    };
    let record =
        store::operation::get(unit.conn(), job.subscription, operation, Hold::Update)
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
