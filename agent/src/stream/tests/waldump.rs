//! The walker against PostgreSQL's own reader of WAL.

use std::process::Command;

use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::wal::Walker;
use holdfast_vault::wal::record::Record;

use super::super::pg_wal::PgWal;
use super::site::{SEGMENT, SOON};
use crate::postgres::cluster_fixture::PORT;
use crate::postgres::configuration::{self, ServerConfiguration};
use crate::postgres::{
    Installation, Postmaster, PostmasterSpec, ServiceUser, StopMode, connection, initdb,
    installation,
};

/// Names as `pg_waldump` prints them, by number.
const MANAGERS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// A line of `pg_waldump`, as far as the walker knows the same things.
fn line(record: &Record) -> String {
    let stamp = record
        .stamped_at
        .map(|at| at.format(" %Y-%m-%d %H:%M:%S%.6f UTC").to_string());
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
        && matches!(
            words.next(),
            Some("COMMIT" | "ABORT" | "COMMIT_PREPARED" | "ABORT_PREPARED")
        );
    let stamp = is_stamped.then(|| {
        // Prepared ones name the transaction before the date.
        let zone = description.find(" UTC").expect("a zone");
        description[zone - " 2026-11-20 12:00:00.000000".len()..zone + " UTC".len()].to_owned()
    });
    Some(format!(
        "{manager} {total} {xid} {lsn}{}",
        stamp.unwrap_or_default()
    ))
}

/// Every major of this machine: 15 where only the system's packages are, more with `HOLDFAST_PG_BIN`.
#[tokio::test]
async fn the_walker_reads_what_pg_waldump_reads() {
    let found = installation::discover(&[]).await;
    assert!(found.contains_key(&15), "PostgreSQL 15 is installed");
    for installation in found
        .into_values()
        .filter(|found| found.program("pg_waldump").exists())
    {
        compare(installation).await;
    }
}

async fn compare(installation: Installation) {
    let root = tempfile::Builder::new()
        .prefix("hf")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .tempdir()
        .expect("a temporary directory");
    let user = ServiceUser::resolve("postgres").expect("this machine has the user");
    let (data_dir, socket_dir) = (root.path().join("data"), root.path().join("s"));
    user.create_dir_with(&socket_dir, 0o755).expect("made");
    initdb::run(&installation, &data_dir, &user)
        .await
        .expect("initdb works");
    let server = ServerConfiguration {
        major: installation.major,
        port: PORT,
        socket_dir: socket_dir.clone(),
        cluster_name: "test".into(),
        agent_os_user: user.agent_name().to_owned(),
    };
    configuration::write(&data_dir, &server, &user).expect("written");
    let postmaster = Postmaster::spawn(&PostmasterSpec {
        installation: installation.clone(),
        data_dir: data_dir.clone(),
        log_file: root.path().join("server.log"),
        socket_dir: socket_dir.clone(),
        port: PORT,
        user,
        settings: vec![
            ("listen_addresses".into(), String::new()),
            ("max_prepared_transactions".into(), "5".into()),
            ("wal_compression".into(), "on".into()),
        ],
    })
    .await
    .expect("started");
    postmaster.wait_ready(SOON).await.expect("ready");
    let client = connection::connect(&socket_dir, PORT)
        .await
        .expect("connected");
    let sql = async |text: &str| {
        for statement in text.split(';') {
            client.batch_execute(statement).await.expect("good SQL");
        }
    };
    let flushed = async || -> Lsn {
        let row = client
            .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
            .await;
        row.expect("a row")
            .get::<_, &str>(0)
            .parse()
            .expect("a position")
    };

    // The slot keeps the segments that are compared.
    sql("SET search_path = public; SELECT pg_create_physical_replication_slot('holdfast', true)")
        .await;
    let start = flushed().await.segment_start(SEGMENT);
    sql("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) AS t FROM generate_series(1, 20000) i").await;
    for i in 0..200 {
        sql(&format!(
            "INSERT INTO big VALUES ({i}, 'x'); UPDATE big SET t = 'y' WHERE i = {i}; \
             BEGIN; SAVEPOINT a; DELETE FROM big WHERE i = {i} + 500; ROLLBACK TO a; COMMIT; \
             BEGIN; INSERT INTO big VALUES (-1, 'never'); ROLLBACK; \
             BEGIN; INSERT INTO big VALUES (-2, 'p'); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'; \
             BEGIN; INSERT INTO big VALUES (-3, 'q'); PREPARE TRANSACTION 'q'; ROLLBACK PREPARED 'q'; \
             SELECT pg_logical_emit_message(true, 'holdfast', 'x')"
        ))
        .await;
        if i == 100 {
            sql("SELECT pg_switch_wal(); CHECKPOINT; CREATE INDEX ON big (i); VACUUM big").await;
        }
    }
    let end = flushed().await;
    drop(client);
    postmaster
        .stop(StopMode::Fast, SOON)
        .await
        .expect("stopped");

    let pg_wal = PgWal::new(&data_dir, SEGMENT);
    let mut walker = Walker::at_page(start, SEGMENT);
    let mut ours = Vec::new();
    let mut at = start;
    while at < end {
        let to = (at + 1).segment_end(SEGMENT).min(end);
        let bytes = pg_wal.read(Timeline(1), at, to).expect("a segment");
        // Uneven pieces, as a stream would bring them.
        for piece in bytes.chunks(70_001) {
            walker
                .feed(piece, |record| ours.push(line(&record)))
                .expect("good WAL");
        }
        at = to;
    }
    assert_eq!(
        walker.dialect().map(|dialect| dialect.major()),
        Some(installation.major)
    );
    let dumped = Command::new(installation.program("pg_waldump"))
        .env("TZ", "UTC")
        .env("PGTZ", "UTC")
        .arg("--path")
        .arg(data_dir.join("pg_wal"))
        .args(["--start", &start.to_string(), "--end", &end.to_string()])
        .output()
        .expect("pg_waldump runs");
    let text = String::from_utf8_lossy(&dumped.stdout);
    let theirs: Vec<String> = text.lines().filter_map(line_of_waldump).collect();
    assert!(
        theirs.len() > 20_000,
        "{}",
        String::from_utf8_lossy(&dumped.stderr)
    );
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
    println!(
        "PostgreSQL {}: {} records agree, {} of them stamped",
        installation.minor,
        ours.len(),
        ours.iter().filter(|line| line.ends_with("UTC")).count()
    );
}
