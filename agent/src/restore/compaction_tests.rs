//! A real server's backups restore from packs that were rewritten, when nothing else is left of the old ones.

use std::collections::BTreeSet;

use holdfast_domain::job::{CompactSpec, CompactedBackup, JobOutcome, JobSpec, SnapshotOutcome};
use holdfast_domain::restore::RestoreTarget;

use super::test_site::{Known, Site};
use crate::work;

async fn write(known: &Known, upto: i32) {
    let session = known.server.connect().await.expect("connected");
    session
        .batch_execute(&format!(
            "CREATE TABLE IF NOT EXISTS public.filled (seq int PRIMARY KEY, line text);
             INSERT INTO public.filled SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, {upto}) n
                 ON CONFLICT (seq) DO UPDATE SET line = repeat(md5({upto}::text), 20) WHERE filled.seq % 3 = 0"
        ))
        .await
        .expect("written");
}

async fn sum(known: &Known) -> String {
    let session = known.server.connect().await.expect("connected");
    session
        .query_one(
            "SELECT md5(string_agg(seq || line, ',' ORDER BY seq)) FROM public.filled",
            &[],
        )
        .await
        .expect("read")
        .get(0)
}

/// What the control plane does with a compaction's report.
fn turn(backups: &mut [SnapshotOutcome], outcome: &JobOutcome) -> BTreeSet<String> {
    let JobOutcome::Compact(done) = outcome else {
        panic!("a compaction ends as one");
    };
    let mut replaced = BTreeSet::new();
    for rewritten in &done.backups {
        let named =
            |backup: &&mut SnapshotOutcome| backup.manifest.backup == rewritten.manifest.backup;
        let backup = backups.iter_mut().find(named).expect("it was asked for");
        replaced.insert(backup.manifest.key.clone());
        replaced.extend(rewritten.dropped.iter().cloned());
        backup.manifest = rewritten.manifest.clone();
        backup
            .objects
            .retain(|object| !rewritten.dropped.contains(&object.key));
        backup.objects.extend(rewritten.added.iter().cloned());
    }
    replaced
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_of_a_server_restore_from_rewritten_packs_alone() {
    // DESIGN §3.1
    let site = Site::open().await;
    let source = site.provision("pg1").await;
    let (mut backups, mut sums) = (Vec::new(), Vec::new());
    for upto in [500, 900, 1300] {
        write(&source, upto).await;
        sums.push(sum(&source).await);
        let made = site.snapshot(&source, backups.last()).await;
        backups.push(made);
    }
    let spec = JobSpec::Compact(CompactSpec {
        placement: source.placement.clone(),
        wrapped_key: source.wrapped_key.clone(),
        backups: backups
            .iter()
            .map(|backup| CompactedBackup {
                manifest: backup.manifest.clone(),
                next_generation: backup.manifest.generation + 1,
            })
            .collect(),
        objects: backups
            .iter()
            .flat_map(|backup| backup.objects.iter().map(|object| object.key.clone()))
            .collect(),
    });
    let done = work::run(&site.context(), spec).await.expect("rewritten");
    let replaced = turn(&mut backups, &done);
    let needed: BTreeSet<&String> = backups
        .iter()
        .flat_map(|backup| backup.objects.iter().map(|object| &object.key))
        .collect();
    assert!(replaced.iter().all(|key| !needed.contains(key)));
    for key in &replaced {
        std::fs::remove_file(site.object_file(key)).expect("it was there");
    }
    // A differential builds on what was rewritten.
    write(&source, 1400).await;
    sums.push(sum(&source).await);
    let next = site.snapshot(&source, backups.last()).await;
    assert!(next.stored_bytes < backups[0].stored_bytes / 2);
    let shared = |key: &String| needed.contains(key);
    assert!(next.objects.iter().any(|object| shared(&object.key)));
    backups.push(next);

    for (backup, expected) in backups.iter().zip(&sums) {
        let from = site.source(&source, backup).await;
        let target = RestoreTarget::Backup(backup.manifest.backup);
        let (restored, _) = site.restore(&from, target).await;
        assert_eq!(&sum(&restored).await, expected, "{}", backup.manifest.key);
    }
    site.close().await;
}
