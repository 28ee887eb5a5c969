//! Jobs step back for the servers beside them, and stop when they are told to: real PostgreSQL, a vault of files.

use std::num::NonZeroU32;
use std::path::Path;

use holdfast_domain::BackupId;
use holdfast_domain::job::{
    CompactSpec, CompactedBackup, JobOutcome, JobSpec, Power, PowerSpec, SnapshotOutcome,
    SnapshotSpec,
};
use holdfast_vault::courtesy::THREAD_NAME;

use crate::restore::test_site::{Known, Site};
use crate::work;

/// The 19th field of `/proc/…/stat`, counted behind the name, which may hold anything (proc_pid_stat(5)).
fn nice(of: &Path) -> Option<i32> {
    let stat = std::fs::read_to_string(of.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(16)?.parse().ok()
}

/// Names and priorities of this process's threads: of a job's own, or of all others.
fn threads(of_jobs: bool) -> Vec<(String, i32)> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("listed");
    tasks
        .filter_map(|task| {
            let task = task.expect("an entry").path();
            let name = std::fs::read_to_string(task.join("comm")).ok()?;
            Some((name.trim_end().to_owned(), nice(&task)?))
        })
        .filter(|(name, _)| (name == THREAD_NAME) == of_jobs)
        .collect()
}

async fn site() -> (Site, Known) {
    let site = Site::open_with(15, &std::env::temp_dir(), |config| {
        config.frozen_copies = false;
        config.limits.read_mib_per_s = NonZeroU32::new(16);
    })
    .await;
    let known = site.provision("pg1").await;
    let session = known.server.connect().await.expect("connected");
    session
        .batch_execute(
            "CREATE TABLE public.filled AS
                 SELECT n, repeat(md5(n::text), 30) AS line FROM generate_series(1, 24000) n;
             CHECKPOINT",
        )
        .await
        .expect("written");
    (site, known)
}

fn backup_of(known: &Known) -> SnapshotSpec {
    SnapshotSpec {
        placement: known.placement.clone(),
        backup: BackupId::new(),
        base: None,
        wrapped_key: known.wrapped_key.clone(),
    }
}

fn compaction_of(known: &Known, backups: &[&SnapshotOutcome]) -> CompactSpec {
    let keys = |backup: &&SnapshotOutcome| -> Vec<String> {
        let objects = backup.objects.iter();
        objects.map(|object| object.key.clone()).collect()
    };
    CompactSpec {
        placement: known.placement.clone(),
        wrapped_key: known.wrapped_key.clone(),
        backups: backups
            .iter()
            .map(|backup| CompactedBackup {
                manifest: backup.manifest.clone(),
                next_generation: backup.manifest.generation + 1,
            })
            .collect(),
        objects: backups.iter().flat_map(keys).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paced_backup_that_is_cancelled_stops_and_leaves_no_backup() {
    let (site, known) = site().await;
    let own = nice(Path::new("/proc/self")).expect("a number");
    let ctx = site.context();
    let mut progress = ctx.progress.subscribe();
    let cancel = async {
        let copying = progress.wait_for(|said| {
            said.as_ref()
                .is_some_and(|said| said.phase == "CopyingData" && said.bytes_done > 0)
        });
        copying.await.expect("it says how far it is");
        let workers = threads(true);
        assert!(!workers.is_empty());
        for (_, priority) in workers {
            assert_eq!(priority, (own + 10).min(19));
        }
        ctx.cancel.cancel();
    };
    let spec = JobSpec::Snapshot(backup_of(&known));
    let (ended, ()) = tokio::join!(work::run(&ctx, spec), cancel);
    assert_eq!(ended.expect_err("cancelled").code, "Canceled");
    let said = ctx.last_progress().expect("it said something");
    assert!(
        said.bytes_total
            .is_some_and(|total| said.bytes_done < total),
        "{said:?}"
    );
    let stores = site.node.stores(&known.placement.vaults).expect("a store");
    assert_eq!(stores[0].list("backups/").await.expect("a list"), []);
    // The server's turn is free again, and the same machine makes the next backup.
    let made = site.snapshot(&known, None).await;
    assert_eq!(stores[0].list("backups/").await.expect("a list").len(), 1);
    assert!(made.logical_bytes > 24 << 20);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_inherits_the_low_priority_of_a_job() {
    let (site, known) = site().await;
    let own = nice(Path::new("/proc/self")).expect("a number");
    let full = site.snapshot(&known, None).await;
    let session = known.server.connect().await.expect("connected");
    session
        .batch_execute("UPDATE public.filled SET line = 'x' WHERE n % 100 = 0; CHECKPOINT")
        .await
        .expect("written");
    // Both read leaves and indexes of the first from files, which a runtime does on threads that it starts for it.
    let next = site.snapshot(&known, Some(&full)).await;
    assert!(next.stored_bytes < full.stored_bytes);
    let compaction = JobSpec::Compact(compaction_of(&known, &[&full, &next]));
    let done = work::run(&site.context(), compaction).await;
    let Ok(JobOutcome::Compact(done)) = done else {
        panic!("{done:?}")
    };
    assert_eq!(done.backups.len(), 2);
    for (name, priority) in threads(false) {
        assert_eq!(priority, own, "{name}");
    }
    let restart = PowerSpec {
        placement: known.placement.clone(),
        wrapped_key: known.wrapped_key.clone(),
        to: Power::Restarted,
    };
    work::run(&site.context(), JobSpec::Power(restart))
        .await
        .expect("restarted");
    let session = known.server.connect().await.expect("connected");
    let row = session
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .expect("answered");
    let backend = Path::new("/proc").join(row.get::<_, i32>(0).to_string());
    assert_eq!(nice(&backend), Some(own));
    site.close().await;
}
