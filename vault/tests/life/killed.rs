//! A process that compacts a vault in a directory is killed, as `kill -9` does it, at moments all through its work.
//! The process is this test binary once more, told what to do by its environment.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use chrono::TimeDelta;
use holdfast_domain::job::{CompactOutcome, ManifestRef, WrappedKey};
use holdfast_domain::{IncarnationId, JobId};
use holdfast_vault::backup::{Compaction, ToRewrite, compact};
use holdfast_vault::{Courtesy, DataKey, KeyRing, Store};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::assert_whole;
use super::catalogue::{Life, Rewriting};
use super::content::{Content, half_text};
use super::histories::converges;

const ORDER: &str = "HOLDFAST_TEST_COMPACTION";
/// So often a run is killed, each time a bit later.
const KILLS: usize = 4;

#[derive(Serialize, Deserialize)]
struct Order {
    url: String,
    wrapped_key: WrappedKey,
    incarnation: IncarnationId,
    job: JobId,
    epoch: i64,
    /// With the generation to write.
    backups: Vec<(ManifestRef, u32)>,
    objects: BTreeSet<String>,
    /// Where its report goes.
    report: PathBuf,
}

fn ring() -> KeyRing {
    KeyRing::from_keys([("1".to_owned(), [7; 32])]).unwrap()
}

fn open(dir: &Path) -> (String, Store) {
    let url = url::Url::from_directory_path(dir).unwrap().to_string();
    let store = Store::open(&url).unwrap();
    (url, store)
}

/// The process that is killed. Without an order nothing happens.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(order) = std::env::var(ORDER) else {
        return;
    };
    let order: Order = serde_json::from_str(&std::fs::read_to_string(order).unwrap()).unwrap();
    let to_rewrite = |(manifest, generation)| ToRewrite {
        manifest,
        generation,
    };
    let done = compact(Compaction {
        stores: vec![Store::open(&order.url).unwrap()],
        data_key: ring()
            .unwrap(&order.wrapped_key, order.incarnation)
            .unwrap(),
        incarnation: order.incarnation,
        job: order.job,
        epoch: order.epoch,
        backups: order.backups.into_iter().map(to_rewrite).collect(),
        objects: order.objects,
        stop: CancellationToken::new(),
        courtesy: Courtesy::default(),
    })
    .await
    .unwrap();
    std::fs::write(order.report, serde_json::to_string(&done).unwrap()).unwrap();
}

fn files(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let count = |entry: std::fs::DirEntry| match entry.path().is_dir() {
        true => files(&entry.path()),
        false => 1,
    };
    entries.flatten().map(count).sum()
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_tree(&entry.path(), &to),
            false => {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }
}

/// Runs the job in a process of its own, and kills that when so many files have come. `None`: it was killed.
fn run(
    root: &Path,
    vault: &Path,
    life: &Life,
    job: &mut Rewriting,
    files_more: usize,
) -> Option<CompactOutcome> {
    job.epoch += 1;
    let ordered = life.compaction(job);
    let (order_file, report) = (root.join("order"), root.join("report"));
    let order = Order {
        url: open(vault).0,
        wrapped_key: ring().wrap(&life.key, life.incarnation).unwrap(),
        incarnation: life.incarnation,
        job: job.job,
        epoch: job.epoch,
        backups: ordered
            .backups
            .into_iter()
            .map(|backup| (backup.manifest, backup.generation))
            .collect(),
        objects: ordered.objects,
        report: report.clone(),
    };
    let _from_before = std::fs::remove_file(&report);
    std::fs::write(&order_file, serde_json::to_string(&order).unwrap()).unwrap();
    let before = files(vault);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::child"])
        .env(ORDER, &order_file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    loop {
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{ended}");
            let report = std::fs::read_to_string(&report).unwrap();
            return Some(serde_json::from_str(&report).unwrap());
        }
        if files(vault) >= before.saturating_add(files_more) {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_while_it_compacts_leaves_every_backup_whole() {
    let root = tempfile::tempdir().unwrap();
    let origin = root.path().join("origin");
    let (_, store) = open(&origin);
    let mut life = Life::new(store, DataKey::generate().unwrap(), 7, half_text);
    let mut seeds: Vec<u64> = (1..120).collect();
    for day in 0..7u64 {
        life.now += TimeDelta::days(2);
        for at in 0..40 {
            let page = (day as usize * 67 + at * 3) % seeds.len();
            seeds[page] = 10_000 * (day + 1) + at as u64;
        }
        let content = Content::from([
            ("base/5/1259".to_owned(), seeds.clone()),
            (format!("base/5/{day}"), vec![day + 1; 3]),
        ]);
        let mut job = life.plan_snapshot(&content);
        life.snapshot(&mut job).await.unwrap();
        life.sweep();
        let prune = life.plan_prune();
        life.prune(&prune).await.unwrap();
    }
    let job = life.plan_compaction().expect("much is dead");

    // How many files one run adds, and that it does when nobody kills it.
    let whole = root.path().join("whole");
    copy_tree(&origin, &whole);
    let done = run(root.path(), &whole, &life, &mut job.clone(), usize::MAX);
    assert!(done.is_some_and(|done| !done.backups.is_empty()));
    let total = files(&whole) - files(&origin);
    assert!(total > KILLS, "{total} files");

    let mut killed = 0;
    for kill in 0..KILLS {
        let vault = root.path().join(format!("killed{kill}"));
        copy_tree(&origin, &vault);
        let (mut life, mut job) = (life.clone(), job.clone());
        life.store = open(&vault).1;
        let files_more = 1 + kill * (total - 1) / KILLS;
        let when = format!("killed when {files_more} of {total} files had come");
        match run(root.path(), &vault, &life, &mut job, files_more) {
            // It was faster than we looked.
            Some(done) => life.take_in(&job, &done),
            None => {
                killed += 1;
                assert_whole(&mut life, &when).await;
                if kill % 4 == 3 {
                    life.give_up_compaction(&job);
                } else {
                    let again = run(root.path(), &vault, &life, &mut job, usize::MAX);
                    life.take_in(&job, &again.expect("nobody kills it"));
                }
            }
        }
        assert_whole(&mut life, &when).await;
        converges(&mut life, &when).await;
    }
    assert!(
        killed > KILLS / 2,
        "{killed} of {KILLS} were killed in time"
    );
}
