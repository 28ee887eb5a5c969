//! The end of a server on its node: stopped, its last WAL in the store, its directory gone. The vault
//! keeps what retention keeps.
//!
//! While the store does not take the last WAL the directory stays and the job fails as worth another
//! attempt: until the server's purge, "latest" of a dropped server includes its last commit.

use holdfast_domain::job::{DropOutcome, DropSpec, JobError};

use crate::error::Result;
use crate::job::JobContext;
use crate::restore::directory::clear_earlier;

pub async fn run(ctx: &JobContext, spec: DropSpec) -> Result<DropOutcome, JobError> {
    let DropSpec {
        placement,
        wrapped_key,
    } = spec;
    let node = &ctx.node;
    let incarnation = placement.incarnation;
    let directory = node.server_dir(incarnation);
    let mut outcome = DropOutcome {
        drained: false,
        report: None,
    };
    if directory.exists()
        && let Some(wrapped_key) = wrapped_key
    {
        node.adopt(&placement, &wrapped_key);
        let stopped = node.stop_server(incarnation).await?;
        if !stopped.drained {
            return Err(JobError {
                code: "ObjectStoreUnavailable".into(),
                message: "the server's last write-ahead log is not in the store yet; it is kept until it is".into(),
                retryable: true,
            });
        }
        outcome.drained = true;
        outcome.report = stopped.report;
    }
    ctx.check()?;
    if let Some(server) = node.server(incarnation) {
        server.kill().await?;
    }
    // Under another name first: a directory with its final name is whole, also while it is going.
    remove(ctx, &placement, &directory).await?;
    node.forget(incarnation)?;
    Ok(outcome)
}

async fn remove(
    ctx: &JobContext,
    placement: &holdfast_domain::job::Placement,
    directory: &std::path::Path,
) -> Result<()> {
    let node = &ctx.node;
    if directory.exists() {
        let going = node.building_dir(placement.incarnation, ctx.job, ctx.epoch);
        std::fs::rename(directory, &going)
            .map_err(crate::error::Error::file("rename", directory))?;
    }
    // A restore that failed and was kept for diagnosis goes too.
    clear_earlier(node, placement.incarnation, false).await
}
