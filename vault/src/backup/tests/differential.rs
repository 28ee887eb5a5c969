use proptest::prelude::*;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_differential_stores_what_changed_and_restores_by_itself() {
    let site = Site::new(2);
    let mut files = cluster();
    let full = site.back_up(&files, None).await.unwrap();
    let before = files.clone();

    for changed in [3, 4, 600] {
        let at = changed * PAGE_BYTES;
        files.get_mut("base/5/1259").unwrap()[at..at + PAGE_BYTES]
            .copy_from_slice(&page(90_000 + changed as u64));
    }
    let differential = site.back_up(&files, Some(&full.manifest)).await.unwrap();
    assert!(
        differential.stored_bytes < full.stored_bytes / 20,
        "{} bytes",
        differential.stored_bytes
    );
    assert_eq!(differential.logical_bytes, full.logical_bytes);
    assert_eq!(site.restore(&differential.manifest).await.unwrap(), files);
    assert_eq!(
        site.restore(&full.manifest).await.unwrap(),
        before,
        "the first one is as it was"
    );
    // Both need the first one's packs, and say so.
    let shared = full
        .objects
        .iter()
        .filter(|object| differential.objects.contains(object))
        .count();
    assert!(shared >= 1 && differential.objects.len() > shared);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_segment_names_its_leaf_again() {
    let site = Site::new(1);
    let mut files = cluster();
    let full = site.back_up(&files, None).await.unwrap();
    files.get_mut("base/5/2619").unwrap()[0] ^= 1;
    let differential = site.back_up(&files, Some(&full.manifest)).await.unwrap();

    let (old, new) = (
        site.load(&full.manifest).await.unwrap(),
        site.load(&differential.manifest).await.unwrap(),
    );
    for (before, after) in old.files().iter().zip(new.files()) {
        assert_eq!(before.path, after.path);
        let places = |manifest: &Manifest, file: &FileEntry| {
            file.leaves
                .iter()
                .map(|leaf| (manifest.leaf_object(*leaf), leaf.1))
                .collect::<Vec<_>>()
        };
        let same = places(&old, before) == places(&new, after);
        assert_eq!(same, before.path != "base/5/2619", "{}", before.path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_what_did_not_change_writes_a_manifest_and_nothing_else() {
    let site = Site::new(1);
    let files = cluster();
    let full = site.back_up(&files, None).await.unwrap();
    let puts = site.stores[0].requests().puts;
    let again = site.back_up(&files, Some(&full.manifest)).await.unwrap();
    assert_eq!(site.stores[0].requests().puts - puts, 1);
    assert_eq!(again.objects, full.objects);
    assert_eq!(site.restore(&again.manifest).await.unwrap(), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_grow_shrink_come_and_go_are_right_in_every_generation() {
    let site = Site::new(1);
    let mut files = cluster();
    let mut backups = vec![(site.back_up(&files, None).await.unwrap(), files.clone())];
    for round in 0..5u64 {
        files
            .get_mut("base/5/1259")
            .unwrap()
            .truncate(PAGE_BYTES * (400 - round as usize * 50));
        files
            .get_mut("base/5/2619")
            .unwrap()
            .extend(relation(70_000 + round, 150));
        files.get_mut("base/5/16400").unwrap().extend(page(round));
        files.insert(
            format!("base/5/new{round}"),
            relation(80_000 + round * 100, 30),
        );
        files.remove(&format!("base/1/{round}"));
        let base = &backups.last().unwrap().0.manifest;
        let next = site.back_up(&files, Some(base)).await.unwrap();
        backups.push((next, files.clone()));
    }
    for (backup, files) in backups {
        assert!(site.restore(&backup.manifest).await.unwrap() == files);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_lacks_an_object_or_has_another_key_is_no_base() {
    let site = Site::new(2);
    let full = site.back_up(&cluster(), None).await.unwrap();
    assert!(site.base(&full.manifest).await.is_some());
    let other = Site {
        key: DataKey::generate().unwrap(),
        stores: site.stores.clone(),
        ..Site::new(1)
    };
    let other = Site {
        incarnation: site.incarnation,
        ..other
    };
    assert!(other.base(&full.manifest).await.is_none());
    site.faulty[1].remove(&full.objects[0].key).await;
    assert!(
        site.base(&full.manifest).await.is_none(),
        "one vault lacks an object"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_leaf_of_the_base_costs_an_upload_and_no_more() {
    let site = Site::new(1);
    let files = cluster();
    let full = site.back_up(&files, None).await.unwrap();
    for key in site.keys("leaves").await {
        site.faulty[0].tamper(&key, |bytes| bytes[200] ^= 1).await;
    }
    let next = site.back_up(&files, Some(&full.manifest)).await.unwrap();
    assert_eq!(site.restore(&next.manifest).await.unwrap(), files);
    assert!(is_corrupted(&site.restore(&full.manifest).await));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_history_of_changes_restores_every_generation(
        rounds in proptest::collection::vec(
            proptest::collection::vec((0usize..4, 0usize..300, any::<u16>()), 0..30),
            1..5,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let site = Site::new(1);
            let mut files = Files::from([(PG_CONTROL.to_owned(), page(1))]);
            let mut base: Option<ManifestRef> = None;
            let mut history = Vec::new();
            for round in rounds {
                for (file, at, what) in round {
                    let content = files.entry(format!("base/5/{file}")).or_default();
                    match what % 8 {
                        0 => content.truncate(at * 100),
                        1 => content.resize(content.len().max(at * PAGE_BYTES), 0),
                        _ => {
                            content.resize(content.len().max((at + 1) * PAGE_BYTES), 0);
                            content[at * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(&page(u64::from(what)));
                        }
                    }
                }
                let backup = site.back_up(&files, base.as_ref()).await.unwrap();
                base = Some(backup.manifest.clone());
                history.push((backup.manifest, files.clone()));
            }
            for (manifest, files) in history {
                assert!(site.restore(&manifest).await.unwrap() == files);
            }
        });
    }
}
