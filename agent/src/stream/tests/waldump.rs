//! The walker against PostgreSQL's own reader of WAL.

use std::process::Command;

use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::wal::Walker;
use holdfast_vault::wal::record::Record;

use super::super::pg_wal::PgWal;
use super::site::{SEGMENT, Site};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Names as `pg_waldump` prints them, by number.
const MANAGERS: [&str; 22] = [
    "XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap",
    "Standby", "Heap2", "Heap", "Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN",
    "CommitTs", "ReplicationOrigin", "Generic", "LogicalMessage",
];

/// A line of `pg_waldump`, as far as the walker knows the same things.
fn line(record: &Record) -> String {
    let stamp = record.stamped_at.map(|at| at.format(" %Y-%m-%d %H:%M:%S%.6f UTC").to_string());
    format!(
        "{} {} {} {}{}",
        MANAGERS[usize::from(record.rmgr)],
        record.bytes,
        record.xid,
        record.start,
        stamp.unwrap_or_default()
    )
}

fn line_of_waldump(text: &str) -> Option<String> {
    let after = |text: &str, mark: &str| Some(text.split_once(mark)?.1.trim_start().to_owned());
    let word = |text: String| text.split([',', ' ']).next().map(str::to_owned);
    let manager = word(after(text, "rmgr: ")?)?;
    let total = word(after(&after(text, "len (rec/tot): ")?, "/")?)?;
    let xid = word(after(text, "tx: ")?)?;
    let lsn: Lsn = word(after(text, "lsn: ")?)?.parse().ok()?;
    let description = after(text, "desc: ")?;
    let mut words = description.split(' ');
    let is_stamped = manager == "Transaction"
        && matches!(words.next(), Some("COMMIT" | "ABORT" | "COMMIT_PREPARED" | "ABORT_PREPARED"));
    let stamp = is_stamped.then(|| {
        let at = description.find(" 20").expect("a date");
        let end = description.find(" UTC").expect("a zone");
        description[at..end + 4].trim_end_matches(';').to_owned()
    });
    Some(format!("{manager} {total} {xid} {lsn}{}", stamp.unwrap_or_default()))
}

#[tokio::test]
async fn the_walker_reads_what_pg_waldump_reads() {
    let site = Site::open(1).await;
    let postmaster = site.start().await;
    // Keeps the segments that are compared.
    site.sql("SELECT pg_create_physical_replication_slot('holdfast', true)").await;
    let start = site.flushed().await.segment_start(SEGMENT);
    site.sql("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) AS t FROM generate_series(1, 20000) i").await;
    for i in 0..200 {
        site.sql(&format!(
            "INSERT INTO big VALUES ({i}, 'x'); UPDATE big SET t = 'y' WHERE i = {i}; \
             BEGIN; SAVEPOINT a; DELETE FROM big WHERE i = {i} + 500; ROLLBACK TO a; COMMIT; \
             BEGIN; INSERT INTO big VALUES (-1, 'never'); ROLLBACK"
        ))
        .await;
        if i == 100 {
            site.sql("SELECT pg_switch_wal(); CHECKPOINT; CREATE INDEX ON big (i); VACUUM big").await;
        }
    }
    let end = site.flushed().await;
    site.stop(&postmaster).await;

    let pg_wal = PgWal::new(&site.cluster.data_dir(), SEGMENT);
    let mut walker = Walker::at_page(start, SEGMENT);
    let mut ours = Vec::new();
    let mut at = start;
    while at < end {
        let to = (at + 1).segment_end(SEGMENT).min(end);
        let bytes = pg_wal.read(Timeline(1), at, to).expect("a segment");
        // Uneven pieces, as a stream would bring them.
        for piece in bytes.chunks(70_001) {
            walker.feed(piece, |record| ours.push(line(&record))).expect("good WAL");
        }
        at = to;
    }
    let dumped = Command::new(format!("{BIN}/pg_waldump"))
        .env("TZ", "UTC")
        .env("PGTZ", "UTC")
        .arg("--path")
        .arg(site.cluster.data_dir().join("pg_wal"))
        .args(["--start", &start.to_string(), "--end", &end.to_string()])
        .output()
        .expect("pg_waldump runs");
    let text = String::from_utf8_lossy(&dumped.stdout);
    let theirs: Vec<String> = text.lines().filter_map(line_of_waldump).collect();
    assert!(theirs.len() > 20_000, "{}", String::from_utf8_lossy(&dumped.stderr));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
    println!("{} records agree, {} of them stamped", ours.len(), ours.iter().filter(|l| l.ends_with("UTC")).count());
}
