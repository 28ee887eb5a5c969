//! The second phase of deleting: an explicit list for a node, re-checked before each batch, and the
//! catalogue forgetting what is gone. What attempts that came to nothing left is found by a listing, and
//! goes because no backup names it, never because it was found (DESIGN §3.9).

use std::collections::BTreeSet;

use chrono::TimeDelta;
use holdfast_domain::activity::Caller;
use holdfast_domain::job::{JobSpec, PruneOutcome, PruneSpec};
use holdfast_domain::leavings::Leavings;
use holdfast_domain::node::{Node, NodeState};
use holdfast_domain::server::{Server, ServerState};
use holdfast_domain::{BackupId, EventId, IncarnationId, JobId, NodeId, ServerId, SubscriptionId};

use crate::placement::{self, vault_refs};
use crate::store::backup::Backup;
use crate::store::incarnation::Incarnation;
use crate::store::job::{FOR_TIDINESS, Job, NewJob};
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result};

/// WAL objects in one job; the next sweep goes on.
const WAL_AT_ONCE: i64 = 5000;
/// Jobs whose leavings are looked for by one prune.
const ATTEMPTS_AT_ONCE: i64 = 100;
/// What an attempt wrote stays this long after its job ended: a process that lost its lease and does
/// not know it yet may still be writing.
pub(crate) const LEAVINGS_KEPT_FOR: TimeDelta = TimeDelta::hours(24);
const TIME_LIMIT: TimeDelta = TimeDelta::hours(6);

/// Queues a prune job when something is past its grace. `over`: the server's time is over, so that in
/// the end its history files and its key go as well.
pub(crate) async fn queue(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    server: &Server,
    incarnation: IncarnationId,
    over: bool,
) -> Result<usize> {
    let (subscription, now) = (server.subscription, unit.now());
    let life = store::incarnation::get(unit.conn(), subscription, incarnation).await?;
    let backups = store::backup::to_prune(unit.conn(), subscription, incarnation, now).await?;
    let mut keys = manifests(&backups);
    let superseded =
        store::superseded::to_prune(unit.conn(), subscription, incarnation, now).await?;
    let (old, packs): (Vec<_>, Vec<_>) = superseded
        .into_iter()
        .partition(|key| key.starts_with("backups/"));
    keys.extend(old);
    keys.extend(exclusive(unit, subscription, incarnation, &backups).await?);
    keys.extend(packs);
    if store::pin::on(unit.conn(), subscription, incarnation)
        .await?
        .is_empty()
    {
        // A restore reads tails that were superseded after it was planned: while one runs, WAL stays.
        let wal =
            store::wal::to_prune(unit.conn(), subscription, incarnation, now, WAL_AT_ONCE).await?;
        keys.extend(wal);
    }
    let mut leavings = Leavings::Nowhere;
    if over {
        if keys.is_empty()
            && !store::backup::any_left(unit.conn(), subscription, incarnation).await?
        {
            keys = last_keys(unit, &life).await?;
            leavings = Leavings::Everywhere;
        }
    } else {
        let before = now - LEAVINGS_KEPT_FOR;
        let ended = store::job::to_reclaim(
            unit.conn(),
            subscription,
            incarnation,
            before,
            ATTEMPTS_AT_ONCE,
        )
        .await?;
        if !ended.is_empty() {
            leavings = Leavings::Attempts(ended);
        }
    }
    if keys.is_empty() && leavings == Leavings::Nowhere {
        return Ok(0);
    }
    let nodes = placement::nodes(unit).await?;
    let Some(node) = doer(server, &nodes) else {
        return Ok(0);
    };
    let vaults = store::node::vaults(unit.conn()).await?;
    // One vault holds everything until copies exist; `demanded_vaults` is the function to widen.
    let vault = vault_refs(&life, &vaults)?
        .into_iter()
        .next()
        .ok_or_else(|| Error::corrupt(format!("incarnation {incarnation} has no vault")))?;
    let spec = JobSpec::Prune(PruneSpec {
        incarnation,
        vault,
        keys,
        leavings,
    });
    let caller = Caller::service(EventId::new().to_string());
    let job = NewJob {
        subscription,
        operation: None,
        server: server.id,
        incarnation: Some(incarnation),
        backup: None,
        base: None,
        node,
        priority: FOR_TIDINESS,
        spec: &spec,
        max_attempts: control_plane.policy().max_attempts,
        deadline: now + TIME_LIMIT,
        caller: &caller,
    };
    let queued = store::job::queue(unit.conn(), job, now).await?;
    if queued.is_some() {
        unit.wake_node(node);
    }
    Ok(usize::from(queued.is_some()))
}

/// The server's own node, or for a tombstone one that is near.
fn doer(server: &Server, nodes: &[Node]) -> Option<NodeId> {
    server.node.or_else(|| {
        nodes
            .iter()
            .filter(|node| node.region == server.region && node.state != NodeState::Silent)
            .min_by_key(|node| (node.zone != server.placed_zone, node.servers, node.id))
            .map(|node| node.id)
    })
}

fn manifests(backups: &[Backup]) -> Vec<String> {
    backups
        .iter()
        .filter_map(|backup| backup.complete.as_ref())
        .map(|backup| backup.manifest.key.clone())
        .collect()
}

async fn exclusive(
    unit: &mut Unit,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    backups: &[Backup],
) -> Result<Vec<String>> {
    let ids: Vec<BackupId> = backups.iter().map(|backup| backup.id).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    store::backup::exclusive_objects(unit.conn(), subscription, incarnation, &ids).await
}

/// What goes when nothing else is left: history files, and with the wrapped key the last way to read
/// anything that may have stayed behind.
async fn last_keys(unit: &mut Unit, life: &Incarnation) -> Result<Vec<String>> {
    let mut keys = store::wal::history_keys(unit.conn(), life.subscription, life.id).await?;
    keys.extend(key_object(life));
    Ok(keys)
}

/// `keys/{incarnation}/{kek version}` (docs/VAULT-FORMAT.md §1).
fn key_object(life: &Incarnation) -> Option<String> {
    let key = life.wrapped_key.as_ref()?;
    Some(format!("keys/{}/{}", life.id, key.kek_version))
}

/// Those of the keys that may be deleted at this moment, decided from the catalogue alone.
pub(crate) async fn deletable(
    unit: &mut Unit,
    subscription: SubscriptionId,
    server: ServerId,
    spec: &PruneSpec,
    keys: &[String],
) -> Result<BTreeSet<String>> {
    let (now, incarnation) = (unit.now(), spec.incarnation);
    let backups = store::backup::to_prune(unit.conn(), subscription, incarnation, now).await?;
    let mut may: BTreeSet<String> = manifests(&backups).into_iter().collect();
    may.extend(exclusive(unit, subscription, incarnation, &backups).await?);
    may.extend(store::superseded::to_prune(unit.conn(), subscription, incarnation, now).await?);
    // What is found by a listing goes by the listing's rule alone, or a pack could go before its manifest.
    let listed: BTreeSet<&String> = spec.keys.iter().collect();
    may.retain(|key| listed.contains(key));
    if let Leavings::Attempts(_) = spec.leavings {
        may.extend(unnamed(unit, subscription, spec, keys).await?);
    }
    if store::pin::on(unit.conn(), subscription, incarnation)
        .await?
        .is_empty()
    {
        may.extend(store::wal::unlinked(unit.conn(), subscription, incarnation, keys, now).await?);
        let server = store::server::by_id(unit.conn(), subscription, server, Hold::None).await?;
        let over = server.is_some_and(|server| match server.state {
            ServerState::Dropped => server.restorable_until.is_some_and(|until| until <= now),
            // It never was one; its node has cleared its directory away.
            ServerState::Failed => server.node.is_none(),
            _ => false,
        });
        if over && !store::backup::any_left(unit.conn(), subscription, incarnation).await? {
            let life = store::incarnation::get(unit.conn(), subscription, incarnation).await?;
            may.extend(last_keys(unit, &life).await?);
            if spec.leavings == Leavings::Everywhere {
                may.extend(unnamed(unit, subscription, spec, keys).await?);
            }
        }
    }
    Ok(may)
}

/// Those of the keys that are leavings: where the job looks for some, and named by no backup and no WAL
/// that the catalogue knows. A manifest that a later attempt adopted names objects of earlier ones.
async fn unnamed(
    unit: &mut Unit,
    subscription: SubscriptionId,
    spec: &PruneSpec,
    keys: &[String],
) -> Result<Vec<String>> {
    let prefixes = spec.leavings.prefixes(spec.incarnation);
    let found: Vec<String> = keys
        .iter()
        .filter(|key| prefixes.iter().any(|prefix| key.starts_with(prefix)))
        .cloned()
        .collect();
    store::backup::unnamed(unit.conn(), subscription, spec.incarnation, &found).await
}

/// Whether a key is one that the job may speak of at all.
pub(crate) fn asked(spec: &PruneSpec) -> impl Fn(&String) -> bool {
    let listed: BTreeSet<&String> = spec.keys.iter().collect();
    let prefixes = spec.leavings.prefixes(spec.incarnation);
    move |key| listed.contains(key) || prefixes.iter().any(|prefix| key.starts_with(prefix))
}

/// Forgets what is gone. Answers how many backups went.
pub(crate) async fn settle(
    unit: &mut Unit,
    job: &Job,
    spec: &PruneSpec,
    made: &PruneOutcome,
) -> Result<usize> {
    let (subscription, now) = (job.subscription, unit.now());
    let deleted = &made.deleted;
    let gone =
        store::backup::with_manifest_in(unit.conn(), subscription, spec.incarnation, deleted)
            .await?;
    store::backup::gone(unit.conn(), subscription, &gone, now).await?;
    store::wal::forget(unit.conn(), subscription, spec.incarnation, deleted).await?;
    store::superseded::forget(unit.conn(), subscription, spec.incarnation, deleted).await?;
    store::superseded::recount(unit.conn(), subscription, spec.incarnation).await?;
    match &spec.leavings {
        Leavings::Nowhere => {}
        // What was withheld is named by a backup and goes with it.
        Leavings::Attempts(ended) => {
            let jobs: Vec<JobId> = ended.iter().map(|ended| ended.job).collect();
            store::job::reclaimed(unit.conn(), subscription, &jobs, now).await?;
        }
        Leavings::Everywhere if made.left == 0 => {
            let server = store::server::by_id(unit.conn(), subscription, job.server, Hold::Update)
                .await?
                .ok_or_else(|| Error::corrupt(format!("server {} is missing", job.server)))?;
            store::server::purged(unit.conn(), &server, now).await?;
        }
        Leavings::Everywhere => {}
    }
    Ok(gone.len())
}
