//! What an instant must become in good, cut, branched and damaged logs.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::FutureExt;
use holdfast_domain::wal::{Stamps, TimelineStart, WalObject};
use holdfast_domain::{IncarnationId, Lsn, Timeline};

use super::object::{OpenedWal, WalHeader, WalRange};
use super::synthetic::{SEGMENT, SYSTEM, SyntheticWal};
use super::target::{Search, Target, Until, resolve};
use super::walker::Walker;
use crate::{Error, Result};

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
                    unreadable_from: None,
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

    /// What an agent notes that could not read the object at `index` any more from `lsn` on.
    fn lose_sight(&mut self, index: usize, lsn: Lsn) {
        let opened = &mut Arc::make_mut(&mut self.opened)[index];
        let range = &mut opened.header.range;
        range.unreadable_from = Some(lsn);
        range.last_counting = Some(range.start);
        range.stamps = None;
        if lsn <= range.start {
            range.first_record = None;
        }
        let key = range.key();
        self.objects[index] = opened.header.describe(key, 1);
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

#[tokio::test]
async fn what_lies_behind_wal_that_could_not_be_read_is_refused_and_not_passed_over() {
    // Nothing is stamped in the third object before commit 4.
    for lost_all in [true, false] {
        let (mut shelf, commits) = ten_commits();
        let start = shelf.objects[2].start;
        let lsn = if lost_all { start } else { commits[4].0 };
        shelf.lose_sight(2, lsn);
        let found = shelf.at(Until::At(at(2500))).await.expect("resolves");
        assert!(matches!(found, Target::Lsn { target, .. } if target == commits[2].0));
        // At 3.5 s a commit may lie in what was not read, later ones come after it.
        for until in [
            Until::At(at(3500)),
            Until::At(at(5500)),
            Until::At(at(7000)),
            Until::Latest,
        ] {
            let error = shelf.at(until).await.expect_err("it is not known");
            assert!(matches!(&error, Error::Corrupted { key, .. } if *key == shelf.objects[2].key));
        }
    }
}

#[tokio::test]
async fn an_object_that_does_not_say_how_to_read_it_is_damage_and_not_empty() {
    let (mut shelf, _) = ten_commits();
    for opened in Arc::make_mut(&mut shelf.opened) {
        opened.header.range.page_magic = None;
    }
    let error = shelf.at(Until::At(at(500))).await.expect_err("unreadable");
    assert!(matches!(error, Error::Corrupted { .. }), "{error}");
}

#[tokio::test]
async fn a_header_that_knows_more_than_its_bytes_is_damage() {
    let (mut shelf, commits) = ten_commits();
    let header = &mut Arc::make_mut(&mut shelf.opened)[1].header;
    let stamps = header.range.stamps.as_mut().expect("two commits");
    stamps.last.end = stamps.last.end + 8;
    shelf.objects[1] = header.describe(header.range.key(), 1);
    let error = shelf
        .at(Until::At(at(2500)))
        .await
        .expect_err("not the same");
    assert!(matches!(error, Error::Corrupted { .. }), "{error}");
    let before = shelf.at(Until::At(at(900))).await.expect("resolves");
    assert!(matches!(before, Target::Lsn { target, .. } if target == commits[0].0));
}
