//! `holdfast vault inspect`: what lies in a vault. Keys of objects tell which incarnations there are, how many
//! backups and from where to where the log reaches; everything else is sealed and needs the key.

use std::path::Path;

use anyhow::Result;
use chrono::{DateTime, Utc};
use holdfast_domain::instant::wire;
use holdfast_domain::{BackupId, IncarnationId, Lsn, ServerId, Timeline};
use holdfast_vault::Error;
use holdfast_vault::rescan::listing::Listing;
use holdfast_vault::rescan::scan::{Extent, ScannedBackup, Timelines, timelines};
use holdfast_vault::wal::survey::list_wal;
use serde::Serialize;

use super::{Opened, Vault, bytes, empty, failed, json, key_ring, table, wants_table};
use crate::command::{Output, VaultPlace};
use crate::output::say;

/// The names of these members do not change.
#[derive(Debug, Serialize)]
struct Inspection {
    vault: String,
    /// Whether a key was given. Without one, what is sealed is null.
    key_given: bool,
    incarnations: Vec<Incarnation>,
    /// Objects of no incarnation, left by probes or not Holdfast's.
    strangers: Count,
}

#[derive(Debug, Serialize)]
struct Incarnation {
    incarnation: IncarnationId,
    /// Versions of the key-encryption keys of which any opens it.
    key_versions: Vec<String>,
    /// Why what is sealed is not shown though a key was given: `KeyUnavailable`.
    locked: Option<&'static str>,
    server: Option<ServerId>,
    server_name: Option<String>,
    postgresql_version: Option<String>,
    postgresql_major: Option<u16>,
    /// Instants between these two can be restored to; null without a backup that is whole.
    earliest_restorable: Option<DateTime<Utc>>,
    latest_restorable: Option<DateTime<Utc>>,
    /// As far as the log reaches from the newest backup without a hole.
    latest_lsn: Option<Lsn>,
    backups: Vec<Backup>,
    wal: Vec<Log>,
    /// Packs and leaf objects that no manifest names; null when that is not known.
    unnamed: Option<Count>,
    /// What the format puts nowhere.
    strangers: Count,
    /// What could not be read, each with its code.
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Backup {
    backup: BackupId,
    generation: u32,
    /// `full`, or `differential` when it needs objects of earlier backups or of compactions.
    kind: Option<&'static str>,
    postgresql_version: Option<String>,
    timeline: Option<Timeline>,
    start_lsn: Option<Lsn>,
    stop_lsn: Option<Lsn>,
    completed_time: Option<DateTime<Utc>>,
    logical_bytes: Option<u64>,
    /// What it added to the vault.
    stored_bytes: Option<u64>,
    /// Whether every object that it names is there; `verify` says whether they are good.
    whole: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Log {
    timeline: Timeline,
    start: Lsn,
    /// The first byte after it.
    end: Lsn,
    objects: u64,
    bytes: u64,
    holes: Vec<Hole>,
}

#[derive(Debug, Serialize)]
struct Hole {
    start: Lsn,
    end: Lsn,
}

#[derive(Debug, Default, Serialize)]
struct Count {
    objects: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Problem {
    code: &'static str,
    what: String,
}

pub async fn run(
    place: &VaultPlace,
    key_file: Option<&Path>,
    output: Option<Output>,
) -> Result<()> {
    let ring = key_file.map(key_ring).transpose()?;
    let vault = Vault::open(place).await?;
    if vault.listing.incarnations.is_empty() {
        return Err(empty());
    }
    let mut inspection = Inspection {
        vault: vault.url.clone(),
        key_given: ring.is_some(),
        incarnations: Vec::new(),
        strangers: count(vault.listing.strangers.iter().map(|object| object.bytes)),
    };
    let mut refused = None;
    for (incarnation, listing) in &vault.listing.incarnations {
        let mut shown = without_key(*incarnation, listing);
        if let Some(ring) = &ring {
            match vault.incarnation(*incarnation, ring).await {
                Ok(opened) => with_key(&mut shown, &vault, &opened).await?,
                // One file opens the servers of its version; others may be there.
                Err(error @ Error::KeyUnavailable { .. }) => {
                    shown.locked = Some(error.code());
                    refused = Some(error);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        inspection.incarnations.push(shown);
    }
    let locked = |it: &Incarnation| it.locked.is_some();
    if let Some(error) = refused.filter(|_| inspection.incarnations.iter().all(locked)) {
        return Err(failed(error));
    }
    match wants_table(output) {
        true => print(&inspection),
        false => say(json(&inspection)?),
    }
    Ok(())
}

fn count(bytes: impl Iterator<Item = u64>) -> Count {
    bytes.fold(Count::default(), |sum, bytes| Count {
        objects: sum.objects + 1,
        bytes: sum.bytes + bytes,
    })
}

fn without_key(incarnation: IncarnationId, listing: &Listing) -> Incarnation {
    let backups = listing
        .manifests
        .iter()
        .filter_map(|(backup, generations)| {
            Some(Backup {
                backup: *backup,
                generation: *generations.keys().next_back()?,
                kind: None,
                postgresql_version: None,
                timeline: None,
                start_lsn: None,
                stop_lsn: None,
                completed_time: None,
                logical_bytes: None,
                stored_bytes: None,
                whole: None,
            })
        });
    Incarnation {
        incarnation,
        key_versions: listing.kek_versions.iter().cloned().collect(),
        locked: None,
        server: None,
        server_name: None,
        postgresql_version: None,
        postgresql_major: None,
        earliest_restorable: None,
        latest_restorable: None,
        latest_lsn: None,
        backups: backups.collect(),
        wal: logs(listing),
        unnamed: None,
        strangers: count(listing.strangers.iter().map(|object| object.bytes)),
        problems: Vec::new(),
    }
}

fn logs(listing: &Listing) -> Vec<Log> {
    let stretches = listing.stretches();
    let all = stretches.into_iter().filter_map(|(timeline, stretches)| {
        let of_it = || listing.wal.iter().filter(move |it| it.timeline == timeline);
        let counted = count(of_it().map(|object| object.stored.bytes));
        Some(Log {
            timeline,
            start: stretches.first()?.start,
            end: stretches.last()?.end,
            objects: counted.objects,
            bytes: counted.bytes,
            holes: stretches
                .windows(2)
                .map(|pair| Hole {
                    start: pair[0].end,
                    end: pair[1].start,
                })
                .collect(),
        })
    });
    all.collect()
}

async fn with_key(shown: &mut Incarnation, vault: &Vault, opened: &Opened) -> Result<()> {
    let Opened {
        incarnation,
        data_key,
        listing,
        scan,
        ..
    } = opened;
    let read = timelines(&vault.store, data_key, *incarnation, listing)
        .await
        .map_err(failed)?;
    for (timeline, error) in &read.unread {
        shown.problems.push(Problem {
            code: error.code(),
            what: format!("the history of timeline {timeline}: {error}"),
        });
    }
    for unopened in &scan.unopened {
        shown.problems.push(Problem {
            code: unopened.damage.code(),
            what: unopened.error.to_string(),
        });
    }
    for found in &scan.backups {
        if let Some(first) = found.missing.first() {
            shown.problems.push(Problem {
                code: "BackupNotWhole",
                what: format!(
                    "backup {} names {} objects that are not there as it names them, {first} among them",
                    found.named.backup,
                    found.missing.len()
                ),
            });
        }
        // The generation of the listing may be one that does not open.
        shown.backups.retain(|it| it.backup != found.named.backup);
        shown.backups.push(backup(found));
    }
    shown
        .backups
        .sort_by_key(|it| (it.completed_time, it.backup));
    if let Some(newest) = scan.newest() {
        shown.server = Some(newest.meta.server);
        shown.server_name = Some(newest.meta.server_name.clone());
        shown.postgresql_major = major(&newest.meta.pg_version);
        shown.postgresql_version = Some(newest.meta.pg_version.clone());
    }
    if scan.unopened.is_empty() {
        let unnamed = listing.packed.values().filter(|packed| !packed.is_named);
        shown.unnamed = Some(count(unnamed.map(|packed| packed.bytes)));
    }
    bounds(shown, vault, opened, read).await
}

/// What can be restored, by the rule that the API answers with. Of the log only what follows the newest
/// backup has to be looked into.
async fn bounds(
    shown: &mut Incarnation,
    vault: &Vault,
    opened: &Opened,
    read: Timelines,
) -> Result<()> {
    let Some(newest) = opened
        .scan
        .whole()
        .max_by_key(|found| (found.meta.timeline, found.meta.stop_lsn))
    else {
        return Ok(());
    };
    let from = Some((newest.meta.timeline, newest.wal_begin()));
    let wal = list_wal(&vault.store, &opened.data_key, opened.incarnation, from)
        .await
        .map_err(failed)?;
    let catalogue = opened.scan.catalogue(opened.incarnation, wal, read.starts);
    if let Some(catalogue) = catalogue {
        shown.earliest_restorable = catalogue.first_restorable();
        shown.latest_restorable = catalogue.latest_restorable();
        let lineage = catalogue.lineage(catalogue.head);
        let newest = catalogue.backups_on(&lineage).into_iter().next();
        shown.latest_lsn = newest.map(|newest| catalogue.coverage_of(&lineage, newest).reached);
    }
    Ok(())
}

fn backup(found: &ScannedBackup) -> Backup {
    Backup {
        backup: found.named.backup,
        generation: found.named.generation,
        kind: Some(match found.extent {
            Extent::Full => "full",
            Extent::Differential => "differential",
        }),
        postgresql_version: Some(found.meta.pg_version.clone()),
        timeline: Some(found.meta.timeline),
        start_lsn: Some(found.meta.start_lsn),
        stop_lsn: Some(found.meta.stop_lsn),
        completed_time: Some(found.meta.completed_time),
        logical_bytes: Some(found.logical_bytes),
        stored_bytes: Some(found.stored_bytes),
        whole: Some(found.missing.is_empty()),
    }
}

/// `15` of `15.18`.
fn major(version: &str) -> Option<u16> {
    version.split('.').next()?.parse().ok()
}

fn print(inspection: &Inspection) {
    say(format!("vault {}", inspection.vault));
    if !inspection.key_given {
        say(
            "No key was given: names, times and sizes of backups are sealed, and so is what they need.",
        );
    }
    for it in &inspection.incarnations {
        say("");
        print_incarnation(it);
    }
    let strangers = &inspection.strangers;
    if strangers.objects > 0 {
        say(format!(
            "\n{} objects, {}, belong to no incarnation: what probes have left, or not Holdfast's",
            strangers.objects,
            bytes(strangers.bytes)
        ));
    }
}

fn print_incarnation(it: &Incarnation) {
    let name = it.server_name.as_deref().unwrap_or("?");
    let version = it.postgresql_version.as_deref().unwrap_or("?");
    say(format!(
        "incarnation {}  server {name}  PostgreSQL {version}  key versions {}",
        it.incarnation,
        it.key_versions.join(", ")
    ));
    if it.locked.is_some() {
        say("  KeyUnavailable: the key that was given does not open it");
    }
    if let (Some(earliest), Some(latest)) = (it.earliest_restorable, it.latest_restorable) {
        let reach = it
            .latest_lsn
            .map_or_else(String::new, |lsn| format!(", the log reaches to {lsn}"));
        say(format!(
            "  restorable from {} to {}{reach}",
            wire(earliest),
            wire(latest)
        ));
    }
    let mut rows = vec![
        [
            "  BACKUP",
            "KIND",
            "TIMELINE",
            "START",
            "STOP",
            "COMPLETED",
            "LOGICAL",
            "STORED",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let text = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
    rows.extend(it.backups.iter().map(|backup| {
        let whole = match backup.whole {
            Some(false) => " (not whole)",
            _ => "",
        };
        vec![
            format!("  {}", backup.backup),
            format!("{}{whole}", backup.kind.unwrap_or("?")),
            text(backup.timeline.map(|timeline| timeline.to_string())),
            text(backup.start_lsn.map(|lsn| lsn.to_string())),
            text(backup.stop_lsn.map(|lsn| lsn.to_string())),
            text(backup.completed_time.map(wire)),
            text(backup.logical_bytes.map(bytes)),
            text(backup.stored_bytes.map(bytes)),
        ]
    }));
    say(table(&rows));
    for log in &it.wal {
        say(format!(
            "  log of timeline {}: {} to {}, {} objects, {}",
            log.timeline,
            log.start,
            log.end,
            log.objects,
            bytes(log.bytes)
        ));
        for hole in &log.holes {
            say(format!("    HOLE from {} to {}", hole.start, hole.end));
        }
    }
    if let Some(unnamed) = it.unnamed.as_ref().filter(|unnamed| unnamed.objects > 0) {
        say(format!(
            "  {} objects, {}, are named by no backup; they may belong to one under way",
            unnamed.objects,
            bytes(unnamed.bytes)
        ));
    }
    if it.strangers.objects > 0 {
        say(format!(
            "  {} objects, {}, are not of this format",
            it.strangers.objects,
            bytes(it.strangers.bytes)
        ));
    }
    for problem in &it.problems {
        say(format!("  {}: {}", problem.code, problem.what));
    }
}
