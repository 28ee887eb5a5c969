use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_comes_back_byte_for_byte() {
    let site = Site::new(2);
    let files = cluster();
    let backup = site.back_up(&files, None).await.unwrap();
    assert_eq!(site.restore(&backup.manifest).await.unwrap(), files);

    assert_eq!(
        backup.logical_bytes,
        files
            .values()
            .map(|content| content.len() as u64)
            .sum::<u64>()
    );
    assert!(
        backup.stored_bytes < backup.logical_bytes,
        "half of it compresses"
    );
    let manifest = site.load(&backup.manifest).await.unwrap();
    assert_eq!(manifest.meta, meta());
    assert_eq!(manifest.objects(), backup.objects);
    let stored: u64 = backup.objects.iter().map(|object| object.bytes).sum();
    assert_eq!(
        manifest.stored_bytes, stored,
        "a first backup names only what it wrote"
    );
    crate::verify::verify_objects(&site.stores, &backup.objects)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_store_holds_it_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let mut site = Site::new(1);
    site.stores =
        vec![Store::open(url::Url::from_directory_path(dir.path()).unwrap().as_str()).unwrap()];
    let files = cluster();
    let backup = site.back_up(&files, None).await.unwrap();
    assert_eq!(site.restore(&backup.manifest).await.unwrap(), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_small_files_cost_a_handful_of_objects() {
    let site = Site::new(1);
    let mut files = Files::from([(PG_CONTROL.to_owned(), page(1))]);
    for number in 0..1000 {
        files.insert(format!("base/1/{number}"), relation(number, 1));
    }
    let backup = site.back_up(&files, None).await.unwrap();
    assert!(backup.objects.len() <= 4, "{:?}", backup.objects);
    let before = site.stores[0].requests().gets;
    assert_eq!(site.restore(&backup.manifest).await.unwrap(), files);
    let gets = site.stores[0].requests().gets - before;
    assert!(gets <= 20, "{gets} requests to restore them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_more_than_one_gib_has_a_leaf_for_each() {
    let site = Site::new(1);
    let gib = (PAGES_PER_LEAF * PAGE_BYTES) as u64;
    let file = tempfile::tempfile().unwrap();
    file.set_len(gib + 10).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &page(3), gib - PAGE_BYTES as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", gib + 7).unwrap();
    let writer = BackupWriter::new(
        site.stores.clone(),
        site.key.clone(),
        site.attempt(),
        None,
        Courtesy::default(),
    )
    .unwrap();
    writer
        .add_bytes(PG_CONTROL, Bytes::from(page(1)))
        .await
        .unwrap();
    writer.add_file("large", file, gib + 10).await.unwrap();
    let backup = writer.finish(meta()).await.unwrap();
    assert!(
        backup.stored_bytes < 4 << 20,
        "zeros are stored nowhere: {}",
        backup.stored_bytes
    );

    let manifest = site.load(&backup.manifest).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let into = RestoreInto {
        dir: dir.path(),
        tablespaces: None,
        owner: None,
    };
    restore_to(
        into,
        &manifest,
        &site.stores,
        &site.key,
        |_| true,
        |_, _| {},
    )
    .await
    .unwrap();
    let restored = File::open(dir.path().join("large")).unwrap();
    assert_eq!(restored.metadata().unwrap().len(), gib + 10);
    let mut read = vec![0; PAGE_BYTES + 10];
    std::os::unix::fs::FileExt::read_exact_at(&restored, &mut read, gib - PAGE_BYTES as u64)
        .unwrap();
    assert_eq!(read, [page(3), vec![0; 7], b"end".to_vec()].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_file_lost_while_it_was_read_is_zeros() {
    let site = Site::new(1);
    let writer = BackupWriter::new(
        site.stores.clone(),
        site.key.clone(),
        site.attempt(),
        None,
        Courtesy::default(),
    )
    .unwrap();
    writer
        .add_bytes(PG_CONTROL, Bytes::from(page(1)))
        .await
        .unwrap();
    let content = relation(1, 2);
    writer
        .add_relation_segment(
            "base/5/1",
            on_disk(&content),
            4 * PAGE_BYTES as u64,
            None,
            Changes::Unknown,
        )
        .await
        .unwrap();
    let backup = writer.finish(meta()).await.unwrap();
    let restored = site.restore(&backup.manifest).await.unwrap();
    assert_eq!(
        restored["base/5/1"],
        [content, vec![0; 2 * PAGE_BYTES]].concat()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_page_is_shown_to_the_check_which_may_read_it_again() {
    let site = Site::new(1);
    let writer = BackupWriter::new(
        site.stores.clone(),
        site.key.clone(),
        site.attempt(),
        None,
        Courtesy::default(),
    )
    .unwrap();
    writer
        .add_bytes(PG_CONTROL, Bytes::from(page(1)))
        .await
        .unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let counter = seen.clone();
    let check: PageCheck = Arc::new(move |_file, block, page| {
        counter.fetch_add(1, Ordering::SeqCst);
        if block == 130 {
            page.fill(0x55);
        }
        Ok(())
    });
    let content = relation(1, 200);
    writer
        .add_relation_segment(
            "base/5/1",
            on_disk(&content),
            content.len() as u64,
            Some(check),
            Changes::Unknown,
        )
        .await
        .unwrap();
    let backup = writer.finish(meta()).await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 200);
    let restored = site.restore(&backup.manifest).await.unwrap();
    assert_eq!(
        restored["base/5/1"][130 * PAGE_BYTES..131 * PAGE_BYTES],
        [0x55; PAGE_BYTES]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_can_read_what_was_restored_and_progress_reaches_the_end() {
    let site = Site::new(1);
    let backup = site.back_up(&cluster(), None).await.unwrap();
    let manifest = site.load(&backup.manifest).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (data, spaces) = (
        dir.path().join("x.building"),
        dir.path().join("x.building/spaces"),
    );
    std::fs::create_dir(&data).unwrap();
    let last = AtomicU64::new(0);
    let into = RestoreInto {
        dir: &data,
        tablespaces: Some(TablespaceRoot {
            write_below: &spaces,
            link_to: Path::new("/final/spaces"),
        }),
        owner: None,
    };
    restore_to(
        into,
        &manifest,
        &site.stores,
        &site.key,
        |path| path != "PG_VERSION",
        |done, total| {
            assert!(done <= total);
            last.fetch_max(done, Ordering::SeqCst);
        },
    )
    .await
    .unwrap();
    assert_eq!(last.into_inner(), backup.logical_bytes - 3);
    assert!(!data.join("PG_VERSION").exists());
    let mode = |path: &str| {
        std::fs::metadata(data.join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode("base/5"), mode("base/5/1259"), mode("pg_wal")),
        (0o700, 0o600, 0o700)
    );
    let link = std::fs::read_link(data.join("pg_tblspc/16385")).unwrap();
    assert_eq!(link, Path::new("/final/spaces/16385"));
    assert!(spaces.join("16385/PG_15_202209061/5/16500").exists());

    let again = restore_to(
        into,
        &manifest,
        &site.stores,
        &site.key,
        |_| true,
        |_, _| {},
    )
    .await;
    assert!(
        matches!(again, Err(Error::Refused { .. })),
        "the directory is not empty"
    );
}

// FLX-010
#[tokio::test(flavor = "multi_thread")]
async fn no_plaintext_and_no_name_reaches_the_store() {
    let site = Site::new(1);
    let mut files = cluster();
    let marker = b"a-marker-of-64-bytes-that-is-in-the-data-and-nowhere-in-the-vault";
    files.insert("base/5/99".to_owned(), marker.repeat(1000));
    let mut keys = Vec::new();
    let backup = site.back_up(&files, None).await.unwrap();
    for prefix in ["packs", "leaves", "backups"] {
        keys.extend(site.keys(prefix).await);
    }
    assert!(keys.len() >= 3 && keys.contains(&backup.manifest.key));
    for key in keys {
        assert!(!key.contains("pg1"), "{key}");
        let bytes = site.faulty[0].bytes(&key).await;
        for secret in [
            &marker[..20],
            b"row 1000 of a table",
            b"base/5/1259",
            b"server_name",
        ] {
            assert!(
                !bytes.windows(secret.len()).any(|window| window == secret),
                "{key}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_dropped_stops_reading_and_leaves_nothing_visible() {
    struct Ended(Option<tokio::sync::oneshot::Sender<()>>);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.take().map(|ended| ended.send(()));
        }
    }
    let site = Site::new(1);
    let attempt = site.attempt();
    let writer = BackupWriter::new(
        site.stores.clone(),
        site.key.clone(),
        attempt,
        None,
        Courtesy::default(),
    )
    .unwrap();
    let (reading, is_reading) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let (ended, has_ended) = tokio::sync::oneshot::channel();
    let state = std::sync::Mutex::new((reading, may_go_on, Ended(Some(ended))));
    let seen = Arc::new(AtomicU64::new(0));
    let counter = seen.clone();
    let check: PageCheck = Arc::new(move |_file, _block, _page| {
        if counter.fetch_add(1, Ordering::SeqCst) == 0 {
            let state = state.lock().unwrap();
            state.0.send(()).unwrap();
            let _ = state.1.recv();
        }
        Ok(())
    });
    let file = tempfile::tempfile().unwrap();
    let bytes = 8_000 * PAGE_BYTES as u64;
    file.set_len(bytes).unwrap();
    writer
        .add_relation_segment("base/5/1", file, bytes, Some(check), Changes::Unknown)
        .await
        .unwrap();
    tokio::task::spawn_blocking(move || is_reading.recv().unwrap())
        .await
        .unwrap();
    drop(writer);
    drop(go_on);
    has_ended.await.unwrap();
    assert_eq!(
        seen.load(Ordering::SeqCst),
        PAGES_PER_FRAME as u64,
        "it ended with the group in hand"
    );
    assert_eq!(
        find_manifest(&site.stores, &site.key, site.incarnation, attempt.backup)
            .await
            .unwrap(),
        None
    );
}

/// What a frozen copy is cloned into is what a restore from the vault writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_somebody_else_fills_has_the_same_files_and_directories() {
    let site = Site::new(1);
    let files = cluster();
    let backup = site.back_up(&files, None).await.unwrap();
    let manifest = site.load(&backup.manifest).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (data, spaces) = (dir.path().join("data"), dir.path().join("spaces"));
    std::fs::create_dir(&data).unwrap();
    let into = RestoreInto {
        dir: &data,
        tablespaces: Some(TablespaceRoot {
            write_below: &spaces,
            link_to: &spaces,
        }),
        owner: None,
    };
    let before = site.stores[0].requests();
    lay_out(into, &manifest, |file, mut empty| {
        assert_eq!(empty.metadata().unwrap().len(), 0);
        empty.write_all(&files[&file.path]).unwrap();
        Ok::<_, Error>(())
    })
    .unwrap();
    assert_eq!(site.stores[0].requests(), before);
    let mut found = Files::new();
    read_tree(&data, "", &mut found);
    let mut expected = files.clone();
    expected.remove(PG_CONTROL);
    assert_eq!(found, expected);
    assert!(data.join("pg_wal").is_dir() && data.join("global").is_dir());
    let mode = std::fs::metadata(data.join("base/5/1259")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    let again = lay_out(into, &manifest, |_, _| Ok::<_, Error>(()));
    assert!(matches!(again, Err(Error::Refused { .. })), "not empty");
}
