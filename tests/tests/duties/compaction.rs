//! Packs most of which no backup needs are rewritten: what the catalogue does before, when and after.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use chrono::TimeDelta;
use holdfast_domain::job::{CompactSpec, JobKind, JobOutcome, JobResult, JobSpec, LeasedJob};
use holdfast_domain::leavings::Leavings;
use holdfast_tests::harness::Harness;
use holdfast_tests::scripted_node::{Deed, failure};
use holdfast_vault::layout;

/// A server whose backups need each other's packs, less every day.
async fn sharing() -> Result<Harness> {
    let mut harness = Harness::new().await?;
    harness.nodes[0].shares = true;
    harness.create("pg1").await?;
    Ok(harness)
}

fn compactions(harness: &Harness) -> Vec<(LeasedJob, CompactSpec)> {
    let leased = harness.nodes[0].leased.iter();
    leased
        .filter_map(|job| match &job.spec {
            JobSpec::Compact(spec) => Some((job.clone(), spec.clone())),
            _ => None,
        })
        .collect()
}

/// The keys that prunes were asked to delete, in order.
fn pruned(harness: &Harness) -> Vec<String> {
    let leased = harness.nodes[0].leased.iter();
    leased
        .filter_map(|job| match &job.spec {
            JobSpec::Prune(spec) => Some(spec.keys.clone()),
            _ => None,
        })
        .flatten()
        .collect()
}

async fn strings(harness: &Harness, sql: &'static str) -> Result<BTreeSet<String>> {
    let rows: Vec<String> = sqlx::query_scalar(sql)
        .fetch_all(harness.database.pool())
        .await?;
    Ok(rows.into_iter().collect())
}

/// What backups whose bytes are not gone name: objects and manifests.
async fn named(harness: &Harness) -> Result<BTreeSet<String>> {
    strings(
        harness,
        "SELECT key FROM backup_object
          UNION SELECT manifest ->> 'key' FROM backup WHERE state IN ('complete', 'expiring')",
    )
    .await
}

async fn superseded(harness: &Harness) -> Result<BTreeSet<String>> {
    strings(harness, "SELECT key FROM superseded_object").await
}

/// Days until a compaction is leased, and left there.
async fn until_one_is_under_way(harness: &mut Harness) -> Result<(LeasedJob, CompactSpec)> {
    harness.nodes[0]
        .script
        .insert(JobKind::Compact, Deed::Abandon);
    for _ in 0..30 {
        harness.advance(TimeDelta::hours(24)).await?;
        harness.write("pg1").await?;
        harness.run_until_idle().await?;
        if let Some(job) = harness.nodes[0].abandoned.pop() {
            harness.nodes[0].script.clear();
            let JobSpec::Compact(spec) = &job.spec else {
                anyhow::bail!("{:?}", job.spec.kind())
            };
            return Ok((job.clone(), spec.clone()));
        }
    }
    anyhow::bail!("nothing was ever rewritten")
}

#[tokio::test]
async fn mostly_dead_packs_are_rewritten_and_the_old_ones_go_after_their_grace() -> Result<()> {
    // DESIGN §3.1, §3.9
    let mut harness = sharing().await?;
    let mut turned_at = None;
    for _ in 0..30 {
        harness.busy_days(1, "pg1").await?;
        // Whatever is going on, nothing that counts was ever deleted.
        let gone: BTreeSet<String> = pruned(&harness).into_iter().collect();
        let named = named(&harness).await?;
        assert!(gone.is_disjoint(&named), "{:?}", gone.intersection(&named));
        if turned_at.is_none() && !compactions(&harness).is_empty() {
            turned_at = Some(harness.now());
            let (_, spec) = compactions(&harness).remove(0);
            let waiting = superseded(&harness).await?;
            // One that was unlinked before keeps naming them for its grace.
            let complete = "SELECT o.key FROM backup_object o JOIN backup b ON b.id = o.backup_id
                             WHERE b.state = 'complete'";
            let needed = strings(&harness, complete).await?;
            for key in &spec.objects {
                assert!(!needed.contains(key), "{key} is named no more");
                assert!(waiting.contains(key) && !gone.contains(key), "{key} waits");
            }
            for backup in &spec.backups {
                assert!(!named.contains(&backup.manifest.key));
                assert_eq!(backup.next_generation, backup.manifest.generation + 1);
            }
            assert!(spec.backups.len() >= 7, "the whole window");
        }
    }
    let turned_at = turned_at.context("nothing was ever rewritten")?;
    assert!(harness.now() - turned_at > TimeDelta::days(3));
    let (_, first) = compactions(&harness).remove(0);
    let gone = pruned(&harness);
    let place = |wanted: &String| gone.iter().position(|key| key == wanted);
    for key in &first.objects {
        let object = place(key).with_context(|| format!("{key} was deleted"))?;
        let last_manifest = first
            .backups
            .iter()
            .filter_map(|backup| place(&backup.manifest.key));
        let last_manifest = last_manifest.max().context("manifests were deleted")?;
        assert!(last_manifest < object, "manifests first");
    }
    let unique: BTreeSet<&String> = gone.iter().collect();
    assert_eq!(unique.len(), gone.len(), "nothing is deleted twice");
    // A run a day, and not more.
    let runs = compactions(&harness);
    assert!(runs.len() <= 30, "{}", runs.len());
    for (_, spec) in &runs {
        let generations = spec.backups.iter();
        assert!(
            generations
                .clone()
                .all(|b| b.next_generation > b.manifest.generation)
        );
    }
    // What is shown as used is what is there, each object once.
    let gauges = harness.control_plane.gauges().await?;
    let counted = harness
        .count(
            "SELECT sum(bytes)::bigint FROM (SELECT key, max(bytes) AS bytes FROM
                (SELECT key, bytes FROM backup_object UNION ALL SELECT key, bytes FROM superseded_object) o
              GROUP BY key) once",
        )
        .await?;
    assert_eq!(gauges.servers[0].backup_bytes, counted.unsigned_abs());
    assert_eq!(gauges.rewritten_bytes, (runs.len() as u64) << 19);
    Ok(())
}

#[tokio::test]
async fn nothing_is_rewritten_where_everything_lives() -> Result<()> {
    let mut harness = Harness::new().await?;
    harness.create("pg1").await?;
    harness.busy_days(20, "pg1").await?;
    assert!(compactions(&harness).is_empty());
    assert_eq!(superseded(&harness).await?, BTreeSet::new());
    Ok(())
}

#[tokio::test]
async fn a_running_restore_keeps_what_its_manifest_named() -> Result<()> {
    // RELIABILITY F50
    let mut harness = sharing().await?;
    let (compacting, spec) = until_one_is_under_way(&mut harness).await?;
    let control_plane = harness.control_plane.clone();
    harness.nodes[0]
        .script
        .insert(JobKind::Restore, Deed::Abandon);
    harness
        .request_restore("pg1", "copy", Some(harness.now()))
        .await?;
    harness.run_until_idle().await?;
    let restoring = harness.nodes[0].abandoned.remove(0);
    for patient in [
        "UPDATE job SET lease_until = lease_until + interval '30 days', deadline = deadline + interval '30 days'
          WHERE kind = 'restore'",
        "UPDATE operation SET deadline = deadline + interval '30 days' WHERE kind = 'restore-server'",
    ] {
        sqlx::query(patient)
            .execute(harness.database.pool())
            .await?;
    }
    harness.nodes[0].finish(&control_plane, &compacting).await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Compact, failure("ObjectStoreUnavailable", false));
    harness.busy_days(4, "pg1").await?;
    let waiting = superseded(&harness).await?;
    let gone: BTreeSet<String> = pruned(&harness).into_iter().collect();
    for key in spec
        .objects
        .iter()
        .chain(spec.backups.iter().map(|b| &b.manifest.key))
    {
        assert!(waiting.contains(key) && !gone.contains(key), "{key}");
    }
    let node = &mut harness.nodes[0];
    node.finish(&control_plane, &restoring).await?;
    harness.busy_days(2, "pg1").await?;
    let gone: BTreeSet<String> = pruned(&harness).into_iter().collect();
    assert!(spec.objects.iter().all(|key| gone.contains(key)));
    Ok(())
}

#[tokio::test]
async fn a_backup_that_was_unlinked_meanwhile_keeps_what_it_has() -> Result<()> {
    let mut harness = sharing().await?;
    let (job, spec) = until_one_is_under_way(&mut harness).await?;
    let unlinked = &spec.backups[1].manifest;
    sqlx::query("UPDATE backup SET state = 'expiring', delete_after = now() + interval '100 years' WHERE id = $1")
        .bind(unlinked.backup.0)
        .execute(harness.database.pool())
        .await?;
    let control_plane = harness.control_plane.clone();
    let before = named(&harness).await?;
    harness.nodes[0].finish(&control_plane, &job).await?;
    let after = named(&harness).await?;
    assert!(after.contains(&unlinked.key));
    let its = "SELECT o.key FROM backup_object o JOIN backup b ON b.id = o.backup_id WHERE b.state = 'expiring'";
    assert!(strings(&harness, its).await?.is_subset(&before));
    let life = harness.incarnation("pg1").await?;
    let in_vain = layout::manifest(life, unlinked.backup, spec.backups[1].next_generation);
    assert!(superseded(&harness).await?.contains(&in_vain));
    // Objects that it still names stay, however long that is.
    harness.busy_days(4, "pg1").await?;
    let gone: BTreeSet<String> = pruned(&harness).into_iter().collect();
    assert!(strings(&harness, its).await?.is_disjoint(&gone));
    assert!(gone.contains(&in_vain));
    Ok(())
}

#[tokio::test]
async fn what_a_compaction_in_vain_wrote_goes_and_the_next_one_writes_other_generations()
-> Result<()> {
    // DESIGN §3.8
    let mut harness = sharing().await?;
    let (job, spec) = until_one_is_under_way(&mut harness).await?;
    let control_plane = harness.control_plane.clone();
    let node = &harness.nodes[0];
    let before = named(&harness).await?;
    let JobSpec::Compact(_) = &job.spec else {
        unreachable!("checked")
    };
    let Deed::Fail(error) = failure("BackupCorrupted", false) else {
        unreachable!("it is one")
    };
    control_plane
        .report(node.id, node.lease_of(&job), &JobResult::Failed(error))
        .await?;
    assert_eq!(named(&harness).await?, before);
    let life = harness.incarnation("pg1").await?;
    let in_vain: Vec<String> = spec
        .backups
        .iter()
        .map(|backup| layout::manifest(life, backup.manifest.backup, backup.next_generation))
        .collect();
    let waiting = superseded(&harness).await?;
    assert!(in_vain.iter().all(|key| waiting.contains(key)));
    harness.busy_days(3, "pg1").await?;
    let gone: BTreeSet<String> = pruned(&harness).into_iter().collect();
    assert!(in_vain.iter().all(|key| gone.contains(key)));
    let leased = harness.nodes[0].leased.iter();
    let looked_for = leased.filter_map(|job| match &job.spec {
        JobSpec::Prune(spec) => Some(spec.leavings.clone()),
        _ => None,
    });
    let mut after_manifests = false;
    for leavings in looked_for {
        if let Leavings::Attempts(ended) = leavings {
            after_manifests |= ended.iter().any(|ended| ended.job == job.job);
        }
    }
    assert!(after_manifests, "packs of the attempt are looked for");
    let (_, next) = compactions(&harness).remove(1);
    for backup in &next.backups {
        let earlier = spec
            .backups
            .iter()
            .find(|b| b.manifest.backup == backup.manifest.backup);
        if let Some(earlier) = earlier {
            assert!(backup.next_generation > earlier.next_generation);
            assert_eq!(backup.manifest, earlier.manifest);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_that_waits_builds_on_the_new_manifest() -> Result<()> {
    let mut harness = sharing().await?;
    let (job, _) = until_one_is_under_way(&mut harness).await?;
    harness.request_backup("pg1", "b1").await?;
    harness.run_until_idle().await?;
    let waiting = "SELECT count(*) FROM job WHERE kind = 'snapshot' AND state = 'queued'";
    assert_eq!(harness.count(waiting).await?, 1, "one writer at a time");
    let control_plane = harness.control_plane.clone();
    harness.nodes[0].finish(&control_plane, &job).await?;
    harness.run_until_idle().await?;
    let snapshot = harness.nodes[0].leased.iter().rev();
    let base = snapshot
        .filter_map(|job| match &job.spec {
            JobSpec::Snapshot(spec) => spec.base.clone(),
            _ => None,
        })
        .next()
        .context("it has a base")?;
    assert!(base.generation > 1, "{base:?}");
    assert!(named(&harness).await?.contains(&base.key));
    Ok(())
}

#[tokio::test]
async fn a_report_that_speaks_of_something_else_is_refused() -> Result<()> {
    let mut harness = sharing().await?;
    let (job, spec) = until_one_is_under_way(&mut harness).await?;
    let control_plane = harness.control_plane.clone();
    let before = named(&harness).await?;
    let JobOutcome::Compact(honest) = harness.nodes[0].outcome(&control_plane, &job).await? else {
        anyhow::bail!("a compaction")
    };
    let life = harness.incarnation("pg1").await?;
    let node = &harness.nodes[0];
    let tell = async |outcome| {
        let done = JobResult::Done(JobOutcome::Compact(outcome));
        control_plane
            .report(node.id, node.lease_of(&job), &done)
            .await
    };
    let mut foreign = honest.clone();
    foreign.backups[0].added[0].key = layout::pack(life, holdfast_domain::JobId::new(), 1, 0);
    let mut generation = honest.clone();
    generation.backups[0].manifest.generation += 1;
    let mut manifest = honest.clone();
    manifest.backups[0]
        .dropped
        .push(spec.backups[0].manifest.key.clone());
    for absurd in [foreign, generation, manifest] {
        let answer = tell(absurd).await;
        assert!(
            matches!(answer, Err(holdfast_control_plane::Error::Absurd(_))),
            "{answer:?}"
        );
    }
    assert_eq!(named(&harness).await?, before);
    tell(honest).await?;
    assert_ne!(named(&harness).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_dropped_servers_time_ends_with_nothing_left() -> Result<()> {
    // FLX-144
    let mut harness = sharing().await?;
    harness.busy_days(16, "pg1").await?;
    assert!(!compactions(&harness).is_empty());
    harness.delete("pg1").await?;
    harness.live(8, TimeDelta::days(1)).await?;
    assert_eq!(superseded(&harness).await?, BTreeSet::new());
    let purged = "SELECT count(*) FROM server WHERE purged_at IS NOT NULL";
    assert_eq!(harness.count(purged).await?, 1);
    Ok(())
}
