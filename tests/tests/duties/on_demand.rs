//! Backups that users ask for: limits, names, deletion, retention.

use anyhow::Result;
use chrono::TimeDelta;
use futures::future::join_all;
use holdfast_control_plane::Error;
use holdfast_domain::Refusal;
use holdfast_domain::backup::BackupKind;
use holdfast_domain::job::{JobKind, Power};
use holdfast_domain::server::{ServerWish, StorageType, Tier};
use holdfast_tests::harness::{Harness, at, caller, request, wish};
use holdfast_tests::scripted_node::Deed;

async fn delete(harness: &mut Harness, backup: &str) -> Result<(), Error> {
    let idem = request("DELETE", backup);
    harness
        .control_plane
        .delete_backup(&caller(), at("pg1"), backup, &idem)
        .await
        .map(drop)
}

#[tokio::test]
async fn an_on_demand_backup_stands_beside_the_automatic_ones() -> Result<()> {
    // FLX-101
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    let accepted = harness.request_backup("pg1", "before-migration").await?;
    harness.run_until_idle().await?;
    harness.succeeded(&accepted.operation).await?;
    let kinds: Vec<_> = harness
        .backups("pg1")
        .await?
        .iter()
        .map(|view| view.backup.kind)
        .collect();
    assert_eq!(kinds.len(), 2);
    assert!(kinds.contains(&BackupKind::OnDemand) && kinds.contains(&BackupKind::Automatic));
    let view = harness
        .control_plane
        .get_backup(at("pg1"), "BEFORE-migration")
        .await?;
    assert_eq!(view.backup.name, "before-migration");
    Ok(())
}

#[tokio::test]
async fn an_on_demand_backup_goes_with_the_retention_window() -> Result<()> {
    // FLX-103
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.request_backup("pg1", "b1").await?;
    harness.run_until_idle().await?;
    harness.busy_days(10, "pg1").await?;
    assert!(
        harness
            .control_plane
            .get_backup(at("pg1"), "b1")
            .await
            .is_err()
    );
    Ok(())
}

#[tokio::test]
async fn deleting_an_on_demand_backup_takes_no_instant_of_the_window_away() -> Result<()> {
    // FLX-104
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.busy_days(1, "pg1").await?;
    harness.request_backup("pg1", "b1").await?;
    harness.run_until_idle().await?;
    let between = harness.now() + TimeDelta::hours(1);
    harness.busy_days(1, "pg1").await?;
    delete(&mut harness, "b1").await?;
    harness.run_until_idle().await?;
    assert!(
        harness
            .control_plane
            .get_backup(at("pg1"), "b1")
            .await
            .is_err()
    );
    harness
        .control_plane
        .preview_restore(at("pg1"), Some(between))
        .await?;
    let view = harness.server("pg1").await?;
    harness
        .control_plane
        .preview_restore(at("pg1"), view.earliest_restore)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_backups_name_is_used_once() -> Result<()> {
    // FLX-105
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.request_backup("pg1", "b1").await?;
    harness.run_until_idle().await?;
    for name in ["b1", "B1"] {
        let refused = harness
            .control_plane
            .request_backup(&caller(), at("pg1"), name, &request("PUT", name))
            .await;
        assert!(
            matches!(
                refused,
                Err(Error::Refused(Refusal::BackupAlreadyExists { .. }))
            ),
            "{refused:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_automatic_backup_cannot_be_deleted() -> Result<()> {
    // FLX-106
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    let name = harness.automatic("pg1").await?.remove(0).backup.name;
    let refused = delete(&mut harness, &name).await;
    assert!(
        matches!(
            refused,
            Err(Error::Refused(
                Refusal::AutomaticBackupCannotBeDeleted { .. }
            ))
        ),
        "{refused:?}"
    );
    assert_eq!(harness.automatic("pg1").await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn burstable_servers_and_premium_v2_storage_have_no_on_demand_backups() -> Result<()> {
    // FLX-107, FLX-108
    let mut harness = Harness::new().await?;
    let burstable = ServerWish {
        sku_name: Some("Standard_B1ms".to_owned()),
        sku_tier: Some(Tier::Burstable),
        ..wish()
    };
    let premium = ServerWish {
        storage_kind: Some(StorageType::PremiumV2),
        ..wish()
    };
    for (name, wish) in [("pg-burst", burstable), ("pg-ssd2", premium)] {
        harness.create_as(name, &wish).await?;
        let refused = harness
            .control_plane
            .request_backup(&caller(), at(name), "b1", &request("PUT", name))
            .await;
        assert!(
            matches!(
                refused,
                Err(Error::Refused(Refusal::OnDemandBackupNotSupported { .. }))
            ),
            "{refused:?}"
        );
        assert_eq!(
            harness.automatic(name).await?.len(),
            1,
            "automatic ones it has"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_eighth_on_demand_backup_is_refused_however_many_ask_at_once() -> Result<()> {
    // FLX-109; RELIABILITY §4.9 row 32
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    let asked = join_all((0..20).map(|n| {
        let control_plane = harness.control_plane.clone();
        async move {
            let name = format!("b{n}");
            let idem = request("PUT", &name);
            control_plane
                .request_backup(&caller(), at("pg1"), &name, &idem)
                .await
        }
    }))
    .await;
    let (accepted, refused): (Vec<_>, Vec<_>) = asked.into_iter().partition(Result::is_ok);
    assert_eq!(accepted.len(), 7);
    for refused in refused {
        assert!(
            matches!(
                refused,
                Err(Error::Refused(Refusal::OnDemandBackupLimitReached {
                    limit: 7,
                    ..
                }))
            ),
            "{refused:?}"
        );
    }
    harness.run_until_idle().await?;
    let on_demand = |views: Vec<holdfast_control_plane::backup::BackupView>| -> Vec<String> {
        let views = views
            .into_iter()
            .filter(|view| view.backup.kind == BackupKind::OnDemand);
        views.map(|view| view.backup.name).collect()
    };
    let names = on_demand(harness.backups("pg1").await?);
    assert_eq!(names.len(), 7);

    delete(&mut harness, &names[0]).await?;
    harness.run_until_idle().await?;
    harness.request_backup("pg1", "one-more").await?;
    harness.run_until_idle().await?;
    assert_eq!(on_demand(harness.backups("pg1").await?).len(), 7);
    Ok(())
}

#[tokio::test]
async fn a_server_with_an_open_on_demand_backup_is_not_stopped() -> Result<()> {
    // DESIGN §2, "what excludes what"
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Snapshot, Deed::Abandon);
    harness.request_backup("pg1", "b1").await?;
    harness.run_until_idle().await?;
    let refused = harness
        .control_plane
        .power_server(
            &caller(),
            at("pg1"),
            Power::Stopped,
            &request("POST", "stop"),
        )
        .await;
    assert!(
        matches!(refused, Err(Error::Refused(Refusal::ServerIsBusy { .. }))),
        "{refused:?}"
    );
    // A change of settings goes on beside it.
    harness.set_retention("pg1", 14).await?;
    let job = harness.nodes[0].abandoned.remove(0);
    let control_plane = harness.control_plane.clone();
    harness.nodes[0].finish(&control_plane, &job).await?;
    harness.nodes[0].script.clear();
    harness.power("pg1", Power::Stopped).await
}
