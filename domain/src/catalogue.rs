//! The backups and WAL of one incarnation in one vault: what choosing and sweeping look at.

use chrono::{DateTime, Utc};

use crate::backup::CompleteBackup;
use crate::job::WalGap;
use crate::wal::{TimelineStart, WalObject};
use crate::{BackupId, IncarnationId, Lsn, Timeline};

#[derive(Debug, Clone, PartialEq)]
pub struct Catalogue {
    pub server_name: String,
    pub incarnation: IncarnationId,
    pub wal_segment_bytes: u64,
    /// Complete ones only, in any order.
    pub backups: Vec<CompleteBackup>,
    /// Durable and not superseded, in any order.
    pub wal: Vec<WalObject>,
    pub timelines: Vec<TimelineStart>,
    /// The timeline that the server writes now.
    pub head: Timeline,
    /// On the head: all before it is durable.
    pub durable: Lsn,
    /// The newest instant at which everything the server had committed was durable.
    pub caught_up_at: Option<DateTime<Utc>>,
    /// Holes that nothing can fill.
    pub gaps: Vec<WalGap>,
}

/// WAL without a gap from a starting point along a lineage.
#[derive(Debug, Clone, PartialEq)]
pub struct Coverage<'a> {
    /// In the order of the log; each begins where the one before it ends, or earlier.
    pub objects: Vec<&'a WalObject>,
    /// Where it ends.
    pub timeline: Timeline,
    pub reached: Lsn,
}

impl Coverage<'_> {
    /// The newest commit in it.
    #[must_use]
    pub fn largest_stamp(&self) -> Option<DateTime<Utc>> {
        self.objects
            .iter()
            .filter_map(|object| object.stamps.map(|stamps| stamps.largest.at))
            .max()
    }
}

impl Catalogue {
    /// The path from the first timeline to `timeline`, ancestors first. Taken from history files
    /// alone: a timeline number says nothing about descent (RELIABILITY §1.2, wal-g#1390).
    #[must_use]
    pub fn lineage(&self, timeline: Timeline) -> Vec<TimelineStart> {
        let mut path = Vec::new();
        let mut next = Some(timeline);
        while let Some(wanted) = next {
            // A parent is always a smaller number, so a forged loop ends here.
            let Some(start) = self.timelines.iter().find(|start| start.timeline == wanted) else {
                path.push(TimelineStart {
                    timeline: wanted,
                    parent: None,
                    switch: Lsn::ZERO,
                    history_key: None,
                });
                break;
            };
            path.push(start.clone());
            next = start.parent.filter(|parent| *parent < wanted);
        }
        path.reverse();
        path
    }

    /// All WAL without a gap from `from` on `start` along `lineage`. Of objects that overlap, the
    /// one that reaches furthest is taken.
    #[must_use]
    pub fn coverage(&self, lineage: &[TimelineStart], start: Timeline, from: Lsn) -> Coverage<'_> {
        let mut coverage = Coverage {
            objects: Vec::new(),
            timeline: start,
            reached: from,
        };
        let Some(first) = lineage.iter().position(|step| step.timeline == start) else {
            return coverage;
        };
        for (index, step) in lineage.iter().enumerate().skip(first) {
            // A timeline counts up to where its child branches off, and no further.
            let limit = lineage
                .get(index + 1)
                .map_or(Lsn(u64::MAX), |child| child.switch);
            coverage.timeline = step.timeline;
            let mut objects: Vec<&WalObject> = self
                .wal
                .iter()
                .filter(|object| object.timeline == step.timeline && object.end > coverage.reached)
                .collect();
            objects.sort_by_key(|object| (object.start, object.end));
            let mut candidates = objects.into_iter().peekable();
            while coverage.reached < limit {
                let mut best: Option<&WalObject> = None;
                while let Some(object) =
                    candidates.next_if(|object| object.start <= coverage.reached)
                {
                    if best.is_none_or(|best| object.end > best.end) {
                        best = Some(object);
                    }
                }
                match best {
                    Some(object) if object.end > coverage.reached => {
                        coverage.objects.push(object);
                        coverage.reached = object.end.min(limit);
                    }
                    _ => break,
                }
            }
            // The segment in which a child branched off repeats the parent's bytes up to there, so
            // it can stand in for a last stretch that the parent never made durable.
            if coverage.reached < limit
                && (limit == Lsn(u64::MAX)
                    || coverage.reached < limit.segment_start(self.wal_segment_bytes))
            {
                break;
            }
        }
        coverage
    }

    /// The WAL that a backup can be rolled forward through, on the way to `lineage`'s end.
    #[must_use]
    pub fn coverage_of(&self, lineage: &[TimelineStart], backup: &CompleteBackup) -> Coverage<'_> {
        self.coverage(
            lineage,
            backup.timeline,
            backup.start.segment_start(self.wal_segment_bytes),
        )
    }

    /// Complete backups on a lineage, the one that stopped last first.
    #[must_use]
    pub fn backups_on(&self, lineage: &[TimelineStart]) -> Vec<&CompleteBackup> {
        let mut backups: Vec<&CompleteBackup> = self
            .backups
            .iter()
            .filter(|backup| {
                lineage.iter().enumerate().any(|(index, step)| {
                    step.timeline == backup.timeline
                        && lineage
                            .get(index + 1)
                            .is_none_or(|child| backup.stop <= child.switch)
                })
            })
            .collect();
        backups.sort_by_key(|backup| std::cmp::Reverse((backup.stop, backup.completed_time)));
        backups
    }

    #[must_use]
    pub fn backup(&self, id: BackupId) -> Option<&CompleteBackup> {
        self.backups.iter().find(|backup| backup.id == id)
    }

    /// The first instant that can be restored, whatever the window: the first complete backup's
    /// completion (RELIABILITY §5.5).
    #[must_use]
    pub fn first_restorable(&self) -> Option<DateTime<Utc>> {
        let lineage = self.lineage(self.head);
        self.backups_on(&lineage)
            .iter()
            .map(|backup| backup.completed_time)
            .min()
    }

    /// The last instant that can be restored. Behind a gap it stands still before the gap until the
    /// next backup (RELIABILITY §5.3.9).
    #[must_use]
    pub fn latest_restorable(&self) -> Option<DateTime<Utc>> {
        let lineage = self.lineage(self.head);
        let newest = *self.backups_on(&lineage).first()?;
        let coverage = self.coverage_of(&lineage, newest);
        let committed = coverage.largest_stamp();
        let caught_up = self.caught_up_at.filter(|_| self.is_complete(&coverage));
        [Some(newest.completed_time), committed, caught_up]
            .into_iter()
            .flatten()
            .max()
    }

    /// Whether nothing durable lies beyond this coverage: no gap ends it.
    #[must_use]
    pub fn is_complete(&self, coverage: &Coverage<'_>) -> bool {
        coverage.timeline == self.head && coverage.reached >= self.durable
    }
}
