//! The second phase of deleting: an explicit list for a node, re-checked before each batch, and the
//! catalogue forgetting what is gone. Never led by a listing (DESIGN §3.9).

use std::collections::BTreeSet;

use chrono::TimeDelta;
use holdfast_domain::activity::Caller;
use holdfast_domain::job::{JobSpec, PruneSpec};
use holdfast_domain::node::{Node, NodeState};
use holdfast_domain::server::{Server, ServerState};
use holdfast_domain::{BackupId, EventId, IncarnationId, NodeId, ServerId, SubscriptionId};

use crate::placement::{self, vault_refs};
use crate::store::backup::Backup;
use crate::store::incarnation::Incarnation;
use crate::store::job::{FOR_TIDINESS, Job, NewJob};
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result};

/// WAL objects in one job; the next sweep goes on.
const WAL_AT_ONCE: i64 = 5000;
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
    keys.extend(exclusive(unit, subscription, incarnation, &backups).await?);
    if store::pin::on(unit.conn(), subscription, incarnation)
        .await?
        .is_empty()
    {
        // A restore reads tails that were superseded after it was planned: while one runs, WAL stays.
        let wal =
            store::wal::to_prune(unit.conn(), subscription, incarnation, now, WAL_AT_ONCE).await?;
        keys.extend(wal);
    }
    if over && keys.is_empty() {
        keys = last_keys(unit, &life).await?;
    }
    if keys.is_empty() {
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
    if store::backup::any_left(unit.conn(), life.subscription, life.id).await? {
        return Ok(Vec::new());
    }
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
    incarnation: IncarnationId,
    keys: &[String],
) -> Result<BTreeSet<String>> {
    let now = unit.now();
    let backups = store::backup::to_prune(unit.conn(), subscription, incarnation, now).await?;
    let mut may: BTreeSet<String> = manifests(&backups).into_iter().collect();
    may.extend(exclusive(unit, subscription, incarnation, &backups).await?);
    if store::pin::on(unit.conn(), subscription, incarnation)
        .await?
        .is_empty()
    {
        may.extend(store::wal::unlinked(unit.conn(), subscription, incarnation, keys, now).await?);
        let server = store::server::by_id(unit.conn(), subscription, server, Hold::None).await?;
        let over = server.is_some_and(|server| {
            server.state == ServerState::Dropped
                && server.restorable_until.is_some_and(|until| until <= now)
        });
        if over {
            let life = store::incarnation::get(unit.conn(), subscription, incarnation).await?;
            may.extend(last_keys(unit, &life).await?);
        }
    }
    Ok(may)
}

/// Forgets what is gone. Answers how many backups went.
pub(crate) async fn settle(
    unit: &mut Unit,
    job: &Job,
    spec: &PruneSpec,
    deleted: &[String],
) -> Result<usize> {
    let (subscription, now) = (job.subscription, unit.now());
    let gone =
        store::backup::with_manifest_in(unit.conn(), subscription, spec.incarnation, deleted)
            .await?;
    store::backup::gone(unit.conn(), subscription, &gone, now).await?;
    store::wal::forget(unit.conn(), subscription, spec.incarnation, deleted).await?;
    let life = store::incarnation::get(unit.conn(), subscription, spec.incarnation).await?;
    if key_object(&life).is_some_and(|key| deleted.contains(&key)) {
        let server = store::server::by_id(unit.conn(), subscription, job.server, Hold::Update)
            .await?
            .ok_or_else(|| Error::corrupt(format!("server {} is missing", job.server)))?;
        store::server::purged(unit.conn(), &server, now).await?;
    }
    Ok(gone.len())
}
