//! Stores that do not answer, and WAL that is nowhere any more.

use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_domain::Timeline;

use super::site::{SOON, Site, until};

/// A store whose directory is not there any more. Putting it back is [`bring_back`].
fn take_away(dir: &Path) {
    std::fs::rename(dir, dir.with_extension("away")).expect("renamed");
    std::fs::write(dir, "").expect("a file in its place");
}

fn bring_back(dir: &Path) {
    std::fs::remove_file(dir).expect("removed");
    std::fs::rename(dir.with_extension("away"), dir).expect("renamed");
}

#[tokio::test]
async fn nothing_is_durable_before_every_store_has_it_and_a_shutdown_does_not_wait_for_ever() {
    let site = Site::open(2).await;
    let postmaster = site.start().await;
    let stream = site.stream().await;
    site.sql("CREATE TABLE t (i int)").await;
    let durable = stream.flush().await.expect("durable");
    take_away(&site.vault_dir(1));
    let last = site.commit("INSERT INTO t VALUES (1)").await;
    let held = until(&stream, "trouble", |status| status.problem.is_some()).await;
    assert_eq!(held.durable, durable, "one of two stores is not enough");
    assert!(held.held_bytes > 0);

    let since = Instant::now();
    let deadline = Duration::from_secs(1);
    let (all, ()) = tokio::join!(stream.drain_and_close(deadline), site.stop(&postmaster));
    assert!(!all);
    assert!(since.elapsed() < SOON);
    assert!(site.try_drain().await.is_err(), "the store is still away");
    bring_back(&site.vault_dir(1));
    let report = site.drain().await;
    assert!(report.durable >= last, "the last commit came from pg_wal");
    for store in 0..2 {
        let found = site.objects(store).await;
        assert!(
            found.iter().any(|object| object.end >= last),
            "store {store} has it"
        );
    }
    assert_eq!(site.walk(Timeline(1)).await.reached, report.durable);
}

#[tokio::test]
async fn a_store_that_comes_back_gets_everything_while_the_server_runs() {
    let site = Site::open(1).await;
    let postmaster = site.start().await;
    let stream = site.stream().await;
    site.sql("CREATE TABLE t (i int, t text)").await;
    stream.flush().await.expect("durable");
    take_away(&site.vault_dir(0));
    let last = site
        .commit("INSERT INTO t SELECT i, repeat('x', 900) FROM generate_series(1, 100000) i")
        .await;
    until(&stream, "trouble", |status| status.problem.is_some()).await;
    bring_back(&site.vault_dir(0));
    let healed = until(&stream, "durable", |status| status.durable >= last).await;
    assert_eq!(healed.problem, None);
    assert!(site.walk(Timeline(1)).await.reached >= last);
    stream.close().await;
    site.stop(&postmaster).await;
}

#[tokio::test]
async fn wal_that_is_nowhere_any_more_is_reported_as_a_gap() {
    let site = Site::open(1).await;
    let postmaster = site.start().await;
    let stream = site.stream().await;
    site.sql("CREATE TABLE t (i int)").await;
    let durable = stream.flush().await.expect("durable");
    stream.close().await;
    // Somebody drops the slot, and PostgreSQL recycles what it kept.
    site.sql("SELECT pg_drop_replication_slot('holdfast')")
        .await;
    for i in 0..3 {
        site.sql(&format!("INSERT INTO t VALUES ({i})")).await;
        site.sql("SELECT pg_switch_wal()").await;
    }
    site.sql("CHECKPOINT").await;
    site.sql("INSERT INTO t VALUES (4); SELECT pg_switch_wal()")
        .await;
    site.sql("CHECKPOINT").await;

    let stream = site.stream().await;
    let lsn = site.commit("INSERT INTO t VALUES (9)").await;
    until(&stream, "durable", |status| status.durable >= lsn).await;
    let gap = stream.report().gap.expect("a gap");
    assert_eq!((gap.timeline, gap.start), (Timeline(1), durable));
    assert!(gap.end > durable && gap.end <= lsn);
    let told = stream.report();
    stream.ack_report(&told);
    assert_eq!(stream.report().gap, None, "told once");
    stream.close().await;
    site.stop(&postmaster).await;
}
