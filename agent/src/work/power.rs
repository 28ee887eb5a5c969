//! Start, stop, restart. A stop brings the rest of the WAL to the store for as long as 30 s and goes on
//! in the background after that (RELIABILITY §5.3.6); the stopped server's window stands still.

use holdfast_domain::job::{JobError, Power, PowerOutcome, PowerSpec};

use crate::job::JobContext;
use crate::server::Stopped;

pub async fn run(ctx: &JobContext, spec: PowerSpec) -> Result<PowerOutcome, JobError> {
    let PowerSpec {
        placement,
        wrapped_key,
        to,
    } = spec;
    let node = &ctx.node;
    let minor_version = node.installation(placement.major)?.minor;
    // A node that lost its cache learns the server from the job.
    node.adopt(&placement, &wrapped_key);
    let stopped = match to {
        Power::Stopped | Power::Restarted => Some(node.stop_server(placement.incarnation).await?),
        Power::Running => None,
    };
    if to != Power::Stopped {
        node.start_server(&placement, &wrapped_key).await?;
    }
    Ok(PowerOutcome {
        minor_version,
        drained: stopped.as_ref().is_some_and(Stopped::is_drained),
        report: stopped.and_then(|stopped| stopped.report),
    })
}
