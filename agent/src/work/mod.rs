//! The jobs, one file each. A job may run twice and may die half-way; what that means for each stands at
//! its spec in `holdfast_domain::job`.

pub mod archive_wal;
pub mod compact;
pub mod drop;
pub mod power;
pub mod provision;
pub mod prune;
pub mod restore;
pub mod snapshot;

#[cfg(test)]
mod courtesy_tests;
#[cfg(test)]
mod lifecycle_tests;

use holdfast_domain::IncarnationId;
use holdfast_domain::job::{JobError, JobOutcome, JobSpec};

use crate::error::Error;
use crate::job::JobContext;

/// Does a job. Snapshots, prunes and compactions of one incarnation take turns (DESIGN §3.9).
pub async fn run(ctx: &JobContext, spec: JobSpec) -> Result<JobOutcome, JobError> {
    let writes_to = match &spec {
        JobSpec::Snapshot(spec) => Some(spec.placement.incarnation),
        JobSpec::Prune(spec) => Some(spec.incarnation),
        JobSpec::Compact(spec) => Some(spec.placement.incarnation),
        _ => None,
    };
    let _turn = match writes_to {
        Some(incarnation) => tokio::select! {
            turn = ctx.node.backup_lock(incarnation) => Some(turn),
            () = ctx.cancel.cancelled() => return Err(Error::Canceled.into()),
        },
        None => None,
    };
    Ok(match spec {
        JobSpec::Provision(spec) => JobOutcome::Provision(provision::run(ctx, spec).await?),
        JobSpec::Snapshot(spec) => JobOutcome::Snapshot(snapshot::run(ctx, spec).await?),
        JobSpec::ArchiveWal(spec) => JobOutcome::ArchiveWal(archive_wal::run(ctx, spec).await?),
        JobSpec::Restore(spec) => JobOutcome::Restore(Box::new(restore::run(ctx, *spec).await?)),
        JobSpec::Prune(spec) => JobOutcome::Prune(prune::run(ctx, spec).await?),
        JobSpec::Compact(spec) => JobOutcome::Compact(compact::run(ctx, spec).await?),
        JobSpec::Power(spec) => JobOutcome::Power(power::run(ctx, spec).await?),
        JobSpec::Drop(spec) => JobOutcome::Drop(drop::run(ctx, spec).await?),
    })
}

/// The server whose power or directory a job changes: until its end was reported, what the control plane
/// said earlier about that server does not count (`Node::busy`).
#[must_use]
pub fn changes(spec: &JobSpec) -> Option<IncarnationId> {
    match spec {
        JobSpec::Provision(spec) => Some(spec.placement.incarnation),
        JobSpec::Restore(spec) => Some(spec.placement.incarnation),
        JobSpec::Power(spec) => Some(spec.placement.incarnation),
        JobSpec::Drop(spec) => Some(spec.placement.incarnation),
        JobSpec::Snapshot(_) | JobSpec::ArchiveWal(_) | JobSpec::Prune(_) | JobSpec::Compact(_) => {
            None
        }
    }
}
