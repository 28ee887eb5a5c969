//! Deletes an explicit list from one vault, in its order: manifests first, then what only they named
//! (DESIGN §3.9). Before each batch the scheduler is asked again what may go – under this lease, with the
//! pins of this moment; what it withholds stays, without a word.

use std::collections::HashSet;

use holdfast_domain::job::{JobError, Progress, PruneOutcome, PruneSpec};
use holdfast_vault::prune::delete_keys;

use crate::error::Error;
use crate::job::JobContext;

/// Keys per question. Small, so that a pin made meanwhile protects nearly all.
const BATCH: usize = 100;

pub async fn run(ctx: &JobContext, spec: PruneSpec) -> Result<PruneOutcome, JobError> {
    let PruneSpec {
        incarnation,
        vault,
        keys,
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
    };
    for (done, batch) in keys.chunks(BATCH).enumerate() {
        let allowed: HashSet<String> = ctx.validate(batch).await?.into_iter().collect();
        let going: Vec<String> = batch
            .iter()
            .filter(|key| allowed.contains(*key))
            .cloned()
            .collect();
        ctx.check()?;
        for store in &stores {
            let deleted = delete_keys(store, &going).await.map_err(Error::from)?;
            outcome.deleted.extend(deleted.deleted);
            outcome.bytes_freed += deleted.bytes;
        }
        ctx.progress(Progress {
            phase: "Deleting".into(),
            percent: ((done + 1) * BATCH) as f64 * 100.0 / keys.len() as f64,
            ..Progress::default()
        });
    }
    Ok(outcome)
}
