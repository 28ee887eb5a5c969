//! Deletes from one vault: what attempts that came to nothing left there, then an explicit list in its
//! order, manifests first, then what only they named (DESIGN §3.9). Leavings are found by listing where
//! the job says. Before each batch, found or listed, the scheduler is asked again what may go – under this
//! lease, with the catalogue and the pins of this moment; what it withholds stays, without a word.

use std::collections::HashSet;

use holdfast_domain::job::{JobError, Progress, PruneOutcome, PruneSpec};
use holdfast_vault::prune::delete_keys;
use holdfast_vault::store::Store;

use crate::error::{Error, Result};
use crate::job::JobContext;

/// Keys per question. Small, so that a pin made meanwhile protects nearly all.
const BATCH: usize = 100;

pub async fn run(ctx: &JobContext, spec: PruneSpec) -> Result<PruneOutcome, JobError> {
    tokio::select! {
        biased;
        // What was asked of a store by then happens; what is gone is found gone by the next attempt.
        () = ctx.cancel.cancelled() => Err(Error::Canceled.into()),
        outcome = prune(ctx, spec) => outcome,
    }
}

async fn prune(ctx: &JobContext, spec: PruneSpec) -> Result<PruneOutcome, JobError> {
    let PruneSpec {
        incarnation,
        vault,
        keys,
        leavings,
    } = spec;
    // Nothing outside this incarnation's objects, whatever the list says.
    let owner = incarnation.to_string();
    if let Some(stray) = keys
        .iter()
        .find(|key| key.split('/').nth(1) != Some(owner.as_str()))
    {
        tracing::error!(
            key = stray.as_str(),
            "a prune names an object of another server"
        );
        return Err(JobError {
            code: "ForeignObject".into(),
            message: "the list names an object that is not this server's; nothing was deleted"
                .into(),
            retryable: false,
        });
    }
    let stores = ctx.node.stores(std::slice::from_ref(&vault))?;
    let mut outcome = PruneOutcome {
        deleted: Vec::with_capacity(keys.len()),
        bytes_freed: 0,
        left: 0,
    };
    let listed: HashSet<&String> = keys.iter().collect();
    for prefix in leavings.prefixes(incarnation) {
        for store in &stores {
            ctx.check()?;
            let found = store.list(&prefix).await.map_err(Error::from)?;
            // What is on the list as well goes in the list's order.
            let found: Vec<String> = found
                .into_iter()
                .map(|object| object.key)
                .filter(|key| !listed.contains(key))
                .collect();
            for batch in found.chunks(BATCH) {
                let gone = delete(ctx, std::slice::from_ref(store), batch, &mut outcome).await?;
                outcome.left += (batch.len() - gone) as u64;
            }
        }
    }
    for (done, batch) in keys.chunks(BATCH).enumerate() {
        delete(ctx, &stores, batch, &mut outcome).await?;
        ctx.progress(Progress {
            phase: "Deleting".into(),
            percent: ((done + 1) * BATCH) as f64 * 100.0 / keys.len() as f64,
            ..Progress::default()
        });
    }
    Ok(outcome)
}

/// Deletes what may go of a batch. Answers how many keys that were.
async fn delete(
    ctx: &JobContext,
    stores: &[Store],
    batch: &[String],
    outcome: &mut PruneOutcome,
) -> Result<usize> {
    let allowed: HashSet<String> = ctx.validate(batch).await?.into_iter().collect();
    let going: Vec<String> = batch
        .iter()
        .filter(|key| allowed.contains(*key))
        .cloned()
        .collect();
    ctx.check()?;
    for store in stores {
        let deleted = delete_keys(store, &going).await?;
        outcome.deleted.extend(deleted.deleted);
        outcome.bytes_freed += deleted.bytes;
    }
    Ok(going.len())
}
