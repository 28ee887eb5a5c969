//! What goes, what stays and when, over virtual weeks.

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::TimeDelta;
use holdfast_control_plane::Error;
use holdfast_domain::Refusal;
use holdfast_domain::job::{JobKind, JobSpec, PruneSpec};
use holdfast_domain::leavings::Leavings;
use holdfast_tests::harness::{Harness, at, caller, request};
use holdfast_tests::scripted_node::{Deed, failure};
use holdfast_vault::layout;

const STEP: TimeDelta = TimeDelta::hours(6);

#[tokio::test]
async fn the_window_begins_the_retention_before_now() -> Result<()> {
    // FLX-039
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.busy_days(10, "pg1").await?;
    let earliest = harness.now() - TimeDelta::days(7);
    assert_eq!(
        harness.server("pg1").await?.earliest_restore,
        Some(earliest)
    );
    harness
        .control_plane
        .preview_restore(at("pg1"), Some(earliest))
        .await?;
    let too_early = earliest - TimeDelta::microseconds(1_000_001);
    let refused = harness
        .control_plane
        .preview_restore(at("pg1"), Some(too_early))
        .await;
    assert!(
        matches!(
            refused,
            Err(Error::Refused(Refusal::RestoreTimeOutOfRange { earliest: Some(e), latest: Some(_), .. }))
                if e == earliest
        ),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn every_instant_of_the_window_stays_restorable_while_old_ones_go() -> Result<()> {
    // FLX-040
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    for _ in 0..12 {
        harness.busy_days(1, "pg1").await?;
        let view = harness.server("pg1").await?;
        let (Some(earliest), Some(latest)) = (view.earliest_restore, view.latest_restore) else {
            anyhow::bail!("no window: {view:?}");
        };
        let mut instant = earliest;
        while instant <= latest {
            harness
                .control_plane
                .preview_restore(at("pg1"), Some(instant))
                .await?;
            instant += STEP;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_longer_window_brings_nothing_back_and_a_shorter_one_lets_go() -> Result<()> {
    // FLX-041
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.busy_days(10, "pg1").await?;
    harness.set_retention("pg1", 35).await?;
    let grown = harness
        .server("pg1")
        .await?
        .earliest_restore
        .expect("it has backups");
    harness.busy_days(10, "pg1").await?;
    let later = harness
        .server("pg1")
        .await?
        .earliest_restore
        .expect("it has backups");
    assert!(
        later >= harness.now() - TimeDelta::days(18),
        "{later} is before what was kept"
    );
    assert!(
        later <= grown.max(harness.now() - TimeDelta::days(17)),
        "{later} after {grown}"
    );
    let many = harness.automatic("pg1").await?.len();

    harness.set_retention("pg1", 7).await?;
    harness.run_until_idle().await?;
    let earliest = harness.now() - TimeDelta::days(7);
    assert_eq!(
        harness.server("pg1").await?.earliest_restore,
        Some(earliest)
    );
    // Sweeping follows a day later (ADR 12).
    assert_eq!(harness.automatic("pg1").await?.len(), many);
    harness.live(5, STEP).await?;
    assert!(harness.automatic("pg1").await?.len() < many);
    let earliest = harness.now() - TimeDelta::days(7);
    harness
        .control_plane
        .preview_restore(at("pg1"), Some(earliest))
        .await?;
    Ok(())
}

#[tokio::test]
async fn what_leaves_the_window_is_deleted_manifest_first_and_after_the_grace() -> Result<()> {
    // FLX-042
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    let first = harness.automatic("pg1").await?.remove(0);
    let mut listed = true;
    let mut unlisted_at = None;
    for _ in 0..16 {
        harness.busy_days(1, "pg1").await?;
        let still = harness.automatic("pg1").await?;
        let still = still.iter().any(|view| view.backup.id == first.backup.id);
        if listed && !still {
            unlisted_at = Some(harness.now());
        }
        listed = still;
    }
    let unlisted_at = unlisted_at.expect("the first backup left the list");
    assert!(unlisted_at > first.backup.completed_time + TimeDelta::days(7));

    let pruned: Vec<&String> = harness.nodes[0]
        .leased
        .iter()
        .filter_map(|job| match &job.spec {
            JobSpec::Prune(spec) => Some(&spec.keys),
            _ => None,
        })
        .flatten()
        .collect();
    let place = |wanted: &dyn Fn(&str) -> bool| pruned.iter().position(|key| wanted(key));
    let manifest = place(&|key| *key == first.backup.manifest.key).expect("its manifest went");
    let pack = place(&|key| key.starts_with("packs/")).expect("its packs went");
    assert!(manifest < pack, "the manifest goes first");
    assert!(
        place(&|key| key.starts_with("wal/")).is_some(),
        "old WAL went"
    );
    let unique: BTreeSet<_> = pruned.iter().collect();
    assert_eq!(unique.len(), pruned.len(), "nothing is deleted twice");
    assert!(
        harness
            .count("SELECT count(*) FROM backup WHERE state = 'gone'")
            .await?
            > 0
    );

    // Nothing that a listed backup needs was among it.
    for view in harness.automatic("pg1").await? {
        assert!(!pruned.contains(&&view.backup.manifest.key));
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_deleted_before_its_grace_has_passed() -> Result<()> {
    // DESIGN §3.9
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    let mut unlinked_at = None;
    for _ in 0..60 {
        harness.live(1, STEP).await?;
        harness.write("pg1").await?;
        let expiring = harness
            .count("SELECT count(*) FROM backup WHERE state = 'expiring'")
            .await?;
        if expiring > 0 && unlinked_at.is_none() {
            unlinked_at = Some(harness.now());
        }
        let gone = harness
            .count("SELECT count(*) FROM backup WHERE state = 'gone'")
            .await?;
        if gone > 0 {
            let unlinked_at = unlinked_at.expect("first unlinked, then deleted");
            assert!(harness.now() - unlinked_at >= TimeDelta::hours(24) - STEP);
            return Ok(());
        }
    }
    anyhow::bail!("nothing was ever deleted")
}

#[tokio::test]
async fn the_last_good_backup_stays_however_long_backups_fail() -> Result<()> {
    // RELIABILITY F48; DESIGN §3.10
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Snapshot, failure("ObjectStoreUnavailable", false));
    harness.busy_days(20, "pg1").await?;
    assert_eq!(harness.automatic("pg1").await?.len(), 1);
    let earliest = harness.now() - TimeDelta::days(7);
    assert_eq!(
        harness.server("pg1").await?.earliest_restore,
        Some(earliest)
    );
    harness
        .control_plane
        .preview_restore(at("pg1"), Some(earliest))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_dropped_server_is_restorable_for_five_days_and_then_gone() -> Result<()> {
    // DESIGN §3.15
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.busy_days(2, "pg1").await?;
    harness.delete("pg1").await?;
    assert!(harness.server("pg1").await.is_err());
    harness.live(4, TimeDelta::days(1)).await?;
    assert_eq!(
        harness
            .count("SELECT count(*) FROM backup WHERE state = 'complete'")
            .await?,
        3
    );

    harness.live(4, TimeDelta::days(1)).await?;
    let left = "SELECT count(*) FROM backup WHERE state IN ('complete', 'expiring')";
    assert_eq!(harness.count(left).await?, 0);
    assert_eq!(harness.count("SELECT count(*) FROM wal_object").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_name_is_free_again_as_soon_as_its_server_is_dropped() -> Result<()> {
    let mut harness = Harness::new().await?;
    let first = harness.create("pg1").await?;
    harness.delete("pg1").await?;
    let second = harness.create("pg1").await?;
    assert_ne!(first.server.id, second.server.id);
    // F53: the new one has nothing of the old one's.
    assert_eq!(harness.automatic("pg1").await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_shorter_retention_that_is_taken_back_within_a_day_loses_nothing() -> Result<()> {
    // RELIABILITY F46; ADR 12
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.set_retention("pg1", 35).await?;
    harness.busy_days(20, "pg1").await?;
    let earliest = harness.server("pg1").await?.earliest_restore;
    let many = harness.automatic("pg1").await?.len();
    harness.set_retention("pg1", 7).await?;
    harness.live(3, STEP).await?;
    assert!(harness.server("pg1").await?.earliest_restore > earliest);
    harness.set_retention("pg1", 35).await?;
    harness.live(8, STEP).await?;
    assert_eq!(harness.server("pg1").await?.earliest_restore, earliest);
    assert!(harness.automatic("pg1").await?.len() >= many);
    let lost = "SELECT count(*) FROM backup WHERE state <> 'complete'";
    assert_eq!(harness.count(lost).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_clock_that_jumped_ahead_takes_nothing_away() -> Result<()> {
    // RELIABILITY F60; ADR 12
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.create("pg2").await?;
    harness.busy_days(3, "pg1").await?;
    harness.delete("pg2").await?;
    let kept = "SELECT count(*) FROM backup WHERE state = 'complete'";
    let before = harness.count(kept).await?;
    assert!(before >= 5, "{before}");
    // The scheduler's alone: neither the database's nor the node's.
    harness.clock.advance(TimeDelta::days(60));
    harness.control_plane.sweep().await?;
    assert_eq!(harness.count(kept).await?, before);
    Ok(())
}

#[tokio::test]
async fn what_is_unlinked_is_said_once_with_its_names_and_the_reason() -> Result<()> {
    // RELIABILITY §4.7, §5.6; F49: two sweepers say and do it once.
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    let other = harness.another_process().await?;
    for _ in 0..12 {
        harness.advance(TimeDelta::days(1)).await?;
        harness.write("pg1").await?;
        let (one, two) = tokio::join!(harness.control_plane.sweep(), other.sweep());
        one?;
        two?;
        harness.run_until_idle().await?;
    }
    let unlinked = harness
        .count("SELECT count(*) FROM backup WHERE state IN ('expiring', 'gone')")
        .await?;
    assert!(unlinked >= 3, "{unlinked}");
    let named = "SELECT coalesce(sum(cardinality(string_to_array(properties ->> 'backupNames', ', '))), 0)::bigint
                   FROM activity_event
                  WHERE action LIKE '%/backups/delete' AND status = 'Started' AND properties ->> 'reason' <> ''
                    AND (properties ->> 'windowStart')::timestamptz < at
                    AND (properties ->> 'deleteAfter')::timestamptz = at + interval '24 hours'";
    assert_eq!(harness.count(named).await?, unlinked);

    let pruned: Vec<&String> = harness.nodes[0]
        .leased
        .iter()
        .filter_map(|job| match &job.spec {
            JobSpec::Prune(spec) => Some(&spec.keys),
            _ => None,
        })
        .flatten()
        .collect();
    let unique: BTreeSet<_> = pruned.iter().collect();
    assert!(!unique.is_empty() && unique.len() == pruned.len());

    // At the end of a dropped server's time the rest is named, too.
    harness.delete("pg1").await?;
    let rest = harness
        .count("SELECT count(*) FROM backup WHERE state = 'complete'")
        .await?;
    harness.live(6, TimeDelta::days(1)).await?;
    let purged = "SELECT coalesce(sum(cardinality(string_to_array(properties ->> 'backupNames', ', '))), 0)::bigint
                    FROM activity_event
                   WHERE action LIKE '%/backups/delete' AND status = 'Started'
                     AND properties ->> 'reason' LIKE '%dropped%'";
    let purged = harness.count(purged).await?;
    assert!(0 < purged && purged <= rest, "{purged} of {rest}");
    Ok(())
}

#[tokio::test]
async fn a_restore_that_takes_ten_days_still_finds_its_backup() -> Result<()> {
    // RELIABILITY F50
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.busy_days(1, "pg1").await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Restore, Deed::Abandon);
    let accepted = harness
        .request_restore("pg1", "copy", Some(harness.now()))
        .await?;
    harness.run_until_idle().await?;
    let job = harness.nodes[0].abandoned.remove(0);
    for patient in [
        "UPDATE job SET lease_until = lease_until + interval '30 days', deadline = deadline + interval '30 days'
          WHERE kind = 'restore'",
        "UPDATE operation SET deadline = deadline + interval '30 days' WHERE kind = 'restore-server'",
    ] {
        sqlx::query(patient)
            .execute(harness.database.pool())
            .await?;
    }
    let held: uuid::Uuid = sqlx::query_scalar("SELECT backup_id FROM pin")
        .fetch_one(harness.database.pool())
        .await?;
    harness.busy_days(10, "pg1").await?;
    assert_eq!(state_of(&harness, held).await?, "complete");

    let control_plane = harness.control_plane.clone();
    harness.nodes[0].finish(&control_plane, &job).await?;
    harness.run_until_idle().await?;
    harness.succeeded(&accepted.operation).await?;
    assert_eq!(harness.count("SELECT count(*) FROM pin").await?, 0);
    harness.busy_days(2, "pg1").await?;
    assert_eq!(state_of(&harness, held).await?, "gone");
    Ok(())
}

#[tokio::test]
async fn a_backup_that_a_running_one_builds_on_is_not_deleted() -> Result<()> {
    // RELIABILITY F51
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.live(1, STEP).await?;
    harness.write("pg1").await?;
    harness.request_backup("pg1", "b1").await?;
    harness.run_until_idle().await?;
    let base: uuid::Uuid = sqlx::query_scalar("SELECT id FROM backup WHERE name = 'b1'")
        .fetch_one(harness.database.pool())
        .await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Snapshot, Deed::Abandon);
    harness.live(1, STEP).await?;
    harness.write("pg1").await?;
    harness.live(2, STEP).await?;
    let job = harness.nodes[0].abandoned.remove(0);
    sqlx::query(
        "UPDATE job SET lease_until = lease_until + interval '30 days', deadline = deadline + interval '30 days'
          WHERE kind = 'snapshot' AND state = 'leased'",
    )
    .execute(harness.database.pool())
    .await?;
    let built_on = "SELECT count(*) FROM job j JOIN backup b ON b.id = j.base_backup_id
                     WHERE j.state = 'leased' AND b.name = 'b1'";
    assert_eq!(harness.count(built_on).await?, 1);

    let idem = request("DELETE", "pg1/b1");
    harness
        .control_plane
        .delete_backup(&caller(), at("pg1"), "b1", &idem)
        .await?;
    harness.live(6, STEP).await?;
    assert_eq!(state_of(&harness, base).await?, "expiring");
    let asked = "SELECT count(*) FROM job WHERE kind = 'prune'";
    assert_eq!(harness.count(asked).await?, 0);

    harness.nodes[0].script.clear();
    let control_plane = harness.control_plane.clone();
    harness.nodes[0].finish(&control_plane, &job).await?;
    harness.run_until_idle().await?;
    assert_eq!(state_of(&harness, base).await?, "gone");
    Ok(())
}

async fn state_of(harness: &Harness, backup: uuid::Uuid) -> Result<String> {
    let sql = "SELECT state::text FROM backup WHERE id = $1";
    Ok(sqlx::query_scalar(sql)
        .bind(backup)
        .fetch_one(harness.database.pool())
        .await?)
}

/// The prunes of a node that looked for leavings.
fn looking(harness: &Harness) -> Vec<PruneSpec> {
    let leased = harness.nodes[0].leased.iter();
    leased
        .filter_map(|job| match &job.spec {
            JobSpec::Prune(spec) if spec.leavings != Leavings::Nowhere => Some(spec.clone()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn what_a_failed_backup_left_behind_goes_a_day_later_unless_a_backup_names_it() -> Result<()>
{
    // RELIABILITY §5.6, F08; DESIGN §3.8, §3.9
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    let first = harness.automatic("pg1").await?.remove(0);
    let life = harness.incarnation("pg1").await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Snapshot, failure("ObjectStoreUnavailable", false));
    harness.request_backup("pg1", "b1").await?;
    harness.run_until_idle().await?;
    harness.nodes[0].script.clear();
    let failed = harness.nodes[0]
        .leased
        .last()
        .expect("it was tried")
        .clone();
    let JobSpec::Snapshot(spec) = &failed.spec else {
        anyhow::bail!("{:?}", failed.spec.kind())
    };
    let pack = |epoch| layout::pack(life, failed.job, epoch, 0);
    let manifest = layout::manifest(life, spec.backup, 1);
    harness.live(23, TimeDelta::hours(1)).await?;
    assert!(looking(&harness).is_empty());

    harness.nodes[0]
        .script
        .insert(JobKind::Prune, Deed::Abandon);
    // At its lease's first moment: it lasts a minute.
    harness.live(1, TimeDelta::hours(1)).await?;
    let prune = harness.nodes[0].abandoned.remove(0);
    let JobSpec::Prune(looking_for) = &prune.spec else {
        anyhow::bail!("{:?}", prune.spec.kind())
    };
    assert_eq!(looking_for.keys, Vec::<String>::new());
    // As if a later backup had taken over what this attempt had written.
    sqlx::query(
        "INSERT INTO backup_object (subscription_id, backup_id, key, incarnation_id, bytes)
         SELECT subscription_id, id, $2, incarnation_id, 1 FROM backup WHERE id = $1",
    )
    .bind(first.backup.id.0)
    .bind(pack(1))
    .execute(harness.database.pool())
    .await?;
    let leaf = layout::leaves(life, failed.job, failed.epoch, 0);
    let found = [
        manifest.clone(),
        leaf.clone(),
        pack(1),
        layout::pack(life, failed.job, 1, 1),
        pack(failed.epoch + 2),
        first.backup.manifest.key.clone(),
        layout::pack(life, holdfast_domain::JobId::new(), 1, 0),
    ];
    let node = &harness.nodes[0];
    let may = harness
        .control_plane
        .validate(node.id, node.lease_of(&prune), &found)
        .await?;
    assert_eq!(may, [manifest, leaf, layout::pack(life, failed.job, 1, 1)]);

    // Once is enough.
    let control_plane = harness.control_plane.clone();
    harness.nodes[0].script.clear();
    harness.nodes[0].finish(&control_plane, &prune).await?;
    let asked = looking(&harness).len();
    harness.live(3, TimeDelta::days(1)).await?;
    assert_eq!(looking(&harness).len(), asked);
    Ok(())
}

#[tokio::test]
async fn attempts_before_the_one_that_made_the_backup_are_looked_for_and_it_stays() -> Result<()> {
    // RELIABILITY §5.6
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    let life = harness.incarnation("pg1").await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Snapshot, failure("ObjectStoreUnavailable", true));
    harness.request_backup("pg1", "b1").await?;
    harness.run_until_idle().await?;
    harness.nodes[0].script.clear();
    harness.live(2, TimeDelta::minutes(1)).await?;
    let made = harness.backups("pg1").await?;
    let made = made.iter().find(|view| view.backup.name == "b1");
    let made = made.expect("the second attempt made it").clone();
    harness.nodes[0]
        .script
        .insert(JobKind::Prune, Deed::Abandon);
    harness.live(24, TimeDelta::hours(1)).await?;
    let prune = harness.nodes[0].abandoned.remove(0);
    let JobSpec::Prune(PruneSpec {
        leavings: Leavings::Attempts(ended),
        ..
    }) = &prune.spec
    else {
        anyhow::bail!("{:?}", prune.spec)
    };
    assert_eq!(ended.len(), 1);
    assert!(ended[0].epoch > 1, "{ended:?}");
    assert_eq!(ended[0].failed_backup, None);
    let pack = |epoch| layout::pack(life, ended[0].job, epoch, 0);
    let found = [
        pack(1),
        pack(ended[0].epoch),
        made.backup.manifest.key.clone(),
    ];
    let node = &harness.nodes[0];
    let may = harness
        .control_plane
        .validate(node.id, node.lease_of(&prune), &found)
        .await?;
    assert_eq!(may, [pack(1)]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_was_never_made_leaves_nothing_in_its_store() -> Result<()> {
    // FLX-144
    let mut harness = Harness::new().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, failure("DiskFull", false));
    harness
        .request_create("pg1", &holdfast_tests::harness::wish())
        .await?;
    harness.live(23, TimeDelta::hours(1)).await?;
    assert!(looking(&harness).is_empty());
    harness.live(2, TimeDelta::hours(1)).await?;
    let prunes = looking(&harness);
    assert_eq!(prunes.len(), 1);
    assert_eq!(prunes[0].leavings, Leavings::Everywhere);
    let purged = "SELECT count(*) FROM server WHERE state = 'failed' AND purged_at IS NOT NULL";
    assert_eq!(harness.count(purged).await?, 1);
    harness.live(2, TimeDelta::days(1)).await?;
    assert_eq!(looking(&harness).len(), 1);
    Ok(())
}
