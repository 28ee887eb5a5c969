//! A stream's life: tails, restarts, crashes, shutdowns, timelines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::FutureExt as _;
use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::wal::get_wal;
use holdfast_vault::wal::target::{Search, Target, Until, resolve};
use nix::sys::signal::Signal;

use super::site::{SEGMENT, SOON, Site, until};
use crate::postgres::cluster_fixture::PORT;
use crate::postgres::connection;

#[tokio::test]
async fn a_commit_is_in_the_store_within_about_a_second_and_postgres_is_told() {
    let site = Site::open(1).await;
    let postmaster = site.start().await;
    let stream = site.stream().await;
    until(&stream, "connected", |status| status.connected).await;
    site.sql("CREATE TABLE t (i int)").await;
    stream.flush().await.expect("durable");
    let mut slowest = std::time::Duration::ZERO;
    for i in 0..5 {
        let lsn = site.commit(&format!("INSERT INTO t VALUES ({i})")).await;
        let since = Instant::now();
        until(&stream, "durable", |status| status.durable >= lsn).await;
        slowest = slowest.max(since.elapsed());
    }
    println!("slowest tail: {slowest:?}");
    assert!(slowest.as_millis() < 2500, "{slowest:?}");
    let row = site
        .cluster
        .connect()
        .await
        .query_one(
            "SELECT restart_lsn::text, active FROM pg_replication_slots",
            &[],
        )
        .await
        .expect("the slot");
    let told: Lsn = row.get::<_, &str>(0).parse().expect("a position");
    assert!(
        told <= stream.status().borrow().durable,
        "never more than durable"
    );
    assert!(row.get::<_, bool>(1));
    stream.close().await;
    site.stop(&postmaster).await;
}

#[tokio::test]
async fn latest_moves_on_while_nothing_happens() {
    let site = Site::open(1).await;
    let postmaster = site.start().await;
    let stream = site.stream().await;
    site.sql("CREATE TABLE t (i int)").await;
    stream.flush().await.expect("durable");
    let first = until(&stream, "caught up", |status| status.caught_up_at.is_some()).await;
    let objects = site.objects(0).await;
    let later = until(&stream, "caught up later", |status| {
        status.caught_up_at > first.caught_up_at
    })
    .await;
    assert_eq!(later.durable, first.durable);
    assert_eq!(
        site.objects(0).await,
        objects,
        "an idle server costs nothing"
    );
    stream.close().await;
    site.stop(&postmaster).await;
}

// FLX-017
#[tokio::test]
async fn housekeeping_alone_makes_no_object_and_no_modification() {
    let site = Site::open(1).await;
    let postmaster = site.start().await;
    site.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
        .await;
    let stream = site.stream().await;
    let before = stream.flush().await.expect("durable");
    let counted = until(&stream, "seen", |status| status.last_counting.is_some()).await;
    let objects = site.objects(0).await.len();
    // A first walk of the day cannot know the transaction it begins with.
    site.sql("ANALYZE t").await;
    stream.flush().await.expect("durable");
    let objects_after_first = site.objects(0).await.len();
    assert!(objects_after_first <= objects + 1);

    site.sql("VACUUM (FREEZE, ANALYZE) t").await;
    site.sql("ANALYZE").await;
    let lsn = site.commit("CHECKPOINT").await;
    let quiet = until(&stream, "received", |status| status.received >= lsn).await;
    assert_eq!(
        quiet.last_counting, counted.last_counting,
        "statistics are no modification"
    );
    let asleep = site.objects(0).await.len();
    assert_eq!(asleep, objects_after_first, "nobody waits for housekeeping");
    assert!(quiet.held_bytes > 0);

    let lsn = site.commit("INSERT INTO t VALUES (0)").await;
    let woken = until(&stream, "durable", |status| status.durable >= lsn).await;
    assert!(woken.last_counting > counted.last_counting);
    assert!(woken.durable > before);
    assert_eq!(
        site.objects(0).await.len(),
        asleep + 1,
        "one object took all of it"
    );
    stream.close().await;
    site.stop(&postmaster).await;
}

// FLX-017, RELIABILITY §5.5: what autovacuum does by itself, in seconds instead of minutes
#[tokio::test]
async fn autovacuum_at_work_on_an_idle_server_wakes_nobody() {
    let site = Site::open(1).await;
    let postmaster = site.start().await;
    site.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i; UPDATE t SET i = i + 1")
        .await;
    let stream = site.stream().await;
    stream.flush().await.expect("durable");
    let counted = until(&stream, "seen", |status| status.last_counting.is_some()).await;
    let before = site.stores[0].requests();
    site.sql(
        "ALTER SYSTEM SET autovacuum_naptime = 1; \
         ALTER SYSTEM SET autovacuum_vacuum_threshold = 0; \
         ALTER SYSTEM SET autovacuum_vacuum_scale_factor = 0; \
         ALTER SYSTEM SET autovacuum_analyze_threshold = 0; \
         ALTER SYSTEM SET autovacuum_analyze_scale_factor = 0; \
         SELECT pg_reload_conf()",
    )
    .await;
    let session = site.cluster.connect().await;
    let rounds = async || {
        let row = session
            .query_one(
                "SELECT sum(autovacuum_count + autoanalyze_count)::bigint FROM pg_stat_all_tables",
                &[],
            )
            .await
            .expect("counted");
        row.get::<_, i64>(0)
    };
    let patience = Instant::now() + SOON;
    while rounds().await < 6 {
        assert!(Instant::now() < patience, "autovacuum does not come");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let lsn = site.commit("CHECKPOINT").await;
    let quiet = until(&stream, "received", |status| status.received >= lsn).await;
    assert_eq!(
        quiet.last_counting, counted.last_counting,
        "no snapshot is due for that"
    );
    let asked = site.stores[0].requests().total() - before.total();
    assert!(asked <= 3, "{asked} requests");
    stream.close().await;
    site.stop(&postmaster).await;
}

// FLX-055
#[tokio::test]
async fn a_restarted_stream_goes_on_and_the_whole_segment_replaces_its_tails() {
    let site = Site::open(2).await;
    let postmaster = site.start().await;
    let stream = site.stream().await;
    site.sql("CREATE TABLE t (i int)").await;
    stream.flush().await.expect("durable");
    site.sql("INSERT INTO t VALUES (1)").await;
    stream.flush().await.expect("durable");
    let report = stream.report();
    stream.ack_report(&report);
    site.sql("INSERT INTO t VALUES (2)").await;
    let durable = stream.flush().await.expect("durable");
    stream.close().await;
    let between = site.commit("INSERT INTO t VALUES (3)").await;

    let stream = site.stream().await;
    until(&stream, "durable", |status| {
        status.durable >= between && status.connected
    })
    .await;
    let again = stream.report();
    assert!(
        again.objects.iter().any(|object| object.end == durable),
        "told again after a restart"
    );
    let third = commits_of(&site).await;
    site.sql("SELECT pg_switch_wal()").await;
    site.sql("INSERT INTO t VALUES (4)").await;
    stream.flush().await.expect("durable");

    let report = stream.report();
    let whole = report
        .objects
        .iter()
        .find(|object| object.end.0.is_multiple_of(SEGMENT))
        .expect("a whole segment");
    assert_eq!(whole.start + SEGMENT, whole.end);
    assert!(report.superseded.len() >= 3, "{:?}", report.superseded);
    let opened = get_wal(&site.stores, &site.data_key, whole)
        .await
        .expect("opens");
    assert_eq!(opened.bytes.len() as u64, SEGMENT);
    assert_eq!(
        site.objects(0).await,
        site.objects(1).await,
        "every store has the same"
    );

    // Each instant still finds its commit, through the whole segment alone.
    let alone: Vec<_> = site
        .objects(0)
        .await
        .into_iter()
        .filter(|object| !report.superseded.contains(&object.key))
        .collect();
    for stamp in third {
        let search = Search {
            objects: &alone,
            lineage: &[],
            timeline: Timeline(1),
            backup_timeline: Timeline(1),
            backup_stop: alone[0].start,
            until: Until::At(stamp.at),
        };
        let found = resolve(&search, |object| {
            let (stores, key) = (site.stores.clone(), site.data_key.clone());
            async move { get_wal(&stores, &key, &object).await }.boxed()
        })
        .await
        .expect("resolves");
        assert!(
            matches!(found, Target::Lsn { target, .. } if target == stamp.lsn),
            "{found:?}"
        );
    }
    stream.close().await;
    site.stop(&postmaster).await;
}

async fn commits_of(site: &Site) -> Vec<holdfast_domain::wal::Stamp> {
    let walked = site.walk(Timeline(1)).await;
    let mut ordered: Vec<holdfast_domain::wal::Stamp> = Vec::new();
    for stamp in walked.commits {
        // Stamps are not quite in the order of the log; keep those that are.
        if ordered.last().is_none_or(|last| last.at < stamp.at) {
            ordered.push(stamp);
        }
    }
    ordered
}

#[tokio::test]
async fn crashes_of_server_and_receiver_lose_no_acknowledged_row() {
    let site = Arc::new(Site::open(1).await);
    let mut postmaster = site.start().await;
    site.sql("CREATE TABLE ledger (i bigserial, t text)").await;
    let mut newest = Lsn::ZERO;
    let mut acknowledged = 0_u64;
    for round in 0..4 {
        let stream = site.stream().await;
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3)
            .map(|_| tokio::spawn(write(Arc::clone(&site), Arc::clone(&stop))))
            .collect();
        // Something of the round is durable, more is under way.
        for _ in 0..3 {
            let durable = stream.status().borrow().durable;
            until(&stream, "a tail", |status| {
                status.durable > durable && status.connected
            })
            .await;
        }
        if round % 2 == 0 {
            postmaster.signal(Signal::SIGKILL);
            stream.close().await;
        } else {
            stream.close().await;
            postmaster.signal(Signal::SIGKILL);
        }
        stop.store(true, Ordering::SeqCst);
        for writer in writers {
            let (rows, lsn) = writer.await.expect("a writer");
            acknowledged += rows;
            newest = newest.max(lsn);
        }
        postmaster.wait().await;
        if round == 3 {
            break;
        }
        postmaster = site.start().await;
        let stream = site.stream().await;
        let durable = tokio::time::timeout(SOON, stream.flush())
            .await
            .expect("in time")
            .expect("durable");
        assert!(
            durable >= newest,
            "round {round}: acknowledged up to {newest}, durable {durable}"
        );
        stream.close().await;
    }
    // The last crash is not followed by a start: pg_wal has the rest.
    crate::postgres::occupancy::evict(&site.cluster.data_dir())
        .await
        .expect("nobody runs");
    let report = site.drain().await;
    assert!(
        report.durable >= newest,
        "acknowledged up to {newest}, drained to {}",
        report.durable
    );
    let walked = site.walk(Timeline(1)).await;
    assert_eq!(walked.reached, report.durable);
    assert!(walked.commits.len() as u64 >= acknowledged);
    println!(
        "{acknowledged} acknowledged rows, {} stamps in the vault from {}",
        walked.commits.len(),
        walked.first
    );
}

/// Inserts until told to stop or the server goes; says how many rows were acknowledged and how far.
async fn write(site: Arc<Site>, stop: Arc<AtomicBool>) -> (u64, Lsn) {
    let (mut rows, mut newest) = (0, Lsn::ZERO);
    let Ok(client) = connection::connect(&site.cluster.socket_dir(), PORT).await else {
        return (rows, newest);
    };
    while !stop.load(Ordering::SeqCst) {
        if client
            .execute(
                "INSERT INTO public.ledger (t) VALUES (repeat('x', 500))",
                &[],
            )
            .await
            .is_err()
        {
            break;
        }
        rows += 1;
        // Flushed by now, because the insert was acknowledged.
        match client
            .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
            .await
        {
            Ok(row) => newest = row.get::<_, &str>(0).parse().expect("a position"),
            Err(_) => break,
        }
    }
    (rows, newest)
}

#[tokio::test]
async fn a_fast_shutdown_hands_its_last_record_to_the_stream() {
    let site = Site::open(1).await;
    let postmaster = site.start().await;
    let stream = site.stream().await;
    until(&stream, "connected", |status| status.connected).await;
    site.sql("CREATE TABLE t (i int)").await;
    let last = site.commit("INSERT INTO t VALUES (1)").await;
    let since = Instant::now();
    let (all, ()) = tokio::join!(stream.drain_and_close(SOON), site.stop(&postmaster));
    println!("shutdown with a stream: {:?}", since.elapsed());
    assert!(all, "the server ended the stream and everything is durable");
    let durable = stream.status().borrow().durable;
    assert!(durable > last, "the shutdown checkpoint too");
    let objects = site.objects(0).await;
    let report = site.drain().await;
    assert_eq!(report.durable, durable);
    assert_eq!(site.objects(0).await, objects, "nothing was left in pg_wal");
    assert!(
        report.caught_up_at.is_some(),
        "a stopped server is known up to its stop"
    );
}

#[tokio::test]
async fn what_a_server_wrote_without_a_receiver_is_drained_from_its_pg_wal() {
    let site = Site::open(2).await;
    let postmaster = site.start().await;
    let stream = site.stream().await;
    stream.flush().await.expect("durable");
    stream.close().await;
    site.sql("CREATE TABLE t AS SELECT i, repeat('x', 500) FROM generate_series(1, 80000) i")
        .await;
    let last = site.commit("INSERT INTO t VALUES (0)").await;
    site.stop(&postmaster).await;

    let report = site.drain().await;
    assert!(report.durable >= last);
    let stamps = report.objects.iter().filter_map(|object| object.stamps);
    let newest = stamps
        .map(|stamps| stamps.last)
        .max_by_key(|stamp| stamp.lsn)
        .expect("a commit");
    assert_eq!(
        newest.end, last,
        "the last commit is in it, and ends where the log was flushed"
    );
    assert!(
        report
            .objects
            .iter()
            .filter(|o| o.end.0 - o.start.0 == SEGMENT)
            .count()
            >= 2
    );
    assert_eq!(site.walk(Timeline(1)).await.reached, report.durable);

    let puts = site.stores[0].requests().puts;
    let again = site.drain().await;
    assert_eq!(again.durable, report.durable);
    assert_eq!(
        site.stores[0].requests().puts,
        puts,
        "nothing new, nothing written"
    );

    let postmaster = site.start().await;
    let stream = site.stream().await;
    let lsn = site.commit("INSERT INTO t VALUES (-1)").await;
    until(&stream, "durable after a drain", |status| {
        status.durable >= lsn
    })
    .await;
    stream.close().await;
    site.stop(&postmaster).await;
}

#[tokio::test]
async fn a_new_timeline_is_followed_with_its_history_first() {
    let site = Site::open(1).await;
    let postmaster = site.start().await;
    let stream = site.stream().await;
    site.sql("CREATE TABLE t (i int)").await;
    stream.flush().await.expect("durable");
    stream.close().await;
    site.sql("INSERT INTO t VALUES (1)").await;
    site.stop(&postmaster).await;

    // An end of recovery raises the timeline, as a promotion does.
    let signal = site.cluster.data_dir().join("recovery.signal");
    std::fs::write(&signal, "").expect("written");
    site.cluster.user().chown(&signal).expect("given away");
    let mut spec = site.cluster.spec();
    spec.settings
        .push(("restore_command".into(), "/bin/false".into()));
    let postmaster = crate::postgres::Postmaster::spawn(&spec)
        .await
        .expect("started");
    postmaster.wait_ready(SOON).await.expect("ready");
    let stream = site.stream().await;
    // Ready for connections comes a moment before the end of recovery.
    until(&stream, "on the new timeline", |status| {
        status.timeline == Timeline(2)
    })
    .await;
    let lsn = site.commit("INSERT INTO t VALUES (2)").await;
    until(&stream, "durable", |status| status.durable >= lsn).await;
    let report = stream.report();
    let start = report
        .timelines
        .iter()
        .find(|start| start.timeline == Timeline(2))
        .expect("told");
    assert_eq!(start.parent, Some(Timeline(1)));
    let old = site.walk(Timeline(1)).await;
    assert_eq!(
        old.reached, start.switch,
        "the old timeline is durable up to the branch"
    );
    assert!(start.history_key.is_some());
    let history = holdfast_vault::wal::history::get_history(
        &site.stores,
        &site.data_key,
        site.placement.incarnation,
        Timeline(2),
    )
    .await
    .expect("stored");
    assert!(history.starts_with(b"1\t"));
    stream.close().await;
    site.stop(&postmaster).await;
}
