//! A server's life on its node, through the jobs that make it: real PostgreSQL, a real vault.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use holdfast_domain::job::{
    ArchiveWalMode, ArchiveWalSpec, Assignment, DropSpec, Placement, Power, PowerSpec,
    ProvisionOutcome, PruneSpec,
};
use holdfast_domain::leavings::Leavings;
use holdfast_domain::{IncarnationId, Lsn};

use super::{archive_wal, drop, power, prune};
use crate::node_fixture::TestNode;
use crate::postgres::{Postmaster, StopMode};
use crate::reserve::Room;

fn power_spec(placement: &Placement, made: &ProvisionOutcome, to: Power) -> PowerSpec {
    PowerSpec {
        placement: placement.clone(),
        wrapped_key: made.wrapped_key.clone(),
        to,
    }
}

async fn insert(client: &tokio_postgres::Client, value: i32) -> Lsn {
    client
        .execute("INSERT INTO t VALUES ($1)", &[&value])
        .await
        .expect("written");
    let row = client
        .query_one("SELECT pg_current_wal_lsn()::text", &[])
        .await
        .expect("read");
    row.get::<_, String>(0).parse().expect("an LSN")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_made_stopped_started_and_dropped() {
    let test = TestNode::open().await;
    let placement = test.placement();
    let made = test.provision(&placement).await;
    assert!(made.minor_version.starts_with("15."));
    let again = test.provision(&placement).await;
    assert_eq!(
        made, again,
        "a second attempt adopts what the first one made"
    );

    let tenant = test.tenant(&placement).await;
    tenant
        .batch_execute("CREATE TABLE t (x int)")
        .await
        .expect("made");
    let last_commit = insert(&tenant, 1).await;
    let stopped = power::run(
        &test.context(),
        power_spec(&placement, &made, Power::Stopped),
    )
    .await
    .expect("stopped");
    assert!(
        stopped.drained,
        "the last commit of a stopped server is in the store"
    );
    assert!(stopped.report.expect("a report").durable >= last_commit);
    assert!(
        !test
            .node
            .server(placement.incarnation)
            .expect("known")
            .is_running()
    );
    let twice = power::run(
        &test.context(),
        power_spec(&placement, &made, Power::Stopped),
    )
    .await
    .expect("nothing to do");
    assert!(twice.drained);

    power::run(
        &test.context(),
        power_spec(&placement, &made, Power::Running),
    )
    .await
    .expect("started");
    power::run(
        &test.context(),
        power_spec(&placement, &made, Power::Restarted),
    )
    .await
    .expect("restarted");
    let tenant = test.tenant(&placement).await;
    let row = tenant
        .query_one("SELECT x FROM t", &[])
        .await
        .expect("read");
    assert_eq!(row.get::<_, i32>(0), 1);

    let last_commit = insert(&tenant, 2).await;
    let spec = DropSpec {
        placement: placement.clone(),
        wrapped_key: Some(made.wrapped_key.clone()),
    };
    let dropped = drop::run(&test.context(), spec.clone())
        .await
        .expect("dropped");
    assert!(dropped.drained && dropped.report.expect("a report").durable >= last_commit);
    assert!(!test.node.server_dir(placement.incarnation).exists());
    assert!(
        test.node
            .unfinished(placement.incarnation)
            .expect("listed")
            .is_empty()
    );
    drop::run(&test.context(), spec)
        .await
        .expect("gone is done");
    test.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_come_back_without_the_control_plane() {
    let mut test = TestNode::open().await;
    let (running, stopped) = (test.placement(), test.placement());
    let made = test.provision(&running).await;
    test.provision(&stopped).await;
    test.node
        .stop_server(stopped.incarnation)
        .await
        .expect("stopped");
    test.tenant(&running)
        .await
        .batch_execute("CREATE TABLE t (x int)")
        .await
        .expect("made");
    // The machine goes down without a word; the next life finds the postmaster still running.
    test.open_again().await;
    test.node.restore_from_cache().await;
    let server = test
        .node
        .server(running.incarnation)
        .expect("known from the cache");
    server.start().await.expect("it takes connections");
    test.tenant(&running)
        .await
        .query("SELECT FROM t", &[])
        .await
        .expect("its data is there");
    assert!(
        !test
            .node
            .server(stopped.incarnation)
            .expect("known")
            .is_wanted()
    );

    // What the control plane said before a job's end does not undo the job.
    let earlier = test.node.moment();
    {
        let _busy = test.node.busy(running.incarnation);
        test.node
            .stop_server(running.incarnation)
            .await
            .expect("stopped");
    }
    let assignment = Assignment {
        placement: running.clone(),
        wrapped_key: made.wrapped_key,
        power: Power::Running,
    };
    test.node.reconcile(vec![assignment.clone()], earlier).await;
    assert!(
        !test
            .node
            .server(running.incarnation)
            .expect("known")
            .is_wanted()
    );
    let later = test.node.moment();
    test.node.reconcile(vec![assignment], later).await;
    assert!(
        test.node
            .server(running.incarnation)
            .expect("known")
            .is_wanted()
    );
    test.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_makes_durable_what_was_committed_and_a_survey_finds_it() {
    let test = TestNode::open().await;
    let placement = test.placement();
    let made = test.provision(&placement).await;
    let tenant = test.tenant(&placement).await;
    tenant
        .batch_execute("CREATE TABLE t (x int)")
        .await
        .expect("made");
    let committed = insert(&tenant, 1).await;
    let spec = |mode| ArchiveWalSpec {
        placement: placement.clone(),
        wrapped_key: made.wrapped_key.clone(),
        mode,
    };
    let flushed = archive_wal::run(&test.context(), spec(ArchiveWalMode::Flush))
        .await
        .expect("flushed");
    assert_eq!(flushed.unavailable, None);
    assert!(flushed.report.expect("a report").durable >= committed);
    let found = archive_wal::run(&test.context(), spec(ArchiveWalMode::Survey))
        .await
        .expect("surveyed");
    let found = found.report.expect("there is WAL");
    assert!(found.durable >= committed);

    // The directory is lost: an answer with a reason, not a failure.
    test.node
        .server(placement.incarnation)
        .expect("known")
        .kill()
        .await
        .expect("ended");
    std::fs::remove_dir_all(test.node.server_dir(placement.incarnation)).expect("lost");
    let lost = archive_wal::run(&test.context(), spec(ArchiveWalMode::Flush))
        .await
        .expect("answered");
    assert!(lost.unavailable.is_some());

    // Without a scheduler nobody can say what is pinned: nothing is deleted.
    let prune_spec = |incarnation: IncarnationId| PruneSpec {
        incarnation,
        vault: placement.vaults[0].clone(),
        keys: found
            .objects
            .iter()
            .map(|object| object.key.clone())
            .collect(),
        leavings: Leavings::Everywhere,
    };
    let pruned = prune::run(&test.context(), prune_spec(placement.incarnation))
        .await
        .expect("asked");
    assert_eq!(pruned.deleted, Vec::<String>::new());
    assert!(pruned.left > 0, "its key at least was found and stays");
    let foreign = prune::run(&test.context(), prune_spec(IncarnationId::new())).await;
    assert_eq!(foreign.expect_err("refused").code, "ForeignObject");
    test.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_data_is_damaged_or_gone_can_be_dropped() {
    let test = TestNode::open().await;
    for damage in ["everything is gone", "the control file is torn"] {
        let placement = test.placement();
        let made = test.provision(&placement).await;
        let server = test.node.server(placement.incarnation).expect("known");
        server.kill().await.expect("ended");
        let removed = match damage {
            "everything is gone" => std::fs::remove_dir_all(server.data_dir()),
            _ => std::fs::write(server.data_dir().join("global/pg_control"), "torn"),
        };
        removed.expect("damaged");
        let spec = DropSpec {
            placement: placement.clone(),
            wrapped_key: Some(made.wrapped_key),
        };
        let dropped = drop::run(&test.context(), spec).await.expect(damage);
        assert!(!dropped.drained, "{damage}");
        assert!(
            !test.node.server_dir(placement.incarnation).exists(),
            "{damage}"
        );
    }
    test.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_last_wal_no_store_takes_waits_to_be_dropped() {
    let test = TestNode::open().await;
    let placement = test.placement();
    let made = test.provision(&placement).await;
    let server = test.node.server(placement.incarnation).expect("known");
    server.kill().await.expect("ended");
    let (vault, away) = (
        test.root.path().join("vault"),
        test.root.path().join("away"),
    );
    std::fs::rename(&vault, &away).expect("renamed");
    std::fs::write(&vault, "").expect("a file in its place");
    let spec = DropSpec {
        placement: placement.clone(),
        wrapped_key: Some(made.wrapped_key),
    };
    let error = drop::run(&test.context(), spec.clone())
        .await
        .expect_err("the store is away");
    assert!(
        error.retryable && error.code == "ObjectStoreUnavailable",
        "{error:?}"
    );
    assert!(server.data_dir().exists());
    std::fs::remove_file(&vault).expect("removed");
    std::fs::rename(&away, &vault).expect("renamed");
    let dropped = drop::run(&test.context(), spec).await.expect("dropped");
    assert!(dropped.drained);
    test.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fills_the_disk_with_wal_stops_until_there_is_room() {
    let test = TestNode::open().await;
    let placement = test.placement();
    let made = test.provision(&placement).await;
    let server = test.node.server(placement.incarnation).expect("known");
    let full = Room::None { used_percent: 98 };
    test.node.live_with(full).await;
    assert!(server.is_running(), "its WAL is in the store");

    let tenant = test.tenant(&placement).await;
    tenant
        .batch_execute("CREATE TABLE t (x int)")
        .await
        .expect("made");
    let committed = insert(&tenant, 1).await;
    server.make_room().await.expect("stopped");
    assert!(!server.is_wanted());
    let problem = server.observe().problem.expect("somebody has to know");
    assert!(problem.contains("disk is full"), "{problem}");
    // What the control plane wants does not start it into a full disk.
    let wanted = Assignment {
        placement: placement.clone(),
        wrapped_key: made.wrapped_key,
        power: Power::Running,
    };
    test.node.reconcile(vec![wanted], test.node.moment()).await;
    test.node.live_with(Room::Scarce).await;
    assert!(!server.is_wanted());
    let told = test.node.wal_news();
    assert!(told.iter().any(|report| report.durable >= committed));

    test.node.live_with(Room::Enough).await;
    server.start().await.expect("it runs again");
    test.tenant(&placement)
        .await
        .query_one("SELECT x FROM t", &[])
        .await
        .expect("nothing is lost");
    test.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_wal_of_a_server_that_does_not_start_is_brought_to_the_store() {
    let test = TestNode::open().await;
    let placement = test.placement();
    let made = test.provision(&placement).await;
    let server = test.node.server(placement.incarnation).expect("known");
    server.kill().await.expect("ended");
    // A stretch of its life that nobody streamed.
    let postmaster = Postmaster::spawn(&server.postmaster_spec().expect("installed"))
        .await
        .expect("spawned");
    postmaster
        .wait_ready(Duration::from_secs(60))
        .await
        .expect("ready");
    let tenant = test.tenant(&placement).await;
    tenant
        .batch_execute("CREATE TABLE t (x int)")
        .await
        .expect("made");
    let committed = insert(&tenant, 1).await;
    postmaster
        .stop(StopMode::Immediate, Duration::from_secs(60))
        .await
        .expect("stopped");

    // PostgreSQL refuses a directory that others may read.
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(server.data_dir(), mode(0o755)).expect("set");
    test.node
        .start_server(&placement, &made.wrapped_key)
        .await
        .expect_err("it does not start");
    let spec = |mode| ArchiveWalSpec {
        placement: placement.clone(),
        wrapped_key: made.wrapped_key.clone(),
        mode,
    };
    let found = archive_wal::run(&test.context(), spec(ArchiveWalMode::Survey))
        .await
        .expect("surveyed");
    assert!(found.report.is_none_or(|report| report.durable < committed));
    let flushed = archive_wal::run(&test.context(), spec(ArchiveWalMode::Flush))
        .await
        .expect("flushed");
    assert_eq!(flushed.unavailable, None);
    assert!(flushed.report.expect("a report").durable >= committed);
    assert!(server.is_wanted(), "it is tried again");
    let told = test.node.wal_news();
    assert!(told.iter().any(|report| report.durable >= committed));
    test.node.wal_kept(&told);

    std::fs::set_permissions(server.data_dir(), mode(0o700)).expect("set");
    // The order to stop cuts the pause before the next attempt short.
    server.stop().await.expect("stopped");
    server.start().await.expect("it comes up");
    let later = insert(&test.tenant(&placement).await, 2).await;
    let flushed = archive_wal::run(&test.context(), spec(ArchiveWalMode::Flush))
        .await
        .expect("flushed");
    assert_eq!(flushed.unavailable, None);
    assert!(flushed.report.expect("a report").durable >= later);
    test.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_was_cut_off_does_not_keep_a_server_from_starting() {
    let test = TestNode::open().await;
    let placement = test.placement();
    test.provision(&placement).await;
    let server = test.node.server(placement.incarnation).expect("known");
    tokio::select! {
        biased;
        _ = server.stop() => panic!("a shutdown takes longer than one poll"),
        () = std::future::ready(()) => {}
    }
    server.start().await.expect("it runs again");
    test.tenant(&placement).await;
    test.end().await;
}
