//! The end of a server on its node: stopped, its last WAL in the store, its directory gone. The vault
//! keeps what retention keeps.
//!
//! While the store does not take the last WAL the directory stays and the job fails as worth another
//! attempt: until the server's purge, "latest" of a dropped server includes its last commit. WAL that a
//! damaged directory cannot give is lost whatever happens, and must not keep a server for ever.

use holdfast_domain::job::{DropOutcome, DropSpec, JobError};

use crate::error::{Error, Result, chain};
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
    let never_made = wrapped_key.is_none();
    let mut outcome = DropOutcome {
        drained: false,
        report: None,
    };
    if directory.exists()
        && let Some(wrapped_key) = wrapped_key
    {
        node.adopt(&placement, &wrapped_key);
        let stopped = node.stop_server(incarnation).await?;
        match &stopped.left {
            Some(Error::Vault(error)) if error.is_retryable() => {
                return Err(JobError {
                    code: "ObjectStoreUnavailable".into(),
                    message: "the server's last write-ahead log is not in the store yet; it is kept until it is".into(),
                    retryable: true,
                });
            }
            Some(error) => {
                tracing::error!(server.incarnation = %incarnation, error = chain(error), "a server goes without its last WAL");
            }
            None => {}
        }
        outcome.drained = stopped.is_drained();
        outcome.report = stopped.report;
    }
    ctx.check()?;
    if let Some(server) = node.server(incarnation) {
        server.kill().await?;
    }
    // Under another name first: a directory with its final name is whole, also while it is going.
    remove(ctx, &placement, &directory, never_made).await?;
    node.forget(incarnation)?;
    Ok(outcome)
}

async fn remove(
    ctx: &JobContext,
    placement: &holdfast_domain::job::Placement,
    directory: &std::path::Path,
    never_made: bool,
) -> Result<()> {
    let node = &ctx.node;
    if directory.exists() {
        let going = node.building_dir(placement.incarnation, ctx.job, ctx.epoch);
        std::fs::rename(directory, &going).map_err(Error::file("rename", directory))?;
    }
    // What a failed restore left is all that there is to diagnose when nothing came of the server; the
    // node keeps the newest few (`Node::look_after`). With a server that lived it goes too.
    clear_earlier(node, placement.incarnation, never_made).await
}
