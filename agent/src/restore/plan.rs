//! The plan of one recovery: every file that PostgreSQL may ask for, and how the recovery must end.
//!
//! Made before PostgreSQL starts and never changed after (RELIABILITY §5.4.1). It holds the exact WAL
//! from the backup's start to the file with the target, and not one file more: PostgreSQL reads
//! ahead, and a planned file past the target that cannot be had would kill a correct restore. What
//! is not in the plan does not exist.
//!
//! Stored objects do not follow the borders of segments: tails cover seconds, bundles cover several
//! segments, and the segment in which a timeline branched off holds bytes of both. Here they become
//! *pieces*: byte ranges in the order of the log, each out of one object.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use holdfast_domain::job::RestoreSource;
use holdfast_domain::lsn::segment_file_name;
use holdfast_domain::wal::WalObject;
use holdfast_domain::{IncarnationId, Lsn, Timeline};
use holdfast_vault::wal::target::cover;

use super::goal::{Goal, gap};
use super::history::{Reason, RecoveryEnd};
use crate::error::{Error, Result};

/// What WAL is replayed, from where to where, and how it must end.
#[derive(Debug, Clone)]
pub struct Plan {
    pub source: IncarnationId,
    pub segment_bytes: u64,
    /// In the order of the log.
    pub segments: Vec<PlannedSegment>,
    /// Timelines whose history file PostgreSQL will ask for.
    pub histories: Vec<Timeline>,
    pub goal: Goal,
    /// What the new timeline's history file must say.
    pub end: RecoveryEnd,
    /// Where replay begins.
    pub begin: Lsn,
    by_name: BTreeMap<String, usize>,
    /// End of an object → the largest stamp up to there, in the order of the log.
    stamps: Vec<(Lsn, DateTime<Utc>)>,
}

/// One WAL file as PostgreSQL will get it: the pieces, then zeroes up to the segment's size.
#[derive(Debug, Clone)]
pub struct PlannedSegment {
    pub name: String,
    pub start: Lsn,
    pub pieces: Vec<Piece>,
}

/// A byte range that comes out of one object.
#[derive(Debug, Clone)]
pub struct Piece {
    pub object: WalObject,
    pub from: Lsn,
    pub to: Lsn,
}

impl Plan {
    pub fn build(source: &RestoreSource, goal: Goal) -> Result<Self> {
        let segment_bytes = source.wal_segment_bytes;
        if !segment_bytes.is_power_of_two() || !(1 << 20..=1 << 30).contains(&segment_bytes) {
            return Err(corrupted(format!(
                "the backup says that WAL segments have {segment_bytes} bytes"
            )));
        }
        if source.backup_stop <= source.backup_start || goal.end < source.backup_stop {
            return Err(corrupted(
                "the end of the recovery lies before the end of the backup".into(),
            ));
        }
        let path = Path::of(source, goal.end);
        let pieces = path.pieces(&source.wal, goal.end)?;
        let segments = path.segments(&pieces, goal.end);
        let by_name = segments
            .iter()
            .enumerate()
            .map(|(at, segment)| (segment.name.clone(), at))
            .collect();
        Ok(Self {
            source: source.incarnation,
            segment_bytes,
            histories: path
                .stretches
                .iter()
                .map(|it| it.timeline)
                .filter(|it| *it > Timeline::FIRST)
                .collect(),
            end: RecoveryEnd {
                parent: path.target_timeline(),
                switch: goal.end,
                reason: Reason::AfterLsn(goal.target),
            },
            begin: source.backup_start,
            stamps: running_stamps(&pieces),
            goal,
            by_name,
            segments,
        })
    }

    /// The timeline that recovery follows; its number goes into `recovery_target_timeline`.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.end.parent
    }

    /// PostgreSQL takes the next free number, and no history of a later timeline is planned.
    #[must_use]
    pub fn new_timeline(&self) -> Timeline {
        Timeline(self.end.parent.0 + 1)
    }

    #[must_use]
    pub fn segment(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    #[must_use]
    pub fn history(&self, name: &str) -> Option<Timeline> {
        self.histories
            .iter()
            .copied()
            .find(|timeline| timeline.history_file_name() == name)
    }

    /// Bytes that are replayed in all.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        self.end.switch.bytes_since(self.begin)
    }

    /// What was committed in the log before this position; `None` before the first commit.
    #[must_use]
    pub fn committed_up_to(&self, replayed: Lsn) -> Option<DateTime<Utc>> {
        let known = self.stamps.partition_point(|(end, _)| *end <= replayed);
        known.checked_sub(1).map(|last| self.stamps[last].1)
    }
}

/// The timelines from the backup's to the target's, each with the position where it takes over.
struct Path {
    stretches: Vec<Stretch>,
    segment_bytes: u64,
}

#[derive(Clone, Copy)]
struct Stretch {
    timeline: Timeline,
    begin: Lsn,
}

impl Path {
    /// A target that lies before a branching needs nothing of the timelines after it.
    fn of(source: &RestoreSource, end: Lsn) -> Self {
        let segment_bytes = source.wal_segment_bytes;
        let mut stretches = vec![Stretch {
            timeline: source.backup_timeline,
            begin: source.backup_start.segment_start(segment_bytes),
        }];
        let own = source
            .lineage
            .iter()
            .position(|branch| branch.timeline == source.backup_timeline);
        let later = &source.lineage[own.map_or(0, |own| own + 1)..];
        for branch in later.iter().take_while(|branch| branch.switch < end) {
            stretches.push(Stretch {
                timeline: branch.timeline,
                begin: branch.switch,
            });
        }
        Self {
            stretches,
            segment_bytes,
        }
    }

    fn target_timeline(&self) -> Timeline {
        self.stretches[self.stretches.len() - 1].timeline
    }

    /// Every byte from the first segment's start to `end`, once. A hole is a `WalGap`.
    fn pieces(&self, objects: &[WalObject], end: Lsn) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut at = self.stretches[0].begin;
        for (number, stretch) in self.stretches.iter().enumerate() {
            let next = self.stretches.get(number + 1);
            let until = next.map_or(end, |next| next.begin);
            let (set, reached) = cover(objects, stretch.timeline, at);
            for object in set {
                let (from, to) = (at.max(object.start), until.min(object.end));
                if from < to {
                    at = to;
                    pieces.push(Piece { object, from, to });
                }
            }
            // The segment in which a timeline began repeats the parent's bytes up to there, so the
            // child may fill what the parent never made durable.
            let child_repeats =
                next.is_some_and(|next| at >= next.begin.segment_start(self.segment_bytes));
            if at < until && !child_repeats {
                return Err(gap(stretch.timeline, reached.min(until), until));
            }
        }
        if at < end {
            return Err(gap(self.target_timeline(), at, end));
        }
        Ok(pieces)
    }

    fn segments(&self, pieces: &[Piece], end: Lsn) -> Vec<PlannedSegment> {
        let mut segments = Vec::new();
        let mut start = self.stretches[0].begin;
        let mut first_piece = 0;
        while start < end {
            let segment_end = start + self.segment_bytes;
            while pieces
                .get(first_piece)
                .is_some_and(|piece| piece.to <= start)
            {
                first_piece += 1;
            }
            let inside = pieces[first_piece..]
                .iter()
                .take_while(|piece| piece.from < segment_end)
                .map(|piece| Piece {
                    object: piece.object.clone(),
                    from: piece.from.max(start),
                    to: piece.to.min(segment_end),
                })
                .collect();
            segments.push(PlannedSegment {
                name: segment_file_name(self.timeline_asked_for(start), start, self.segment_bytes),
                start,
                pieces: inside,
            });
            start = segment_end;
        }
        segments
    }

    /// PostgreSQL asks for a segment on the newest timeline of the path that has begun in it.
    fn timeline_asked_for(&self, segment: Lsn) -> Timeline {
        self.stretches
            .iter()
            .rev()
            .find(|stretch| stretch.begin.segment_start(self.segment_bytes) <= segment)
            .unwrap_or(&self.stretches[0])
            .timeline
    }
}

/// Stamps are not quite in the order of the log: what counts is the largest so far.
fn running_stamps(pieces: &[Piece]) -> Vec<(Lsn, DateTime<Utc>)> {
    let mut largest = None;
    let mut running = Vec::new();
    for piece in pieces {
        // Of an object that is used in part it is not known on which side its largest stamp lies.
        if let Some(stamps) = piece.object.stamps.filter(|_| piece.to == piece.object.end) {
            let at = largest.map_or(stamps.largest.at, |largest| stamps.largest.at.max(largest));
            largest = Some(at);
            running.push((piece.to, at));
        }
    }
    running
}

fn corrupted(message: String) -> Error {
    Error::Failed {
        code: "BackupCorrupted",
        message,
        retryable: false,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_domain::job::{ManifestRef, WrappedKey};
    use holdfast_domain::wal::{Stamp, Stamps, TimelineStart};
    use holdfast_domain::{BackupId, ServerId};

    use super::*;

    const SEGMENT: u64 = 16 << 20;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).expect("a valid time")
    }

    fn object(timeline: u32, start: u64, end: u64) -> WalObject {
        WalObject {
            timeline: Timeline(timeline),
            start: Lsn(start),
            end: Lsn(end),
            key: format!("wal/{timeline}/{start:X}-{end:X}"),
            plaintext_hash: String::new(),
            stored_bytes: end - start,
            stamps: None,
            last_counting: None,
            clock_anomaly: None,
        }
    }

    fn stamped(timeline: u32, start: u64, end: u64, second: i64) -> WalObject {
        let stamp = Stamp {
            at: at(second),
            lsn: Lsn(end - 64),
            end: Lsn(end),
        };
        WalObject {
            stamps: Some(Stamps::of(stamp)),
            ..object(timeline, start, end)
        }
    }

    fn source(wal: Vec<WalObject>, lineage: Vec<TimelineStart>, timeline: u32) -> RestoreSource {
        let backup = BackupId::new();
        RestoreSource {
            server: ServerId::new(),
            server_name: "pg1".into(),
            incarnation: IncarnationId::new(),
            vaults: Vec::new(),
            wrapped_key: WrappedKey {
                kek_version: "1".into(),
                wrapped: String::new(),
            },
            manifest: ManifestRef {
                backup,
                generation: 1,
                key: String::new(),
                hash: String::new(),
            },
            backup_start: Lsn(SEGMENT + 0x28),
            backup_stop: Lsn(SEGMENT + 0x100),
            backup_timeline: Timeline(1),
            backup_completed_time: at(0),
            wal_segment_bytes: SEGMENT,
            timeline: Timeline(timeline),
            lineage,
            wal,
        }
    }

    fn branch(timeline: u32, parent: Option<u32>, switch: u64) -> TimelineStart {
        TimelineStart {
            timeline: Timeline(timeline),
            parent: parent.map(Timeline),
            switch: Lsn(switch),
            history_key: (timeline > 1).then(|| format!("{timeline}.history")),
        }
    }

    fn lsn_target(target: u64, end: u64) -> Goal {
        Goal {
            target: Lsn(target),
            end: Lsn(end),
            stamp: Some(at(9)),
        }
    }

    #[test]
    fn the_plan_ends_with_the_file_that_holds_the_target() {
        let wal = vec![
            object(1, SEGMENT, 2 * SEGMENT),
            stamped(1, 2 * SEGMENT, 2 * SEGMENT + 500, 5),
            stamped(1, 2 * SEGMENT + 500, 3 * SEGMENT, 7),
            object(1, 3 * SEGMENT, 4 * SEGMENT),
        ];
        let plan = Plan::build(
            &source(wal, vec![branch(1, None, 0)], 1),
            lsn_target(2 * SEGMENT + 600, 2 * SEGMENT + 640),
        )
        .expect("no hole");
        let names: Vec<_> = plan
            .segments
            .iter()
            .map(|segment| segment.name.as_str())
            .collect();
        assert_eq!(
            names,
            ["000000010000000000000001", "000000010000000000000002"]
        );
        let last = &plan.segments[1];
        let ranges: Vec<_> = last
            .pieces
            .iter()
            .map(|piece| (piece.from.0, piece.to.0))
            .collect();
        assert_eq!(
            ranges,
            [
                (2 * SEGMENT, 2 * SEGMENT + 500),
                (2 * SEGMENT + 500, 2 * SEGMENT + 640)
            ]
        );
        assert_eq!(
            plan.segment("000000010000000000000003"),
            None,
            "not one file more"
        );
        assert_eq!(plan.end.switch, Lsn(2 * SEGMENT + 640));
        assert_eq!(plan.end.reason, Reason::AfterLsn(Lsn(2 * SEGMENT + 600)));
        assert_eq!(plan.new_timeline(), Timeline(2));
        assert_eq!(plan.committed_up_to(Lsn(2 * SEGMENT)), None);
        assert_eq!(plan.committed_up_to(Lsn(2 * SEGMENT + 500)), Some(at(5)));
    }

    #[test]
    fn a_target_record_that_crosses_a_border_needs_both_files() {
        let wal = vec![object(1, SEGMENT, 3 * SEGMENT)];
        let plan = Plan::build(
            &source(wal, vec![branch(1, None, 0)], 1),
            lsn_target(2 * SEGMENT - 8, 2 * SEGMENT + 64),
        )
        .expect("no hole");
        assert_eq!(plan.segments.len(), 2);
        let wal = vec![object(1, SEGMENT, 3 * SEGMENT)];
        let plan = Plan::build(
            &source(wal, vec![branch(1, None, 0)], 1),
            lsn_target(2 * SEGMENT - 64, 2 * SEGMENT),
        )
        .expect("no hole");
        assert_eq!(
            plan.segments.len(),
            1,
            "a record that ends on the border needs no more"
        );
    }

    #[test]
    fn a_hole_is_a_gap_with_its_place() {
        let wal = vec![
            object(1, SEGMENT, SEGMENT + 300),
            object(1, SEGMENT + 400, 3 * SEGMENT),
        ];
        let error = Plan::build(
            &source(wal, vec![branch(1, None, 0)], 1),
            lsn_target(2 * SEGMENT + 8, 2 * SEGMENT + 64),
        )
        .expect_err("a hole");
        assert_eq!(error.code(), "WalGap");
        assert!(
            error.to_string().contains(&Lsn(SEGMENT + 300).to_string()),
            "{error}"
        );
    }

    #[test]
    fn the_segment_of_a_branching_is_asked_for_on_the_new_timeline() {
        let switch = 2 * SEGMENT + 4096;
        let lineage = vec![branch(1, None, 0), branch(2, Some(1), switch)];
        let wal = vec![
            object(1, SEGMENT, switch),
            object(2, 2 * SEGMENT, 4 * SEGMENT),
        ];
        let plan = Plan::build(
            &source(wal, lineage.clone(), 2),
            lsn_target(3 * SEGMENT, 3 * SEGMENT + 64),
        )
        .expect("no hole");
        let names: Vec<_> = plan
            .segments
            .iter()
            .map(|segment| segment.name.as_str())
            .collect();
        assert_eq!(
            names,
            [
                "000000010000000000000001",
                "000000020000000000000002",
                "000000020000000000000003"
            ]
        );
        assert_eq!(plan.histories, [Timeline(2)]);
        assert_eq!(plan.end.parent, Timeline(2));

        // The parent's last bytes were never made durable: the child's first segment repeats them.
        let wal = vec![
            object(1, SEGMENT, 2 * SEGMENT + 100),
            object(2, 2 * SEGMENT, 4 * SEGMENT),
        ];
        let plan = Plan::build(
            &source(wal, lineage.clone(), 2),
            lsn_target(3 * SEGMENT, 3 * SEGMENT + 64),
        )
        .expect("no hole");
        assert_eq!(plan.segments[1].pieces.len(), 2);

        // A target before the branching follows the parent only.
        let wal = vec![
            object(1, SEGMENT, switch),
            object(2, 2 * SEGMENT, 4 * SEGMENT),
        ];
        let plan = Plan::build(
            &source(wal, lineage, 2),
            lsn_target(SEGMENT + 600, SEGMENT + 640),
        )
        .expect("no hole");
        assert_eq!(plan.end.parent, Timeline(1));
        assert_eq!(plan.histories, []);
    }

    #[test]
    fn a_backup_by_itself_ends_at_its_own_stop() {
        let wal = vec![object(1, SEGMENT, 2 * SEGMENT)];
        let end = Goal {
            target: Lsn(SEGMENT + 0xD8),
            end: Lsn(SEGMENT + 0x100),
            stamp: None,
        };
        let plan = Plan::build(&source(wal, vec![branch(1, None, 0)], 1), end).expect("no hole");
        assert_eq!(plan.segments.len(), 1);
        assert_eq!(
            plan.segments[0].pieces[0].to,
            Lsn(SEGMENT + 0x100),
            "what follows is not known durable"
        );
        assert_eq!(plan.end.switch, Lsn(SEGMENT + 0x100));
    }

    #[test]
    fn a_history_is_planned_by_its_file_name_only() {
        let lineage = vec![branch(1, None, 0), branch(2, Some(1), SEGMENT + 0x200)];
        let wal = vec![
            object(1, SEGMENT, SEGMENT + 0x200),
            object(2, SEGMENT, 2 * SEGMENT),
        ];
        let plan = Plan::build(
            &source(wal, lineage, 2),
            lsn_target(SEGMENT + 0x300, SEGMENT + 0x340),
        )
        .expect("no hole");
        assert_eq!(plan.history("00000002.history"), Some(Timeline(2)));
        assert_eq!(plan.history("00000003.history"), None);
        assert_eq!(plan.history("00000001.history"), None);
    }
}
