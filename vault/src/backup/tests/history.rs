//! A restore from a long history is one pass: every object that the backup needs, each byte of it at most once.

use std::collections::BTreeSet;
use std::ops::Range;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const DIFFERENTIALS: usize = 100;
/// A database's worth, and more than a restore has open.
const RELATIONS: u64 = 300;
/// Of each differential.
const CHANGED_PAGES: usize = 12;
/// A pack of one differential; it comes in one request.
const SMALL: u64 = 128 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn from_a_history_of_a_hundred_differentials_each_needed_object_is_read_once() {
    let site = Site::new(1);
    let mut random = StdRng::seed_from_u64(100);
    let mut files = Files::from([
        (PG_CONTROL.to_owned(), page(1)),
        ("base/5/1259".to_owned(), relation(1_000_000, 200)),
    ]);
    for number in 0..RELATIONS {
        let pages = relation(1000 * (number + 1), 1 + number % 2);
        files.insert(format!("base/5/{}", 16_384 + number), pages);
    }
    let full = site.back_up(&files, None).await.unwrap();
    let mut history = vec![full];
    let looked_at = [0, DIFFERENTIALS / 2, DIFFERENTIALS];
    let mut contents = vec![files.clone()];
    for day in 1..=DIFFERENTIALS {
        for change in 0..CHANGED_PAGES {
            let path = match change % 2 {
                0 => "base/5/1259".to_owned(),
                _ => format!("base/5/{}", random.random_range(16_384..16_384 + RELATIONS)),
            };
            let content = files.get_mut(&path).unwrap();
            let at = random.random_range(0..content.len() / PAGE_BYTES) * PAGE_BYTES;
            let new = page((2_000_000 + day * CHANGED_PAGES + change) as u64);
            content[at..at + PAGE_BYTES].copy_from_slice(&new);
        }
        let base = &history[day - 1].manifest;
        history.push(site.back_up(&files, Some(base)).await.unwrap());
        if looked_at.contains(&day) {
            contents.push(files.clone());
        }
    }
    for (at, files) in looked_at.into_iter().zip(contents) {
        let backup = &history[at];
        site.faulty[0].reads.lock().unwrap().clear();
        assert!(site.restore(&backup.manifest).await.unwrap() == files);
        let reads = std::mem::take(&mut *site.faulty[0].reads.lock().unwrap());
        assert_one_pass(backup, reads);
    }
    let needed = history[DIFFERENTIALS].objects.len();
    assert!(needed > DIFFERENTIALS, "only {needed} objects are needed");
}

fn assert_one_pass(backup: &FinishedBackup, reads: Vec<(String, Range<u64>)>) {
    let mut by_key = BTreeMap::<String, Vec<Range<u64>>>::new();
    for (key, range) in reads {
        by_key.entry(key).or_default().push(range);
    }
    let read: BTreeSet<&str> = by_key.keys().map(|key| &**key).collect();
    let objects = backup.objects.iter().map(|object| &*object.key);
    let needed: BTreeSet<&str> = objects.chain([&*backup.manifest.key]).collect();
    assert_eq!(read, needed);
    for (key, ranges) in &mut by_key {
        ranges.sort_unstable_by_key(|range| range.start);
        let disjoint = |pair: &[Range<u64>]| pair[0].end <= pair[1].start;
        assert!(ranges.windows(2).all(disjoint), "{key}: {ranges:?}");
    }
    for object in backup.objects.iter().filter(|object| object.bytes < SMALL) {
        let requests = by_key[&object.key].len();
        assert_eq!(requests, 1, "{}, {} bytes", object.key, object.bytes);
    }
}
