//! The map against what PostgreSQL really did to its files: every page that differs between two checkpoints
//! must be in it, whatever happened in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use holdfast_domain::{BackupId, Lsn, Timeline};
use holdfast_vault::wal::Walker;
use holdfast_vault::wal::record::RelFileLocator;

use super::super::pg_wal::PgWal;
use super::*;
use crate::postgres::cluster_fixture::{Cluster, majors};
use crate::postgres::{Connection, Postmaster, StopMode};
use crate::snapshot::control_file::{CONTROL_FILE, ControlFile};
use crate::snapshot::session::BackupSession;
use crate::snapshot::walk::{Entry, FileKind, Walk};

const PAGE_BYTES: usize = 8192;
const SEGMENT: u64 = 16 << 20;
const SOON: Duration = Duration::from_secs(60);

/// What happens between two checkpoints.
const WORKLOADS: [&str; 9] = [
    "UPDATE t SET v = v || 'x' WHERE i % 97 = 0; DELETE FROM t WHERE i % 101 = 0;\
     INSERT INTO t SELECT i, 'new' FROM generate_series(1, 500) i",
    // Hint bits: nothing is changed, only looked at.
    "SELECT count(*) FROM t; SELECT count(*) FROM u",
    "CREATE TABLE made AS SELECT i, md5(i::text) AS m FROM generate_series(1, 5000) i; CREATE INDEX ON made (m);\
     TRUNCATE u; INSERT INTO u SELECT i, 'again' FROM generate_series(1, 3000) i",
    "VACUUM FULL t; DELETE FROM made WHERE i > 2000; VACUUM made; ALTER TABLE made ADD COLUMN n int DEFAULT 7",
    "CREATE INDEX ON t USING gin (to_tsvector('simple', v)); CREATE INDEX ON t USING hash (i); CREATE INDEX ON t USING brin (i);\
     CREATE INDEX ON t USING spgist (v); UPDATE t SET i = i + 1 WHERE i % 50 = 0",
    "CREATE DATABASE copied TEMPLATE template0; CREATE SEQUENCE s; SELECT nextval('s') FROM generate_series(1, 100)",
    "CREATE UNLOGGED TABLE light AS SELECT i FROM generate_series(1, 2000) i; ALTER TABLE light SET LOGGED;\
     CREATE TABLE partial AS SELECT * FROM t WHERE false; DROP TABLE made",
    "BEGIN; UPDATE t SET v = 'rolled back' WHERE i % 3 = 0; ROLLBACK; VACUUM (FREEZE) t",
    "CLUSTER t USING t_i_idx; REINDEX TABLE u; ANALYZE",
];

type Pages = BTreeMap<(RelFileLocator, u32), Vec<blake3::Hash>>;

fn main_forks(data_dir: &Path, major: u16) -> Pages {
    let control = ControlFile::read(&data_dir.join(CONTROL_FILE)).expect("a control file");
    let mut pages = Pages::new();
    for entry in Walk::new(data_dir, major, control.catalog_version()) {
        if let Entry::File {
            source,
            kind:
                FileKind::Relation {
                    first_block,
                    main_fork_of: Some(relation),
                },
            ..
        } = entry.expect("walks")
        {
            let bytes = std::fs::read(&source).expect("a relation");
            let hashes = bytes.chunks(PAGE_BYTES).map(blake3::hash).collect();
            pages.insert((relation, first_block), hashes);
        }
    }
    pages
}

async fn run(client: &Connection, sql: &str) {
    for statement in sql.split(';') {
        client.batch_execute(statement).await.expect("good SQL");
    }
}

async fn redo(client: &Connection) -> Lsn {
    let sql = "SELECT redo_lsn::text FROM pg_control_checkpoint()";
    let row = client.query_one(sql, &[]).await.expect("a row");
    row.get::<_, &str>(0).parse().expect("a position")
}

fn map_of(data_dir: &Path, from: Lsn, end: Lsn) -> ChangeMap {
    let pg_wal = PgWal::new(data_dir, SEGMENT);
    let mut map = ChangeMap::new(Timeline(1), from);
    let mut at = from.segment_start(SEGMENT);
    let mut walker = Walker::at_page(at, SEGMENT);
    while at < end {
        let to = (at + 1).segment_end(SEGMENT).min(end);
        let bytes = pg_wal.read(Timeline(1), at, to).expect("a segment");
        walker
            .feed_with_heads(&bytes, |record, head| map.take(&record, head))
            .expect("good WAL");
        at = to;
    }
    map
}

/// What PostgreSQL remembers, once it does: after a checkpoint it takes its time.
async fn summaries(cluster: &Cluster, from: Lsn, end: Lsn) -> Changes {
    let session = BackupSession::start(cluster.connect().await, BackupId::new())
        .await
        .expect("begun");
    let known = async {
        loop {
            if let Some(changes) = session.summarized(from, end).await.expect("readable") {
                return changes;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let changes = tokio::time::timeout(SOON, known).await.expect("summarized");
    session.stop().await.expect("ended");
    assert!(from < end, "something happened");
    changes
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_that_differs_between_two_checkpoints_is_in_the_map() {
    compare(15).await;
}

/// And in PostgreSQL's own summaries, where it makes them.
#[tokio::test(flavor = "multi_thread")]
async fn every_page_that_differs_is_in_the_summaries_of_newer_majors_too() {
    for major in majors().await {
        if major >= 17 {
            compare(major).await;
        }
    }
}

async fn compare(major: u16) {
    let cluster = Cluster::create_major(major).await;
    let data_dir = cluster.data_dir();
    let mut postmaster = Postmaster::spawn(&cluster.spec()).await.expect("started");
    postmaster.wait_ready(SOON).await.expect("ready");
    let mut client = cluster.connect().await;
    run(
        &client,
        "SET search_path = public; SELECT pg_create_physical_replication_slot('holdfast', true); \
         CREATE TABLE t AS SELECT i, md5(i::text) AS v FROM generate_series(1, 60000) i; CREATE INDEX t_i_idx ON t (i); \
         CREATE TABLE u AS SELECT i, md5(i::text) AS v FROM generate_series(1, 20000) i",
    )
    .await;
    for (round, workload) in WORKLOADS
        .iter()
        .cycle()
        .take(WORKLOADS.len() + 3)
        .enumerate()
    {
        run(&client, "SET search_path = public; CHECKPOINT").await;
        let (from, before) = (redo(&client).await, main_forks(&data_dir, major));
        // What the workloads make is there from the second time on.
        for statement in workload.split(';') {
            let _exists_already = client.batch_execute(statement).await;
        }
        if round % 4 == 3 {
            // Recovery writes pages too.
            drop(client);
            postmaster
                .stop(StopMode::Immediate, SOON)
                .await
                .expect("stopped");
            postmaster = Postmaster::spawn(&cluster.spec()).await.expect("started");
            postmaster.wait_ready(SOON).await.expect("ready");
            client = cluster.connect().await;
        }
        run(&client, "CHECKPOINT").await;
        let (end, after) = (redo(&client).await, main_forks(&data_dir, major));

        let map = map_of(&data_dir, from, end);
        let changes = map.since(from).expect("all of it was seen");
        let summaries = match major {
            17.. => Some(summaries(&cluster, from, end).await),
            _ => None,
        };
        let (mut differing, mut total) = (0, 0);
        for (file, pages) in &after {
            let Some(old) = before.get(file) else {
                continue;
            };
            let (relation, first_block) = *file;
            for (block, (old, new)) in (first_block..).zip(old.iter().zip(pages)) {
                total += 1;
                // The first block is read always (`snapshot/reading.rs`).
                if old == new || block == 0 {
                    continue;
                }
                differing += 1;
                for source in [Some(&*changes), summaries.as_ref()].into_iter().flatten() {
                    let known = match source.of(relation) {
                        Known::Nothing => false,
                        Known::Blocks(blocks) => blocks.contains(block),
                        Known::Whole => true,
                    };
                    assert!(
                        known,
                        "round {round}: block {block} of {relation:?} changed unseen"
                    );
                }
            }
        }
        println!("round {round}: {differing} of {total} pages differ");
        if round == 0 {
            for source in [Some(&*changes), summaries.as_ref()].into_iter().flatten() {
                let t = source.blocks.values().map(RoaringBitmap::len).sum::<u64>();
                assert!(
                    differing > 100 && (t as usize) < total,
                    "{differing} {t} {total}"
                );
            }
        }
    }
    postmaster
        .stop(StopMode::Fast, SOON)
        .await
        .expect("stopped");
}

#[test]
fn what_is_older_than_the_map_is_not_known() {
    let mut map = ChangeMap::new(Timeline(1), Lsn(5000));
    assert!(map.since(Lsn(4999)).is_none());
    assert!(map.since(Lsn(5000)).is_some());
    map.begin_anew(Lsn(9000));
    assert!(map.since(Lsn(8999)).is_none());
    assert!(ChangeMap::default().since(Lsn(u64::MAX - 1)).is_none());
}

#[test]
fn a_stream_that_comes_back_goes_on_and_one_that_skips_begins_anew() {
    let mut map = ChangeMap::default();
    map.resume(Timeline(1), Lsn(1000));
    map.seen_to = Lsn(3000);
    map.resume(Timeline(1), Lsn(2000));
    assert!(map.since(Lsn(1000)).is_some(), "some of it comes again");
    map.resume(Timeline(1), Lsn(3001));
    assert!(map.since(Lsn(3000)).is_none(), "a record may be missing");
    assert!(map.since(Lsn(3001)).is_some());
    map.seen_to = Lsn(9000);
    map.resume(Timeline(2), Lsn(8000));
    assert!(map.since(Lsn(7999)).is_none(), "another timeline");
    map.distrust();
    map.resume(Timeline(3), Lsn(9000));
    assert!(map.since(Lsn(9000)).is_none());
}

#[test]
fn epochs_become_coarser_and_the_oldest_goes_when_memory_is_short() {
    let mut map = ChangeMap::new(Timeline(1), Lsn(0));
    let relation = RelFileLocator {
        tablespace: 1663,
        database: 5,
        relation: 16384,
    };
    for number in 0..100u64 {
        map.epochs.push(Epoch {
            from: Lsn(number * EPOCH_BYTES),
            end: Lsn((number + 1) * EPOCH_BYTES),
            changes: Changes {
                // Scattered blocks take the most memory.
                blocks: HashMap::from_iter([(
                    relation,
                    (0..200_000)
                        .map(|block| block * 331 + number as u32)
                        .collect(),
                )]),
                ..Changes::default()
            },
        });
        map.keep_small();
        assert!(map.epochs.len() <= MOST_EPOCHS);
        let bytes: usize = map.epochs.iter().map(|epoch| epoch.changes.bytes()).sum();
        assert!(bytes <= MOST_BYTES + (8 << 20), "{bytes} bytes");
        assert!(
            map.epochs
                .windows(2)
                .all(|pair| pair[0].end == pair[1].from)
        );
    }
    assert!(map.since(Lsn(99 * EPOCH_BYTES)).is_some());
    let from = map.from;
    assert!(from > Lsn(0));
    assert!(map.since(Lsn(from.0 - 1)).is_none());
    map.forget_before(Lsn(99 * EPOCH_BYTES));
    assert!(map.since(Lsn(98 * EPOCH_BYTES)).is_none());
}
