//! Packs are rewritten and nothing is lost: when all goes well, when an attempt dies anywhere, with damage.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use holdfast_domain::job::{CompactOutcome, ObjectRef};
use tokio_util::sync::CancellationToken;

use super::*;

impl Site {
    pub(super) fn compaction(
        &self,
        backups: &[&ManifestRef],
        objects: BTreeSet<String>,
    ) -> Compaction {
        let Attempt {
            incarnation,
            job,
            epoch,
            ..
        } = self.attempt();
        Compaction {
            stores: self.stores.clone(),
            data_key: self.key.clone(),
            incarnation,
            job,
            epoch,
            backups: backups
                .iter()
                .map(|named| ToRewrite {
                    manifest: (*named).clone(),
                    generation: named.generation + epoch as u32,
                })
                .collect(),
            objects,
            stop: CancellationToken::new(),
            courtesy: Courtesy::default(),
        }
    }

    pub(super) async fn delete(&self, key: &str) {
        for store in &self.stores {
            store.delete(key).await.unwrap();
        }
    }
}

/// A backup as a catalogue has it.
struct Kept {
    manifest: ManifestRef,
    objects: Vec<ObjectRef>,
    files: Files,
}

impl Kept {
    fn new(made: FinishedBackup, files: Files) -> Self {
        Self {
            manifest: made.manifest,
            objects: made.objects,
            files,
        }
    }
}

fn take_in(kept: &mut [Kept], outcome: &CompactOutcome) {
    for rewritten in &outcome.backups {
        let named = |kept: &&mut Kept| kept.manifest.backup == rewritten.manifest.backup;
        let kept = kept.iter_mut().find(named).expect("it was asked for");
        kept.manifest = rewritten.manifest.clone();
        turn(&mut kept.objects, rewritten);
    }
}

pub(super) fn turn(
    objects: &mut Vec<ObjectRef>,
    rewritten: &holdfast_domain::job::RewrittenBackup,
) {
    objects.retain(|object| !rewritten.dropped.contains(&object.key));
    objects.extend(rewritten.added.iter().cloned());
}

fn change(files: &mut Files, path: &str, pages: impl IntoIterator<Item = (usize, u64)>) {
    let content = files.get_mut(path).unwrap();
    for (number, seed) in pages {
        let at = number * PAGE_BYTES;
        content[at..at + PAGE_BYTES].copy_from_slice(&page(seed));
    }
}

/// A full backup and a few differentials that change a good part of it.
async fn history(site: &Site) -> Vec<Kept> {
    let mut files = cluster();
    let mut kept = vec![Kept::new(
        site.back_up(&files, None).await.unwrap(),
        files.clone(),
    )];
    for day in 1..6u64 {
        let pages = (0..40).map(|n| {
            (
                (day as usize * 37 + n * 17) % 700,
                1_000_000 * day + n as u64,
            )
        });
        change(&mut files, "base/5/1259", pages);
        change(&mut files, &format!("base/1/{day}"), [(0, 2_000_000 + day)]);
        files
            .get_mut("base/5/2619")
            .unwrap()
            .extend(page(3_000_000 + day));
        let base = &kept.last().unwrap().manifest;
        let made = site.back_up(&files, Some(base)).await.unwrap();
        kept.push(Kept::new(made, files.clone()));
    }
    kept
}

fn every_object(kept: &[Kept]) -> BTreeSet<String> {
    kept.iter()
        .flat_map(|kept| &kept.objects)
        .map(|object| object.key.clone())
        .collect()
}

fn manifests(kept: &[Kept]) -> Vec<&ManifestRef> {
    kept.iter().map(|kept| &kept.manifest).collect()
}

async fn assert_restores(site: &Site, kept: &[Kept]) {
    for kept in kept {
        assert!(
            site.restore(&kept.manifest).await.unwrap() == kept.files,
            "{}",
            kept.manifest.key
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backup_restores_from_what_was_rewritten_and_from_nothing_else() {
    let site = Site::new(2);
    let mut kept = history(&site).await;
    let before = every_object(&kept);
    for keep_out in [0, 2, 5] {
        // The first packs, then the middle, then everything.
        let victims: BTreeSet<String> =
            every_object(&kept).into_iter().skip(5 - keep_out).collect();
        let done = compact(site.compaction(&manifests(&kept), victims.clone()))
            .await
            .unwrap();
        assert!(done.bytes_written > 0 && !done.backups.is_empty());
        for rewritten in &done.backups {
            assert!(
                rewritten
                    .added
                    .iter()
                    .all(|object| !victims.contains(&object.key))
            );
        }
        assert_restores(&site, &kept).await;
        take_in(&mut kept, &done);
        let named = every_object(&kept);
        assert!(named.is_disjoint(&victims));
        for key in &victims {
            site.delete(key).await;
        }
        assert_restores(&site, &kept).await;
        for kept in &kept {
            let manifest = site.load(&kept.manifest).await.unwrap();
            let mut objects = manifest.objects();
            objects.sort();
            kept.objects.clone().sort();
            let keys = |objects: &[ObjectRef]| -> BTreeSet<(String, u64)> {
                objects.iter().map(|o| (o.key.clone(), o.bytes)).collect()
            };
            assert_eq!(
                keys(&objects),
                keys(&kept.objects),
                "what was reported is what is named"
            );
            crate::verify::verify_objects(&site.stores, &objects)
                .await
                .unwrap();
        }
    }
    assert!(
        every_object(&kept).is_disjoint(&before),
        "at last all was rewritten"
    );
    // A differential on top is one as before.
    let mut files = kept.last().unwrap().files.clone();
    change(&mut files, "base/5/1259", [(3, 9_999_999)]);
    let base = &kept.last().unwrap().manifest;
    let next = site.back_up(&files, Some(base)).await.unwrap();
    assert!(next.stored_bytes < 120_000, "{}", next.stored_bytes);
    assert!(site.restore(&next.manifest).await.unwrap() == files);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_as_living_is_what_lives() {
    let site = Site::new(1);
    let kept = history(&site).await;
    for kept in &kept {
        for object in &kept.objects {
            assert!(object.living.unwrap() <= object.bytes, "{object:?}");
        }
    }
    let first = &kept[0];
    for object in &first.objects {
        assert_eq!(
            object.living,
            Some(object.bytes),
            "a full backup needs all that it wrote"
        );
    }
    let pack = first
        .objects
        .iter()
        .find(|object| object.key.starts_with("packs/"))
        .unwrap();
    let needed = |kept: &Kept| {
        let named = kept.objects.iter().find(|object| object.key == pack.key);
        named.and_then(|object| object.living).unwrap()
    };
    let shares: Vec<u64> = kept.iter().map(needed).collect();
    assert!(
        shares.windows(2).all(|pair| pair[1] < pair[0]),
        "{shares:?}"
    );
    // And after rewriting: each new pack once, what the backups need of it together.
    let mut kept = kept;
    let victims = every_object(&kept);
    let done = compact(site.compaction(&manifests(&kept), victims))
        .await
        .unwrap();
    take_in(&mut kept, &done);
    let newest = kept.last().unwrap();
    let dead: u64 = newest
        .objects
        .iter()
        .filter(|object| object.key.starts_with("packs/"))
        .map(|object| object.bytes - object.living.unwrap())
        .sum();
    assert_eq!(
        dead, 0,
        "what only older backups need lies in packs of its own"
    );
}

/// Every put of an attempt fails in turn: whatever is left then, all backups restore, by what the
/// catalogue knows and by what the vault alone says, and the next attempt does it.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_dies_anywhere_changes_nothing() {
    for refused in ["packs/", "leaves/", "manifest."] {
        let mut site = Site::new(1);
        let mut kept = history(&site).await;
        let victims = every_object(&kept);
        let patient = std::mem::take(&mut site.stores);
        let impatient = patient.iter().cloned();
        site.stores = impatient
            .map(|store| store.with_retry_budget(std::time::Duration::ZERO))
            .collect();
        *site.faulty[0].refuse_puts_of.lock().unwrap() = Some(refused);
        let died = compact(site.compaction(&manifests(&kept), victims.clone())).await;
        assert!(died.is_err(), "{refused}");
        *site.faulty[0].refuse_puts_of.lock().unwrap() = None;
        site.stores = patient;
        assert_restores(&site, &kept).await;
        by_the_vault_alone(&site, &kept).await;
        let done = compact(site.compaction(&manifests(&kept), victims))
            .await
            .unwrap();
        assert_eq!(done.backups.len(), kept.len());
        take_in(&mut kept, &done);
        assert_restores(&site, &kept).await;
        by_the_vault_alone(&site, &kept).await;
    }
}

/// Half of the manifests are out when the attempt dies, and then what it wrote is reclaimed in any order.
#[tokio::test(flavor = "multi_thread")]
async fn leavings_of_an_attempt_can_go_in_any_order() {
    let site = Site::new(1);
    let kept = history(&site).await;
    let done = compact(site.compaction(&manifests(&kept), every_object(&kept)))
        .await
        .unwrap();
    // Nobody took it in. By the vault alone these generations count, as long as they are whole.
    by_the_vault_alone(&site, &kept).await;
    let mut leavings: Vec<String> = done
        .backups
        .iter()
        .flat_map(|rewritten| rewritten.added.iter().map(|object| object.key.clone()))
        .collect();
    leavings.sort();
    leavings.dedup();
    leavings.extend(
        done.backups
            .iter()
            .map(|rewritten| rewritten.manifest.key.clone()),
    );
    for key in leavings {
        site.delete(&key).await;
        by_the_vault_alone(&site, &kept).await;
    }
    assert_restores(&site, &kept).await;
}

async fn by_the_vault_alone(site: &Site, kept: &[Kept]) {
    let found = site.listed().await;
    assert_eq!(found.len(), kept.len());
    for named in found {
        let kept = kept
            .iter()
            .find(|kept| kept.manifest.backup == named.backup)
            .unwrap();
        assert!(site.restore(&named).await.unwrap() == kept.files);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_left_where_it_is() {
    let site = Site::new(2);
    let mut kept = history(&site).await;
    let victims = every_object(&kept);
    let packs: Vec<&String> = victims
        .iter()
        .filter(|key| key.starts_with("packs/"))
        .collect();
    // One pack in one vault: the other vault's copy serves. Another one in both: it stays.
    let (once, twice) = (packs[0].clone(), packs[1].clone());
    let flip = |bytes: &mut Vec<u8>| bytes[200] ^= 1;
    site.faulty[0].tamper(&once, flip).await;
    site.faulty[0].tamper(&twice, flip).await;
    site.faulty[1].tamper(&twice, flip).await;
    let done = compact(site.compaction(&manifests(&kept), victims))
        .await
        .unwrap();
    take_in(&mut kept, &done);
    let named = every_object(&kept);
    assert!(!named.contains(&once) && named.contains(&twice));
    let mut whole = 0;
    for kept in &kept {
        let concerned = kept.objects.iter().any(|object| object.key == twice);
        let restored = site.restore(&kept.manifest).await;
        match concerned {
            true => assert!(is_corrupted(&restored)),
            false => {
                whole += 1;
                assert!(restored.unwrap() == kept.files);
            }
        }
    }
    assert!(whole < kept.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_is_an_error_and_an_order_to_stop_is_obeyed() {
    let site = Site::new(1);
    let kept = history(&site).await;
    let order = site.compaction(&manifests(&kept), every_object(&kept));
    order.stop.cancel();
    assert!(matches!(compact(order).await, Err(Error::Stopped)));
    let order = site.compaction(&manifests(&kept), every_object(&kept));
    let stop = order.stop.clone();
    site.faulty[0].hangs.store(true, Ordering::SeqCst);
    let compacting = tokio::spawn(compact(order));
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    stop.cancel();
    assert!(compacting.is_finished() || matches!(compacting.await.unwrap(), Err(Error::Stopped)));
    site.faulty[0].hangs.store(false, Ordering::SeqCst);
    assert_restores(&site, &kept).await;
}
