//! Rewrites packs most of which no backup needs (ADR 18). The work is [`holdfast_vault::backup::compact`];
//! this gives it the stores, the key and the lease.

use holdfast_domain::job::{CompactOutcome, CompactSpec, JobError};
use holdfast_vault::backup::{Compaction, ToRewrite, compact};

use crate::error::{Error, Result};
use crate::job::JobContext;

pub async fn run(ctx: &JobContext, spec: CompactSpec) -> Result<CompactOutcome, JobError> {
    tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::Canceled.into()),
        outcome = rewrite(ctx, spec) => Ok(outcome?),
    }
}

async fn rewrite(ctx: &JobContext, spec: CompactSpec) -> Result<CompactOutcome> {
    let CompactSpec {
        placement,
        wrapped_key,
        backups,
        objects,
    } = spec;
    let (asked, all) = (objects.len(), backups.len());
    let backups: Option<Vec<ToRewrite>> = backups
        .into_iter()
        .map(|backup| {
            Some(ToRewrite {
                generation: backup.generation_of(ctx.epoch)?,
                manifest: backup.manifest,
            })
        })
        .collect();
    let outcome = compact(Compaction {
        stores: ctx.node.stores(&placement.vaults)?,
        data_key: ctx.node.data_key(&placement, &wrapped_key)?,
        incarnation: placement.incarnation,
        job: ctx.job,
        epoch: ctx.epoch,
        backups: backups.ok_or_else(|| {
            holdfast_vault::Error::refused("a manifest cannot have another generation")
        })?,
        objects: objects.into_iter().collect(),
        stop: ctx.cancel.clone(),
        courtesy: ctx.node.equipment().courtesy(),
    })
    .await?;
    ctx.check()?;
    tracing::info!(
        incarnation.id = %placement.incarnation, objects = asked, backups.all = all,
        backups.rewritten = outcome.backups.len(), bytes.read = outcome.bytes_read,
        bytes.written = outcome.bytes_written, "mostly dead objects were rewritten"
    );
    Ok(outcome)
}
