use std::sync::atomic::Ordering::SeqCst;

use super::faults::FaultyStore;
use super::*;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn directory_store(dir: &std::path::Path) -> Store {
    Store::open(url::Url::from_directory_path(dir).unwrap().as_str()).unwrap()
}

#[tokio::test]
async fn an_object_is_written_once_and_the_same_content_again_is_success() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, _) = FaultyStore::new();
    for store in [memory, directory_store(&dir.path().join("made/for/us"))] {
        store.put_new("wal/a/1", bytes("rows")).await.unwrap();
        store.put_new("wal/a/1", bytes("rows")).await.unwrap();
        for other in ["other", "row", "rows and more", ""] {
            assert!(
                matches!(
                    store.put_new("wal/a/1", bytes(other)).await,
                    Err(Error::Conflict { .. })
                ),
                "{other}"
            );
        }
        assert_eq!(store.get("wal/a/1").await.unwrap(), bytes("rows"));
        store
            .put_new_parts("wal/a/2", vec![bytes("one"), bytes(""), bytes("two")])
            .await
            .unwrap();
        assert_eq!(store.get("wal/a/2").await.unwrap(), bytes("onetwo"));
    }
}

#[tokio::test]
async fn what_is_not_there_has_a_name_and_deleting_it_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let store = directory_store(dir.path());
    assert!(matches!(store.get("a").await, Err(Error::NotFound { .. })));
    assert!(matches!(store.head("a").await, Err(Error::NotFound { .. })));
    assert!(!store.delete("a").await.unwrap());
    store.put_new("a", bytes("x")).await.unwrap();
    assert!(store.delete("a").await.unwrap());
}

#[tokio::test]
async fn fewer_bytes_than_were_named_is_corruption_not_a_short_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, _) = FaultyStore::new();
    for store in [memory, directory_store(dir.path())] {
        store.put_new("a", bytes("0123456789")).await.unwrap();
        assert_eq!(store.get_range("a", 2..5).await.unwrap(), bytes("234"));
        assert_eq!(store.get_range("a", 5..10).await.unwrap(), bytes("56789"));
        for beyond in [5..11, 10..11, 20..30] {
            let read = store.get_range("a", beyond.clone()).await;
            assert!(matches!(read, Err(Error::Corrupted { .. })), "{beyond:?}");
        }
    }
}

#[tokio::test]
async fn a_listing_gives_keys_in_order_and_from_a_key_on() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, _) = FaultyStore::new();
    for store in [memory, directory_store(dir.path())] {
        for key in ["wal/b/2", "wal/b/1", "wal/b/3", "wal/bb/1", "keys/b/1"] {
            store.put_new(key, bytes("x")).await.unwrap();
        }
        let keys = |found: Vec<ObjectRef>| {
            found
                .into_iter()
                .map(|object| object.key)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            keys(store.list("wal/b/").await.unwrap()),
            ["wal/b/1", "wal/b/2", "wal/b/3"]
        );
        assert_eq!(
            keys(store.list_after("wal/b/", "wal/b/1").await.unwrap()),
            ["wal/b/2", "wal/b/3"]
        );
        assert_eq!(keys(store.list("wal/none/").await.unwrap()), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_a_while_is_waited_for() {
    let (store, faulty) = FaultyStore::new();
    faulty.fail.store(8, SeqCst);
    let begun = tokio::time::Instant::now();
    store.put_new("a", bytes("x")).await.unwrap();
    assert!(begun.elapsed() > Duration::from_secs(5), "it backs off");
    faulty.fail.store(8, SeqCst);
    assert_eq!(store.get("a").await.unwrap(), bytes("x"));
    assert_eq!(
        store.requests(),
        Requests {
            puts: 9,
            gets: 9,
            heads: 1,
            ..Requests::default()
        }
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_is_given_up_after_the_budget() {
    let (store, faulty) = FaultyStore::new();
    faulty.fail.store(u32::MAX, SeqCst);
    let begun = tokio::time::Instant::now();
    let error = store.put_new("a", bytes("x")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.is_retryable()),
        ("ObjectStoreUnavailable", true)
    );
    assert!(
        (60..=95).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_repaired_by_asking_again() {
    let (store, faulty) = FaultyStore::new();
    faulty.lose_answers.store(1, SeqCst);
    store.put_new("a", bytes("x")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), bytes("x"));
}

#[tokio::test]
async fn a_store_that_overwrites_is_refused_when_it_is_registered() {
    let dir = tempfile::tempdir().unwrap();
    let store = directory_store(dir.path());
    store.probe().await.unwrap();
    assert_eq!(
        store.list("probe/").await.unwrap(),
        [],
        "nothing is left behind"
    );

    let (store, faulty) = FaultyStore::new();
    store.probe().await.unwrap();
    faulty.overwrites.store(true, SeqCst);
    assert!(matches!(store.probe().await, Err(Error::StoreOverwrites)));
}

#[tokio::test]
async fn nothing_is_put_into_a_store_before_it_has_proven_itself() {
    let (store, faulty) = FaultyStore::unproven();
    faulty.overwrites.store(true, SeqCst);
    for _ in 0..2 {
        let error = store.put_new("a", bytes("x")).await.unwrap_err();
        assert_eq!(error.code(), "ObjectStoreOverwrites");
        assert_eq!(store.list("").await.unwrap(), [], "nothing was put");
    }
    faulty.overwrites.store(false, SeqCst);
    store.put_new("a", bytes("x")).await.unwrap();
    let before = store.requests().puts;
    let clone = store.clone().with_retry_budget(Duration::from_secs(1));
    clone.put_new("b", bytes("y")).await.unwrap();
    assert_eq!(store.requests().puts - before, 1, "proven once");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_answered_is_given_up() {
    let (store, faulty) = FaultyStore::new();
    faulty.hangs.store(true, SeqCst);
    let begun = tokio::time::Instant::now();
    let error = store.put_new("a", bytes("x")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.is_retryable()),
        ("ObjectStoreUnavailable", true)
    );
    assert_eq!(begun.elapsed().as_secs(), 300);
}

#[tokio::test]
async fn an_object_that_changed_behind_our_back_is_a_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let store = directory_store(dir.path());
    store.put_new("a", bytes("x")).await.unwrap();
    std::fs::write(dir.path().join("a"), "y").unwrap();
    assert!(matches!(
        store.put_new("a", bytes("x")).await,
        Err(Error::Conflict { .. })
    ));
}

#[tokio::test]
async fn the_next_copy_is_asked_when_one_is_missing_or_bad() {
    let stores: Vec<_> = (0..3).map(|_| FaultyStore::new()).collect();
    let all: Vec<Store> = stores.iter().map(|(store, _)| store.clone()).collect();
    put_everywhere(&all, "a", bytes("good")).await.unwrap();
    stores[0].1.remove("a").await;
    stores[1].1.tamper("a", |bytes| bytes[0] = b'f').await;
    let verify = |bytes: Bytes| match &bytes[..] {
        b"good" => Ok(bytes),
        _ => Err(Error::corrupted("a", "not good")),
    };
    assert_eq!(
        get_anywhere(&all, "a", verify).await.unwrap(),
        bytes("good")
    );
    stores[2].1.remove("a").await;
    assert!(matches!(
        get_anywhere(&all, "a", verify).await,
        Err(Error::NotFound { .. } | Error::Corrupted { .. })
    ));
}

#[test]
fn a_store_url_that_is_not_one_is_refused_without_echoing_it() {
    for bad in [
        "",
        "not a url",
        "ftp://host/x",
        "file://host/dir",
        "http://secret@host/",
    ] {
        let error = Store::open(bad).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{bad}");
        assert!(!error.to_string().contains("secret"));
    }
}

#[test]
fn a_directory_is_made_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let vault = dir.path().join("vault");
    directory_store(&vault);
    assert_eq!(
        std::fs::metadata(vault).unwrap().permissions().mode() & 0o777,
        0o700
    );
}
