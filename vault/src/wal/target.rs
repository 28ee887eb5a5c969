//! From an instant to a position in the log (RELIABILITY §5.5, FLX-055, DESIGN §3.5).
//!
//! *State at T* is the longest prefix of the WAL without a commit or abort stamped later than T –
//! PostgreSQL's own rule. The headers of WAL objects say where that prefix ends to within one object; only
//! that one (and the one before, when a record crosses into it) is fetched and walked. The answer is the
//! start of the last commit or abort in the prefix: an inclusive LSN target needs nothing after it, so it
//! works on a server that has been idle ever since.

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use holdfast_domain::wal::{Stamp, TimelineStart, WalObject};
use holdfast_domain::{Lsn, Timeline};

use super::object::OpenedWal;
use super::walker::Walker;
use crate::{Error, Result};

/// How far the caller wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Latest,
    At(DateTime<Utc>),
}

impl Until {
    fn excludes(self, at: DateTime<Utc>) -> bool {
        matches!(self, Self::At(until) if at > until)
    }
}

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// In any order; tails that a segment replaced may be among them.
    pub objects: &'a [WalObject],
    /// The path to `timeline`, ancestors first; may be empty when there are none.
    pub lineage: &'a [TimelineStart],
    pub timeline: Timeline,
    /// The timeline on which the backup was made.
    pub backup_timeline: Timeline,
    /// Where the backup becomes consistent: no target lies before it.
    pub backup_stop: Lsn,
    pub until: Until,
}

/// What to tell PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// No commit after the backup belongs to the state wanted.
    Immediate,
    Lsn {
        /// Start of the last commit or abort in the prefix: `recovery_target_lsn`.
        target: Lsn,
        /// End of that record: the switch LSN that the new history file must show.
        end: Lsn,
        /// The time in that record.
        stamp: DateTime<Utc>,
        /// The timeline the record lies on.
        timeline: Timeline,
    },
}

/// Finds the target; `fetch` brings an object that has to be walked.
pub async fn resolve<'f>(
    search: &Search<'_>,
    fetch: impl Fn(WalObject) -> BoxFuture<'f, Result<OpenedWal>>,
) -> Result<Target> {
    let mut newest: Option<(Stamp, Timeline)> = None;
    'path: for leg in path(search) {
        let covering = leg.cover(search.objects)?;
        for (index, object) in covering.objects.iter().enumerate() {
            let Some(stamps) = object.stamps else {
                continue;
            };
            let (inside, past) = (stamps.first.lsn >= leg.from, stamps.last.lsn < leg.to);
            if inside && past && !search.until.excludes(stamps.largest.at) {
                newest = Some((stamps.last, leg.timeline));
                continue;
            }
            for stamp in walk(&covering.objects, index, &fetch).await? {
                if stamp.lsn >= leg.to {
                    break;
                }
                if search.until.excludes(stamp.at) {
                    if stamp.lsn < search.backup_stop {
                        return Err(Error::TargetBeforeBackup { stamp: stamp.at });
                    }
                    break 'path;
                }
                if stamp.lsn >= leg.from {
                    newest = Some((stamp, leg.timeline));
                }
            }
        }
        // Nothing in front of the hole was too late, so what the hole swallowed may be wanted.
        if let Some((start, end)) = covering.hole {
            return Err(Error::WalGap {
                timeline: leg.timeline,
                start,
                end,
            });
        }
    }
    Ok(
        newest.map_or(Target::Immediate, |(stamp, timeline)| Target::Lsn {
            target: stamp.lsn,
            end: stamp.end,
            stamp: stamp.at,
            timeline,
        }),
    )
}

/// The smallest set of objects of one timeline that covers it from `from` on without a hole, and how
/// far that reaches (`from` itself when nothing covers it).
#[must_use]
pub fn cover(objects: &[WalObject], timeline: Timeline, from: Lsn) -> (Vec<WalObject>, Lsn) {
    let mut sorted: Vec<&WalObject> = objects
        .iter()
        .filter(|object| object.timeline == timeline && object.end > from)
        .collect();
    sorted.sort_by_key(|object| (object.start, std::cmp::Reverse(object.end)));
    let mut chosen: Vec<WalObject> = Vec::new();
    let mut reached = from;
    let mut next = sorted.into_iter().peekable();
    loop {
        let mut widest: Option<&WalObject> = None;
        while let Some(object) = next.next_if(|object| object.start <= reached) {
            if widest.is_none_or(|widest| object.end > widest.end) {
                widest = Some(object);
            }
        }
        match widest {
            Some(object) if object.end > reached => {
                reached = object.end;
                chosen.push(object.clone());
            }
            // Everything that begins early enough is covered already.
            Some(_) => {}
            None => return (chosen, reached),
        }
    }
}

/// One timeline's part of the path.
#[derive(Debug, Clone, Copy)]
struct Leg {
    timeline: Timeline,
    from: Lsn,
    to: Lsn,
}

struct Covering {
    objects: Vec<WalObject>,
    hole: Option<(Lsn, Lsn)>,
}

impl Leg {
    fn cover(&self, objects: &[WalObject]) -> Result<Covering> {
        let (mut chosen, reached) = cover(objects, self.timeline, self.from);
        chosen.retain(|object| object.start < self.to);
        let next = objects
            .iter()
            .filter(|object| object.timeline == self.timeline && object.start > reached)
            .map(|object| object.start)
            .min();
        let hole = match next {
            Some(next) if reached < self.to.min(next) => Some((reached, next.min(self.to))),
            // The parent's WAL has to reach the branch.
            None if self.to != Lsn(u64::MAX) && reached < self.to => Some((reached, self.to)),
            _ => None,
        };
        Ok(Covering {
            objects: chosen,
            hole,
        })
    }
}

/// The legs from the backup's timeline to the target's.
fn path(search: &Search<'_>) -> Vec<Leg> {
    let mut legs = Vec::new();
    let mut timeline = search.timeline;
    let mut to = Lsn(u64::MAX);
    loop {
        let branch = search
            .lineage
            .iter()
            .find(|start| start.timeline == timeline && timeline != search.backup_timeline);
        let from = branch.map_or(search.backup_stop, |start| {
            start.switch.max(search.backup_stop)
        });
        legs.push(Leg { timeline, from, to });
        let Some((parent, switch)) = branch.and_then(|start| Some((start.parent?, start.switch)))
        else {
            break;
        };
        // A lineage is finite: parents are smaller than their children.
        if parent >= timeline {
            break;
        }
        timeline = parent;
        to = switch;
    }
    legs.reverse();
    legs
}

/// The commit and abort stamps that belong to the object at `index`, in the order of the log.
async fn walk<'f>(
    objects: &[WalObject],
    index: usize,
    fetch: &impl Fn(WalObject) -> BoxFuture<'f, Result<OpenedWal>>,
) -> Result<Vec<Stamp>> {
    let mut opened = vec![fetch(objects[index].clone()).await?];
    // A record that crosses into the object begins in one before it.
    let mut first = index;
    while first > 0 && needs_more(&opened, first == index) {
        first -= 1;
        opened.push(fetch(objects[first].clone()).await?);
    }
    opened.reverse();

    let beginning = &opened[0].header.range;
    let segment_bytes = beginning.wal_segment_bytes;
    let (mut walker, mut at) = match (beginning.first_record, beginning.dialect()) {
        (Some(record), Some(dialect)) => {
            (Walker::at_record(record, segment_bytes, dialect), record)
        }
        // One record fills the whole object and ends after it.
        _ => return Ok(Vec::new()),
    };
    let mut stamps = Vec::new();
    let own_start = objects[index].start;
    for piece in &opened {
        let range = &piece.header.range;
        let skip = usize::try_from(at.bytes_since(range.start))
            .map_err(|_| Error::corrupted(range.key(), "its range is too long"))?;
        let Some(bytes) = piece.bytes.get(skip..) else {
            return Err(Error::corrupted(
                range.key(),
                "its first record lies outside of it",
            ));
        };
        walker
            .feed(bytes, |record| {
                if record.end > own_start
                    && let Some(stamp) = record.stamp()
                {
                    stamps.push(stamp);
                }
            })
            .map_err(|error| Error::corrupted(range.key(), error.to_string()))?;
        at = range.end;
    }
    Ok(stamps)
}

/// Whether what was opened so far does not yet hold a record's beginning to walk from.
fn needs_more(opened: &[OpenedWal], only_own: bool) -> bool {
    opened.last().is_some_and(|last| {
        let range = &last.header.range;
        if only_own {
            range.begins_inside_a_record()
        } else {
            range.first_record.is_none()
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use futures::FutureExt;
    use holdfast_domain::IncarnationId;
    use holdfast_domain::wal::Stamps;

    use super::*;
    use crate::wal::object::{WalHeader, WalRange};
    use crate::wal::synthetic::{SEGMENT, SYSTEM, SyntheticWal};

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_790_000_000_000 + millis).expect("a date of this century")
    }

    /// WAL cut into objects as an agent would, and a way to fetch them.
    struct Shelf {
        opened: Arc<Vec<OpenedWal>>,
        objects: Vec<WalObject>,
    }

    impl Shelf {
        fn cut(wal: &SyntheticWal, timeline: Timeline, ends: &[Lsn]) -> Self {
            let incarnation = IncarnationId::new();
            let mut walker = Walker::at_page(wal.start, SEGMENT);
            let mut opened = Vec::new();
            let mut start = wal.start;
            for &end in ends {
                let bytes = &wal.bytes
                    [start.bytes_since(wal.start) as usize..end.bytes_since(wal.start) as usize];
                let mut stamps: Option<Stamps> = None;
                walker.begin_range();
                walker
                    .feed(bytes, |record| {
                        if let Some(stamp) = record.stamp() {
                            match &mut stamps {
                                Some(stamps) => stamps.push(stamp),
                                None => stamps = Some(Stamps::of(stamp)),
                            }
                        }
                    })
                    .expect("good WAL");
                let header = WalHeader {
                    format: 1,
                    plaintext_hash: String::new(),
                    range: WalRange {
                        incarnation,
                        timeline,
                        start,
                        end,
                        system_identifier: SYSTEM,
                        wal_segment_bytes: SEGMENT,
                        page_magic: walker.dialect().map(|dialect| dialect.magic()),
                        first_record: walker.first_start(),
                        stamps,
                        last_counting: None,
                        clock_anomaly: None,
                    },
                };
                opened.push(OpenedWal {
                    header,
                    bytes: Bytes::copy_from_slice(bytes),
                });
                start = end;
            }
            let objects = opened
                .iter()
                .map(|opened| opened.header.describe(opened.header.range.key(), 1))
                .collect();
            Self {
                opened: Arc::new(opened),
                objects,
            }
        }

        async fn resolve(&self, search: &Search<'_>) -> Result<Target> {
            resolve(search, |object| {
                let opened = Arc::clone(&self.opened);
                async move {
                    let found = opened.iter().find(|o| o.header.range.key() == object.key);
                    found.cloned().ok_or(Error::NotFound { key: object.key })
                }
                .boxed()
            })
            .await
        }

        async fn at(&self, until: Until) -> Result<Target> {
            self.resolve(&Search {
                objects: &self.objects,
                lineage: &[],
                timeline: Timeline(1),
                backup_timeline: Timeline(1),
                backup_stop: self.objects[0].start,
                until,
            })
            .await
        }
    }

    /// Ten commits a second apart, with rows between, cut after each two, once inside a record.
    fn ten_commits() -> (Shelf, Vec<(Lsn, Lsn)>) {
        let mut wal = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
        let mut commits = Vec::new();
        let mut ends = Vec::new();
        for second in 0..10 {
            wal.insert(16384, 5000);
            commits.push(wal.commit(at(second * 1000)));
            if second % 2 == 1 {
                ends.push(wal.end());
            }
        }
        // A tail may end at a page boundary inside a record.
        ends[2] = Lsn(ends[2].0 / 8192 * 8192);
        (Shelf::cut(&wal, Timeline(1), &ends), commits)
    }

    // FLX-055
    #[tokio::test]
    async fn each_instant_finds_the_last_commit_that_is_not_later() {
        let (shelf, commits) = ten_commits();
        for second in 0..10 {
            for offset in [0, 1, 999] {
                let found = shelf
                    .at(Until::At(at(second * 1000 + offset)))
                    .await
                    .expect("resolves");
                let (target, end) = commits[second as usize];
                let stamp = at(second * 1000);
                assert_eq!(
                    found,
                    Target::Lsn {
                        target,
                        end,
                        stamp,
                        timeline: Timeline(1)
                    }
                );
            }
        }
        let latest = shelf.at(Until::Latest).await.expect("resolves");
        assert!(matches!(latest, Target::Lsn { target, .. } if target == commits[9].0));
    }

    #[tokio::test]
    async fn before_the_first_commit_the_backup_alone_is_the_answer() {
        let (shelf, _) = ten_commits();
        let found = shelf.at(Until::At(at(-1))).await.expect("resolves");
        assert_eq!(found, Target::Immediate);
    }

    #[tokio::test]
    async fn a_commit_stamped_out_of_order_ends_the_prefix() {
        let mut wal = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
        let first = wal.commit(at(10));
        wal.commit(at(30));
        wal.commit(at(20));
        let end = wal.end();
        let shelf = Shelf::cut(&wal, Timeline(1), &[end]);
        let found = shelf.at(Until::At(at(25))).await.expect("resolves");
        assert!(matches!(found, Target::Lsn { target, .. } if target == first.0));
    }

    #[tokio::test]
    async fn a_hole_before_the_end_of_the_prefix_is_refused_and_one_behind_it_is_not() {
        let (mut shelf, commits) = ten_commits();
        let removed = shelf.objects.remove(3);
        let error = shelf.at(Until::Latest).await.expect_err("a hole");
        assert!(matches!(error, Error::WalGap { start, .. } if start == removed.start));
        assert!(shelf.at(Until::At(at(9000))).await.is_err());
        let found = shelf.at(Until::At(at(1500))).await.expect("resolves");
        assert!(matches!(found, Target::Lsn { target, .. } if target == commits[1].0));
    }

    #[tokio::test]
    async fn replaced_tails_beside_their_segment_change_nothing() {
        let (mut shelf, commits) = ten_commits();
        let tails = shelf.objects.clone();
        shelf.objects.extend(tails);
        let found = shelf.at(Until::At(at(4000))).await.expect("resolves");
        assert!(matches!(found, Target::Lsn { target, .. } if target == commits[4].0));
    }

    #[tokio::test]
    async fn commits_of_the_parent_behind_the_branch_are_not_on_the_path() {
        let mut parent = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
        let kept = parent.commit(at(1));
        let switch = parent.end();
        parent.commit(at(2));
        let end = parent.end();
        let mut shelf = Shelf::cut(&parent, Timeline(1), &[end]);
        let mut child = SyntheticWal::new(Lsn(SEGMENT), Timeline(2));
        child.commit(at(1));
        let after = child.commit(at(5));
        let end = child.end();
        let other = Shelf::cut(&child, Timeline(2), &[end]);
        shelf.objects.extend(other.objects.clone());
        shelf.opened = Arc::new(
            shelf
                .opened
                .iter()
                .chain(other.opened.iter())
                .cloned()
                .collect(),
        );
        let lineage = [TimelineStart {
            timeline: Timeline(2),
            parent: Some(Timeline(1)),
            switch,
            history_key: None,
        }];
        let search = |until| Search {
            objects: &shelf.objects,
            lineage: &lineage,
            timeline: Timeline(2),
            backup_timeline: Timeline(1),
            backup_stop: Lsn(SEGMENT),
            until,
        };
        let at_three = shelf
            .resolve(&search(Until::At(at(3))))
            .await
            .expect("resolves");
        assert!(
            matches!(at_three, Target::Lsn { target, timeline: Timeline(1), .. } if target == kept.0)
        );
        let latest = shelf
            .resolve(&search(Until::Latest))
            .await
            .expect("resolves");
        assert!(
            matches!(latest, Target::Lsn { target, timeline: Timeline(2), .. } if target == after.0)
        );
    }

    #[tokio::test]
    async fn a_backup_that_is_newer_than_the_instant_is_refused() {
        let (shelf, commits) = ten_commits();
        let search = Search {
            objects: &shelf.objects,
            lineage: &[],
            timeline: Timeline(1),
            backup_timeline: Timeline(1),
            backup_stop: commits[5].1,
            until: Until::At(at(4500)),
        };
        let error = shelf.resolve(&search).await.expect_err("too early");
        assert!(matches!(error, Error::TargetBeforeBackup { .. }), "{error}");
    }
}
