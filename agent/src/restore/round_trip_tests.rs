//! Backup and restore on real PostgreSQL with a real vault: what was promised comes back, and what
//! cannot come back is said so.

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::job::{DropSpec, RestoreSpec};
use holdfast_domain::restore::RestoreTarget;
use holdfast_domain::wal::WalObject;
use holdfast_vault::wal::target::cover;
use tokio_util::sync::CancellationToken;

use super::test_site::{Known, Site};
use crate::postgres::cluster_fixture::{connect_as, majors};
use crate::reserve::Room;
use crate::work::drop;

async fn write(known: &Known, from: i32, to: i32) {
    let session = known.server.connect().await.expect("connected");
    for seq in from..to {
        session
            .execute("INSERT INTO public.ledger VALUES ($1)", &[&seq])
            .await
            .expect("written");
    }
}

async fn rows(known: &Known) -> Vec<i32> {
    let session = known.server.connect().await.expect("connected");
    let rows = session
        .query("SELECT seq FROM public.ledger ORDER BY seq", &[])
        .await
        .expect("read");
    rows.iter().map(|row| row.get(0)).collect()
}

async fn clock(known: &Known) -> DateTime<Utc> {
    let session = known.server.connect().await.expect("connected");
    session
        .query_one("SELECT clock_timestamp()", &[])
        .await
        .expect("a time")
        .get(0)
}

async fn ledger(site: &Site) -> Known {
    let known = site.provision("pg1").await;
    let session = known.server.connect().await.expect("connected");
    session
        .batch_execute("CREATE TABLE public.ledger (seq int PRIMARY KEY)")
        .await
        .expect("made");
    known
}

fn last_stamp(wal: &[WalObject]) -> DateTime<Utc> {
    wal.iter()
        .filter_map(|object| object.stamps)
        .map(|stamps| stamps.last.at)
        .max()
        .expect("a commit")
}

fn count(rows: &[i32]) -> i32 {
    assert_eq!(
        rows,
        (0..rows.len() as i32).collect::<Vec<_>>(),
        "a prefix without holes"
    );
    rows.len() as i32
}

// FLX-057, FLX-058, F41, F42
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_instant_comes_back_exactly() {
    for major in majors().await {
        every_kind_of_instant(major).await;
    }
}

async fn every_kind_of_instant(major: u16) {
    let site = Site::open_major(major).await;
    let source = ledger(&site).await;
    write(&source, 0, 100).await;

    // A writer goes on all through the backup.
    let stop = CancellationToken::new();
    let writing = {
        let (server, stop) = (source.server.clone(), stop.clone());
        tokio::spawn(async move {
            let session = server.connect().await.expect("connected");
            let mut seq = 100;
            while !stop.is_cancelled() {
                session
                    .execute("INSERT INTO public.ledger VALUES ($1)", &[&seq])
                    .await
                    .expect("written");
                seq += 1;
            }
            seq
        })
    };
    let backup = site.snapshot(&source, None).await;
    stop.cancel();
    let written = writing.await.expect("the writer ends");
    assert!(backup.start_lsn < backup.stop_lsn);
    assert!(
        backup.corrupt_pages.is_empty(),
        "{:?}",
        backup.corrupt_pages
    );

    let stamp = last_stamp(&site.wal(&source).await);
    let idle = clock(&source).await;
    write(&source, written, written + 10).await;
    let facts = site.source(&source, &backup).await;

    let (restored, outcome) = site.restore(&facts, RestoreTarget::Latest).await;
    assert_eq!(count(&rows(&restored).await), written + 10, "latest");
    assert_eq!(outcome.timeline.0, 2);
    assert!(outcome.target_lsn.is_some());
    assert!(outcome.bytes_restored > 0 && outcome.wal_bytes_replayed > 0);
    assert!(outcome.post_restore_tasks.len() >= 6);
    assert_eq!(outcome.parameter_differences, Default::default());

    let (restored, outcome) = site.restore(&facts, RestoreTarget::At(idle)).await;
    assert_eq!(
        count(&rows(&restored).await),
        written,
        "an instant at which nothing happened"
    );
    assert_eq!(outcome.restored_to, idle);

    // The same records on every major: once is enough.
    let micro = TimeDelta::microseconds(1);
    let around = [
        (stamp, written),
        (stamp + micro, written),
        (stamp - micro, written - 1),
    ];
    for (instant, expected) in around.into_iter().filter(|_| major == 15) {
        let (restored, _) = site.restore(&facts, RestoreTarget::At(instant)).await;
        assert_eq!(
            count(&rows(&restored).await),
            expected,
            "{instant} around a commit at {stamp}"
        );
    }

    let (restored, outcome) = site
        .restore(&facts, RestoreTarget::Backup(backup.manifest.backup))
        .await;
    let at_stop = count(&rows(&restored).await);
    assert!((100..=written).contains(&at_stop), "{at_stop}");
    assert_eq!(
        (outcome.target_lsn, outcome.switch_lsn),
        (None, backup.stop_lsn)
    );
    assert_eq!(outcome.restored_to, backup.completed_time);
    // The completed time names the same state when it is asked for as an instant.
    let (restored, _) = site
        .restore(&facts, RestoreTarget::At(backup.completed_time))
        .await;
    assert_eq!(count(&rows(&restored).await), at_stop);

    // The source went on all the time, and has what it had.
    assert_eq!(count(&rows(&source).await), written + 10);
    site.close().await;
}

// FLX-094, FLX-097, RELIABILITY §5.4.8, F79
#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_the_source_alone_does_not_live_on_in_the_copy() {
    let site = Site::open().await;
    let source = ledger(&site).await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    let space = elsewhere.path().join("space");
    site.node
        .service_user()
        .create_dir(&space)
        .expect("a directory for a tablespace");
    std::fs::set_permissions(
        elsewhere.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .expect("passable");
    let session = source.server.connect().await.expect("connected");
    let tablespace = format!("CREATE TABLESPACE fast LOCATION '{}'", space.display());
    for statement in [
        "ALTER SYSTEM SET max_connections = 200",
        "CREATE SUBSCRIPTION pulls CONNECTION 'host=/nonexistent' PUBLICATION p WITH (connect = false)",
        "ALTER SUBSCRIPTION pulls ENABLE",
        tablespace.as_str(),
        "CREATE TABLE public.spaced (n int) TABLESPACE fast",
        "INSERT INTO public.spaced SELECT generate_series(1, 5000)",
        "CREATE UNLOGGED TABLE public.unlogged AS SELECT generate_series(1, 1000) n",
        "CREATE ROLE application LOGIN",
        "GRANT SELECT ON public.spaced TO application",
    ] {
        session.batch_execute(statement).await.expect(statement);
    }
    write(&source, 0, 5).await;
    let first = site.snapshot(&source, None).await;
    write(&source, 5, 10).await;
    let backup = site.snapshot(&source, Some(&first)).await;
    assert!(
        backup.stored_bytes < first.stored_bytes / 4,
        "{} of {}",
        backup.stored_bytes,
        first.stored_bytes
    );

    let facts = site.source(&source, &backup).await;
    let spec = RestoreSpec {
        placement: site.placement("copy"),
        administrator_login: "admin1".into(),
        administrator_password: Some("second-Secret-2".into()),
        source: facts,
        target: RestoreTarget::Latest,
    };
    let (copy, outcome) = site.restore_with(spec.clone()).await.expect("restored");
    assert_eq!(count(&rows(&copy).await), 10);
    assert_eq!(
        outcome
            .parameter_differences
            .get("max_connections")
            .map(String::as_str),
        Some("200")
    );
    assert_eq!(
        outcome.parameter_differences.len(),
        1,
        "{:?}",
        outcome.parameter_differences
    );
    assert!(
        outcome
            .post_restore_tasks
            .iter()
            .any(|task| task.contains("postgres.pulls"))
    );

    let session = copy.server.connect().await.expect("connected");
    let one = async |sql: &str| -> String { session.query_one(sql, &[]).await.expect(sql).get(0) };
    assert_eq!(
        one("SELECT subenabled::text FROM pg_subscription").await,
        "false"
    );
    assert_eq!(
        one("SELECT string_agg(slot_name::text, ',') FROM pg_replication_slots").await,
        "holdfast"
    );
    assert_eq!(
        one("SELECT count(*)::text FROM public.spaced").await,
        "5000"
    );
    assert_eq!(one("SELECT count(*)::text FROM public.unlogged").await, "0");
    assert_eq!(
        one("SELECT has_table_privilege('application', 'public.spaced', 'SELECT')::text").await,
        "true"
    );
    let location =
        one("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'").await;
    assert_ne!(
        location,
        space.display().to_string(),
        "the source's tablespace is the source's"
    );
    let socket_dir = copy.server.socket_dir();
    connect_as(
        &socket_dir,
        copy.server.port(),
        "admin1",
        "second-Secret-2",
        "postgres",
    )
    .await
    .expect("the new password counts");

    // The same job again: the finished server is adopted and tells the same.
    let (again, repeated) = site.restore_again(spec).await;
    assert_eq!(
        (repeated.switch_lsn, repeated.system_identifier),
        (outcome.switch_lsn, outcome.system_identifier)
    );
    assert_eq!(count(&rows(&again).await), 10);
    site.close().await;
}

// F39
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_copy_has_its_own_history() {
    let site = Site::open().await;
    let mut server = ledger(&site).await;
    for generation in 0..3 {
        let backup = site.snapshot(&server, None).await;
        write(&server, generation * 10, generation * 10 + 10).await;
        let facts = site.source(&server, &backup).await;
        let (copy, outcome) = site.restore(&facts, RestoreTarget::Latest).await;
        assert_eq!(outcome.timeline.0, 2 + generation as u32);
        assert_eq!(count(&rows(&copy).await), generation * 10 + 10);
        server = copy;
    }
    site.close().await;
}

// F35, F37, FLX-057: never a short success
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_is_gone_or_damaged_fails_the_restore_by_name() {
    let site = Site::open().await;
    let source = ledger(&site).await;
    let backup = site.snapshot(&source, None).await;
    write(&source, 0, 20).await;
    site.wal(&source).await;
    write(&source, 20, 40).await;
    let facts = site.source(&source, &backup).await;
    // One that recovery needs and that finding the target does not read.
    let begin = backup.start_lsn.segment_start(source.wal_segment_bytes);
    let victim = cover(&facts.wal, backup.timeline, begin).0.swap_remove(0);
    let file = site.object_file(&victim.key);
    let whole = std::fs::read(&file).expect("the object");

    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&file, flipped).expect("damaged");
    let (placement, error) = site
        .try_restore(facts.clone(), RestoreTarget::Latest)
        .await
        .err()
        .expect("damaged WAL");
    assert_eq!(
        (error.code.as_str(), error.retryable),
        ("BackupCorrupted", false),
        "{error:?}"
    );
    assert!(
        site.node.server(placement.incarnation).is_none(),
        "never exposed"
    );
    let kept = site.directories(placement.incarnation);
    assert!(
        kept.len() == 1 && kept[0].ends_with(".failed"),
        "kept for diagnosis: {kept:?}"
    );
    // The server that was never made goes at once, its remains only when something needs the room.
    let spec = DropSpec {
        placement: placement.clone(),
        wrapped_key: None,
    };
    drop::run(&site.context(), spec).await.expect("dropped");
    site.node.live_with(Room::Scarce).await;
    assert_eq!(site.directories(placement.incarnation), kept);
    site.node
        .live_with(Room::NearlyNone { used_percent: 95 })
        .await;
    assert_eq!(
        site.directories(placement.incarnation),
        Vec::<String>::new()
    );

    std::fs::remove_file(&file).expect("gone");
    let (_, error) = site
        .try_restore(facts.clone(), RestoreTarget::Latest)
        .await
        .err()
        .expect("missing WAL");
    assert_eq!(
        (error.code.as_str(), error.retryable),
        ("WalGap", false),
        "{error:?}"
    );

    // A catalogue that does not know it either: the plan itself has the hole.
    let mut holed = facts.clone();
    holed.wal.retain(|object| object.key != victim.key);
    let (_, error) = site
        .try_restore(holed, RestoreTarget::Latest)
        .await
        .err()
        .expect("a hole");
    assert_eq!(error.code, "WalGap", "{error:?}");

    std::fs::write(&file, whole).expect("back again");
    let (restored, _) = site.restore(&facts, RestoreTarget::Latest).await;
    assert_eq!(count(&rows(&restored).await), 40);
    site.close().await;
}

// F17
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_there_already_is_never_restored_into() {
    let site = Site::open().await;
    let source = ledger(&site).await;
    write(&source, 0, 3).await;
    let backup = site.snapshot(&source, None).await;
    let facts = site.source(&source, &backup).await;
    let spec = RestoreSpec {
        placement: source.placement.clone(),
        administrator_login: "admin1".into(),
        administrator_password: None,
        source: facts,
        target: RestoreTarget::Latest,
    };
    let error = site.restore_with(spec).await.err().expect("refused");
    assert_eq!(error.code, "RestoreTargetExists");
    assert_eq!(
        count(&rows(&source).await),
        3,
        "the live server is untouched"
    );
    site.close().await;
}

// F14
#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_made_after_the_backup_ends_the_restore_instead_of_touching_the_source() {
    let site = Site::open().await;
    let source = ledger(&site).await;
    write(&source, 0, 5).await;
    let backup = site.snapshot(&source, None).await;
    let before = clock(&source).await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(
        elsewhere.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )
    .expect("passable");
    let space = elsewhere.path().join("space");
    site.node
        .service_user()
        .create_dir(&space)
        .expect("a directory for a tablespace");
    let session = source.server.connect().await.expect("connected");
    session
        .batch_execute(&format!(
            "CREATE TABLESPACE late LOCATION '{}'",
            space.display()
        ))
        .await
        .expect("made");
    write(&source, 5, 10).await;

    let facts = site.source(&source, &backup).await;
    let (_, error) = site
        .try_restore(facts.clone(), RestoreTarget::Latest)
        .await
        .err()
        .expect("refused");
    assert_eq!(
        (error.code.as_str(), error.retryable),
        ("TablespaceCreated", false),
        "{error:?}"
    );
    let (restored, _) = site.restore(&facts, RestoreTarget::At(before)).await;
    assert_eq!(count(&rows(&restored).await), 5, "a time before it works");
    let newer = site.snapshot(&source, Some(&backup)).await;
    let facts = site.source(&source, &newer).await;
    let (restored, _) = site.restore(&facts, RestoreTarget::Latest).await;
    assert_eq!(count(&rows(&restored).await), 10, "a newer backup works");
    site.close().await;
}

// F16
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_cancelled_while_it_recovers_leaves_nothing() {
    let site = Site::open().await;
    let source = ledger(&site).await;
    write(&source, 0, 5).await;
    let backup = site.snapshot(&source, None).await;
    let spec = RestoreSpec {
        placement: site.placement("unwanted"),
        administrator_login: "admin1".into(),
        administrator_password: None,
        source: site.source(&source, &backup).await,
        target: RestoreTarget::Latest,
    };
    let ctx = site.context();
    let mut told = ctx.progress.subscribe();
    let (ended, ()) = tokio::join!(crate::work::restore::run(&ctx, spec.clone()), async {
        let replaying = |progress: &Option<holdfast_domain::job::Progress>| {
            progress
                .as_ref()
                .is_some_and(|progress| progress.phase == "ReplayingWal")
        };
        told.wait_for(replaying).await.expect("it gets there");
        ctx.cancel.cancel();
    });
    assert_eq!(ended.expect_err("cancelled").code, "Canceled");
    assert_eq!(
        site.directories(spec.placement.incarnation),
        Vec::<String>::new()
    );
    assert!(site.node.server(spec.placement.incarnation).is_none());
    // Wanted again, under another lease: it starts anew.
    let (restored, _) = site.restore_with(spec).await.expect("restored");
    assert_eq!(count(&rows(&restored).await), 5);
    site.close().await;
}

// F16: the agent died and left a half-made directory with a postmaster on it
#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_of_a_dead_attempt_is_ended_before_the_next_one() {
    let site = Site::open().await;
    let source = ledger(&site).await;
    write(&source, 0, 5).await;
    let backup = site.snapshot(&source, None).await;
    let placement = site.placement("second");
    let orphan = site
        .node
        .building_dir(placement.incarnation, holdfast_domain::JobId::new(), 1);
    std::fs::create_dir_all(orphan.join("data")).expect("half-made");
    let mut process = tokio::process::Command::new("/bin/sleep")
        .arg("600")
        .current_dir(orphan.join("data"))
        .spawn()
        .expect("a process that has it open");
    let spec = RestoreSpec {
        placement: placement.clone(),
        administrator_login: "admin1".into(),
        administrator_password: None,
        source: site.source(&source, &backup).await,
        target: RestoreTarget::Latest,
    };
    let (restored, status) = tokio::join!(site.restore_with(spec), process.wait());
    assert!(!status.expect("reaped").success(), "it was ended");
    assert_eq!(count(&rows(&restored.expect("restored").0).await), 5);
    assert_eq!(
        site.directories(placement.incarnation),
        [""],
        "one directory, with its final name"
    );
    site.close().await;
}

// RELIABILITY §5.2.5
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_of_the_source_is_named_and_the_backup_still_restores() {
    let site = Site::open().await;
    let source = ledger(&site).await;
    write(&source, 0, 5).await;
    let session = source.server.connect().await.expect("connected");
    session
        .batch_execute("CREATE TABLE public.hurt AS SELECT generate_series(1, 5000) n")
        .await
        .expect("made");
    let path: String = session
        .query_one("SELECT pg_relation_filepath('public.hurt')", &[])
        .await
        .expect("a path")
        .get(0);
    drop(session);
    site.node
        .stop_server(source.placement.incarnation)
        .await
        .expect("stopped");
    let file = source.server.data_dir().join(&path);
    let mut bytes = std::fs::read(&file).expect("the table");
    bytes[2 * 8192 + 4000] ^= 0x40;
    std::fs::write(&file, bytes).expect("damaged");
    site.node
        .start_server(&source.placement, &source.wrapped_key)
        .await
        .expect("started");

    let backup = site.snapshot(&source, None).await;
    assert_eq!(backup.corrupt_pages, [format!("{path}:2")]);
    let facts = site.source(&source, &backup).await;
    let (restored, outcome) = site.restore(&facts, RestoreTarget::Latest).await;
    assert_eq!(count(&rows(&restored).await), 5);
    assert!(
        outcome
            .post_restore_tasks
            .iter()
            .any(|task| task.contains("damaged pages"))
    );
    site.close().await;
}
