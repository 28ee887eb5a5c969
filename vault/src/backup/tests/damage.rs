use super::*;
use crate::seal::{self, Class};

/// Each object of a backup, and what a restore makes of it when the bytes were changed so.
async fn every_object_damaged(change: impl Fn(&mut Vec<u8>) + Copy) {
    let site = Site::new(1);
    let files = cluster();
    let backup = site.back_up(&files, None).await.unwrap();
    let mut keys: Vec<String> = backup
        .objects
        .iter()
        .map(|object| object.key.clone())
        .collect();
    keys.push(backup.manifest.key.clone());
    for key in keys {
        let good = site.faulty[0].bytes(&key).await;
        site.faulty[0].tamper(&key, change).await;
        let restored = site.restore(&backup.manifest).await;
        assert!(is_corrupted(&restored), "{key}: {:?}", restored.err());
        site.faulty[0]
            .tamper(&key, |bytes| *bytes = good.to_vec())
            .await;
    }
    assert_eq!(site.restore(&backup.manifest).await.unwrap(), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flipped_bit_in_any_object_is_a_named_error() {
    every_object_damaged(|bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_object_is_a_named_error() {
    // A pack ends with its index, which a restore has no need of.
    every_object_damaged(|bytes| bytes.truncate(bytes.len() * 3 / 4)).await;
    every_object_damaged(|bytes| bytes.truncate(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_object_is_a_named_error_and_not_a_shorter_restore() {
    let site = Site::new(1);
    let backup = site.back_up(&cluster(), None).await.unwrap();
    site.faulty[0].remove(&backup.objects[0].key).await;
    let error = site.restore(&backup.manifest).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }));
    assert_eq!(
        (error.code(), error.is_retryable()),
        ("BackupCorrupted", false)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_frames_and_another_servers_objects_are_noticed() {
    let site = Site::new(1);
    let mut files = cluster();
    let mut noise = vec![0; 2 * PAGES_PER_FRAME * PAGE_BYTES];
    crate::key::random(&mut noise).unwrap();
    files.insert("base/5/noise".to_owned(), noise);
    let backup = site.back_up(&files, None).await.unwrap();
    let pack = &site.keys("packs").await[0];
    let good = site.faulty[0].bytes(pack).await;

    // Two frames of one length change places: noise does not compress.
    let frames = frames_of(&good);
    let (a, b) = frames
        .iter()
        .enumerate()
        .find_map(|(index, a)| {
            frames[index + 1..]
                .iter()
                .find(|b| b.len() == a.len())
                .map(|b| (a.clone(), b.clone()))
        })
        .expect("two frames of noise have one length");
    site.faulty[0]
        .tamper(pack, |bytes| {
            let first = bytes[a.clone()].to_vec();
            bytes.copy_within(b.clone(), a.start);
            bytes[b.clone()].copy_from_slice(&first);
        })
        .await;
    assert!(is_corrupted(&site.restore(&backup.manifest).await));

    // Another server's pack, and another attempt's of the same server, under this key.
    let theirs = Site::new(1);
    theirs.back_up(&cluster(), None).await.unwrap();
    let foreign = theirs.faulty[0].bytes(&theirs.keys("packs").await[0]).await;
    site.faulty[0]
        .tamper(pack, |bytes| *bytes = foreign.to_vec())
        .await;
    assert!(is_corrupted(&site.restore(&backup.manifest).await));
    let again = site.back_up(&cluster(), None).await.unwrap();
    let of_again = again
        .objects
        .iter()
        .find(|object| object.key.starts_with("packs"))
        .unwrap();
    let ours = site.faulty[0].bytes(&of_again.key).await;
    site.faulty[0]
        .tamper(pack, |bytes| *bytes = ours.to_vec())
        .await;
    assert!(is_corrupted(&site.restore(&backup.manifest).await));
}

/// The byte ranges of a pack's frames, by their headers.
fn frames_of(pack: &[u8]) -> Vec<std::ops::Range<usize>> {
    use crate::seal::frame::{FRAME_HEADER_BYTES, FRAME_OVERHEAD};
    let (mut at, mut frames) = (seal::SEALED_LEN_NEEDS, Vec::new());
    while at + FRAME_HEADER_BYTES < pack.len() {
        let payload = u32::from_le_bytes(pack[at + 12..at + 16].try_into().unwrap()) as usize;
        frames.push(at..at + FRAME_OVERHEAD + payload);
        at += FRAME_OVERHEAD + payload;
    }
    assert_eq!(at, pack.len());
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_copy_is_taken_wherever_the_first_is_bad() {
    let site = Site::new(2);
    let files = cluster();
    let backup = site.back_up(&files, None).await.unwrap();
    let mut keys: Vec<String> = backup
        .objects
        .iter()
        .map(|object| object.key.clone())
        .collect();
    keys.push(backup.manifest.key.clone());
    for (number, key) in keys.iter().enumerate() {
        match number % 2 {
            0 => site.faulty[0].remove(key).await,
            _ => {
                site.faulty[0]
                    .tamper(key, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1))
                    .await
            }
        }
    }
    assert_eq!(site.restore(&backup.manifest).await.unwrap(), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_path_is_refused_by_the_writer_and_by_the_reader() {
    let site = Site::new(1);
    let writer = BackupWriter::new(
        site.stores.clone(),
        site.key.clone(),
        site.attempt(),
        None,
        Courtesy::default(),
    )
    .unwrap();
    for hostile in ["../outside", "/etc/passwd", "base/../../x", ""] {
        let added = writer.add_bytes(hostile, Bytes::new()).await;
        assert!(matches!(added, Err(Error::Refused { .. })), "{hostile:?}");
    }
    drop(writer);

    let backup = site.back_up(&cluster(), None).await.unwrap();
    let good = serde_json::to_value(site.load(&backup.manifest).await.unwrap()).unwrap();
    for (pointer, hostile) in [
        ("/files/0/path", "../outside"),
        ("/files/0/path", "/etc/cron.d/x"),
        ("/files/1/path", good["files"][0]["path"].as_str().unwrap()),
        ("/files/0/path", "pg_tblspc/999/x"),
        ("/directories/0", "base/../.."),
    ] {
        let mut json = good.clone();
        *json.pointer_mut(pointer).unwrap() = hostile.into();
        let key = &backup.manifest.key;
        let sealed = seal::seal(
            &site.key,
            Class::Manifest,
            key,
            &serde_json::to_vec(&json).unwrap(),
        )
        .unwrap();
        let opened = Manifest::open(
            &site.key,
            site.incarnation,
            backup.manifest.backup,
            1,
            &sealed,
        );
        assert!(
            matches!(opened, Err(Error::Refused { .. } | Error::Corrupted { .. })),
            "{pointer} {hostile}"
        );
    }
    let mut json = good;
    json["files"][5]["bytes"] = (1u64 << 50).into();
    let sealed = seal::seal(
        &site.key,
        Class::Manifest,
        &backup.manifest.key,
        &serde_json::to_vec(&json).unwrap(),
    )
    .unwrap();
    assert!(is_corrupted(&Manifest::open(
        &site.key,
        site.incarnation,
        backup.manifest.backup,
        1,
        &sealed
    )));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_visible_until_the_manifest_is_there() {
    let mut site = Site::new(1);
    site.stores = vec![
        site.stores[0]
            .clone()
            .with_retry_budget(std::time::Duration::ZERO),
    ];
    let files = cluster();
    let attempt = site.attempt();
    *site.faulty[0].refuse_puts_of.lock().unwrap() = Some("manifest");
    let error = site
        .back_up_as(attempt, &files, None, |_| Changes::Unknown)
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.is_retryable()),
        ("ObjectStoreUnavailable", true)
    );
    assert!(!site.keys("packs").await.is_empty(), "the packs are there");
    assert_eq!(site.listed().await.len(), 0);
    assert_eq!(
        find_manifest(&site.stores, &site.key, site.incarnation, attempt.backup)
            .await
            .unwrap(),
        None
    );

    *site.faulty[0].refuse_puts_of.lock().unwrap() = None;
    let next = Attempt {
        epoch: attempt.epoch + 1,
        ..attempt
    };
    let backup = site
        .back_up_as(next, &files, None, |_| Changes::Unknown)
        .await
        .unwrap();
    assert_eq!(site.restore(&backup.manifest).await.unwrap(), files);
    let leavings = format!("{}.{}", attempt.job, attempt.epoch);
    assert!(
        backup
            .objects
            .iter()
            .all(|object| !object.key.contains(&leavings))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_ends_the_backup_with_its_name() {
    let mut site = Site::new(1);
    site.stores = vec![
        site.stores[0]
            .clone()
            .with_retry_budget(std::time::Duration::ZERO),
    ];
    *site.faulty[0].refuse_puts_of.lock().unwrap() = Some("packs");
    let mut files = cluster();
    for number in 0..6 {
        files.insert(
            format!("base/9/{number}"),
            relation(1_000_000 + number * 10_000, 1000),
        );
    }
    let error = site.back_up(&files, None).await.unwrap_err();
    assert_eq!(error.code(), "ObjectStoreUnavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_manifest_is_adopted_and_completed_in_every_vault() {
    let site = Site::new(2);
    let attempt = site.attempt();
    let backup = site
        .back_up_as(attempt, &cluster(), None, |_| Changes::Unknown)
        .await
        .unwrap();
    site.faulty[1].remove(&backup.manifest.key).await;
    let adopted = find_manifest(&site.stores, &site.key, site.incarnation, attempt.backup)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(adopted, backup);
    assert_eq!(
        site.faulty[1].bytes(&backup.manifest.key).await,
        site.faulty[0].bytes(&backup.manifest.key).await
    );

    let other = Attempt {
        epoch: attempt.epoch + 1,
        ..attempt
    };
    let late = site
        .back_up_as(other, &cluster(), None, |_| Changes::Unknown)
        .await
        .unwrap();
    assert_eq!(late, backup, "one backup has one manifest of a generation");

    site.faulty[0].remove(&backup.objects[0].key).await;
    let error = find_manifest(&site.stores, &site.key, site.incarnation, attempt.backup).await;
    assert!(matches!(error, Err(Error::NotFound { .. })), "{error:?}");
    site.faulty[1]
        .tamper(&backup.manifest.key, |bytes| bytes[100] ^= 1)
        .await;
    site.faulty[0].remove(&backup.manifest.key).await;
    let third = Attempt {
        epoch: attempt.epoch + 2,
        ..attempt
    };
    let error = site
        .back_up_as(third, &cluster(), None, |_| Changes::Unknown)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "BackupConflict", "one vault has another one");
}

#[test]
fn a_conflict_says_what_it_is_about() {
    let code = |key: &str| {
        let key = key.to_owned();
        Error::Conflict { key }.code()
    };
    assert_eq!(code("wal/a/00000001/0-1"), "WalConflict");
    assert_eq!(code("backups/a/b/manifest.1"), "BackupConflict");
    assert_eq!(code("packs/a/b.1/0"), "BackupConflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_panics_ends_the_backup_and_nobody_waits_for_it() {
    let site = Site::new(1);
    let writer = BackupWriter::new(
        site.stores.clone(),
        site.key.clone(),
        site.attempt(),
        None,
        Courtesy::default(),
    )
    .unwrap();
    let check: PageCheck = Arc::new(|_, _, _| panic!("a bug"));
    let content = relation(1, 1);
    let bytes = content.len() as u64;
    writer
        .add_relation_segment(
            "base/5/1",
            on_disk(&content),
            bytes,
            Some(check),
            Changes::Unknown,
        )
        .await
        .unwrap();
    let settled = tokio::time::timeout(std::time::Duration::from_secs(60), writer.settle());
    let error = settled.await.expect("in time").unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rescan_lists_only_what_is_whole() {
    let site = Site::new(1);
    let first = site.back_up(&cluster(), None).await.unwrap();
    let second = site.back_up(&cluster(), None).await.unwrap();
    assert_eq!(
        site.listed().await,
        [first.manifest.clone(), second.manifest]
    );
    site.faulty[0].remove(&first.objects[0].key).await;
    assert_eq!(site.listed().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_key_is_made_once_for_an_incarnation() {
    let site = Site::new(2);
    let ring = crate::KeyRing::from_keys([("1".to_owned(), [1; 32])]).unwrap();
    let establish = || crate::key::establish_data_key(&site.stores, &ring, site.incarnation);
    let (key, wrapped) = establish().await.unwrap();
    let (again, same) = establish().await.unwrap();
    assert_eq!((again.id(), same), (key.id(), wrapped.clone()));
    // An attempt that died after the first vault.
    let place = crate::layout::wrapped_key(site.incarnation, "1").unwrap();
    site.faulty[1].remove(&place).await;
    assert_eq!(establish().await.unwrap().0.id(), key.id());
    assert_eq!(
        site.faulty[1].bytes(&place).await,
        site.faulty[0].bytes(&place).await
    );

    let stranger = crate::KeyRing::from_keys([("2".to_owned(), [2; 32])]).unwrap();
    let refused = crate::key::establish_data_key(&site.stores, &stranger, site.incarnation).await;
    assert!(matches!(refused, Err(Error::KeyUnavailable { version }) if version == "1"));
}
