//! WAL as a stream reports it: ranges, and keys that say what is in them.

use chrono::{DateTime, Utc};
use holdfast_domain::IncarnationId;
use holdfast_domain::job::WalReport;
use holdfast_domain::wal::{TimelineStart, WalObject};

use super::{
    Checked, MAX_LIST, MAX_OBJECTS, count, ensure, hash, key_of, not_future, position, timeline,
};

/// One WAL object is a tail, a segment (at most 1 GiB) or a bundle of quiet ones.
const MAX_WAL_OBJECT: u64 = 16 << 30;

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

/// An instant of the node's servers' own clocks.
pub fn idle_until(until: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Checked {
    until.map_or(Ok(()), |until| not_future("idleness.until", until, now))
}

pub(super) fn wal_object(object: &WalObject, incarnation: IncarnationId) -> Checked {
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
    use chrono::TimeDelta;
    use holdfast_domain::{Lsn, Timeline};

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
}
