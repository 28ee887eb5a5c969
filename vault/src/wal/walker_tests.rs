//! What the walker must do with good, cut, foreign and hostile bytes.

use chrono::{DateTime, Utc};
use holdfast_domain::{Lsn, Timeline};
use proptest::prelude::*;

use super::page::PAGE_BYTES;
use super::record::{Record, rmgr};
use super::synthetic::{SEGMENT, SYSTEM, SyntheticWal};
use super::walker::{Fault, InvalidWal, Walker};

fn at(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_790_000_000_000_000 + micros).expect("a date of this century")
}

fn walk(start: Lsn, pieces: &[&[u8]]) -> (Vec<Record>, Result<(), InvalidWal>, Walker) {
    let mut walker = Walker::at_page(start, SEGMENT);
    let mut records = Vec::new();
    let mut outcome = Ok(());
    for piece in pieces {
        outcome = walker.feed(piece, |record| records.push(record));
        if outcome.is_err() {
            break;
        }
    }
    (records, outcome, walker)
}

/// Records of all sizes over three segments, a switch among them.
fn varied(lengths: &[usize]) -> (SyntheticWal, Vec<(Lsn, Lsn)>) {
    let mut wal = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
    let mut places = Vec::new();
    for (i, length) in lengths.iter().enumerate() {
        places.push(match i % 7 {
            3 => wal.commit(at(i as i64)),
            _ => wal.insert(16384, *length),
        });
    }
    wal.end();
    (wal, places)
}

#[test]
fn every_record_is_found_with_its_start_end_relation_and_stamp() {
    let (wal, places) = varied(&[0, 100, 9000, 8, 40_000, 1_500_000, 3, 7, 8100]);
    let (records, outcome, walker) = walk(wal.start, &[&wal.bytes]);
    assert_eq!(outcome, Ok(()));
    assert_eq!(
        records.iter().map(|r| (r.start, r.end)).collect::<Vec<_>>(),
        places
    );
    assert_eq!(records[3].stamped_at, Some(at(3)));
    assert_eq!(
        records[4].relation.map(|r| (r.database, r.relation)),
        Some((5, 16384))
    );
    assert_eq!(walker.valid_end(), wal.position());
    assert_eq!(walker.first_start(), Some(places[0].0));
    assert_eq!(walker.dialect().map(|d| d.major()), Some(15));
}

#[test]
fn what_follows_a_segment_switch_is_skipped_to_the_next_segment() {
    let mut wal = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
    wal.insert(1, 10);
    wal.switch();
    assert_eq!(wal.position(), Lsn(2 * SEGMENT));
    let after = wal.insert(2, 10);
    wal.end();
    let (records, outcome, walker) = walk(wal.start, &[&wal.bytes]);
    assert_eq!(outcome, Ok(()));
    assert_eq!((records.len(), records[2].start), (3, after.0));
    assert_eq!(walker.valid_end(), wal.position());
}

#[test]
fn a_zero_length_ends_the_log_where_the_last_record_ended() {
    let mut wal = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
    let last = wal.commit(at(1));
    wal.fill_to(Lsn(2 * SEGMENT));
    let (records, outcome, walker) = walk(wal.start, &[&wal.bytes]);
    assert_eq!((outcome, records.len()), (Ok(()), 1));
    assert!(walker.has_ended());
    assert_eq!(walker.valid_end(), last.1);
}

#[test]
fn a_walk_that_begins_inside_a_record_skips_the_rest_of_it() {
    let mut wal = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
    wal.insert(1, 20_000);
    let second = wal.commit(at(2));
    wal.end();
    let page = PAGE_BYTES as usize;
    let (records, outcome, walker) = walk(wal.start + PAGE_BYTES, &[&wal.bytes[page..]]);
    assert_eq!(outcome, Ok(()));
    assert_eq!(
        records.iter().map(|r| r.start).collect::<Vec<_>>(),
        [second.0]
    );
    assert_eq!(walker.first_start(), Some(second.0));
}

#[test]
fn a_walk_may_begin_at_any_record() {
    let (wal, places) = varied(&[10, 9000, 300, 8, 5]);
    let (all, _, walker) = walk(wal.start, &[&wal.bytes]);
    let dialect = walker.dialect().expect("a page was read");
    for (i, place) in places.iter().enumerate() {
        let mut walker = Walker::at_record(place.0, SEGMENT, dialect);
        let mut records = Vec::new();
        let from = place.0.bytes_since(wal.start) as usize;
        walker
            .feed(&wal.bytes[from..], |record| records.push(record))
            .expect("good WAL");
        assert_eq!(records, all[i..]);
    }
}

#[test]
fn a_record_that_a_crash_cut_off_is_dropped_and_the_walk_goes_on() {
    let mut wal = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
    let whole = wal.commit(at(1));
    wal.insert(1, 30_000);
    wal.crash_at(Lsn(SEGMENT + 2 * PAGE_BYTES), whole.0);
    let after = wal.push(rmgr::XLOG, 0xD0, 0, &[255, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    wal.end();
    let (records, outcome, _) = walk(wal.start, &[&wal.bytes]);
    assert_eq!(outcome, Ok(()));
    assert_eq!(
        records.iter().map(|r| r.start).collect::<Vec<_>>(),
        [whole.0, after.0]
    );
}

#[test]
fn a_flipped_bit_is_named_with_the_lsn_of_its_record() {
    let (mut wal, places) = varied(&[10, 500, 500]);
    let inside = places[1].0.bytes_since(wal.start) as usize + 300;
    wal.bytes[inside] ^= 4;
    let (records, outcome, walker) = walk(wal.start, &[&wal.bytes]);
    assert_eq!(records.len(), 1);
    let error = outcome.expect_err("a bit is wrong");
    assert_eq!(error.at, places[1].0);
    assert!(matches!(error.fault, Fault::Crc { .. }));
    assert!(error.to_string().contains(&places[1].0.to_string()));
    assert_eq!(walker.valid_end(), places[0].1);
}

#[test]
fn a_recycled_segment_is_known_by_its_page_address() {
    let mut wal = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
    let last = wal.insert(1, (SEGMENT - PAGE_BYTES) as usize);
    wal.end();
    let old = wal.bytes.clone();
    let (records, outcome, walker) = walk(wal.start, &[&wal.bytes, &vec![0; 8192], &old]);
    assert_eq!((records.len(), outcome), (1, Ok(())));
    assert_eq!(
        walker.valid_end(),
        last.1,
        "zeros end the log before the old page is met"
    );

    let (_, outcome, _) = walk(Lsn(2 * SEGMENT), &[&old]);
    assert!(matches!(
        outcome,
        Err(InvalidWal {
            fault: Fault::PageAddress(Lsn(SEGMENT)),
            ..
        })
    ));
}

#[test]
fn wal_of_another_cluster_is_refused() {
    let (wal, _) = varied(&[10]);
    let mut walker = Walker::at_page(wal.start, SEGMENT).of_cluster(SYSTEM + 1);
    let error = walker
        .feed(&wal.bytes, |_| {})
        .expect_err("another cluster");
    assert_eq!(error.fault, Fault::SystemIdentifier(SYSTEM));
    assert_eq!(
        walker.feed(&[0], |_| {}),
        Err(error),
        "it stays where the error is"
    );
}

#[test]
fn a_version_nobody_taught_the_walker_is_refused() {
    let mut wal = SyntheticWal::new(Lsn(SEGMENT), Timeline(1));
    wal.magic = 0xD0FF;
    wal.insert(1, 10);
    let (_, outcome, _) = walk(wal.start, &[&wal.bytes]);
    assert!(matches!(
        outcome,
        Err(InvalidWal {
            fault: Fault::PageMagic(0xD0FF),
            ..
        })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_chunking_gives_the_same_records(
        lengths in prop::collection::vec(0_usize..30_000, 1..30),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let (wal, places) = varied(&lengths);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wal.bytes.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&wal.bytes[from..cut]);
            from = cut;
        }
        pieces.push(&wal.bytes[from..]);
        let (records, outcome, _) = walk(wal.start, &pieces);
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(records.iter().map(|r| (r.start, r.end)).collect::<Vec<_>>(), places);
    }

    #[test]
    fn byte_by_byte_gives_the_same_records(lengths in prop::collection::vec(0_usize..9_000, 1..6)) {
        let (wal, _) = varied(&lengths);
        let whole = walk(wal.start, &[&wal.bytes]).0;
        let bytes: Vec<&[u8]> = wal.bytes.chunks(1).collect();
        prop_assert_eq!(walk(wal.start, &bytes).0, whole);
    }

    #[test]
    fn damaged_bytes_never_panic_and_never_invent_a_record(
        lengths in prop::collection::vec(0_usize..20_000, 1..8),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut wal, places) = varied(&lengths);
        for (place, byte) in damage {
            let place = place.index(wal.bytes.len());
            wal.bytes[place] = byte;
        }
        let (records, _, walker) = walk(wal.start, &[&wal.bytes]);
        for record in &records {
            prop_assert!(places.contains(&(record.start, record.end)));
        }
        prop_assert!(walker.valid_end() <= wal.position());
    }

    #[test]
    fn hostile_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..20_000),
        dialect in prop::sample::select(vec![0xD106_u16, 0xD110, 0xD118]),
    ) {
        let dialect = super::page::Dialect::from_magic(dialect).expect("a known magic");
        let mut walker = Walker::at_record(Lsn(SEGMENT + 40), SEGMENT, dialect);
        let _ = walker.feed(&bytes, |_| {});
        let mut walker = Walker::at_page(Lsn(SEGMENT), SEGMENT);
        let _ = walker.feed(&bytes, |_| {});
    }
}
