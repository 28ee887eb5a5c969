//! Leases, fencing, rescue and deadlines: what several schedulers and unreliable agents may do to
//! each other, and may not.

use anyhow::Result;
use chrono::TimeDelta;
use holdfast_control_plane::{ControlPlane, Error, Policy};
use holdfast_domain::job::{JobKind, JobResult};
use holdfast_domain::operation::OperationState;
use holdfast_domain::region::Site;
use holdfast_domain::{BootId, Refusal};
use holdfast_scheduler::run_once;
use holdfast_tests::harness::{Harness, at, wish};
use holdfast_tests::scripted_node::{Deed, failure};

#[tokio::test]
async fn two_schedulers_in_one_tick_make_one_backup_per_slot() -> Result<()> {
    // FLX-014; RELIABILITY F06
    let mut harness = Harness::new().await?;
    for n in 0..10 {
        harness.create(&format!("pg{n}x")).await?;
    }
    for n in 0..10 {
        harness.write(&format!("pg{n}x")).await?;
    }
    let other = harness.another_process().await?;
    harness.advance(TimeDelta::hours(25)).await?;
    for node in &harness.nodes {
        node.hello(&harness.control_plane).await?;
    }
    for _ in 0..5 {
        let (one, two) = tokio::join!(run_once(&harness.control_plane), run_once(&other));
        one?;
        two?;
    }
    harness.run_until_idle().await?;
    for n in 0..10 {
        assert_eq!(harness.automatic(&format!("pg{n}x")).await?.len(), 2);
    }
    let doubled = "SELECT count(*) FROM (SELECT FROM backup GROUP BY server_id, slot HAVING count(*) > 1) twice";
    assert_eq!(harness.count(doubled).await?, 0);
    Ok(())
}

#[tokio::test]
async fn after_a_day_without_schedulers_each_server_gets_one_backup_and_not_two() -> Result<()> {
    // RELIABILITY F07
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.write("pg1").await?;
    harness.advance(TimeDelta::hours(52)).await?;
    harness.run_until_idle().await?;
    assert_eq!(harness.automatic("pg1").await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_dead_agents_job_is_done_by_the_next_attempt_and_its_late_report_counts_for_nothing()
-> Result<()> {
    // RELIABILITY F05, F23; §4.9 row 38
    let mut harness = Harness::new().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, Deed::Abandon);
    let accepted = harness.request_create("pg1", &wish()).await?;
    harness.run_until_idle().await?;
    let dead = harness.nodes[0].abandoned.remove(0);
    assert_eq!((dead.epoch, dead.attempt), (1, 1));

    harness.nodes[0].script.clear();
    // The lease is over after a minute, the back-off after ten more at the most.
    harness.live(24, TimeDelta::seconds(30)).await?;
    harness.succeeded(&accepted.operation).await?;
    let again = harness.nodes[0]
        .leased
        .iter()
        .find(|job| job.job == dead.job && job.epoch == 2);
    assert!(again.is_some(), "the same job under a new epoch");

    let control_plane = harness.control_plane.clone();
    let node = &mut harness.nodes[0];
    let late = JobResult::Done(node.outcome(&control_plane, &dead).await?);
    let lease = node.lease_of(&dead);
    let refused = control_plane.report(node.id, lease, &late).await;
    assert!(matches!(refused, Err(Error::Stale)), "{refused:?}");
    let refused = control_plane.progress(node.id, lease, None).await;
    assert!(matches!(refused, Err(Error::Stale)), "{refused:?}");
    let refused = control_plane.validate(node.id, lease, &[]).await;
    assert!(matches!(refused, Err(Error::Stale)), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_lease_is_for_one_node_one_boot_and_one_epoch() -> Result<()> {
    // RELIABILITY §4.9 rows 37, 38; F24, F71
    let mut harness = Harness::new().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, Deed::Abandon);
    harness.request_create("pg1", &wish()).await?;
    harness.run_until_idle().await?;
    let job = harness.nodes[0].abandoned.remove(0);
    let (node, foreign) = (harness.nodes[0].id, harness.nodes[1].id);
    let good = harness.nodes[0].lease_of(&job);
    let mut bad = vec![(foreign, good)];
    for epoch in [job.epoch - 1, job.epoch + 1] {
        bad.push((node, holdfast_domain::job::LeaseRef { epoch, ..good }));
    }
    bad.push((
        node,
        holdfast_domain::job::LeaseRef {
            boot: BootId::new(),
            ..good
        },
    ));
    bad.push((
        node,
        holdfast_domain::job::LeaseRef {
            job: holdfast_domain::JobId::new(),
            ..good
        },
    ));
    for (node, lease) in bad {
        let refused = harness
            .control_plane
            .report(node, lease, &JobResult::Canceled)
            .await;
        assert!(
            matches!(refused, Err(Error::Stale)),
            "{lease:?}: {refused:?}"
        );
    }
    harness.control_plane.progress(node, good, None).await?;
    Ok(())
}

#[tokio::test]
async fn the_same_report_twice_is_one_report_and_another_one_is_refused() -> Result<()> {
    // RELIABILITY F61; §4.9 row 38
    let mut harness = Harness::new().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, Deed::Abandon);
    let accepted = harness.request_create("pg1", &wish()).await?;
    harness.run_until_idle().await?;
    let job = harness.nodes[0].abandoned.remove(0);
    harness.nodes[0].script.clear();
    let control_plane = harness.control_plane.clone();
    let node = &mut harness.nodes[0];
    let done = JobResult::Done(node.outcome(&control_plane, &job).await?);
    let (id, lease) = (node.id, node.lease_of(&job));
    control_plane.report(id, lease, &done).await?;
    control_plane.report(id, lease, &done).await?;
    let other = control_plane.report(id, lease, &JobResult::Canceled).await;
    assert!(matches!(other, Err(Error::Stale)), "{other:?}");
    harness.run_until_idle().await?;
    harness.succeeded(&accepted.operation).await?;
    assert_eq!(harness.automatic("pg1").await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_renewed_lease_outlives_its_minute() -> Result<()> {
    // RELIABILITY F26
    let mut harness = Harness::new().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, Deed::Abandon);
    let accepted = harness.request_create("pg1", &wish()).await?;
    harness.run_until_idle().await?;
    let job = harness.nodes[0].abandoned.remove(0);
    let lease = harness.nodes[0].lease_of(&job);
    for _ in 0..10 {
        harness.live(1, TimeDelta::seconds(40)).await?;
        let answer = harness
            .control_plane
            .progress(harness.nodes[0].id, lease, None)
            .await?;
        assert!(!answer.cancel);
    }
    let control_plane = harness.control_plane.clone();
    harness.nodes[0].finish(&control_plane, &job).await?;
    harness.run_until_idle().await?;
    harness.succeeded(&accepted.operation).await
}

#[tokio::test]
async fn a_create_that_fails_leaves_no_server_and_its_name_free() -> Result<()> {
    let mut harness = Harness::new().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, failure("DiskFull", false));
    let accepted = harness.request_create("pg1", &wish()).await?;
    harness.run_until_idle().await?;
    let ended = harness.operation(&accepted.operation).await?;
    assert_eq!(ended.state, OperationState::Failed);
    assert_eq!(
        ended.failure.map(|failure| failure.code).as_deref(),
        Some("DiskFull")
    );
    let absent = harness.control_plane.get_server(at("pg1")).await;
    assert!(
        matches!(
            absent,
            Err(Error::Refused(Refusal::ResourceNotFound { .. }))
        ),
        "{absent:?}"
    );
    harness.nodes[0].script.clear();
    harness.create("pg1").await?;
    Ok(())
}

#[tokio::test]
async fn a_retryable_failure_is_retried_until_attempts_run_out() -> Result<()> {
    // RELIABILITY §3.3
    let mut harness = Harness::with_policy(Policy {
        max_attempts: 3,
        ..Policy::default()
    })
    .await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, failure("ObjectStoreUnavailable", true));
    let accepted = harness.request_create("pg1", &wish()).await?;
    harness.live(40, TimeDelta::seconds(30)).await?;
    let ended = harness.operation(&accepted.operation).await?;
    assert_eq!(ended.state, OperationState::Failed);
    assert_eq!(
        ended.failure.map(|failure| failure.code).as_deref(),
        Some("ObjectStoreUnavailable")
    );
    let provisions = harness.nodes[0].leased.iter();
    assert_eq!(
        provisions
            .filter(|job| job.spec.kind() == JobKind::Provision)
            .count(),
        3
    );
    Ok(())
}

#[tokio::test]
async fn an_operation_whose_node_is_silent_ends_at_its_deadline() -> Result<()> {
    // RELIABILITY §0.9, invariant T
    let mut harness = Harness::new().await?;
    let accepted = harness.request_create("pg1", &wish()).await?;
    for node in &mut harness.nodes {
        node.silence(true);
    }
    harness.live(4, TimeDelta::minutes(9)).await?;
    let ended = harness.operation(&accepted.operation).await?;
    assert_eq!(ended.state, OperationState::Failed);
    // Whichever of job and operation is looked at first.
    let code = ended
        .failure
        .map(|failure| failure.code)
        .unwrap_or_default();
    assert!(code == "OperationTimedOut", "{code}");
    Ok(())
}

#[tokio::test]
async fn a_job_that_ended_forgets_what_it_was_told() -> Result<()> {
    // RELIABILITY §4.4
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    let kept = "SELECT count(*) FROM job WHERE spec::text LIKE '%correct horse%'";
    assert_eq!(harness.count(kept).await?, 0);
    let kept = "SELECT count(*) FROM operation WHERE input::text LIKE '%correct horse%'";
    assert_eq!(harness.count(kept).await?, 0);
    Ok(())
}

#[tokio::test]
async fn an_operation_is_readable_for_thirty_days_and_then_forgotten() -> Result<()> {
    // RELIABILITY F80
    let mut harness = Harness::new().await?;
    let accepted = harness.request_create("pg1", &wish()).await?;
    harness.run_until_idle().await?;
    harness.live(29, TimeDelta::days(1)).await?;
    harness.succeeded(&accepted.operation).await?;
    harness.live(2, TimeDelta::days(1)).await?;
    let forgotten = harness.operation(&accepted.operation).await;
    assert!(forgotten.is_err_and(|error| matches!(
        error.downcast_ref::<Error>(),
        Some(Error::Refused(Refusal::OperationNotFound(_)))
    )));
    Ok(())
}

#[tokio::test]
async fn claiming_reads_no_table_from_end_to_end() -> Result<()> {
    // RELIABILITY §3.4: partial indexes, whatever else waits in the queue.
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    sqlx::query(
        "INSERT INTO job (subscription_id, id, server_id, node_id, kind, state, priority, run_at, spec,
                          max_attempts, deadline, caller, created_at)
         SELECT s.subscription_id, gen_random_uuid(), s.id, $1, 'power', 'queued', 1,
                lease_now() + CASE WHEN n % 2 = 0 THEN interval '1 day' ELSE interval '0' END,
                '{}', 3, $2, '{}', $2
         FROM server s, generate_series(1, 20000) n",
    )
    .bind(harness.nodes[1].id.0)
    .bind(harness.now())
    .execute(harness.database.pool())
    .await?;
    sqlx::query("ANALYZE job")
        .execute(harness.database.pool())
        .await?;

    // One session, so that its own statistics can be asked to be written down.
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .connect_with((*harness.database.pool().connect_options()).clone())
        .await?;
    let alone = ControlPlane::connect(
        pool.clone(),
        harness.clock.clone(),
        Site::built_in(),
        Policy::default(),
    )
    .await?;
    let scans = async || -> Result<i64> {
        sqlx::query("SELECT pg_stat_force_next_flush()")
            .execute(&pool)
            .await?;
        sqlx::query("SELECT pg_stat_clear_snapshot()")
            .execute(&pool)
            .await?;
        let sql = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'job'";
        Ok(sqlx::query_scalar(sql).fetch_one(&pool).await?)
    };
    let before = scans().await?;
    let node = &harness.nodes[0];
    assert_eq!(alone.lease(node.id, node.boot, 4).await?.len(), 0);
    assert_eq!(scans().await?, before);
    Ok(())
}

#[tokio::test]
async fn a_replaced_process_does_not_take_its_node_back_with_a_hello() -> Result<()> {
    // RELIABILITY F24, §4.3
    let mut harness = Harness::new().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, Deed::Abandon);
    harness.request_create("pg1", &wish()).await?;
    harness.run_until_idle().await?;
    harness.nodes[0].abandoned.clear();
    let hung = std::mem::replace(&mut harness.nodes[0].boot, BootId::new());
    harness.run_until_idle().await?;
    let taken = harness.nodes[0].abandoned.remove(0);
    assert_eq!(taken.epoch, 2, "the newer process has the job");

    let newest = std::mem::replace(&mut harness.nodes[0].boot, hung);
    let refused = harness.nodes[0].hello(&harness.control_plane).await;
    assert!(
        refused.is_err_and(|error| matches!(error.downcast_ref::<Error>(), Some(Error::Stale)))
    );
    harness.nodes[0].boot = newest;
    let lease = harness.nodes[0].lease_of(&taken);
    harness
        .control_plane
        .progress(harness.nodes[0].id, lease, None)
        .await?;
    harness.nodes[0].hello(&harness.control_plane).await?;

    // Nor does the first of many.
    for _ in 0..5 {
        harness.nodes[0].boot = BootId::new();
        harness.nodes[0].hello(&harness.control_plane).await?;
    }
    harness.nodes[0].boot = hung;
    assert!(
        harness.nodes[0]
            .hello(&harness.control_plane)
            .await
            .is_err()
    );
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_does_not_keep_the_others_from_what_is_due() -> Result<()> {
    // RELIABILITY §0.9: every operation ends, whatever became of another one's row.
    let mut harness = Harness::new().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, Deed::Abandon);
    harness.request_create("pg1", &wish()).await?;
    harness.run_until_idle().await?;
    sqlx::query("UPDATE job SET caller = '{}'")
        .execute(harness.database.pool())
        .await?;
    harness.advance(TimeDelta::seconds(1)).await?;
    let accepted = harness.request_create("pg2", &wish()).await?;
    harness.run_until_idle().await?;
    harness.nodes[0].script.clear();
    // Both leases are lost; one of them can be given out again.
    harness.live(24, TimeDelta::seconds(30)).await?;
    harness.succeeded(&accepted.operation).await?;
    let unread = "SELECT count(*) FROM job WHERE caller = '{}' AND state = 'leased'";
    assert_eq!(harness.count(unread).await?, 1);

    // Nor does a catalogue that cannot be read.
    harness.create("pg3").await?;
    harness.write("pg2").await?;
    harness.write("pg3").await?;
    sqlx::query(
        "UPDATE backup SET manifest = '{}' WHERE server_id = (SELECT id FROM server WHERE name = 'pg3')",
    )
    .execute(harness.database.pool())
    .await?;
    harness.live(25, TimeDelta::hours(1)).await?;
    assert_eq!(harness.automatic("pg2").await?.len(), 2);
    Ok(())
}
