//! What goes, what stays and when, over virtual weeks.

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::TimeDelta;
use holdfast_control_plane::Error;
use holdfast_domain::Refusal;
use holdfast_domain::job::{JobKind, JobSpec};
use holdfast_tests::harness::{Harness, at};
use holdfast_tests::scripted_node::failure;

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
    assert!(harness.automatic("pg1").await?.len() < many);
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
