//! How a job ended, as its agent tells it.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use holdfast_domain::IncarnationId;
use holdfast_domain::job::{
    ArchiveWalOutcome, CompactOutcome, DropOutcome, JobError, JobOutcome, JobResult, PowerOutcome,
    PruneOutcome, RestoreOutcome, RewrittenBackup, SnapshotOutcome, WrappedKey,
};

use super::wal::{wal, wal_object};
use super::{
    Absurd, Checked, MAX_KEY, MAX_LIST, MAX_OBJECTS, MAX_TEXT, count, ensure, hash, key, key_of,
    not_future, position, text, timeline,
};

pub fn result(result: &JobResult, now: DateTime<Utc>) -> Checked {
    match result {
        JobResult::Done(outcome) => self::outcome(outcome, now),
        JobResult::Failed(JobError { code, message, .. }) => {
            let plain = !code.is_empty() && code.bytes().all(|b| b.is_ascii_alphanumeric());
            ensure(plain && code.len() <= 64, || {
                "an error's code is one word of letters and digits".to_owned()
            })?;
            text("an error's message", message, MAX_TEXT)
        }
        JobResult::Canceled => Ok(()),
    }
}

fn outcome(outcome: &JobOutcome, now: DateTime<Utc>) -> Checked {
    match outcome {
        JobOutcome::Provision(done) => {
            timeline(done.timeline)?;
            text("minorVersion", &done.minor_version, 32)?;
            segment_size(done.wal_segment_bytes)?;
            wrapped_key(&done.wrapped_key)
        }
        JobOutcome::Snapshot(done) => snapshot(done, now),
        JobOutcome::Restore(done) => restore(done, now),
        JobOutcome::Prune(PruneOutcome {
            deleted,
            bytes_freed,
            left: _,
        }) => {
            count("bytesFreed", *bytes_freed)?;
            ensure(deleted.len() <= MAX_OBJECTS, || "too many keys".to_owned())?;
            deleted.iter().try_for_each(|given| key(given))
        }
        JobOutcome::Compact(done) => compacted(done),
        JobOutcome::Power(PowerOutcome {
            minor_version,
            report,
            ..
        }) => {
            text("minorVersion", minor_version, 32)?;
            report.iter().try_for_each(|report| wal(report, now))
        }
        JobOutcome::ArchiveWal(ArchiveWalOutcome {
            report,
            unavailable,
        }) => {
            text(
                "unavailable",
                unavailable.as_deref().unwrap_or_default(),
                MAX_TEXT,
            )?;
            report.iter().try_for_each(|report| wal(report, now))
        }
        JobOutcome::Drop(DropOutcome { report, .. }) => {
            report.iter().try_for_each(|report| wal(report, now))
        }
    }
}

fn snapshot(done: &SnapshotOutcome, now: DateTime<Utc>) -> Checked {
    timeline(done.timeline)?;
    position("startLsn", done.start_lsn)?;
    position("stopLsn", done.stop_lsn)?;
    ensure(done.start_lsn < done.stop_lsn, || {
        "a backup stops before it starts".to_owned()
    })?;
    not_future("completedTime", done.completed_time, now)?;
    text("minorVersion", &done.minor_version, 32)?;
    count("logicalBytes", done.logical_bytes)?;
    count("storedBytes", done.stored_bytes)?;
    hash("the manifest's hash", &done.manifest.hash)?;
    ensure(i32::try_from(done.manifest.generation).is_ok(), || {
        "the manifest's generation is absurdly large".to_owned()
    })?;
    key(&done.manifest.key)?;
    let own = format!(
        "/{}/manifest.{}",
        done.manifest.backup, done.manifest.generation
    );
    let incarnation = done
        .manifest
        .key
        .strip_prefix("backups/")
        .and_then(|rest| rest.strip_suffix(&own))
        .and_then(|incarnation| incarnation.parse::<IncarnationId>().ok())
        .ok_or_else(|| Absurd("the manifest's key is not that of its backup".to_owned()))?;
    ensure(done.objects.len() <= MAX_OBJECTS, || {
        "too many objects".to_owned()
    })?;
    for object in &done.wal {
        wal_object(object, incarnation)?;
    }
    let mut seen = HashSet::with_capacity(done.objects.len());
    let mut total = 0_u64;
    for object in &done.objects {
        key_of(&object.key, &["packs", "leaves"], incarnation)?;
        ensure(seen.insert(object.key.as_str()), || {
            "an object is named twice".to_owned()
        })?;
        total = total
            .checked_add(object.bytes)
            .filter(|total| i64::try_from(*total).is_ok())
            .ok_or_else(|| Absurd("the objects' sizes are absurdly large".to_owned()))?;
    }
    ensure(done.corrupt_pages.len() <= MAX_LIST, || {
        "too many damaged pages".to_owned()
    })?;
    done.corrupt_pages
        .iter()
        .try_for_each(|page| text("a damaged page", page, MAX_KEY))
}

fn compacted(done: &CompactOutcome) -> Checked {
    count("bytesRead", done.bytes_read)?;
    count("bytesWritten", done.bytes_written)?;
    ensure(done.backups.len() <= MAX_LIST, || {
        "too many backups".to_owned()
    })?;
    let keys = |backup: &RewrittenBackup| backup.added.len() + backup.dropped.len();
    ensure(
        done.backups.iter().map(keys).sum::<usize>() <= MAX_OBJECTS,
        || "too many objects".to_owned(),
    )?;
    for RewrittenBackup {
        manifest,
        added,
        dropped,
    } in &done.backups
    {
        hash("the manifest's hash", &manifest.hash)?;
        key(&manifest.key)?;
        dropped.iter().try_for_each(|given| key(given))?;
        for object in added {
            key(&object.key)?;
            count("an object's size", object.bytes)?;
            ensure(
                object.living.is_none_or(|living| living <= object.bytes),
                || "more of an object lives than there is".to_owned(),
            )?;
        }
    }
    Ok(())
}

fn restore(done: &RestoreOutcome, now: DateTime<Utc>) -> Checked {
    timeline(done.timeline)?;
    position("switchLsn", done.switch_lsn)?;
    position("targetLsn", done.target_lsn.unwrap_or_default())?;
    not_future("restoredTo", done.restored_to, now)?;
    text("minorVersion", &done.minor_version, 32)?;
    segment_size(done.wal_segment_bytes)?;
    wrapped_key(&done.wrapped_key)?;
    count("bytesRestored", done.bytes_restored)?;
    count("walBytesReplayed", done.wal_bytes_replayed)?;
    ensure(
        done.post_restore_tasks.len() <= MAX_LIST && done.parameter_differences.len() <= MAX_LIST,
        || "too many tasks or parameters".to_owned(),
    )?;
    for task in &done.post_restore_tasks {
        text("a task", task, MAX_TEXT)?;
    }
    for (name, value) in &done.parameter_differences {
        text("a parameter's name", name, 128)?;
        text("a parameter's value", value, MAX_TEXT)?;
    }
    Ok(())
}

/// A power of two from 1 MiB to 1 GiB (PostgreSQL, `initdb --wal-segsize`).
fn segment_size(bytes: u64) -> Checked {
    ensure(
        bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes),
        || "the WAL segment size is none that PostgreSQL has".to_owned(),
    )
}

fn wrapped_key(given: &WrappedKey) -> Checked {
    text("kekVersion", &given.kek_version, 64)?;
    text("a wrapped key", &given.wrapped, MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;
    use holdfast_domain::job::{ManifestRef, ObjectRef};
    use holdfast_domain::{BackupId, Lsn, Timeline};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("valid")
    }

    fn taken() -> SnapshotOutcome {
        let (incarnation, backup) = (IncarnationId::new(), BackupId::new());
        SnapshotOutcome {
            manifest: ManifestRef {
                backup,
                generation: 1,
                key: format!("backups/{incarnation}/{backup}/manifest.1"),
                hash: "a".repeat(64),
            },
            timeline: Timeline(1),
            start_lsn: Lsn(1),
            stop_lsn: Lsn(2),
            completed_time: now(),
            minor_version: "15.18".to_owned(),
            logical_bytes: 1,
            stored_bytes: 1,
            objects: vec![ObjectRef {
                key: format!("packs/{incarnation}/job.1/0"),
                bytes: 1,
                living: None,
            }],
            wal: vec![],
            corrupt_pages: vec![],
        }
    }

    #[test]
    fn a_backup_that_cannot_be_is_absurd() {
        // RELIABILITY §4.9 row 40
        assert_eq!(snapshot(&taken(), now()), Ok(()));
        let spoil: [fn(&mut SnapshotOutcome); 9] = [
            |s| s.stop_lsn = Lsn(0),
            |s| s.logical_bytes = u64::MAX,
            |s| s.objects[0].bytes = u64::MAX,
            |s| s.objects[0].key = "packs/../../etc/passwd".to_owned(),
            |s| s.objects[0].key = "/etc/passwd".to_owned(),
            |s| s.objects[0].key = format!("packs/{}/job.1/0", IncarnationId::new()),
            |s| s.objects.push(s.objects[0].clone()),
            |s| s.manifest.key = s.manifest.key.replace("manifest.1", "manifest.2"),
            |s| s.completed_time = now() + TimeDelta::days(400),
        ];
        for (n, spoil) in spoil.into_iter().enumerate() {
            let mut bad = taken();
            spoil(&mut bad);
            assert!(snapshot(&bad, now()).is_err(), "case {n}");
        }
    }
}
