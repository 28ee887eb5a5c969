//! Writing a backup. The agent feeds files; workers compare, seal and append; full packs go to every
//! vault; the manifest comes last and makes all of it visible (DESIGN §3.1, §3.4).
//!
//! Twice: another attempt has another epoch and other keys. Half: without a manifest nothing of it
//! is a backup; the leavings carry job and epoch in their keys, and a prune finds them by those.
//! Dropping a writer stops it.
//! Memory: 4 MiB for each worker, at most five packs of 8 MiB, leaves in the making, 20 MiB of the base's
//! leaves and indexes – whatever the size of the database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use holdfast_domain::job::{ManifestRef, ObjectRef};
use roaring::RoaringBitmap;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::base::{BaseIndex, BaseLeaf};
use super::index::PackIndex;
use super::leaf::{FrameAt, Leaf, PackId};
use super::manifest::{
    Contents, FileEntry, LeafAt, Manifest, ManifestMeta, NamedPack, Tablespace, find_manifest,
};
use super::pack::{Pack, PackAppender, Stored, upload};
use super::part::{Changes, LeafSlot, PageCheck, Part, Source};
use super::read::lock;
use super::segment::{Task, Worker};
use super::{Attempt, PAGE_BYTES, PAGES_PER_LEAF, PageHasher, path};
use crate::courtesy::{self, Courtesy};
use crate::key::DataKey;
use crate::pace::Pace;
use crate::seal::Class;
use crate::seal::frame::FrameCipher;
use crate::store::{Store, put_everywhere};
use crate::{Error, Result, layout};

/// What a published backup is.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedBackup {
    pub manifest: ManifestRef,
    /// Every pack and leaf object that it needs, those of earlier backups included.
    pub objects: Vec<ObjectRef>,
    /// Bytes of the data directory that it describes.
    pub logical_bytes: u64,
    /// Bytes that it added to the store, its manifest included.
    pub stored_bytes: u64,
    pub meta: ManifestMeta,
}

/// How far a backup is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriterProgress {
    /// Of the files added so far, what is done with: read and compared, or known to be unchanged.
    pub bytes_done: u64,
    /// What was really read for that.
    pub bytes_read: u64,
    pub stored_bytes: u64,
}

pub struct BackupWriter {
    stores: Vec<Store>,
    data_key: DataKey,
    attempt: Attempt,
    shared: Arc<Shared>,
    tasks: Option<mpsc::Sender<Task>>,
    workers: Vec<oneshot::Receiver<()>>,
    uploader: Option<JoinHandle<Result<Uploaded>>>,
    directories: Mutex<BTreeSet<String>>,
    tablespaces: Mutex<BTreeMap<u32, String>>,
}

/// The packs that are in the stores.
type Uploaded = Vec<(PackId, Stored)>;

/// What workers share.
pub(crate) struct Shared {
    pub hasher: PageHasher,
    pub pages: PackAppender,
    pub leaves: PackAppender,
    bytes_done: AtomicU64,
    bytes_read: AtomicU64,
    stripes_added: AtomicU64,
    stripes_done: AtomicU64,
    /// A stripe is done with, or the work stopped.
    turned: Notify,
    /// Pages that differ from the base's, by file, of files whose changes are to be remembered.
    changed: Mutex<HashMap<Arc<str>, RoaringBitmap>>,
    stored_bytes: AtomicU64,
    base: Option<Arc<BaseIndex>>,
    /// How fast files may be read.
    reading: Pace,
    runtime: Handle,
    stopped: CancellationToken,
    /// The first thing that went wrong.
    failure: Mutex<Option<Error>>,
    named: Mutex<Named>,
}

/// What the manifest will name.
#[derive(Default)]
struct Named {
    files: Vec<NamedFile>,
    /// How many pages of each.
    packs: BTreeMap<PackId, u32>,
}

struct NamedFile {
    path: String,
    bytes: u64,
    leaves: Vec<Option<FrameAt>>,
}

impl BackupWriter {
    /// Starts the workers. Runs in a tokio runtime.
    ///
    /// # Errors
    /// No random bytes, or no thread, can be had.
    pub fn new(
        stores: Vec<Store>,
        data_key: DataKey,
        attempt: Attempt,
        base: Option<BaseIndex>,
        courtesy: Courtesy,
    ) -> Result<Self> {
        let Attempt {
            incarnation,
            job,
            epoch,
            ..
        } = attempt;
        let (uploads, packs) = mpsc::channel(1);
        let cipher = |class| FrameCipher::create(&data_key, class, incarnation, job, epoch);
        let shared = Arc::new(Shared {
            hasher: PageHasher::new(&data_key),
            pages: PackAppender::of_pages(cipher(Class::Pack)?, uploads.clone(), move |number| {
                layout::pack(incarnation, job, epoch, number)
            })?,
            leaves: PackAppender::of_leaves(cipher(Class::Leaves)?, uploads, move |number| {
                layout::leaves(incarnation, job, epoch, number)
            })?,
            bytes_done: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            stripes_added: AtomicU64::new(0),
            stripes_done: AtomicU64::new(0),
            turned: Notify::new(),
            changed: Mutex::default(),
            stored_bytes: AtomicU64::new(0),
            base: base.map(Arc::new),
            reading: courtesy.reading.clone(),
            runtime: Handle::current(),
            stopped: CancellationToken::new(),
            failure: Mutex::default(),
            named: Mutex::default(),
        });
        let uploader = tokio::spawn(put_packs(
            shared.clone(),
            stores.clone(),
            courtesy.upload.clone(),
            packs,
        ));
        let count = courtesy.workers();
        let (tasks, queue) = mpsc::channel::<Task>(2 * count);
        let queue = Arc::new(Mutex::new(queue));
        let mut writer = Self {
            stores,
            data_key,
            attempt,
            shared,
            tasks: Some(tasks),
            workers: Vec::with_capacity(count),
            uploader: Some(uploader),
            directories: Mutex::default(),
            tablespaces: Mutex::default(),
        };
        for _ in 0..count {
            let (shared, queue) = (writer.shared.clone(), queue.clone());
            let worker = courtesy.spawn(move || work(&shared, &queue))?;
            writer.workers.push(worker);
        }
        Ok(writer)
    }

    /// A relation segment, or any file whose pages the agent wants to look at as they are read.
    pub async fn add_relation_segment(
        &self,
        path: &str,
        file: File,
        bytes: u64,
        check: Option<PageCheck>,
        changes: Changes,
    ) -> Result<()> {
        self.add(path, Source::File(file), bytes, check, changes)
            .await
    }

    /// A file as it is, of the length it had when it was opened.
    pub async fn add_file(&self, path: &str, file: File, bytes: u64) -> Result<()> {
        self.add(path, Source::File(file), bytes, None, Changes::Unknown)
            .await
    }

    /// A file whose content was read already.
    pub async fn add_bytes(&self, path: &str, content: Bytes) -> Result<()> {
        let bytes = content.len() as u64;
        self.add(path, Source::Bytes(content), bytes, None, Changes::Unknown)
            .await
    }

    pub fn add_dir(&self, path: &str) -> Result<()> {
        path::check(path)?;
        lock(&self.directories).insert(path.to_owned());
        Ok(())
    }

    /// A tablespace; its files come as `pg_tblspc/{oid}/…`.
    pub fn add_tablespace(&self, oid: u32, location: &str) {
        lock(&self.tablespaces).insert(oid, location.to_owned());
    }

    #[must_use]
    pub fn progress(&self) -> WriterProgress {
        WriterProgress {
            bytes_done: self.shared.bytes_done.load(Ordering::Relaxed),
            bytes_read: self.shared.bytes_read.load(Ordering::Relaxed),
            stored_bytes: self.shared.stored_bytes.load(Ordering::Relaxed),
        }
    }

    /// Pages found to differ from the base's, by file, of files added with [`Changes::Remember`].
    /// Whole after [`Self::settle`].
    #[must_use]
    pub fn take_changed(&self) -> HashMap<Arc<str>, RoaringBitmap> {
        std::mem::take(&mut lock(&self.shared.changed))
    }

    async fn add(
        &self,
        path: &str,
        source: Source,
        bytes: u64,
        check: Option<PageCheck>,
        changes: Changes,
    ) -> Result<()> {
        path::check(path)?;
        let part_bytes = (PAGE_BYTES * PAGES_PER_LEAF) as u64;
        let parts = bytes.div_ceil(part_bytes) as usize;
        let file = {
            let mut named = lock(&self.shared.named);
            named.files.push(NamedFile {
                path: path.to_owned(),
                bytes,
                leaves: vec![None; parts],
            });
            named.files.len() - 1
        };
        let (path, source): (Arc<str>, _) = (path.into(), Arc::new(source));
        for part in 0..parts {
            let start = part as u64 * part_bytes;
            let part = Arc::new(Part::new(
                LeafSlot { file, part },
                path.clone(),
                source.clone(),
                start,
                (bytes - start).min(part_bytes),
                check.clone(),
                changes.clone(),
            ));
            for stripe in 0..part.stripes() {
                let part = part.clone();
                self.send(Task { part, stripe }).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, task: Task) -> Result<()> {
        match &self.tasks {
            Some(tasks) if !self.shared.is_stopped() => {
                self.shared.stripes_added.fetch_add(1, Ordering::Release);
                tasks.send(task).await.map_err(|_| self.shared.failure())
            }
            _ => Err(self.shared.failure()),
        }
    }

    /// Waits until every file added so far has been read to its end and its pages were checked. What
    /// was read may still be on its way to the vaults. A backup must not end in PostgreSQL before.
    pub async fn settle(&self) -> Result<()> {
        loop {
            let turned = self.shared.turned.notified();
            tokio::pin!(turned);
            // From here on no turn is missed.
            turned.as_mut().enable();
            if self.shared.is_stopped() {
                return Err(self.shared.failure());
            }
            let added = self.shared.stripes_added.load(Ordering::Acquire);
            if self.shared.stripes_done.load(Ordering::Acquire) == added {
                return Ok(());
            }
            turned.await;
        }
    }

    /// Waits until everything is durable in every vault, then publishes the manifest. One that another
    /// attempt has published meanwhile is the backup.
    pub async fn finish(mut self, meta: ManifestMeta) -> Result<FinishedBackup> {
        let contents = self.close().await?;
        let manifest = Manifest::new(self.attempt, meta, contents);
        let (named, sealed) = manifest.seal(&self.data_key)?;
        let manifest_bytes = sealed.len() as u64;
        match put_everywhere(&self.stores, &named.key, sealed).await {
            Ok(()) => {}
            Err(conflict @ Error::Conflict { .. }) => {
                let Attempt {
                    incarnation,
                    backup,
                    ..
                } = self.attempt;
                let found =
                    find_manifest(&self.stores, &self.data_key, incarnation, backup).await?;
                return found.ok_or(conflict);
            }
            Err(error) => return Err(error),
        }
        Ok(FinishedBackup {
            manifest: named,
            objects: manifest.objects(),
            logical_bytes: manifest.logical_bytes,
            stored_bytes: manifest.stored_bytes + manifest_bytes,
            meta: manifest.meta,
        })
    }

    /// Everything but the manifest.
    async fn close(&mut self) -> Result<Contents> {
        self.tasks = None;
        for worker in std::mem::take(&mut self.workers) {
            if let Err(error) = worker.await {
                self.shared.fail(Error::io(
                    "a backup worker ended unexpectedly",
                    std::io::Error::other(error),
                ));
            }
        }
        let uploader = self.uploader.take().ok_or(Error::Stopped)?;
        for appender in [&self.shared.pages, &self.shared.leaves] {
            if self.shared.is_stopped() {
                appender.abandon();
            } else if let Err(error) = appender.close().await {
                self.shared.fail(error);
            }
        }
        let uploaded = match uploader.await {
            Ok(uploaded) => uploaded,
            Err(error) => Err(Error::io(
                "the uploader ended unexpectedly",
                std::io::Error::other(error),
            )),
        };
        let uploaded = uploaded?;
        if self.shared.is_stopped() {
            return Err(self.shared.failure());
        }
        self.contents(uploaded.into_iter().collect())
    }

    fn contents(&self, uploaded: BTreeMap<PackId, Stored>) -> Result<Contents> {
        let incomplete = || {
            Error::io(
                "a backup was closed before it was whole",
                std::io::Error::other("a leaf is missing"),
            )
        };
        let mut named = std::mem::take(&mut *lock(&self.shared.named));
        named.files.sort_by(|a, b| a.path.cmp(&b.path));
        let base = self.shared.base.as_deref();
        let pack = |pack: &PackId| uploaded.get(pack).copied().or_else(|| base?.pack(pack));
        let leaf_object = |object: &PackId| {
            uploaded
                .get(object)
                .copied()
                .or_else(|| base?.leaf_object(object))
        };
        let used: BTreeSet<PackId> = named
            .files
            .iter()
            .flat_map(|file| file.leaves.iter().flatten().map(|leaf| leaf.pack))
            .collect();
        let packs = named
            .packs
            .into_iter()
            .map(|(id, used)| {
                pack(&id).map(|stored| NamedPack {
                    id,
                    stored,
                    used: Some(used),
                })
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(incomplete)?;
        let leaf_objects = used
            .into_iter()
            .map(|id| leaf_object(&id).map(|stored| (id, stored)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(incomplete)?;
        let files = named
            .files
            .into_iter()
            .map(|file| {
                let leaves = file
                    .leaves
                    .into_iter()
                    .map(|leaf| {
                        let leaf = leaf?;
                        let object = leaf_objects
                            .binary_search_by_key(&leaf.pack, |(id, _)| *id)
                            .ok()?;
                        Some(LeafAt(
                            object as u32,
                            leaf.offset,
                            leaf.sealed_len,
                            leaf.content_len,
                            leaf.number,
                        ))
                    })
                    .collect::<Option<Vec<_>>>()?;
                Some(FileEntry {
                    path: file.path,
                    bytes: file.bytes,
                    leaves,
                })
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(incomplete)?;
        Ok(Contents {
            packs,
            leaf_objects,
            tablespaces: std::mem::take(&mut *lock(&self.tablespaces))
                .into_iter()
                .map(|(oid, location)| Tablespace { oid, location })
                .collect(),
            directories: std::mem::take(&mut *lock(&self.directories))
                .into_iter()
                .collect(),
            files,
            stored_bytes: uploaded.values().map(|stored| stored.bytes).sum(),
        })
    }
}

impl Drop for BackupWriter {
    fn drop(&mut self) {
        self.shared.stop();
        self.shared.pages.abandon();
        self.shared.leaves.abandon();
        if let Some(uploader) = &self.uploader {
            uploader.abort();
        }
    }
}

impl Shared {
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_cancelled()
    }

    fn stop(&self) {
        self.stopped.cancel();
        self.turned.notify_waiters();
    }

    pub fn read(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn covered(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A worker has read a stripe to its end.
    pub fn stripe_done(&self) {
        self.stripes_done.fetch_add(1, Ordering::Release);
        self.turned.notify_waiters();
    }

    pub fn remember_changed(&self, part: &Part, page: u32) {
        lock(&self.changed)
            .entry(part.path.clone())
            .or_default()
            .insert(part.first_page() + page);
    }

    fn fail(&self, error: Error) {
        // That appending failed says nothing about why; the uploader does.
        if !matches!(error, Error::Stopped) {
            lock(&self.failure).get_or_insert(error);
        }
        self.stop();
    }

    fn failure(&self) -> Error {
        lock(&self.failure).clone().unwrap_or(Error::Stopped)
    }

    /// Waits until so many bytes of files may be read.
    pub fn may_read(&self, bytes: u64) -> Result<()> {
        if self.reading.is_unlimited() {
            return Ok(());
        }
        self.runtime
            .block_on(self.stopped.run_until_cancelled(self.reading.take(bytes)))
            .ok_or(Error::Stopped)
    }

    pub fn base_leaf(&self, path: &Arc<str>, part: usize) -> Result<Option<BaseLeaf>> {
        let path = path.clone();
        self.ask_base(move |base| async move { base.leaf(&path, part).await })
    }

    pub fn base_index(&self, pack: PackId) -> Result<Option<Arc<PackIndex>>> {
        self.ask_base(move |base| async move { base.index(pack).await })
    }

    fn ask_base<T, F>(&self, question: impl FnOnce(Arc<BaseIndex>) -> F) -> Result<Option<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<Option<T>>> + Send + 'static,
    {
        match &self.base {
            Some(base) => courtesy::ask(&self.runtime, &self.stopped, question(base.clone())),
            None => Ok(None),
        }
    }

    /// Nothing changed: the base's leaf is this backup's leaf.
    pub fn name_again(&self, slot: LeafSlot, base: &BaseLeaf) -> Result<()> {
        let LeafAt(_, offset, sealed_len, content_len, number) = base.at;
        let at = FrameAt {
            pack: base.object,
            offset,
            sealed_len,
            content_len,
            number,
        };
        self.name_new(slot, &base.leaf, at)
    }

    pub fn name_new(&self, slot: LeafSlot, leaf: &Leaf, at: FrameAt) -> Result<()> {
        let mut named = lock(&self.named);
        for (pack, pages) in leaf.pages_by_pack() {
            *named.packs.entry(pack).or_default() += pages;
        }
        let place = named
            .files
            .get_mut(slot.file)
            .and_then(|file| file.leaves.get_mut(slot.part))
            .ok_or(Error::Stopped)?;
        *place = Some(at);
        Ok(())
    }
}

/// The uploader's life. Its failure is recorded before the workers notice that nobody takes packs.
async fn put_packs(
    shared: Arc<Shared>,
    stores: Vec<Store>,
    pace: Pace,
    mut packs: mpsc::Receiver<Pack>,
) -> Result<Uploaded> {
    let put = |bytes| {
        shared.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    };
    upload(&stores, &pace, &mut packs, put)
        .await
        .inspect_err(|error| shared.fail(error.clone()))
}

/// A worker's life: stripes until there are no more, or until something goes wrong anywhere.
fn work(shared: &Arc<Shared>, queue: &Mutex<mpsc::Receiver<Task>>) {
    let _watch = Watch(shared);
    let result = (|| {
        let mut worker = Worker::new(shared.clone())?;
        let next = || lock(queue).blocking_recv();
        while let Some(task) = next() {
            if shared.is_stopped() {
                return Err(Error::Stopped);
            }
            worker.store(task)?;
        }
        match shared.is_stopped() {
            true => Err(Error::Stopped),
            false => worker.finish(),
        }
    })();
    if let Err(error) = result {
        shared.fail(error);
    }
}

/// A worker that panics stops the others, and whoever waits for it.
struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::io(
                "a backup worker ended unexpectedly",
                std::io::Error::other("it panicked"),
            ));
        }
    }
}
