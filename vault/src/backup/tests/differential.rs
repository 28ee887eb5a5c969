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
        .filter(|object| {
            differential
                .objects
                .iter()
                .any(|other| other.key == object.key)
        })
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

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_of_the_base_costs_an_upload_and_no_more() {
    let site = Site::new(1);
    let files = cluster();
    let full = site.back_up(&files, None).await.unwrap();
    for key in site.keys("packs").await {
        site.faulty[0]
            .tamper(&key, |bytes| {
                let last = bytes.len() - 20;
                bytes[last] ^= 1;
            })
            .await;
    }
    // Whether pages are said to be unchanged or are looked at: without the hashes they count as changed.
    for changes in [
        Changes::Unknown,
        Changes::Only(Arc::new([3].into_iter().collect())),
    ] {
        let next = site
            .back_up_knowing(&files, &full.manifest, |_| changes.clone())
            .await;
        assert!(next.stored_bytes > full.stored_bytes / 2);
        assert_eq!(site.restore(&next.manifest).await.unwrap(), files);
    }
}

/// Pages that differ at the places that both have.
fn differing(before: &[u8], after: &[u8]) -> roaring::RoaringBitmap {
    let pages = before.chunks(PAGE_BYTES).zip(after.chunks(PAGE_BYTES));
    (0u32..)
        .zip(pages)
        .filter(|(_, (before, after))| before != after)
        .map(|(page, _)| page)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_to_be_unchanged_is_not_read() {
    let site = Site::new(1);
    let mut files = cluster();
    let full = site.back_up(&files, None).await.unwrap();
    let before = files.clone();
    let relation = files.get_mut("base/5/1259").unwrap();
    for changed in [0usize, 7, 8, 599] {
        relation[changed * PAGE_BYTES] ^= 0xFF;
    }
    relation.extend(page(70_000));
    // One page is named that did not change, and one file is not what was said: it is taken on trust.
    let only = |path: &str| {
        let mut pages = differing(&before[path], &files[path]);
        pages.insert(300);
        if path == "base/5/2619" {
            pages.clear();
        }
        Changes::Only(Arc::new(pages))
    };
    let next = site.back_up_knowing(&files, &full.manifest, only).await;
    assert_eq!(site.restore(&next.manifest).await.unwrap(), files);
    let puts = site.stores[0].requests().puts;
    site.back_up(&files, Some(&next.manifest)).await.unwrap();
    let puts = site.stores[0].requests().puts - puts;
    assert_eq!(
        puts, 1,
        "a look at every page finds nothing but a manifest to write"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_wrongly_called_unchanged_is_remembered_when_all_are_read() {
    let site = Site::new(1);
    let mut files = cluster();
    let full = site.back_up(&files, None).await.unwrap();
    for changed in [2usize, 130] {
        files.get_mut("base/5/1259").unwrap()[changed * PAGE_BYTES + 9] ^= 1;
    }
    let base = site.base(&full.manifest).await;
    let writer = BackupWriter::new(
        site.stores.clone(),
        site.key.clone(),
        site.attempt(),
        base,
        Courtesy::default(),
    )
    .unwrap();
    let content = &files["base/5/1259"];
    let file = on_disk(content);
    writer
        .add_relation_segment(
            "base/5/1259",
            file,
            content.len() as u64,
            None,
            Changes::Remember,
        )
        .await
        .unwrap();
    writer.settle().await.unwrap();
    let changed = writer.take_changed();
    let pages: Vec<u32> = changed["base/5/1259"].iter().collect();
    assert_eq!(pages, [2, 130]);
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
                let backup = match (&base, history.last()) {
                    // Every second time, only what differs is looked at.
                    (Some(base), Some((_, before))) if history.len() % 2 == 1 => {
                        let before: &Files = before;
                        let only = |path: &str| match before.get(path) {
                            Some(before) => Changes::Only(Arc::new(differing(before, &files[path]))),
                            None => Changes::Unknown,
                        };
                        site.back_up_knowing(&files, base, only).await
                    }
                    _ => site.back_up(&files, base.as_ref()).await.unwrap(),
                };
                base = Some(backup.manifest.clone());
                history.push((backup.manifest, files.clone()));
            }
            for (manifest, files) in history {
                assert!(site.restore(&manifest).await.unwrap() == files);
            }
        });
    }
}
