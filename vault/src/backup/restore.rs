//! Restoring a backup in one pass: leaves say which frames are needed, each is fetched once per
//! batch of files, opened, and its pages are written straight to place (RELIABILITY §5.4.3). A copy that
//! is missing or damaged is replaced by the next vault's. At the end of a leaf the sum over its pages
//! must be the one that was recorded. While one batch is written the next one is planned.
//!
//! `global/pg_control` is returned, not written: the caller writes it last, so that a half restored
//! directory can never start.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::leaf::{FrameAt, Leaf};
use super::manifest::{FileEntry, Manifest};
use super::path::in_tablespace;
use super::read::{LeafReader, lock};
use super::tree::{Owner, Tree};
use super::{PAGE_BYTES, PAGES_PER_LEAF, PG_CONTROL, PageHasher, PageSum};
use crate::key::DataKey;
use crate::seal::Class;
use crate::seal::frame::{FrameCipher, Opener};
use crate::store::{Store, try_each};
use crate::{Error, Result, layout};

/// A batch ends when it has this many pages or pieces, which bound its memory, or as many open files as [`batch_files`]
/// says. Within a batch every pack is read once, from its beginning to its end; most backups are one batch.
const BATCH_PAGES: usize = 16 * PAGES_PER_LEAF;
const BATCH_PIECES: usize = 256 << 10;
/// Frames that lie this close together come in one request of at most this many bytes.
const MAX_GAP: u32 = 64 << 10;
const MAX_FETCH: u32 = 2 << 20;
const FETCHES_IN_FLIGHT: usize = 8;

/// Where a restore goes.
#[derive(Debug, Clone, Copy)]
pub struct RestoreInto<'a> {
    /// Exists and is empty.
    pub dir: &'a Path,
    /// Needed when the backup has tablespaces.
    pub tablespaces: Option<TablespaceRoot<'a>>,
    /// User and group of everything made; `None`: the process's own.
    pub owner: Option<(u32, u32)>,
}

/// Tablespaces are put below a directory of ours: `pg_tblspc/{oid}` becomes a link to
/// `{link_to}/{oid}` and the files are written to `{write_below}/{oid}`. The two differ while the
/// data directory has its temporary name.
#[derive(Debug, Clone, Copy)]
pub struct TablespaceRoot<'a> {
    pub write_below: &'a Path,
    pub link_to: &'a Path,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub pg_control: Bytes,
    pub bytes: u64,
    pub files: u64,
}

/// Restores the files that `filter` wants, and all directories. `progress` gets bytes done and total.
pub async fn restore_to(
    into: RestoreInto<'_>,
    manifest: &Manifest,
    stores: &[Store],
    data_key: &DataKey,
    filter: impl Fn(&str) -> bool,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<Restored> {
    let mut trees = Trees::prepare(into, manifest)?;
    let wanted: Vec<_> = manifest
        .files
        .iter()
        .filter(|file| file.path == PG_CONTROL || filter(&file.path))
        .collect();
    let total = wanted.iter().map(|file| file.bytes).sum();
    let restore = Restore {
        stores,
        manifest,
        reader: LeafReader::new(stores.to_vec(), data_key.clone(), manifest.incarnation),
        hasher: PageHasher::new(data_key),
        done: AtomicU64::new(0),
        total,
        progress: &progress,
    };
    progress(0, total);

    let mut planner = Planner {
        restore: &restore,
        trees: &mut trees,
        files: &wanted,
        part: None,
        pg_control: None,
        most_files: batch_files(),
    };
    let mut batch = planner.next().await?;
    while !batch.is_empty() {
        let (next, written) = futures::join!(planner.next(), restore.run(batch));
        written?;
        batch = next?;
    }

    let pg_control = planner
        .pg_control
        .map(|content| Bytes::from(std::mem::take(&mut *lock(&content))))
        .ok_or_else(|| Error::corrupted(manifest_key(manifest), "it names no global/pg_control"))?;
    let files = wanted.len() as u64;
    tokio::task::spawn_blocking(move || trees.sync())
        .await
        .map_err(worker_failed)??;
    Ok(Restored {
        pg_control,
        bytes: total,
        files,
    })
}

/// Makes the tree that [`restore_to`] makes, of files whose content comes from elsewhere than a vault: `fill` gets each
/// of them, new and empty, in the order of the manifest – all but `global/pg_control`. Syncs nothing. Blocks.
///
/// # Errors
/// As [`restore_to`] for what cannot be made, and what `fill` says.
pub fn lay_out<E: From<Error>>(
    into: RestoreInto<'_>,
    manifest: &Manifest,
    mut fill: impl FnMut(&FileEntry, File) -> Result<(), E>,
) -> Result<(), E> {
    let mut trees = Trees::prepare(into, manifest)?;
    for file in manifest.files.iter().filter(|file| file.path != PG_CONTROL) {
        fill(file, trees.empty_file(&file.path)?)?;
    }
    Ok(())
}

/// Goes through the files and says, batch by batch, what is to be read and where it goes.
struct Planner<'a, 'b, P> {
    restore: &'a Restore<'b, P>,
    trees: &'a mut Trees,
    files: &'a [&'a FileEntry],
    /// The file at the front of `files`, when some of its leaves went into an earlier batch.
    part: Option<(Arc<Target>, usize)>,
    pg_control: Option<Arc<Mutex<Vec<u8>>>>,
    most_files: usize,
}

impl<P: Fn(u64, u64) + Send + Sync> Planner<'_, '_, P> {
    /// Empty at the end.
    async fn next(&mut self) -> Result<Batch> {
        let mut batch = Batch::default();
        while let Some((file, later)) = self.files.split_first() {
            let (target, done) = match self.part.take() {
                Some(part) => part,
                None => (Arc::new(self.target(file)?), 0),
            };
            batch.files += 1;
            for (part, leaf) in file.leaves.iter().enumerate().skip(done) {
                if batch.is_full(self.most_files) {
                    self.part = Some((target, part));
                    return Ok(batch);
                }
                let leaf = self
                    .restore
                    .reader
                    .leaf(self.restore.manifest, *leaf)
                    .await?;
                let start = (part * PAGES_PER_LEAF * PAGE_BYTES) as u64;
                let bytes = (file.bytes - start).min((PAGES_PER_LEAF * PAGE_BYTES) as u64);
                self.restore
                    .plan(&mut batch, &target, &leaf, start, bytes)?;
            }
            self.files = later;
            if batch.is_full(self.most_files) {
                break;
            }
        }
        Ok(batch)
    }

    fn target(&mut self, file: &FileEntry) -> Result<Target> {
        if file.path == PG_CONTROL {
            let content = Arc::new(Mutex::new(vec![0; bounded_control(file.bytes)?]));
            self.pg_control = Some(content.clone());
            return Ok(Target::Memory(content));
        }
        let opened = self.trees.file(&file.path, file.bytes)?;
        Ok(Target::File(Mutex::new(opened)))
    }
}

/// Half of what the process may have open; `holdfast` raises that to what the system allows when it starts.
fn batch_files() -> usize {
    let may = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    may.map_or(8192, |may| (may / 2).clamp(64, 8192) as usize)
}

/// PostgreSQL's control file has 8 KiB; nothing larger is held in memory.
fn bounded_control(bytes: u64) -> Result<usize> {
    match bytes {
        0..=65_536 => Ok(bytes as usize),
        _ => Err(Error::refused(
            "global/pg_control is larger than a control file",
        )),
    }
}

fn manifest_key(manifest: &Manifest) -> String {
    layout::manifest(manifest.incarnation, manifest.backup, manifest.generation)
}

fn worker_failed(error: tokio::task::JoinError) -> Error {
    Error::io(
        "a restore worker ended unexpectedly",
        std::io::Error::other(error),
    )
}

/// The data directory and, apart from it, the tablespaces.
struct Trees {
    data: Tree,
    tablespaces: Option<Tree>,
}

impl Trees {
    fn prepare(into: RestoreInto<'_>, manifest: &Manifest) -> Result<Self> {
        let owner: Owner = into.owner;
        let mut trees = Self {
            data: Tree::at_empty(into.dir, owner)?,
            tablespaces: None,
        };
        if !manifest.tablespaces.is_empty() {
            let root = into.tablespaces.ok_or_else(|| {
                Error::refused("the backup has tablespaces and the restore has no place for them")
            })?;
            let mut below = Tree::at(root.write_below, owner)?;
            for tablespace in &manifest.tablespaces {
                let oid = tablespace.oid.to_string();
                below.directory(&oid)?;
                trees
                    .data
                    .link(&format!("pg_tblspc/{oid}"), &root.link_to.join(&oid))?;
            }
            trees.tablespaces = Some(below);
        }
        for directory in &manifest.directories {
            let (tree, path) = trees.of(directory)?;
            tree.directory(&path)?;
        }
        Ok(trees)
    }

    fn empty_file(&mut self, path: &str) -> Result<File> {
        let (tree, below) = self.of(path)?;
        tree.file(&below)
    }

    fn file(&mut self, path: &str, bytes: u64) -> Result<File> {
        let file = self.empty_file(path)?;
        // Pages of zeros are written by not writing them.
        file.set_len(bytes)
            .map_err(|error| Error::io(format!("{path} cannot be given its length"), error))?;
        Ok(file)
    }

    fn of(&mut self, path: &str) -> Result<(&mut Tree, String)> {
        match (in_tablespace(path), &mut self.tablespaces) {
            (Some((oid, below)), Some(tablespaces)) => {
                let below = below.map_or_else(|| oid.to_string(), |below| format!("{oid}/{below}"));
                Ok((tablespaces, below))
            }
            (Some(_), None) => Err(Error::refused(
                "a path lies in a tablespace that is not named",
            )),
            (None, _) => Ok((&mut self.data, path.to_owned())),
        }
    }

    fn sync(&self) -> Result<()> {
        self.tablespaces.as_ref().map_or(Ok(()), Tree::sync)?;
        self.data.sync()
    }
}

/// Where pages go.
enum Target {
    /// One writer at a time: the kernel lets no more into a file, and the others would spin until it is their turn
    /// (`rwsem_spin_on_owner`) instead of leaving the core to who decompresses.
    File(Mutex<File>),
    Memory(Arc<Mutex<Vec<u8>>>),
}

impl Target {
    fn write(&self, at: u64, pages: &[u8]) -> Result<()> {
        match self {
            Self::File(file) => lock(file)
                .write_all_at(pages, at)
                .map_err(|error| Error::io("a restored file cannot be written", error)),
            Self::Memory(content) => {
                let mut content = lock(content);
                let at = at as usize;
                content
                    .get_mut(at..at + pages.len())
                    .ok_or_else(|| Error::refused("a page lies beyond its file"))?
                    .copy_from_slice(pages);
                Ok(())
            }
        }
    }
}

/// Consecutive pages of a frame and where they go.
struct Piece {
    target: Arc<Target>,
    check: Arc<LeafCheck>,
    first_page: u32,
    pages: u32,
    slot: u32,
    /// Where in the file the leaf's page 0 lies.
    leaf_start: u64,
    /// Bytes of the file that the leaf describes.
    leaf_bytes: u64,
}

/// Compares what was written of a leaf with the sum that it recorded.
struct LeafCheck {
    expected: PageSum,
    got: Mutex<PageSum>,
    /// Pieces that are not written yet.
    left: AtomicUsize,
}

#[derive(Default)]
struct Batch {
    files: usize,
    pages: usize,
    pieces: usize,
    by_frame: HashMap<FrameAt, Vec<Piece>>,
    /// Bytes that are zeros and need no frame.
    zeros: u64,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.files == 0
    }

    fn is_full(&self, most_files: usize) -> bool {
        self.files >= most_files || self.pages >= BATCH_PAGES || self.pieces >= BATCH_PIECES
    }
}

/// Frames close together in one pack.
struct Fetch {
    frames: Vec<(FrameAt, Vec<Piece>)>,
    start: u32,
    end: u32,
}

struct Restore<'a, P> {
    stores: &'a [Store],
    manifest: &'a Manifest,
    reader: LeafReader,
    hasher: PageHasher,
    done: AtomicU64,
    total: u64,
    progress: &'a P,
}

impl<P: Fn(u64, u64) + Send + Sync> Restore<'_, P> {
    fn plan(
        &self,
        batch: &mut Batch,
        target: &Arc<Target>,
        leaf: &Leaf,
        leaf_start: u64,
        leaf_bytes: u64,
    ) -> Result<()> {
        let corrupted = |what: &str| Err(Error::corrupted(manifest_key(self.manifest), what));
        if leaf.pages() as u64 != leaf_bytes.div_ceil(PAGE_BYTES as u64) {
            return corrupted("a leaf has another number of pages than its file");
        }
        batch.pages += leaf.pages();
        let stored = leaf.runs.iter().filter(|run| run.frame.is_some()).count();
        if stored == 0 && leaf.sum != PageSum::default() {
            return corrupted("a leaf says that all its pages are zeros and that their sum is not");
        }
        batch.pieces += stored;
        let check = Arc::new(LeafCheck {
            expected: leaf.sum,
            got: Mutex::default(),
            left: AtomicUsize::new(stored),
        });
        for run in &leaf.runs {
            let Some(frame) = run.frame else {
                batch.zeros += bytes_of(run.first_page, run.pages, leaf_bytes);
                continue;
            };
            batch
                .by_frame
                .entry(leaf.frames[frame as usize])
                .or_default()
                .push(Piece {
                    target: target.clone(),
                    check: check.clone(),
                    first_page: run.first_page,
                    pages: run.pages,
                    slot: run.slot,
                    leaf_start,
                    leaf_bytes,
                });
        }
        Ok(())
    }

    async fn run(&self, batch: Batch) -> Result<()> {
        self.advance(batch.zeros);
        let mut frames: Vec<_> = batch.by_frame.into_iter().collect();
        frames.sort_unstable_by_key(|(frame, _)| (frame.pack, frame.offset));
        let mut fetches: Vec<Fetch> = Vec::new();
        for (frame, pieces) in frames {
            let end = frame.offset + frame.sealed_len;
            match fetches.last_mut() {
                Some(fetch)
                    if fetch.frames[0].0.pack == frame.pack
                        && frame.offset <= fetch.end.saturating_add(MAX_GAP)
                        && end - fetch.start <= MAX_FETCH =>
                {
                    fetch.end = fetch.end.max(end);
                    fetch.frames.push((frame, pieces));
                }
                _ => fetches.push(Fetch {
                    start: frame.offset,
                    end,
                    frames: vec![(frame, pieces)],
                }),
            }
        }
        futures::stream::iter(fetches)
            .map(|fetch| self.fetch(Arc::new(fetch)))
            .buffer_unordered(FETCHES_IN_FLIGHT)
            .try_collect()
            .await
    }

    /// One range of one pack: read, open, verify, write. Everything is done again from the next
    /// vault when a copy is bad; writing the same pages twice is harmless.
    async fn fetch(&self, fetch: Arc<Fetch>) -> Result<()> {
        let pack = fetch.frames[0].0.pack;
        let key: Arc<str> = layout::pack(
            self.manifest.incarnation,
            pack.origin.job,
            pack.origin.epoch,
            pack.number,
        )
        .into();
        let cipher = self.reader.cipher(Class::Pack, pack.origin)?;
        let (written, as_recorded) = try_each(self.stores, |store| {
            let (key, cipher, fetch, hasher) = (
                key.clone(),
                cipher.clone(),
                fetch.clone(),
                self.hasher.clone(),
            );
            async move {
                let range = u64::from(fetch.start)..u64::from(fetch.end);
                let bytes = store.get_range(&key, range).await?;
                tokio::task::spawn_blocking(move || {
                    write_frames(&fetch, &bytes, &cipher, &hasher, &key)
                })
                .await
                .map_err(worker_failed)?
            }
        })
        .await?;
        if !as_recorded {
            let what = "the restored pages are not the ones that the backup recorded";
            return Err(Error::corrupted(&*key, what));
        }
        self.advance(written);
        Ok(())
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(done, self.total);
    }
}

/// Opens the frames of a fetched range and writes their pages. Says how many bytes it wrote, and whether
/// every leaf that ended with them has its sum. Runs on a blocking thread.
fn write_frames(
    fetch: &Fetch,
    bytes: &[u8],
    cipher: &FrameCipher,
    hasher: &PageHasher,
    key: &str,
) -> Result<(u64, bool)> {
    let mut written = 0;
    let mut sums: Vec<(&Arc<LeafCheck>, PageSum)> = Vec::new();
    let mut opener = Opener::new()?;
    for (frame, pieces) in &fetch.frames {
        let at = (frame.offset - fetch.start) as usize;
        let content = cipher.open(
            &mut opener,
            frame.number,
            frame.content_len as usize,
            &bytes[at..at + frame.sealed_len as usize],
            key,
        )?;
        for piece in pieces {
            let start = piece.slot as usize * PAGE_BYTES;
            let pages = &content[start..start + piece.pages as usize * PAGE_BYTES];
            let mut sum = PageSum::default();
            for (index, page) in pages.chunks_exact(PAGE_BYTES).enumerate() {
                sum.add(piece.first_page + index as u32, &hasher.hash(page));
            }
            let length = bytes_of(piece.first_page, piece.pages, piece.leaf_bytes);
            let at = piece.leaf_start + u64::from(piece.first_page) * PAGE_BYTES as u64;
            piece.target.write(at, &pages[..length as usize])?;
            written += length;
            sums.push((&piece.check, sum));
        }
    }
    // Only now: what a bad copy made us write is written again from the next one, and counts once.
    let mut as_recorded = true;
    for (check, sum) in sums {
        let mut got = lock(&check.got);
        got.merge(sum);
        if check.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            as_recorded &= *got == check.expected;
        }
    }
    Ok((written, as_recorded))
}

/// How many bytes of the file these pages are; its last page may be short.
fn bytes_of(first_page: u32, pages: u32, leaf_bytes: u64) -> u64 {
    let page = PAGE_BYTES as u64;
    let start = u64::from(first_page) * page;
    (start + u64::from(pages) * page).min(leaf_bytes) - start
}
