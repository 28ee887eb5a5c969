//! Rewriting packs most of which no backup needs (DESIGN §3.1, ADR 18). Which ones is said in
//! `domain::compaction`. A node copies what lives and writes manifests of the next generation; when it
//! reports, all backups turn to them in one transaction, and what they named before goes after its grace.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use holdfast_domain::activity::Caller;
use holdfast_domain::compaction::choose;
use holdfast_domain::job::{
    CompactOutcome, CompactSpec, CompactedBackup, JobSpec, ManifestRef, RewrittenBackup,
};
use holdfast_domain::server::{Server, ServerState};
use holdfast_domain::{EventId, IncarnationId};

use crate::placement::placement;
use crate::prune::LEAVINGS_KEPT_FOR;
use crate::store::job::{FOR_TIDINESS, Job, NewJob};
use crate::store::{self, superseded};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result};

/// A run a day, whatever the minute of the day: more often would copy the same pages again and again.
const LOOK_EVERY: TimeDelta = TimeDelta::hours(20);
/// Each has a generation of its own.
const ATTEMPTS: u32 = 3;
const TIME_LIMIT: TimeDelta = TimeDelta::hours(6);
/// A report names what was replaced and what is new once for each backup; so many names fit into one.
const NAMES_AT_MOST: usize = 200_000;

/// Queues a compaction when it is time to look and worth it. The caller holds the server.
pub(crate) async fn queue(
    unit: &mut Unit,
    server: &Server,
    incarnation: IncarnationId,
) -> Result<usize> {
    let (subscription, now) = (server.subscription, unit.now());
    let (ServerState::Ready | ServerState::Stopped, Some(node)) = (server.state, server.node)
    else {
        return Ok(0);
    };
    let before = now - LOOK_EVERY;
    if !store::compaction::may_look(unit.conn(), subscription, incarnation, before).await? {
        return Ok(0);
    }
    store::compaction::looked(unit.conn(), subscription, incarnation, now).await?;
    let objects = store::compaction::usage(unit.conn(), subscription, incarnation).await?;
    let mut chosen = choose(&objects);
    if chosen.is_empty() {
        return Ok(0);
    }
    let complete =
        store::backup::complete(unit.conn(), &[subscription.0], &[incarnation.0]).await?;
    chosen.truncate((NAMES_AT_MOST / complete.len().max(1)).max(1));
    let bytes: u64 = chosen.iter().map(|object| object.bytes).sum();
    let living: u64 = chosen.iter().map(|object| object.living).sum();
    tracing::info!(server.id = %server.id, objects = chosen.len(), bytes, living, "mostly dead objects are rewritten");
    let mut backups = Vec::new();
    for (_, backup) in complete {
        let next_generation =
            store::compaction::reserve(unit.conn(), subscription, backup.id, ATTEMPTS).await?;
        backups.push(CompactedBackup {
            manifest: backup.manifest,
            next_generation,
        });
    }
    let life = store::incarnation::get(unit.conn(), subscription, incarnation).await?;
    let vaults = store::node::vaults(unit.conn()).await?;
    let spec = JobSpec::Compact(CompactSpec {
        placement: placement(server, &life, &vaults)?,
        wrapped_key: life
            .wrapped_key
            .clone()
            .ok_or_else(|| Error::corrupt(format!("incarnation {incarnation} has no key")))?,
        backups,
        objects: chosen
            .into_iter()
            .map(|object| object.key.clone())
            .collect(),
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
        max_attempts: ATTEMPTS,
        deadline: now + TIME_LIMIT,
        caller: &caller,
    };
    let queued = store::job::queue(unit.conn(), job, now).await?;
    if queued.is_some() {
        unit.wake_node(node);
    }
    Ok(usize::from(queued.is_some()))
}

/// All backups turn to what was written, in the report's transaction. One that was unlinked meanwhile keeps
/// the manifest that it has, and everything that manifest names.
pub(crate) async fn settle(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    job: &Job,
    spec: &CompactSpec,
    made: &CompactOutcome,
) -> Result<()> {
    let (subscription, incarnation) = (job.subscription, spec.placement.incarnation);
    let (mut old, mut in_vain) = (Vec::new(), BTreeSet::new());
    let mut turned = 0_usize;
    for rewritten in &made.backups {
        let asked = asked(job, spec, rewritten)?;
        let from = &asked.manifest;
        // Before the objects lose their names, so that their sizes are known.
        let by = by(unit, job, incarnation, control_plane.policy().prune_grace);
        let is_current =
            store::compaction::is_current(unit.conn(), subscription, incarnation, from).await?;
        if !is_current {
            in_vain.insert(rewritten.manifest.key.clone());
            continue;
        }
        let mut keys = rewritten.dropped.clone();
        keys.push(from.key.clone());
        superseded::insert(unit.conn(), by, &keys).await?;
        store::compaction::turn(unit.conn(), subscription, incarnation, from, rewritten).await?;
        old.push((from.clone(), rewritten.manifest.clone()));
        turned += 1;
    }
    in_vain.extend(written_by(spec, 1..job.epoch));
    let by = by(unit, job, incarnation, LEAVINGS_KEPT_FOR);
    let in_vain: Vec<String> = in_vain.into_iter().collect();
    superseded::insert(unit.conn(), by, &in_vain).await?;
    superseded::recount(unit.conn(), subscription, incarnation).await?;
    build_on(unit, job, &old).await?;
    store::compaction::add_rewritten(unit.conn(), made.bytes_written).await?;
    tracing::info!(
        server.id = %job.server, objects = spec.objects.len(), backups = turned,
        bytes.read = made.bytes_read, bytes.written = made.bytes_written, "objects were rewritten"
    );
    Ok(())
}

/// A snapshot that waits builds on the new manifest: the old one's packs are about to go.
async fn build_on(unit: &mut Unit, job: &Job, turned: &[(ManifestRef, ManifestRef)]) -> Result<()> {
    for mut waiting in store::job::open_of_server(unit.conn(), job.subscription, job.server).await?
    {
        let Some(JobSpec::Snapshot(spec)) = &mut waiting.spec else {
            continue;
        };
        let newer = turned
            .iter()
            .find(|(from, _)| spec.base.as_ref() == Some(from));
        if let Some((_, to)) = newer {
            spec.base = Some(to.clone());
            let spec = JobSpec::Snapshot(spec.clone());
            store::job::set_spec(unit.conn(), &waiting, &spec).await?;
        }
    }
    Ok(())
}

/// A compaction has ended for good without having been taken in: what its attempts may have published goes.
pub(crate) async fn gave_up(unit: &mut Unit, job: &Job) -> Result<()> {
    let Some(JobSpec::Compact(spec)) = &job.spec else {
        return Ok(());
    };
    let by = by(unit, job, spec.placement.incarnation, LEAVINGS_KEPT_FOR);
    let keys: Vec<String> = written_by(spec, 1..job.epoch.saturating_add(1)).collect();
    superseded::insert(unit.conn(), by, &keys).await
}

fn by(unit: &Unit, job: &Job, incarnation: IncarnationId, wait: TimeDelta) -> superseded::By {
    superseded::By {
        subscription: job.subscription,
        incarnation,
        job: job.id,
        at: unit.now(),
        delete_after: unit.now() + wait,
    }
}

/// Keys of the manifests that attempts of these epochs may have written.
fn written_by(spec: &CompactSpec, epochs: std::ops::Range<i64>) -> impl Iterator<Item = String> {
    let incarnation = spec.placement.incarnation;
    epochs.flat_map(move |epoch| {
        spec.backups.iter().filter_map(move |backup| {
            let generation = backup.generation_of(epoch)?;
            Some(manifest_key(incarnation, &backup.manifest, generation))
        })
    })
}

/// `backups/{incarnation}/{backup}/manifest.{generation}` (docs/VAULT-FORMAT.md §1).
fn manifest_key(incarnation: IncarnationId, of: &ManifestRef, generation: u32) -> String {
    format!("backups/{incarnation}/{}/manifest.{generation}", of.backup)
}

/// The backup that this is an answer about, when it is one that this attempt can have written.
fn asked<'a>(
    job: &Job,
    spec: &'a CompactSpec,
    rewritten: &RewrittenBackup,
) -> Result<&'a CompactedBackup> {
    let RewrittenBackup {
        manifest,
        added,
        dropped,
    } = rewritten;
    let incarnation = spec.placement.incarnation;
    let absurd = |what: &str| Error::Absurd(format!("{what} of backup {}", manifest.backup));
    let asked = spec
        .backups
        .iter()
        .find(|backup| backup.manifest.backup == manifest.backup)
        .ok_or_else(|| absurd("a new manifest, not asked for,"))?;
    let generation = asked.generation_of(job.epoch);
    if generation != Some(manifest.generation)
        || manifest.key != manifest_key(incarnation, manifest, manifest.generation)
    {
        return Err(absurd("another generation than was asked for"));
    }
    let own =
        ["packs", "leaves"].map(|kind| format!("{kind}/{incarnation}/{}.{}/", job.id, job.epoch));
    if let Some(foreign) = added
        .iter()
        .find(|object| !own.iter().any(|own| object.key.starts_with(own)))
    {
        return Err(absurd(&format!("foreign object {:?}", foreign.key)));
    }
    let kinds = ["packs", "leaves"].map(|kind| format!("{kind}/{incarnation}/"));
    if let Some(foreign) = dropped
        .iter()
        .find(|key| !kinds.iter().any(|kind| key.starts_with(kind)))
    {
        return Err(absurd(&format!("foreign object {foreign:?}")));
    }
    Ok(asked)
}
