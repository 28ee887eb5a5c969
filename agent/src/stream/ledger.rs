//! What a stream has made durable and nobody has kept yet.
//!
//! The stores are the truth. On disk there is one small file per incarnation that says up to where the
//! control plane knows everything; after a restart the rest is listed again from the vault
//! (`origin`). Losing the file costs a longer listing, nothing else, so it is not synced.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use holdfast_domain::job::{WalGap, WalReport};
use holdfast_domain::wal::{TimelineStart, WalObject};
use holdfast_domain::{IncarnationId, Lsn, Timeline};
use holdfast_vault::wal::object::LARGEST_OBJECT_BYTES;
use serde::{Deserialize, Serialize};

/// A report is one HTTP body.
const MOST_OBJECTS: usize = 500;
const MOST_SUPERSEDED: usize = 2000;

/// Up to where the control plane has kept every object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Acknowledged {
    pub timeline: Timeline,
    pub durable: Lsn,
}

impl Acknowledged {
    fn file(state_dir: &Path, incarnation: IncarnationId) -> PathBuf {
        state_dir
            .join("streams")
            .join(format!("{incarnation}.json"))
    }

    /// `None` when nothing was acknowledged yet, or the file does not say.
    pub fn load(state_dir: &Path, incarnation: IncarnationId) -> Option<Self> {
        let text = std::fs::read(Self::file(state_dir, incarnation)).ok()?;
        serde_json::from_slice(&text)
            .ok()
            .filter(|known: &Self| known.durable > Lsn::ZERO)
    }

    pub fn store(self, state_dir: &Path, incarnation: IncarnationId) {
        let write = || -> std::io::Result<()> {
            let file = Self::file(state_dir, incarnation);
            let unfinished = file.with_extension("json.tmp");
            std::fs::create_dir_all(state_dir.join("streams"))?;
            std::fs::write(&unfinished, serde_json::to_vec(&self)?)?;
            std::fs::rename(unfinished, file)
        };
        if let Err(error) = write() {
            tracing::warn!(server.incarnation = %incarnation, %error, "could not note what was acknowledged");
        }
    }

    /// Whether this says more than `other`. A report made before the first byte was durable says
    /// nothing: taken for a position, it would make a gap of everything before the stream's start.
    fn is_beyond(self, other: Option<Self>) -> bool {
        self.durable > Lsn::ZERO
            && other
                .is_none_or(|other| (self.timeline, self.durable) > (other.timeline, other.durable))
    }
}

/// See the module. Shared between the stream and whoever reports.
#[derive(Debug)]
pub(super) struct Ledger {
    incarnation: IncarnationId,
    state_dir: PathBuf,
    acknowledged: Option<Acknowledged>,
    timeline: Timeline,
    durable: Lsn,
    /// Not acknowledged yet, in the order of the log.
    objects: Vec<WalObject>,
    superseded: BTreeSet<String>,
    timelines: Vec<TimelineStart>,
    caught_up_at: Option<DateTime<Utc>>,
    last_counting: Option<Lsn>,
    server_flush: Lsn,
    gap: Option<WalGap>,
    /// What a wider object may still replace: start, end, key.
    tails: Vec<(Lsn, Lsn, String)>,
    /// Objects of an earlier life behind a hole: they count for nothing and go once covered.
    stranded: Vec<WalObject>,
}

impl Ledger {
    pub fn new(
        incarnation: IncarnationId,
        state_dir: &Path,
        timeline: Timeline,
        durable: Lsn,
    ) -> Self {
        Self {
            incarnation,
            state_dir: state_dir.to_owned(),
            acknowledged: Acknowledged::load(state_dir, incarnation),
            timeline,
            durable,
            objects: Vec::new(),
            superseded: BTreeSet::new(),
            timelines: Vec::new(),
            caught_up_at: None,
            last_counting: None,
            server_flush: durable,
            gap: None,
            tails: Vec::new(),
            stranded: Vec::new(),
        }
    }

    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    pub fn durable(&self) -> Lsn {
        self.durable
    }

    pub fn caught_up_at(&self) -> Option<DateTime<Utc>> {
        self.caught_up_at
    }

    pub fn last_counting(&self) -> Option<Lsn> {
        self.last_counting
    }

    pub fn unacknowledged(&self) -> usize {
        self.objects.len() + self.superseded.len()
    }

    /// WAL that exists on the server and in no store.
    pub fn held_bytes(&self) -> u64 {
        self.server_flush.bytes_since(self.durable)
    }

    pub fn server_flush(&self) -> Lsn {
        self.server_flush
    }

    pub fn see_server_flush(&mut self, flushed: Lsn) {
        self.server_flush = self.server_flush.max(flushed);
    }

    pub fn see_counting(&mut self, lsn: Option<Lsn>) {
        self.last_counting = self.last_counting.max(lsn);
    }

    pub fn see_caught_up(&mut self, at: DateTime<Utc>) {
        self.caught_up_at = self.caught_up_at.max(Some(at));
    }

    /// An object that every store has, next in the order of the log.
    pub fn add(&mut self, object: WalObject) {
        // Positions of another timeline say nothing about this one: what an older one wrote after the
        // switch lies further on and is no part of what is durable.
        if object.timeline == self.timeline {
            self.durable = self.durable.max(object.end);
            self.see_server_flush(object.end);
        }
        self.supersede(&object);
        self.tails
            .push((object.start, object.end, object.key.clone()));
        if let Some(known) = self
            .objects
            .iter_mut()
            .find(|known| known.key == object.key)
        {
            *known = object;
        } else {
            self.objects.push(object);
        }
    }

    fn supersede(&mut self, wide: &WalObject) {
        let covered = |start: Lsn, end: Lsn, key: &str| {
            start >= wide.start && end <= wide.end && key != wide.key
        };
        for (start, end, key) in std::mem::take(&mut self.tails) {
            if covered(start, end, &key) {
                self.objects.retain(|object| object.key != key);
                self.superseded.insert(key);
            } else if end + LARGEST_OBJECT_BYTES > wide.end && key != wide.key {
                self.tails.push((start, end, key));
            }
        }
        for object in std::mem::take(&mut self.stranded) {
            if object.timeline != wide.timeline || !covered(object.start, object.end, &object.key) {
                if object.key != wide.key {
                    self.stranded.push(object);
                }
            } else {
                self.superseded.insert(object.key);
            }
        }
        self.superseded.remove(&wide.key);
    }

    pub fn strand(&mut self, objects: Vec<WalObject>) {
        self.stranded = objects;
    }

    pub fn add_timeline(&mut self, start: TimelineStart) {
        if !self
            .timelines
            .iter()
            .any(|known| known.timeline == start.timeline)
        {
            self.timelines.push(start);
        }
    }

    /// The stream goes on on another timeline.
    pub fn enter_timeline(&mut self, timeline: Timeline, from: Lsn) {
        self.timeline = timeline;
        self.durable = from;
        self.tails.clear();
    }

    /// WAL that no place on earth has: the history breaks here, and everybody must know.
    pub fn record_gap(&mut self, gap: WalGap) {
        self.gap = Some(gap);
        self.durable = gap.end;
    }

    /// What is to be told. Its `durable` fits the objects in it, also when there are more.
    pub fn report(&self) -> WalReport {
        self.report_at_most(MOST_OBJECTS, MOST_SUPERSEDED)
    }

    /// Everything at once, for the last report of a stream.
    pub fn whole_report(&self) -> WalReport {
        self.report_at_most(usize::MAX, usize::MAX)
    }

    fn report_at_most(&self, most_objects: usize, most_superseded: usize) -> WalReport {
        let cut = self.objects.len() > most_objects;
        let objects: Vec<WalObject> = self.objects.iter().take(most_objects).cloned().collect();
        let (timeline, durable) = match objects.last() {
            Some(last) if cut => (last.timeline, last.end),
            _ => (self.timeline, self.durable),
        };
        WalReport {
            incarnation: self.incarnation,
            timeline,
            durable,
            objects,
            superseded: self
                .superseded
                .iter()
                .take(most_superseded)
                .cloned()
                .collect(),
            timelines: self.timelines.clone(),
            caught_up_at: self.caught_up_at.filter(|_| !cut),
            last_counting: self.last_counting,
            held_bytes: self.held_bytes(),
            gap: self.gap,
        }
    }

    /// The control plane has kept this report.
    pub fn acknowledge(&mut self, report: &WalReport) {
        let kept: BTreeSet<&str> = report
            .objects
            .iter()
            .map(|object| object.key.as_str())
            .collect();
        self.objects
            .retain(|object| !kept.contains(object.key.as_str()));
        for key in &report.superseded {
            self.superseded.remove(key);
        }
        self.timelines
            .retain(|start| !report.timelines.contains(start));
        if self.gap == report.gap {
            self.gap = None;
        }
        let acknowledged = Acknowledged {
            timeline: report.timeline,
            durable: report.durable,
        };
        if acknowledged.is_beyond(self.acknowledged) {
            self.acknowledged = Some(acknowledged);
            acknowledged.store(&self.state_dir, self.incarnation);
        }
    }
}

/// [`Ledger::acknowledge`] when no ledger lives any more.
pub(super) fn acknowledge_on_disk(state_dir: &Path, report: &WalReport) {
    let acknowledged = Acknowledged {
        timeline: report.timeline,
        durable: report.durable,
    };
    if acknowledged.is_beyond(Acknowledged::load(state_dir, report.incarnation)) {
        acknowledged.store(state_dir, report.incarnation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(start: u64, end: u64) -> WalObject {
        WalObject {
            timeline: Timeline(1),
            start: Lsn(start),
            end: Lsn(end),
            key: format!("{start}-{end}"),
            plaintext_hash: String::new(),
            stored_bytes: 1,
            stamps: None,
            last_counting: None,
            clock_anomaly: None,
        }
    }

    #[test]
    fn a_report_from_before_the_first_byte_is_no_position() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ledger = ledger(dir.path());
        let report = ledger.report();
        assert_eq!(report.durable, Lsn::ZERO);
        ledger.acknowledge(&report);
        acknowledge_on_disk(dir.path(), &report);
        assert!(Acknowledged::load(dir.path(), report.incarnation).is_none());
    }

    fn ledger(dir: &Path) -> Ledger {
        Ledger::new(IncarnationId::new(), dir, Timeline(1), Lsn(0))
    }

    #[test]
    fn a_whole_segment_replaces_its_tails_and_says_so() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = ledger(dir.path());
        for (start, end) in [(0, 10), (10, 20), (20, 25)] {
            ledger.add(object(start, end));
        }
        let first = ledger.report();
        assert_eq!((first.durable, first.objects.len()), (Lsn(25), 3));
        ledger.acknowledge(&first);
        ledger.add(object(25, 30));
        ledger.add(object(0, 40));
        let second = ledger.report();
        let keys: Vec<&str> = second.objects.iter().map(|o| o.key.as_str()).collect();
        assert_eq!(keys, ["0-40"]);
        assert_eq!(second.superseded, ["0-10", "10-20", "20-25", "25-30"]);
    }

    #[test]
    fn an_object_of_an_older_timeline_makes_nothing_durable_on_this_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = ledger(dir.path());
        ledger.enter_timeline(Timeline(2), Lsn(10));
        ledger.add(object(10, 40));
        let report = ledger.report();
        assert_eq!((report.timeline, report.durable), (Timeline(2), Lsn(10)));
        assert_eq!((report.objects.len(), report.held_bytes), (1, 0));
        ledger.add(WalObject {
            timeline: Timeline(2),
            key: "of the second".into(),
            ..object(10, 20)
        });
        assert_eq!(ledger.durable(), Lsn(20));
    }

    #[test]
    fn what_is_not_acknowledged_is_told_again_and_the_rest_survives_a_restart() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = ledger(dir.path());
        ledger.add(object(0, 10));
        let first = ledger.report();
        ledger.add(object(10, 20));
        assert_eq!(ledger.report().objects.len(), 2);
        ledger.acknowledge(&first);
        assert_eq!(ledger.report().objects, [object(10, 20)]);
        let known = Acknowledged::load(dir.path(), first.incarnation);
        assert_eq!(known.map(|known| known.durable), Some(Lsn(10)));
    }

    #[test]
    fn a_long_silence_is_told_in_parts_that_fit_together() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = ledger(dir.path());
        for start in 0..1200 {
            ledger.add(object(start, start + 1));
        }
        let mut told = Vec::new();
        while ledger.unacknowledged() > 0 {
            let report = ledger.report();
            assert_eq!(
                report.objects.last().map(|last| last.end),
                Some(report.durable)
            );
            told.extend(report.objects.clone());
            ledger.acknowledge(&report);
        }
        assert_eq!(told.len(), 1200);
    }
}
