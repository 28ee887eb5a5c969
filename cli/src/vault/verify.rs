//! `holdfast vault verify`: reads what restores would read and names what they would trip over.

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use holdfast_domain::{BackupId, IncarnationId};
use holdfast_vault::Error;
use holdfast_vault::verify::incarnation::{Verification, Verified};
use serde::Serialize;

use super::{Vault, bytes, empty, failed, json, key_ring, wants_table};
use crate::command::{Output, VaultPlace};
use crate::exit::Failure;
use crate::output::say;

/// Bytes between two signs of life.
const SIGN_EVERY: u64 = 1 << 30;

/// The names of these members do not change.
#[derive(Debug, Serialize)]
struct Report {
    vault: String,
    good: bool,
    incarnations: Vec<OfOne>,
}

#[derive(Debug, Serialize)]
struct OfOne {
    incarnation: IncarnationId,
    /// Objects that were read and are good, and their bytes.
    objects: u64,
    bytes: u64,
    /// Backups that nothing stands in the way of, and those that something does.
    good_backups: Vec<BackupId>,
    bad_backups: Vec<BackupId>,
    findings: Vec<Found>,
}

#[derive(Debug, Serialize)]
struct Found {
    /// `ObjectMissing`, `ObjectDamaged`, `ObjectForeign`, `ObjectUnreadable`, `WalGap`.
    code: &'static str,
    key: String,
    what: String,
    /// Backups that need it; a hole in the log after a backup concerns instants, not backups.
    backups: Vec<BackupId>,
}

pub async fn run(
    place: &VaultPlace,
    key_file: &Path,
    incarnation: Option<IncarnationId>,
    backup: Option<BackupId>,
    output: Option<Output>,
) -> Result<()> {
    let ring = key_ring(key_file)?;
    let vault = Vault::open(place).await?;
    let with_backup = |backup: BackupId| {
        let all = vault.listing.incarnations.iter();
        all.filter(move |(_, listing)| listing.manifests.contains_key(&backup))
            .map(|(id, _)| *id)
            .next()
            .ok_or_else(|| {
                Failure::NotFound(format!("BackupNotFound: the vault has no backup {backup}"))
            })
    };
    let chosen: Vec<IncarnationId> = match (incarnation, backup) {
        (Some(named), _) => vec![vault.choose(Some(named))?],
        (None, Some(backup)) => vec![with_backup(backup)?],
        (None, None) => vault.listing.incarnations.keys().copied().collect(),
    };
    if chosen.is_empty() {
        return Err(empty());
    }
    let mut report = Report {
        vault: vault.url.clone(),
        good: true,
        incarnations: Vec::new(),
    };
    let read = AtomicU64::new(0);
    let each = |count: u64| sign_of_life(&read, count);
    let mut refused: Option<Error> = None;
    for id in chosen {
        let opened = match vault.incarnation(id, &ring).await {
            Ok(opened) => opened,
            Err(error @ Error::KeyUnavailable { .. }) => {
                say_locked(id);
                refused = Some(error);
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        if let Some(backup) = backup
            && !opened.listing.manifests.contains_key(&backup)
        {
            let said = format!("BackupNotFound: incarnation {id} has no backup {backup}");
            return Err(Failure::NotFound(said).into());
        }
        let verification = Verification {
            store: &vault.store,
            data_key: &opened.data_key,
            incarnation: id,
            listing: &opened.listing,
            scan: &opened.scan,
            only: backup,
        };
        let verified = verification.run(&each).await.map_err(failed)?;
        report.good &= verified.findings.is_empty();
        report.incarnations.push(of_one(id, &verified));
    }
    match wants_table(output) {
        true => print(&report),
        false => say(json(&report)?),
    }
    if !report.good {
        return Err(Failure::Damaged("the vault is not what was written to it".to_owned()).into());
    }
    // What was not looked at is not good.
    match refused {
        Some(error) => Err(failed(error)),
        None => Ok(()),
    }
}

fn say_locked(incarnation: IncarnationId) {
    eprintln!("holdfast: KeyUnavailable: the key does not open incarnation {incarnation}");
}

/// For a person who waits; a script's log stays short.
fn sign_of_life(read: &AtomicU64, count: u64) {
    let before = read.fetch_add(count, Ordering::Relaxed);
    if before / SIGN_EVERY != (before + count) / SIGN_EVERY && std::io::stderr().is_terminal() {
        eprintln!("{} read", bytes(before + count));
    }
}

fn of_one(incarnation: IncarnationId, verified: &Verified) -> OfOne {
    let good = verified.good_backups();
    let findings = verified.findings.iter().map(|found| Found {
        code: found.damage.code(),
        key: found.key.clone(),
        what: found.what.clone(),
        backups: found.backups.iter().copied().collect(),
    });
    OfOne {
        incarnation,
        objects: verified.objects,
        bytes: verified.bytes,
        bad_backups: verified.backups.difference(&good).copied().collect(),
        good_backups: good.into_iter().collect(),
        findings: findings.collect(),
    }
}

fn print(report: &Report) {
    for it in &report.incarnations {
        for found in &it.findings {
            say(format!("{}  {}: {}", found.code, found.key, found.what));
            if !found.backups.is_empty() {
                let ids: Vec<String> = found.backups.iter().map(ToString::to_string).collect();
                say(format!("  needed by {}", ids.join(", ")));
            }
        }
        say(format!(
            "incarnation {}: {} objects, {}, are good; {} of {} backups are",
            it.incarnation,
            it.objects,
            bytes(it.bytes),
            it.good_backups.len(),
            it.good_backups.len() + it.bad_backups.len()
        ));
    }
}
