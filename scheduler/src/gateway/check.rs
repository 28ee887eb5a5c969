//! Is what an agent says possible at all? Numbers that no database column holds, ranges that run
//! backwards, keys that leave their incarnation: all 400 before anything is looked at
//! (RELIABILITY §4.9 rows 37–40, F70). Whether the agent *may* say it – its job, its epoch, its
//! server, its incarnation – is for the control plane, which has the rows.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::job::{
    ArchiveWalOutcome, DropOutcome, HelloRequest, JobError, JobOutcome, JobResult, NodeInventory,
    PowerOutcome, Progress, PruneOutcome, RestoreOutcome, SnapshotOutcome, WalReport, WrappedKey,
};
use holdfast_domain::wal::{TimelineStart, WalObject};
use holdfast_domain::{IncarnationId, Lsn, Timeline};

/// A clock may be wrong; by more than this it is nonsense.
const FUTURE: TimeDelta = TimeDelta::days(1);
/// One WAL object is a tail, a segment (at most 1 GiB) or a bundle of quiet ones.
const MAX_WAL_OBJECT: u64 = 16 << 30;
const MAX_KEY: usize = 512;
/// No path of a Unix socket is longer (DESIGN §6).
const MAX_SOCKET: usize = 107;
const MAX_TEXT: usize = 4096;
const MAX_LIST: usize = 10_000;
/// Packs and leaves of one backup: 64 TiB in packs of 64 MiB.
const MAX_OBJECTS: usize = 1 << 20;

/// Why a message is impossible, for the agent's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Absurd(String);

type Checked = Result<(), Absurd>;

fn ensure(fine: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if fine {
        Ok(())
    } else {
        Err(Absurd(otherwise()))
    }
}

fn text(what: &str, text: &str, most: usize) -> Checked {
    ensure(text.len() <= most && !text.contains('\0'), || {
        format!("{what} is longer than {most} bytes or holds a NUL")
    })
}

/// Counts and positions are `bigint` in the catalogue.
fn count(what: &str, value: u64) -> Checked {
    ensure(i64::try_from(value).is_ok(), || {
        format!("{what} is absurdly large")
    })
}

fn position(what: &str, lsn: Lsn) -> Checked {
    count(what, lsn.0)
}

fn timeline(timeline: Timeline) -> Checked {
    ensure(
        timeline >= Timeline::FIRST && i32::try_from(timeline.0).is_ok(),
        || format!("{timeline} is no timeline"),
    )
}

fn not_future(what: &str, at: DateTime<Utc>, now: DateTime<Utc>) -> Checked {
    ensure(at <= now + FUTURE, || format!("{what} lies in the future"))
}

fn hash(what: &str, digits: &str) -> Checked {
    let fine = digits.len() == 64
        && digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    ensure(fine, || {
        format!("{what} is not 64 lower-case hexadecimal digits")
    })
}

/// An object key: plain segments, no way up or out.
fn key(key: &str) -> Checked {
    let segment = |s: &str| {
        !s.is_empty()
            && !s.starts_with('.')
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    };
    ensure(key.len() <= MAX_KEY && key.split('/').all(segment), || {
        "an object key has a segment that keys do not have".to_owned()
    })
}

/// A key below one of the incarnation's own prefixes.
fn key_of(given: &str, kinds: &[&str], incarnation: IncarnationId) -> Checked {
    key(given)?;
    let below = given
        .split_once('/')
        .filter(|(kind, _)| kinds.contains(kind))
        .and_then(|(_, rest)| rest.strip_prefix(&incarnation.to_string()));
    ensure(below.is_some_and(|rest| rest.starts_with('/')), || {
        format!("an object key is outside the prefixes of incarnation {incarnation}")
    })
}

pub fn inventory(inventory: &NodeInventory) -> Checked {
    text("inventory.name", &inventory.name, 128)?;
    text("inventory.region", &inventory.region, 64)?;
    text(
        "inventory.zone",
        inventory.zone.as_deref().unwrap_or_default(),
        16,
    )?;
    text("inventory.host", &inventory.host, 255)?;
    text(
        "inventory.socketRoot",
        inventory.socket_root.as_deref().unwrap_or_default(),
        MAX_SOCKET,
    )?;
    count("inventory.freeBytes", inventory.free_bytes)?;
    let (first, last) = inventory.port_range;
    ensure(first > 0 && first <= last, || {
        "the port range is empty".to_owned()
    })?;
    for (major, minor) in &inventory.majors {
        text("a minor version", minor, 32)?;
        ensure((9..=99).contains(major), || {
            format!("there is no PostgreSQL {major}")
        })?;
    }
    Ok(())
}

pub fn hello(request: &HelloRequest) -> Checked {
    inventory(&request.inventory)?;
    ensure(request.servers.len() <= MAX_LIST, || {
        "too many servers".to_owned()
    })?;
    for server in &request.servers {
        count("dataBytes", server.data_bytes.unwrap_or(0))?;
        text(
            "problem",
            server.problem.as_deref().unwrap_or_default(),
            MAX_TEXT,
        )?;
    }
    Ok(())
}

pub fn progress(progress: &Progress) -> Checked {
    text("phase", &progress.phase, 64)?;
    ensure((0.0..=100.0).contains(&progress.percent), || {
        "percent is not between 0 and 100".to_owned()
    })?;
    count("bytesDone", progress.bytes_done)?;
    count("bytesTotal", progress.bytes_total.unwrap_or(0))?;
    count("walBytesDone", progress.wal_bytes_done)?;
    count("walBytesTotal", progress.wal_bytes_total.unwrap_or(0))
}

/// Keys that an agent asks to delete.
pub fn keys(keys: &[String]) -> Checked {
    ensure(keys.len() <= MAX_LIST, || {
        "too many keys at once".to_owned()
    })?;
    keys.iter().try_for_each(|given| key(given))
}

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
        }) => {
            count("bytesFreed", *bytes_freed)?;
            ensure(deleted.len() <= MAX_OBJECTS, || "too many keys".to_owned())?;
            deleted.iter().try_for_each(|given| key(given))
        }
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

/// One stream's news.
pub fn wal(report: &WalReport, now: DateTime<Utc>) -> Checked {
    timeline(report.timeline)?;
    position("durable", report.durable)?;
    position("lastCounting", report.last_counting.unwrap_or_default())?;
    count("heldBytes", report.held_bytes)?;
    if let Some(at) = report.caught_up_at {
        not_future("caughtUpAt", at, now)?;
    }
    ensure(
        report.objects.len() <= MAX_OBJECTS
            && report.superseded.len() <= MAX_OBJECTS
            && report.timelines.len() <= MAX_LIST,
        || "too many objects".to_owned(),
    )?;
    for object in &report.objects {
        wal_object(object, report.incarnation)?;
    }
    for given in &report.superseded {
        key_of(given, &["wal"], report.incarnation)?;
    }
    for TimelineStart {
        timeline: started,
        parent,
        switch,
        history_key,
    } in &report.timelines
    {
        timeline(*started)?;
        position("switch", *switch)?;
        ensure(parent.is_none_or(|parent| parent < *started), || {
            format!("{started} cannot branch off a later timeline")
        })?;
        if let Some(history) = history_key {
            let own = format!("wal/{}/{}", report.incarnation, started.history_file_name());
            ensure(*history == own, || {
                "a history file has another's key".to_owned()
            })?;
        }
    }
    if let Some(gap) = &report.gap {
        timeline(gap.timeline)?;
        position("gap.end", gap.end)?;
        ensure(gap.start < gap.end, || {
            "a gap ends before it starts".to_owned()
        })?;
    }
    Ok(())
}

fn wal_object(object: &WalObject, incarnation: IncarnationId) -> Checked {
    timeline(object.timeline)?;
    position("a WAL object's end", object.end)?;
    ensure(
        object.start < object.end && object.end.bytes_since(object.start) <= MAX_WAL_OBJECT,
        || "a WAL object ends before it starts or is absurdly long".to_owned(),
    )?;
    hash("a WAL object's hash", &object.plaintext_hash)?;
    count("a WAL object's size", object.stored_bytes)?;
    // `docs/VAULT-FORMAT.md` §1: the key says what is in the object; both must say the same.
    let own = format!(
        "wal/{incarnation}/{:08X}/{}-{}",
        object.timeline.0,
        object.start.sortable(),
        object.end.sortable()
    );
    ensure(object.key == own, || {
        "a WAL object's key is not that of its range".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_domain::BackupId;
    use holdfast_domain::job::{ManifestRef, ObjectRef};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("valid")
    }

    fn object(incarnation: IncarnationId) -> WalObject {
        WalObject {
            timeline: Timeline(1),
            start: Lsn(0x0100_0000),
            end: Lsn(0x0200_0000),
            key: format!("wal/{incarnation}/00000001/0000000001000000-0000000002000000"),
            plaintext_hash: "0".repeat(64),
            stored_bytes: 1,
            stamps: None,
            last_counting: None,
            clock_anomaly: None,
        }
    }

    fn report() -> WalReport {
        let incarnation = IncarnationId::new();
        WalReport {
            incarnation,
            timeline: Timeline(1),
            durable: Lsn(0x0200_0000),
            objects: vec![object(incarnation)],
            superseded: vec![],
            timelines: vec![],
            caught_up_at: Some(now()),
            last_counting: None,
            held_bytes: 0,
            gap: None,
        }
    }

    #[test]
    fn wal_that_runs_backwards_or_lies_elsewhere_is_absurd() {
        // RELIABILITY §4.9 rows 38, 40; F70
        assert_eq!(wal(&report(), now()), Ok(()));
        let spoil: [fn(&mut WalReport); 12] = [
            |r| r.objects[0].end = Lsn(0x00FF_FFFF),
            |r| r.objects[0].end = r.objects[0].start,
            |r| r.objects[0].end = Lsn(u64::MAX),
            |r| r.durable = Lsn(u64::MAX),
            |r| r.timeline = Timeline(0),
            |r| r.held_bytes = u64::MAX,
            |r| r.objects[0].key = object(IncarnationId::new()).key,
            |r| r.objects[0].key = format!("wal/{}/../x", r.incarnation),
            |r| r.superseded = vec![format!("packs/{}/1.1/1", r.incarnation)],
            |r| r.superseded = vec![format!("wal/{}0/1", r.incarnation)],
            |r| r.caught_up_at = Some(now() + TimeDelta::days(2)),
            |r| r.objects[0].plaintext_hash = "Z".repeat(64),
        ];
        for (n, spoil) in spoil.into_iter().enumerate() {
            let mut bad = report();
            spoil(&mut bad);
            assert!(wal(&bad, now()).is_err(), "case {n}");
        }
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
            }],
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

    #[test]
    fn progress_is_a_percentage() {
        let at = |percent| Progress {
            percent,
            ..Progress::default()
        };
        assert!(progress(&at(0.0)).is_ok() && progress(&at(100.0)).is_ok());
        for bad in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert!(progress(&at(bad)).is_err(), "{bad}");
        }
    }
}
