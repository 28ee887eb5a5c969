//! Decides what becomes a WAL object, and when (RELIABILITY §5.3.10).
//!
//! A *unit* is a WAL segment, or a piece of one when segments are larger than an object may be. While a
//! unit fills, *tails* are cut off its end; the whole unit follows when it is full and replaces them. Every
//! [`TAILS_PER_BUNDLE`]-th tail reaches back over the small ones before it, so that a slow writer's day
//! does not become a hundred thousand objects. The cutter holds the bytes since the last cut and at most
//! [`BUNDLE_BYTES`] before them; the rest of a unit is read again from the server's own `pg_wal`.
//!
//! No I/O here, and no clock but the one handed in.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use holdfast_domain::wal::{ClockAnomaly, Stamp, Stamps, WalObject};
use holdfast_domain::{IncarnationId, Lsn, Timeline};
use holdfast_vault::wal::counting::{self, StatisticsRelations};
use holdfast_vault::wal::object::LARGEST_OBJECT_BYTES;
use holdfast_vault::wal::page::Dialect;
use holdfast_vault::wal::record::Record;
use holdfast_vault::wal::{InvalidWal, WalRange, Walker};
use tokio::time::Instant;

use super::change_map::ChangeMap;
use super::memory::Spare;
use super::transactions::Transactions;

const TAILS_PER_BUNDLE: u32 = 64;
const BUNDLE_BYTES: usize = 1 << 20;
/// A stamp smaller than an earlier one by more than this marks the clock (RELIABILITY §5.5).
const CLOCK_TOLERANCE_MS: i64 = 2000;

/// What stays the same for all WAL of one stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lineage {
    pub incarnation: IncarnationId,
    pub system_identifier: u64,
    pub segment_bytes: u64,
    pub timeline: Timeline,
}

impl Lineage {
    /// Bytes of a unit: both are powers of two.
    pub fn unit_bytes(&self) -> u64 {
        self.segment_bytes.min(LARGEST_OBJECT_BYTES)
    }

    pub fn unit_start(&self, lsn: Lsn) -> Lsn {
        lsn.segment_start(self.unit_bytes())
    }
}

/// Something to put into the stores.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// The bytes since the last cut (a bundle reaches further back).
    pub range: WalRange,
    pub bytes: Bytes,
    /// Of `bytes`, when they are a unit: taken while they streamed by.
    pub hash: Option<blake3::Hash>,
    /// The whole unit instead, when its beginning can be read again.
    pub whole: Option<WholeUnit>,
}

/// A full unit of which only the end is at hand.
#[derive(Debug, Clone)]
pub(super) struct WholeUnit {
    pub range: WalRange,
    pub hash: blake3::Hash,
}

#[derive(Debug)]
pub(super) struct Cutter {
    lineage: Lineage,
    statistics: Arc<StatisticsRelations>,
    changes: Arc<Mutex<ChangeMap>>,
    /// `None` after WAL that could not be read as records, until the next unit.
    walker: Option<Walker>,
    /// Of the newest page that was read: what is unreadable comes from the same server.
    dialect: Option<Dialect>,
    transactions: Transactions,
    /// End of what was taken in.
    received: Lsn,
    /// End of what was cut.
    cut_to: Lsn,
    /// Bytes `[recent_from, received)`; `recent_from` is never after `cut_to`.
    recent: BytesMut,
    recent_from: Lsn,
    /// Memory of earlier units.
    spare: Spare,
    tails_in_bundle: u32,
    unit: Summary,
    unit_hash: blake3::Hasher,
    bundle: Summary,
    tail: Summary,
    high_water: Option<Stamp>,
    last_counting: Option<Lsn>,
    /// End of the newest record that somebody waits for.
    interest: Lsn,
    urgent_since: Option<Instant>,
    quiet_since: Option<Instant>,
    relations_renamed: bool,
    invalid: Option<InvalidWal>,
}

/// What a range's header will say.
#[derive(Debug, Clone, Copy)]
struct Summary {
    start: Lsn,
    first_record: Option<Lsn>,
    stamps: Option<Stamps>,
    last_counting: Option<Lsn>,
    clock_anomaly: Option<ClockAnomaly>,
    unreadable_from: Option<Lsn>,
}

impl Summary {
    fn of(start: Lsn) -> Self {
        Self {
            start,
            first_record: None,
            stamps: None,
            last_counting: None,
            clock_anomaly: None,
            unreadable_from: None,
        }
    }

    /// Unreadable WAL is kept like any other, and counts.
    fn lose_sight(&mut self, from: Lsn) {
        self.unreadable_from.get_or_insert(from.max(self.start));
        self.last_counting = Some(self.start);
    }

    fn push(&mut self, stamp: Stamp) {
        match &mut self.stamps {
            Some(stamps) => stamps.push(stamp),
            None => self.stamps = Some(Stamps::of(stamp)),
        }
    }
}

impl Cutter {
    /// Begins at the first byte of a unit, of which everything before `durable` is in the stores already.
    ///
    /// What each record changes goes into `changes`, which goes on when it has seen all that came before.
    pub fn resume(
        lineage: Lineage,
        durable: Lsn,
        statistics: Arc<StatisticsRelations>,
        changes: Arc<Mutex<ChangeMap>>,
        spare: Spare,
    ) -> Self {
        let start = lineage.unit_start(durable);
        changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .resume(lineage.timeline, start);
        let walker =
            Walker::at_page(start, lineage.segment_bytes).of_cluster(lineage.system_identifier);
        Self {
            lineage,
            statistics,
            changes,
            walker: Some(walker),
            dialect: None,
            transactions: Transactions::default(),
            received: start,
            cut_to: durable,
            recent: BytesMut::new(),
            recent_from: durable,
            spare,
            tails_in_bundle: 0,
            unit: Summary::of(start),
            unit_hash: blake3::Hasher::new(),
            bundle: Summary::of(durable),
            tail: Summary::of(durable),
            high_water: None,
            last_counting: None,
            interest: Lsn::ZERO,
            urgent_since: None,
            quiet_since: None,
            relations_renamed: false,
            invalid: None,
        }
    }

    /// What the objects of the unit say of a record that began before it, and of the clock.
    pub fn remember(&mut self, objects: &[WalObject]) {
        for object in objects {
            if let Some(stamps) = object.stamps {
                if object.start >= self.unit.start && stamps.first.lsn < self.unit.start {
                    self.unit.push(stamps.first);
                }
                // Stamps inside the unit come by again.
                if object.end <= self.unit.start
                    && self
                        .high_water
                        .is_none_or(|high| high.at < stamps.largest.at)
                {
                    self.high_water = Some(stamps.largest);
                }
            }
            self.last_counting = self.last_counting.max(object.last_counting);
            if object
                .last_counting
                .is_some_and(|lsn| lsn < self.unit.start)
                && object.start >= self.unit.start
            {
                self.unit.last_counting = object.last_counting;
            }
        }
    }

    /// Continues with a walker that has read what comes before the unit, so that a record which crosses
    /// into it is read whole. Nothing may have been taken in yet.
    pub fn continue_from(&mut self, walker: Walker) {
        if walker.position() == self.received {
            self.walker = Some(walker);
        }
    }

    /// Takes in the next bytes and gives out each unit that they complete.
    pub fn take(&mut self, mut bytes: &[u8], now: Instant) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let unit_end = self.unit.start + self.lineage.unit_bytes();
            // What is durable already is only read, not kept.
            let limit = if self.received < self.cut_to {
                self.cut_to.min(unit_end)
            } else {
                unit_end
            };
            let room = usize::try_from(limit.bytes_since(self.received)).unwrap_or(usize::MAX);
            let (now_taken, later) = bytes.split_at(room.min(bytes.len()));
            self.take_part(now_taken, now);
            bytes = later;
            if self.received == unit_end {
                pieces.extend(self.complete_unit());
            }
        }
        pieces
    }

    fn take_part(&mut self, bytes: &[u8], now: Instant) {
        self.unit_hash.update(bytes);
        let (from, is_new) = (self.received, self.received >= self.cut_to);
        if is_new {
            self.keep(bytes);
        }
        self.received = from + bytes.len() as u64;
        let urgent = self.walk(from, bytes, is_new);
        if is_new {
            self.quiet_since.get_or_insert(now);
            if urgent {
                self.urgent_since.get_or_insert(now);
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self.recent.capacity() - self.recent.len();
        if room < bytes.len() && self.recent.len() >= BUNDLE_BYTES {
            // Somebody writes fast: room for the whole unit at once, of which only what is written costs memory.
            let unit_end = self.unit.start + self.lineage.unit_bytes();
            let left = usize::try_from(unit_end.bytes_since(self.received)).unwrap_or(0);
            self.recent.reserve(left.max(bytes.len()));
        }
        self.recent.extend_from_slice(bytes);
    }

    /// Nothing came for a while: memory that is not needed goes back.
    pub fn rest(&mut self) {
        drop(self.spare.take());
        if self.recent.capacity() > self.recent.len() + BUNDLE_BYTES {
            self.recent = BytesMut::from(&self.recent[..]);
        }
    }

    /// Reads the records that end in these bytes into the summaries. Says whether somebody waits for one.
    fn walk(&mut self, from: Lsn, bytes: &[u8], is_new: bool) -> bool {
        let Some(mut walker) = self.walker.take() else {
            self.lose_sight(from, is_new);
            return is_new;
        };
        let mut urgent = false;
        walker.begin_range();
        let outcome = {
            let changes = Arc::clone(&self.changes);
            let mut changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
            walker.feed_with_heads(bytes, |record, head| {
                changes.take(&record, head);
                urgent |= self.note(&record, is_new);
            })
        };
        if let Some(first) = walker.first_start() {
            self.unit.first_record.get_or_insert(first);
            if is_new {
                self.bundle.first_record.get_or_insert(first);
                self.tail.first_record.get_or_insert(first);
            }
        }
        self.dialect = walker.dialect().or(self.dialect);
        let invalid = match outcome {
            Ok(()) if !walker.has_ended() => {
                self.walker = Some(walker);
                return urgent && is_new;
            }
            Ok(()) => InvalidWal {
                at: walker.valid_end(),
                fault: holdfast_vault::wal::walker::Fault::RecordLength(0),
            },
            Err(invalid) => invalid,
        };
        self.invalid = Some(invalid);
        self.lose_sight(invalid.at, is_new);
        is_new
    }

    /// Nothing from here to what was received could be read as records.
    fn lose_sight(&mut self, from: Lsn, is_new: bool) {
        self.unit.lose_sight(from);
        if is_new {
            self.bundle.lose_sight(from);
            self.tail.lose_sight(from);
        }
        self.last_counting = self.last_counting.max(Some(self.unit.start));
        self.interest = self.received;
        self.changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .begin_anew(self.received);
    }

    fn note(&mut self, record: &Record, is_new: bool) -> bool {
        let counts = counting::counts(record, &self.statistics);
        let urgent = self.transactions.is_urgent(record, counts);
        self.relations_renamed |= counting::renames_relations(record);
        let stamp = record.stamp();
        let anomaly = stamp.and_then(|stamp| self.check_clock(stamp));
        if stamp.is_none() && !counts {
            return false;
        }
        for summary in [&mut self.unit, &mut self.bundle, &mut self.tail] {
            // Tail and bundle begin behind what is durable already.
            if record.end <= summary.start {
                continue;
            }
            if let Some(stamp) = stamp {
                summary.push(stamp);
            }
            if counts {
                summary.last_counting = Some(record.start);
            }
            if let Some(anomaly) = anomaly {
                summary.clock_anomaly =
                    Some(summary.clock_anomaly.map_or(anomaly, |known| ClockAnomaly {
                        from: known.from.min(anomaly.from),
                        to: known.to.max(anomaly.to),
                        at: known.at,
                    }));
            }
        }
        if counts {
            self.last_counting = self.last_counting.max(Some(record.start));
        }
        if urgent {
            self.interest = self.interest.max(record.end);
        }
        urgent && is_new
    }

    fn check_clock(&mut self, stamp: Stamp) -> Option<ClockAnomaly> {
        let high = self.high_water.unwrap_or(stamp);
        if (high.at - stamp.at).num_milliseconds() > CLOCK_TOLERANCE_MS {
            // From here on the server lives in its new time.
            self.high_water = Some(stamp);
            return Some(ClockAnomaly {
                from: stamp.at,
                to: high.at,
                at: stamp.lsn,
            });
        }
        if stamp.at >= high.at {
            self.high_water = Some(stamp);
        }
        None
    }

    /// Cuts off what came since the last cut; `None` when nothing did.
    pub fn cut(&mut self) -> Option<Piece> {
        if self.received <= self.cut_to {
            return None;
        }
        self.tails_in_bundle += 1;
        let bundled = self.tails_in_bundle >= TAILS_PER_BUNDLE && self.recent_from < self.cut_to;
        let (summary, bytes) = if bundled {
            (self.bundle, self.recent.split().freeze())
        } else {
            let skip = usize::try_from(self.cut_to.bytes_since(self.recent_from)).unwrap_or(0);
            (self.tail, Bytes::copy_from_slice(&self.recent[skip..]))
        };
        let piece = Piece {
            range: self.range(&summary, self.received),
            bytes,
            hash: None,
            whole: None,
        };
        self.tail = Summary::of(self.received);
        self.cut_to = self.received;
        if bundled || self.recent.len() > BUNDLE_BYTES {
            self.begin_bundle();
        }
        self.urgent_since = None;
        self.quiet_since = None;
        Some(piece)
    }

    fn complete_unit(&mut self) -> Option<Piece> {
        let whole = self.range(&self.unit, self.received);
        let hash = self.unit_hash.finalize();
        let piece = if self.cut_to >= self.received {
            // All of it was durable before this walk; a survey found its objects.
            None
        } else {
            let skip = usize::try_from(self.cut_to.bytes_since(self.recent_from)).unwrap_or(0);
            let bytes = self.recent.split().freeze().slice(skip..);
            let range = self.range(&self.tail, self.received);
            let is_whole = range.start == whole.start;
            Some(Piece {
                range: if is_whole { whole.clone() } else { range },
                bytes,
                hash: is_whole.then_some(hash),
                whole: (!is_whole).then_some(WholeUnit { range: whole, hash }),
            })
        };
        self.unit = Summary::of(self.received);
        self.unit_hash = blake3::Hasher::new();
        self.tail = Summary::of(self.received);
        self.cut_to = self.cut_to.max(self.received);
        self.begin_bundle();
        if piece.as_ref().is_some_and(|piece| piece.whole.is_none()) {
            self.recent = self.spare.take().unwrap_or_default();
        }
        self.urgent_since = None;
        self.quiet_since = None;
        if self.walker.is_none() {
            self.walker = Some(
                Walker::at_page(self.received, self.lineage.segment_bytes)
                    .of_cluster(self.lineage.system_identifier),
            );
        }
        piece
    }

    fn begin_bundle(&mut self) {
        self.recent = BytesMut::new();
        self.recent_from = self.cut_to;
        self.bundle = Summary::of(self.cut_to);
        self.tails_in_bundle = 0;
    }

    fn range(&self, summary: &Summary, end: Lsn) -> WalRange {
        WalRange {
            incarnation: self.lineage.incarnation,
            timeline: self.lineage.timeline,
            start: summary.start,
            end,
            system_identifier: self.lineage.system_identifier,
            wal_segment_bytes: self.lineage.segment_bytes,
            page_magic: self.dialect.map(Dialect::magic),
            first_record: summary.first_record,
            stamps: summary.stamps,
            last_counting: summary.last_counting,
            clock_anomaly: summary.clock_anomaly,
            unreadable_from: summary.unreadable_from,
        }
    }

    pub fn set_statistics(&mut self, statistics: Arc<StatisticsRelations>) {
        self.statistics = statistics;
        self.relations_renamed = false;
    }

    /// File numbers may have changed since the statistics relations were read.
    pub fn relations_renamed(&self) -> bool {
        self.relations_renamed
    }

    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    pub fn received(&self) -> Lsn {
        self.received
    }

    pub fn cut_to(&self) -> Lsn {
        self.cut_to
    }

    /// End of the newest record that somebody waits for. The commit of an automatic ANALYZE is none: without
    /// it a restore has everything that users committed (ADR 16).
    pub fn interest(&self) -> Lsn {
        self.interest
    }

    pub fn last_counting(&self) -> Option<Lsn> {
        self.last_counting
    }

    /// Since when something urgent has been waiting for a cut.
    pub fn urgent_since(&self) -> Option<Instant> {
        self.urgent_since
    }

    /// Since when anything at all has been waiting for a cut.
    pub fn quiet_since(&self) -> Option<Instant> {
        self.quiet_since
    }

    /// The newest place where WAL could not be read as records.
    pub fn invalid(&self) -> Option<InvalidWal> {
        self.invalid
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};

    use super::*;

    fn cutter(durable: u64) -> Cutter {
        let lineage = Lineage {
            incarnation: IncarnationId::new(),
            system_identifier: 1,
            segment_bytes: 1 << 20,
            timeline: Timeline(1),
        };
        Cutter::resume(
            lineage,
            Lsn(durable),
            Arc::default(),
            Arc::default(),
            Spare::default(),
        )
    }

    fn stamp(at: DateTime<Utc>, lsn: u64) -> Stamp {
        Stamp {
            at,
            lsn: Lsn(lsn),
            end: Lsn(lsn + 40),
        }
    }

    #[test]
    fn a_slow_writers_tails_become_bundles_and_at_last_one_unit() {
        const UNIT: usize = 1 << 20;
        let mut cutter = cutter(UNIT as u64);
        let mut pieces = Vec::new();
        // Bytes that are no WAL: kept like any other, and they count.
        for _ in 0..UNIT / 512 {
            pieces.extend(cutter.take(&[7; 512], Instant::now()));
            assert!(
                pieces.last().is_some_and(|p: &Piece| p.whole.is_some())
                    || cutter.urgent_since().is_some()
            );
            pieces.extend(cutter.cut());
        }
        assert!(cutter.invalid().is_some());
        let whole = pieces.pop().expect("the unit's end");
        let unit = whole.whole.expect("a whole unit");
        assert_eq!(
            (unit.range.start, unit.range.end),
            (Lsn(UNIT as u64), Lsn(2 * UNIT as u64))
        );
        assert_eq!(unit.hash, blake3::hash(&vec![7; UNIT]));
        let mut durable = Lsn(UNIT as u64);
        let mut bundles = 0;
        for piece in &pieces {
            assert!(piece.range.start <= durable, "no hole");
            assert_eq!(
                piece.range.end.bytes_since(piece.range.start),
                piece.bytes.len() as u64
            );
            if piece.range.start < durable {
                assert_eq!(piece.bytes.len(), 64 * 512);
                bundles += 1;
            }
            durable = piece.range.end;
        }
        assert_eq!(bundles, UNIT / 512 / 64 - 1);
        assert_eq!(whole.range.start, durable);
    }

    /// What begins a segment of PostgreSQL 15 with the cutter's system identifier.
    fn segment_header(at: u64) -> Vec<u8> {
        let mut header = vec![0; 40];
        header[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
        header[2..4].copy_from_slice(&2_u16.to_le_bytes());
        header[4..8].copy_from_slice(&1_u32.to_le_bytes());
        header[8..16].copy_from_slice(&at.to_le_bytes());
        header[24..32].copy_from_slice(&1_u64.to_le_bytes());
        header[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        header[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        header
    }

    #[test]
    fn each_range_says_from_where_on_it_could_not_be_read_and_whose_wal_it_is() {
        const UNIT: u64 = 1 << 20;
        let mut cutter = cutter(UNIT);
        let mut unreadable = segment_header(UNIT);
        unreadable.resize(1000, 7);
        let mut pieces = cutter.take(&unreadable, Instant::now());
        pieces.extend(cutter.cut());
        pieces.extend(cutter.take(&[7; 1000], Instant::now()));
        pieces.extend(cutter.cut());
        let rest = vec![7; UNIT as usize - 2000];
        let whole = cutter.take(&rest, Instant::now()).remove(0).whole;
        let whole = whole.expect("a whole unit").range;
        let mut next = segment_header(2 * UNIT);
        next.extend([0; 8]);
        cutter.take(&next, Instant::now());
        let next = cutter.cut().expect("new bytes").range;
        let said = [&pieces[0].range, &pieces[1].range, &whole, &next]
            .map(|range| (range.page_magic, range.unreadable_from, range.last_counting));
        let first = Some(Lsn(UNIT + 40));
        assert_eq!(
            said,
            [
                (Some(0xD110), first, Some(Lsn(UNIT))),
                (Some(0xD110), Some(Lsn(UNIT + 1000)), Some(Lsn(UNIT + 1000))),
                (Some(0xD110), first, Some(Lsn(UNIT))),
                (Some(0xD110), Some(Lsn(2 * UNIT)), Some(Lsn(2 * UNIT))),
            ]
        );
    }

    #[test]
    fn a_unit_that_came_at_once_is_one_object() {
        let mut cutter = cutter(1 << 20);
        let pieces = cutter.take(&vec![0; 3 << 19], Instant::now());
        assert_eq!(pieces.len(), 1);
        assert!(pieces[0].whole.is_none());
        assert_eq!(pieces[0].bytes.len(), 1 << 20);
        assert_eq!(cutter.cut().expect("the rest").bytes.len(), 1 << 19);
    }

    #[test]
    fn what_is_durable_already_is_read_but_not_kept() {
        let mut cutter = cutter((1 << 20) + 8192);
        assert!(cutter.take(&[1; 8192], Instant::now()).is_empty());
        assert!(cutter.cut().is_none());
        assert!(cutter.urgent_since().is_none() && cutter.quiet_since().is_none());
        cutter.take(&[1; 16], Instant::now());
        let piece = cutter.cut().expect("new bytes");
        assert_eq!(
            (piece.range.start, piece.bytes.len()),
            (Lsn((1 << 20) + 8192), 16)
        );
    }

    #[test]
    fn a_clock_that_runs_backwards_by_more_than_two_seconds_is_marked_once() {
        let mut cutter = cutter(1 << 20);
        let noon = DateTime::UNIX_EPOCH + TimeDelta::hours(12);
        let hour = TimeDelta::hours(1);
        assert_eq!(cutter.check_clock(stamp(noon, 100)), None);
        assert_eq!(
            cutter.check_clock(stamp(noon - TimeDelta::seconds(2), 200)),
            None,
            "not quite in order"
        );
        assert_eq!(
            cutter.check_clock(stamp(noon + hour, 300)),
            None,
            "a leap forwards is no harm"
        );
        let marked = cutter
            .check_clock(stamp(noon + TimeDelta::seconds(1), 400))
            .expect("an anomaly");
        assert_eq!(
            (marked.from, marked.to),
            (noon + TimeDelta::seconds(1), noon + hour)
        );
        assert_eq!(marked.at, Lsn(400));
        assert_eq!(
            cutter.check_clock(stamp(noon + TimeDelta::seconds(2), 500)),
            None
        );
    }
}
