//! When backups are taken by themselves, over virtual days.

use anyhow::Result;
use chrono::TimeDelta;
use holdfast_domain::job::{JobKind, Power};
use holdfast_tests::harness::Harness;
use holdfast_tests::scripted_node::{Deed, failure};

#[tokio::test]
async fn the_first_backup_follows_a_servers_creation_at_once() -> Result<()> {
    // FLX-013
    let mut harness = Harness::new().await?;
    let view = harness.create("pg1").await?;
    let backups = harness.automatic("pg1").await?;
    assert_eq!(backups.len(), 1);
    assert_eq!(backups[0].backup.completed_time, harness.now());
    assert_eq!(view.earliest_restore, Some(harness.now()));
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_written_to_gets_one_backup_a_day() -> Result<()> {
    // FLX-014
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.busy_days(5, "pg1").await?;
    assert_eq!(harness.automatic("pg1").await?.len(), 1 + 5);
    Ok(())
}

#[tokio::test]
async fn backups_of_an_unmodified_server_are_suspended_until_its_first_change() -> Result<()> {
    // FLX-015
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.live(12, TimeDelta::hours(6)).await?;
    assert_eq!(harness.automatic("pg1").await?.len(), 1);

    // FLX-016: at once, not at the next daily slot.
    harness.write("pg1").await?;
    harness.run_until_idle().await?;
    let backups = harness.automatic("pg1").await?;
    assert_eq!(backups.len(), 2);
    assert!(
        backups
            .iter()
            .any(|view| view.backup.completed_time == harness.now())
    );
    Ok(())
}

#[tokio::test]
async fn a_stopped_server_takes_no_backups_and_keeps_what_it_has() -> Result<()> {
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.busy_days(3, "pg1").await?;
    let before = harness.automatic("pg1").await?;
    assert_eq!(before.len(), 4);
    let earliest = harness.server("pg1").await?.earliest_restore;
    harness.power("pg1", Power::Stopped).await?;

    // FLX-145, FLX-038, FLX-146: longer than its window of seven days.
    harness.live(40, TimeDelta::days(1)).await?;
    let stopped = harness.server("pg1").await?;
    assert_eq!(harness.automatic("pg1").await?.len(), before.len());
    assert_eq!(stopped.earliest_restore, earliest);

    // FLX-146: normal retention applies from the start on.
    harness.power("pg1", Power::Running).await?;
    harness.live(3, TimeDelta::days(1)).await?;
    let left = harness.automatic("pg1").await?;
    assert!(
        !left.is_empty() && left.len() < before.len(),
        "{} left",
        left.len()
    );
    let newest = before.iter().map(|view| view.backup.completed_time).max();
    assert!(
        left.iter()
            .any(|view| Some(view.backup.completed_time) == newest)
    );
    Ok(())
}

#[tokio::test]
async fn a_stopped_server_that_is_dropped_keeps_what_it_had() -> Result<()> {
    // FLX-146, DESIGN §3.15: dropping it does not move the window that stood still.
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.busy_days(3, "pg1").await?;
    let before = harness.automatic("pg1").await?.len();
    harness.power("pg1", Power::Stopped).await?;
    harness.live(40, TimeDelta::days(1)).await?;
    harness.delete("pg1").await?;
    harness.live(4, TimeDelta::days(1)).await?;
    let complete = "SELECT count(*) FROM backup WHERE state = 'complete'";
    assert_eq!(harness.count(complete).await?, i64::try_from(before)?);

    // Until its time is over.
    harness.live(2, TimeDelta::days(1)).await?;
    assert_eq!(harness.count(complete).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_failed_backup_is_tried_again_with_patience() -> Result<()> {
    let mut harness = Harness::new().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Snapshot, failure("ObjectStoreUnavailable", false));
    let accepted = harness
        .request_create("pg1", &holdfast_tests::harness::wish())
        .await?;
    harness.run_until_idle().await?;
    harness.succeeded(&accepted.operation).await?;
    let attempts = |harness: &Harness| {
        let leased = harness.nodes[0].leased.iter();
        leased
            .filter(|job| job.spec.kind() == JobKind::Snapshot)
            .count()
    };
    assert_eq!(attempts(&harness), 1);
    // RELIABILITY §0.9: again, but not in a loop.
    harness.live(60, TimeDelta::minutes(1)).await?;
    assert!(
        (3..=8).contains(&attempts(&harness)),
        "{} attempts",
        attempts(&harness)
    );

    harness.nodes[0]
        .script
        .insert(JobKind::Snapshot, Deed::Finish);
    harness.live(2, TimeDelta::hours(1)).await?;
    assert_eq!(harness.automatic("pg1").await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn lost_wal_makes_a_new_backup_due_at_once() -> Result<()> {
    // RELIABILITY F34
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.live(1, TimeDelta::hours(1)).await?;
    let incarnation = harness.incarnation("pg1").await?;
    harness.node_of(incarnation)?.lose_wal(incarnation);
    harness.run_until_idle().await?;
    assert_eq!(harness.automatic("pg1").await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_node_whose_clock_is_behind_gets_one_backup_a_day_as_well() -> Result<()> {
    // FLX-014: slots are told by the scheduler's clock alone.
    let mut harness = Harness::new().await?;
    harness.nodes[0].clock_behind = TimeDelta::hours(2);
    harness.create("pg1").await?;
    harness.write("pg1").await?;
    harness.run_until_idle().await?;
    assert_eq!(harness.automatic("pg1").await?.len(), 1);
    harness.busy_days(3, "pg1").await?;
    assert_eq!(harness.automatic("pg1").await?.len(), 1 + 3);
    Ok(())
}
