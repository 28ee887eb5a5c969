//! What is known of the WAL that lies in a vault.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Lsn, Timeline};

/// The commit and abort stamps found in a stretch of WAL (RELIABILITY §5.5).
///
/// `first` and `last` are by position in the log, `largest` by value: stamps are not quite in WAL
/// order, so the three differ now and then by fractions of a millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamps {
    pub first: Stamp,
    pub last: Stamp,
    pub largest: Stamp,
}

impl Stamps {
    #[must_use]
    pub fn of(stamp: Stamp) -> Self {
        Self {
            first: stamp,
            last: stamp,
            largest: stamp,
        }
    }

    /// Takes in the next stamp in the order of the log.
    pub fn push(&mut self, stamp: Stamp) {
        self.last = stamp;
        if stamp.at > self.largest.at {
            self.largest = stamp;
        }
    }
}

/// One commit or abort record: the time written in it and where the record starts and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub at: DateTime<Utc>,
    /// First byte of the record: what `recovery_target_lsn` names.
    pub lsn: Lsn,
    /// Where PostgreSQL counts the record as ended: the first byte after it, rounded up to eight.
    /// A recovery that stops at this record branches off its new timeline exactly here.
    pub end: Lsn,
}

/// A stretch of time in which the server's clock ran backwards: an instant inside it is ambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockAnomaly {
    /// The smaller stamp that came later in the log.
    pub from: DateTime<Utc>,
    /// The larger stamp that came before it.
    pub to: DateTime<Utc>,
    pub at: Lsn,
}

/// One sealed object of WAL: a contiguous byte range of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalObject {
    pub timeline: Timeline,
    pub start: Lsn,
    /// First byte after the range.
    pub end: Lsn,
    /// The object's key in its vault.
    pub key: String,
    /// BLAKE3 of the plaintext bytes, 64 hexadecimal digits.
    pub plaintext_hash: String,
    /// Bytes in the store.
    pub stored_bytes: u64,
    pub stamps: Option<Stamps>,
    /// Where the last record that counts as a modification starts (RELIABILITY §5.5).
    pub last_counting: Option<Lsn>,
    pub clock_anomaly: Option<ClockAnomaly>,
}

/// One line of a timeline's history: it branched off `parent` at `switch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStart {
    pub timeline: Timeline,
    /// `None` for the timeline on which the incarnation's WAL begins.
    pub parent: Option<Timeline>,
    /// Where this timeline begins; the parent's WAL counts up to here and no further.
    pub switch: Lsn,
    /// Key of the stored `.history` file; `None` for timeline 1, which has none.
    pub history_key: Option<String>,
}

/// The union of WAL objects of one timeline without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSpan {
    pub timeline: Timeline,
    pub start: Lsn,
    pub end: Lsn,
}

/// Joins objects into spans: ranges of one timeline that touch or overlap become one.
#[must_use]
pub fn spans<'a>(objects: impl IntoIterator<Item = &'a WalObject>) -> Vec<WalSpan> {
    let mut ranges: Vec<WalSpan> = objects
        .into_iter()
        .map(|object| WalSpan {
            timeline: object.timeline,
            start: object.start,
            end: object.end,
        })
        .collect();
    ranges.sort_by_key(|span| (span.timeline, span.start, span.end));
    let mut joined: Vec<WalSpan> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.timeline == range.timeline && range.start <= last.end => {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}
