//! Work that goes at a pace takes what it may, and ends in the middle of a wait when nobody wants it any more.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;

/// For what must happen at some time and is not waited for forever.
const SOON: Duration = Duration::from_secs(60);

/// A byte a second, and no burst left.
async fn standing_still() -> Pace {
    let pace = Pace::of(NonZeroU64::MIN);
    pace.take(1 << 20).await;
    pace
}

impl Site {
    fn courteous(&self, courtesy: Courtesy) -> BackupWriter {
        let (stores, key) = (self.stores.clone(), self.key.clone());
        BackupWriter::new(stores, key, self.attempt(), None, courtesy).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_waits_for_its_pace_reads_nothing_more_once_it_is_given_up() {
    let site = Site::new(1);
    // One burst goes at once; the rest would take a month.
    let writer = site.courteous(Courtesy {
        reading: Pace::of(NonZeroU64::MIN),
        ..Courtesy::default()
    });
    let (seen, mut pages) = mpsc::unbounded_channel();
    let check: PageCheck = Arc::new(move |_: &File, page, _: &mut [u8]| {
        let _ = seen.send(page);
        Ok(())
    });
    let content = relation(1, 512);
    let (file, bytes) = (on_disk(&content), content.len() as u64);
    writer
        .add_relation_segment("base/5/1", file, bytes, Some(check), Changes::Unknown)
        .await
        .unwrap();
    for page in 0..128 {
        assert_eq!(pages.recv().await, Some(page));
    }
    drop(writer);
    // `None`: nobody is left who could read a page.
    let next = tokio::time::timeout(SOON, pages.recv()).await.unwrap();
    assert_eq!(next, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_up_before_its_time_and_nothing_after_it_is_given_up() {
    let site = Site::new(2);
    let writer = site.courteous(Courtesy {
        upload: standing_still().await,
        ..Courtesy::default()
    });
    let content = Bytes::from(relation(1, 20));
    writer.add_bytes(PG_CONTROL, content).await.unwrap();
    let finished = tokio::time::timeout(Duration::from_millis(200), writer.finish(meta())).await;
    assert!(finished.is_err(), "it would have taken days");
    for store in &site.stores {
        assert_eq!(store.list("").await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_that_waits_for_its_pace_stops_when_it_is_told_to() {
    let site = Site::new(1);
    let backup = site.back_up(&cluster(), None).await.unwrap();
    let before = site.stores[0].list("").await.unwrap();
    let objects = backup.objects.iter().map(|object| object.key.clone());
    let mut order = site.compaction(&[&backup.manifest], objects.collect());
    let stop = order.stop.clone();
    order.courtesy = Courtesy {
        upload: standing_still().await,
        low_priority: true,
        ..Courtesy::default()
    };
    let mut rewriting = Box::pin(compact(order));
    let waited = tokio::time::timeout(Duration::from_millis(200), &mut rewriting).await;
    assert!(waited.is_err(), "it would have taken days");
    stop.cancel();
    let stopped = tokio::time::timeout(SOON, rewriting).await.unwrap();
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    assert_eq!(site.stores[0].list("").await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_by_one_slow_worker_is_the_same_backup() {
    let site = Site::new(1);
    let writer = site.courteous(Courtesy {
        reading: Pace::of(NonZeroU64::new(32 << 20).unwrap()),
        upload: Pace::of(NonZeroU64::new(32 << 20).unwrap()),
        workers: std::num::NonZeroUsize::new(1),
        low_priority: true,
    });
    let files = BTreeMap::from([
        (PG_CONTROL.to_owned(), page(1)),
        ("base/5/1".to_owned(), relation(1, 1500)),
        ("base/5/2".to_owned(), relation(2, 7)),
    ]);
    writer.add_dir("base/5").unwrap();
    writer.add_dir("global").unwrap();
    for (path, content) in &files {
        let (file, bytes) = (on_disk(content), content.len() as u64);
        writer.add_file(path, file, bytes).await.unwrap();
    }
    let backup = writer.finish(meta()).await.unwrap();
    let restored = site.restore(&backup.manifest).await.unwrap();
    for (path, content) in &files {
        assert!(restored[path] == *content, "{path}");
    }
}
