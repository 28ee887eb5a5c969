//! Our reading of PostgreSQL's files, checked against files that PostgreSQL wrote.

use std::time::Duration;

use super::control_file::{CONTROL_FILE, ControlFile};
use super::page::{self, PAGE_BYTES, Verdict};
use super::session::BackupSession;
use super::walk::{Entry, FileKind, Walk};
use crate::postgres::cluster_fixture::{Cluster, majors};
use crate::postgres::{Postmaster, StopMode, control_file};

const WITHIN: Duration = Duration::from_secs(60);

async fn running(cluster: &Cluster) -> Postmaster {
    let postmaster = Postmaster::spawn(&cluster.spec()).await.expect("started");
    postmaster.wait_ready(WITHIN).await.expect("ready");
    postmaster
}

#[tokio::test]
async fn every_page_that_postgres_wrote_has_the_checksum_we_expect() {
    let cluster = Cluster::create().await;
    let postmaster = running(&cluster).await;
    let session = cluster.connect().await;
    for statement in [
        "CREATE TABLE public.t AS SELECT n, repeat(md5(n::text), 8) AS filler FROM generate_series(1, 20000) n",
        "CREATE INDEX ON public.t (filler)",
        "CREATE INDEX ON public.t USING hash (n)",
        "VACUUM public.t",
    ] {
        session.batch_execute(statement).await.expect(statement);
    }
    postmaster
        .stop(StopMode::Fast, WITHIN)
        .await
        .expect("stopped");

    let control =
        ControlFile::read(&cluster.data_dir().join(CONTROL_FILE)).expect("a good control file");
    let (mut pages, mut new) = (0, 0);
    for entry in Walk::new(&cluster.data_dir(), 15, control.catalog_version()) {
        let Entry::File {
            path,
            source,
            kind: FileKind::Relation { first_block, .. },
            ..
        } = entry.expect("readable")
        else {
            continue;
        };
        let bytes = std::fs::read(source).expect("a relation");
        assert_eq!(bytes.len() % PAGE_BYTES, 0, "{path}");
        for (number, page) in bytes.chunks(PAGE_BYTES).enumerate() {
            match page::check(page, first_block + number as u32) {
                Verdict::Good => pages += 1,
                Verdict::New => new += 1,
                Verdict::Bad { .. } => panic!("{path}, page {number}"),
            }
        }
    }
    assert!(pages > 3000, "{pages} pages, {new} new");
}

#[tokio::test]
async fn our_reading_of_the_control_file_is_postgres_own() {
    for major in majors().await {
        let cluster = Cluster::create_major(major).await;
        let ours =
            ControlFile::read(&cluster.data_dir().join(CONTROL_FILE)).expect("a good control file");
        let theirs =
            control_file::ControlFile::read(&cluster.spec().installation, &cluster.data_dir())
                .await
                .expect("pg_controldata reads it");
        let version = match major {
            13..=16 => 1300,
            17 => 1700,
            _ => 1800,
        };
        assert_eq!(ours.version(), version, "{major}");
        assert_eq!(ours.system_identifier(), theirs.system_identifier);
        assert_eq!(ours.checkpoint(), theirs.checkpoint);
    }
}

// F15
#[tokio::test]
async fn a_restored_cluster_without_its_label_does_not_start() {
    let cluster = Cluster::create().await;
    let path = cluster.data_dir().join(CONTROL_FILE);
    let patched = ControlFile::read(&path)
        .expect("a good control file")
        .with_impossible_checkpoint();
    std::fs::write(&path, patched.bytes()).expect("written");
    let postmaster = Postmaster::spawn(&cluster.spec()).await.expect("spawned");
    postmaster
        .wait_ready(WITHIN)
        .await
        .expect_err("no valid checkpoint");
}

#[tokio::test]
async fn a_backup_ends_with_its_session() {
    let cluster = Cluster::create().await;
    let postmaster = running(&cluster).await;
    let backup = holdfast_domain::BackupId::new();
    let session = BackupSession::start(cluster.connect().await, backup)
        .await
        .expect("started");
    assert!(session.facts.data_checksums);
    assert_eq!((session.facts.major, session.timeline.0), (15, 1));
    let start = session.start;
    let stopped = session.stop().await.expect("stopped");
    assert!(stopped.stop > start);
    let label = String::from_utf8(stopped.label).expect("text");
    assert!(
        label.contains(&backup.to_string()) && label.starts_with("START WAL LOCATION:"),
        "{label}"
    );
    assert_eq!(stopped.tablespace_map, None);

    drop(
        BackupSession::start(cluster.connect().await, backup)
            .await
            .expect("started"),
    );
    // Nothing is left of it: the next one starts, and nobody else can stop it.
    let other = cluster.connect().await;
    other
        .batch_execute("SELECT pg_backup_stop()")
        .await
        .expect_err("not this session's");
    BackupSession::start(cluster.connect().await, backup)
        .await
        .expect("started again");
    postmaster
        .stop(StopMode::Fast, WITHIN)
        .await
        .expect("stopped");
}
