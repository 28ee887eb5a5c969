//! Rewriting objects most of which no backup needs (DESIGN §3.1, ADR 18). Pages that some backup names are
//! copied out of the packs that were chosen into new ones, leaves that named them are written anew, and
//! each backup concerned gets a manifest of its next generation. The old ones stay as they are: whoever
//! reads by them goes on, and the catalogue decides when they go.
//!
//! What is copied is what the leaves name, not what anybody counted. A backup of which something cannot
//! be read keeps its generation, and so everything it names; a pack that cannot be read stays where it is.
//!
//! Memory: one pack, one manifest, [`Moved`] for each frame that is copied, a line for each leaf of the
//! backups concerned.

mod moved;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use holdfast_domain::job::{CompactOutcome, ManifestRef, RewrittenBackup};
use holdfast_domain::{IncarnationId, JobId};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use moved::{Filling, Moved, bits, slots};

use super::leaf::{FrameAt, Leaf, PackId, Run};
use super::manifest::{LeafAt, Manifest, NamedPack, Rewriting};
use super::pack::{PackAppender, Stored, upload};
use super::read::LeafReader;
use super::{PAGE_BYTES, PAGES_PER_FRAME, PageHasher};
use crate::courtesy::{self, Courtesy};
use crate::key::DataKey;
use crate::seal::Class;
use crate::seal::frame::{FrameCipher, Opener, Sealer};
use crate::store::{Store, put_everywhere, try_each};
use crate::{Error, Result, layout};

/// What is to be rewritten, and by whom.
pub struct Compaction {
    pub stores: Vec<Store>,
    pub data_key: DataKey,
    pub incarnation: IncarnationId,
    pub job: JobId,
    pub epoch: i64,
    /// All backups that count, oldest first. What a backup that is not here names is not looked at.
    pub backups: Vec<ToRewrite>,
    /// Keys of packs and leaf objects.
    pub objects: BTreeSet<String>,
    pub stop: CancellationToken,
    pub courtesy: Courtesy,
}

/// A backup, and the generation to give it. No other attempt may use the same.
#[derive(Debug, Clone)]
pub struct ToRewrite {
    pub manifest: ManifestRef,
    pub generation: u32,
}

/// Copies, then publishes a manifest for each backup that named some of the objects. When the future is
/// dropped the work stops; what it has published by then is whole.
///
/// # Errors
/// A store that does not answer; [`Error::Stopped`].
pub async fn compact(compaction: Compaction) -> Result<CompactOutcome> {
    let stop = compaction.stop.child_token();
    let _stops_with_us = stop.clone().drop_guard();
    let courtesy = compaction.courtesy.clone();
    let work = Work::new(compaction, stop, Handle::current())?;
    courtesy.spawn(move || work.run())?.await.map_err(|error| {
        Error::io(
            "rewriting packs ended unexpectedly",
            std::io::Error::other(error),
        )
    })?
}

/// A leaf in its new place, and how many pages it names in which new pack.
struct NewLeaf {
    at: FrameAt,
    packs: Vec<(PackId, u32)>,
}

struct Work {
    order: Compaction,
    stop: CancellationToken,
    runtime: Handle,
    reader: Arc<LeafReader>,
    hasher: PageHasher,
    opener: Opener,
    sealer: Sealer,
    pages: Arc<PackAppender>,
    leaves: Arc<PackAppender>,
    uploads: Option<mpsc::Receiver<super::pack::Pack>>,
    /// Of the objects to rewrite, those that a backup names.
    packs: HashMap<PackId, Stored>,
    leaf_objects: HashSet<PackId>,
    moves: BTreeMap<FrameAt, Moved>,
    /// Frames written, in order; all but the last of each kind are full.
    frames: Vec<FrameAt>,
    /// Positions in `backups` of those that name something that is rewritten.
    concerned: Vec<usize>,
    new_leaves: HashMap<FrameAt, Option<NewLeaf>>,
    bytes_read: u64,
}

impl Work {
    fn new(order: Compaction, stop: CancellationToken, runtime: Handle) -> Result<Self> {
        let Compaction {
            incarnation,
            job,
            epoch,
            ..
        } = order;
        let (sender, uploads) = mpsc::channel(1);
        let cipher = |class| FrameCipher::create(&order.data_key, class, incarnation, job, epoch);
        let pages = PackAppender::of_pages(cipher(Class::Pack)?, sender.clone(), move |number| {
            layout::pack(incarnation, job, epoch, number)
        })?;
        let leaves = PackAppender::of_leaves(cipher(Class::Leaves)?, sender, move |number| {
            layout::leaves(incarnation, job, epoch, number)
        })?;
        Ok(Self {
            reader: Arc::new(LeafReader::new(
                order.stores.clone(),
                order.data_key.clone(),
                incarnation,
            )),
            hasher: PageHasher::new(&order.data_key),
            opener: Opener::new()?,
            sealer: Sealer::new()?,
            pages: Arc::new(pages),
            leaves: Arc::new(leaves),
            uploads: Some(uploads),
            packs: HashMap::new(),
            leaf_objects: HashSet::new(),
            moves: BTreeMap::new(),
            frames: Vec::new(),
            concerned: Vec::new(),
            new_leaves: HashMap::new(),
            bytes_read: 0,
            order,
            stop,
            runtime,
        })
    }

    fn run(mut self) -> Result<CompactOutcome> {
        self.survey()?;
        if self.concerned.is_empty() {
            return Ok(CompactOutcome::default());
        }
        let mut packs = self.uploads.take().ok_or(Error::Stopped)?;
        let (stores, written) = (self.order.stores.clone(), Arc::new(AtomicU64::new(0)));
        let (counted, stop) = (written.clone(), self.stop.clone());
        let pace = self.order.courtesy.upload.clone();
        let uploader = self.runtime.spawn(async move {
            let count = |bytes| {
                counted.fetch_add(bytes, Ordering::Relaxed);
            };
            // Whoever waits for a place in the queue hears of the end, because the queue goes with it.
            stop.run_until_cancelled(upload(&stores, &pace, &mut packs, count))
                .await
                .unwrap_or(Err(Error::Stopped))
        });
        let copied = self.copy();
        if copied.is_err() {
            self.pages.abandon();
            self.leaves.abandon();
        }
        let uploaded = self.runtime.block_on(uploader).map_err(|error| {
            Error::io(
                "the uploader ended unexpectedly",
                std::io::Error::other(error),
            )
        })?;
        // That appending failed says nothing about why; the uploader does.
        let uploaded = match (copied, uploaded) {
            (Ok(()), Ok(uploaded)) => uploaded,
            (_, Err(error)) | (Err(error), Ok(_)) => return Err(error),
        };
        let backups = self.publish(uploaded.into_iter().collect())?;
        Ok(CompactOutcome {
            backups,
            bytes_read: self.bytes_read,
            bytes_written: written.load(Ordering::Relaxed),
        })
    }

    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        courtesy::ask(&self.runtime, &self.stop, work)
    }

    fn leaf(&self, manifest: &Arc<Manifest>, at: LeafAt) -> Result<Leaf> {
        let (reader, manifest) = (self.reader.clone(), manifest.clone());
        self.wait(async move { reader.leaf(&manifest, at).await })
    }

    /// `None`: it cannot be read, and so its backup stays as it is.
    fn manifest(&self, which: usize) -> Result<Option<Arc<Manifest>>> {
        let named = self.order.backups[which].manifest.clone();
        let (stores, data_key) = (self.order.stores.clone(), self.order.data_key.clone());
        let (incarnation, key) = (self.order.incarnation, named.key.clone());
        let loaded = self.wait(async move {
            let manifest = Manifest::load(&stores, &data_key, incarnation, &named).await?;
            Ok(Arc::new(manifest))
        });
        readable(loaded, &key)
    }

    /// Finds the backups concerned and the pages that they need, the newest backup first.
    fn survey(&mut self) -> Result<()> {
        let mut seen = HashSet::new();
        for which in (0..self.order.backups.len()).rev() {
            let Some(manifest) = self.manifest(which)? else {
                continue;
            };
            let is_newest = which + 1 == self.order.backups.len();
            if self.names_something(&manifest)
                && self.survey_one(&manifest, is_newest, &mut seen)?
            {
                self.concerned.push(which);
            }
        }
        self.concerned.reverse();
        for moved in self.moves.values_mut() {
            moved.older &= !moved.newest;
        }
        Ok(())
    }

    fn names_something(&mut self, manifest: &Manifest) -> bool {
        let Compaction {
            incarnation,
            ref objects,
            ..
        } = self.order;
        type KeyOf = fn(IncarnationId, JobId, i64, u32) -> String;
        let listed = |key: KeyOf, id: &PackId| {
            objects.contains(&key(incarnation, id.origin.job, id.origin.epoch, id.number))
        };
        let packs = manifest
            .stored_packs()
            .filter(|(id, _)| listed(layout::pack, id));
        let leaf_objects = manifest
            .stored_leaf_objects()
            .filter(|(id, _)| listed(layout::leaves, id));
        let (packs, leaf_objects): (Vec<_>, Vec<_>) = (packs.collect(), leaf_objects.collect());
        let any = !packs.is_empty() || !leaf_objects.is_empty();
        self.packs.extend(packs);
        self.leaf_objects
            .extend(leaf_objects.into_iter().map(|(id, _)| id));
        any
    }

    /// `false`: some leaf cannot be read. What the others name is copied all the same, which does no harm.
    fn survey_one(
        &mut self,
        manifest: &Arc<Manifest>,
        is_newest: bool,
        seen: &mut HashSet<FrameAt>,
    ) -> Result<bool> {
        for at in manifest.files().iter().flat_map(|file| &file.leaves) {
            let place = manifest.place_of(*at);
            if !seen.insert(place) {
                continue;
            }
            let leaf = self.leaf(manifest, *at);
            let Some(leaf) = readable(leaf, "a leaf")? else {
                seen.remove(&place);
                return Ok(false);
            };
            for run in &leaf.runs {
                let Some(frame) = run.frame.map(|frame| leaf.frames[frame as usize]) else {
                    continue;
                };
                if !self.packs.contains_key(&frame.pack) {
                    continue;
                }
                let moved = self.moves.entry(frame).or_default();
                match is_newest {
                    true => moved.newest |= bits(run.slot, run.pages),
                    false => moved.older |= bits(run.slot, run.pages),
                }
            }
        }
        Ok(true)
    }

    /// Everything but manifests.
    fn copy(&mut self) -> Result<()> {
        self.copy_pages(|moved| (moved.newest, &mut moved.newest_at))?;
        self.pages.cut()?;
        self.copy_pages(|moved| (moved.older, &mut moved.older_at))?;
        for which in self.concerned.clone() {
            if let Some(manifest) = self.manifest(which)? {
                self.rewrite_leaves(&manifest)?;
                // A leaf object dies with its backup.
                self.leaves.cut()?;
            }
        }
        for appender in [self.pages.clone(), self.leaves.clone()] {
            self.wait(async move { appender.close().await })?;
        }
        Ok(())
    }

    /// Copies the pages of one kind, pack by pack.
    fn copy_pages(&mut self, kind: impl Fn(&mut Moved) -> (u128, &mut u64)) -> Result<()> {
        let mut packs: BTreeMap<PackId, Vec<(FrameAt, u128)>> = BTreeMap::new();
        for (frame, moved) in &mut self.moves {
            let (wanted, _) = kind(moved);
            if wanted != 0 {
                packs.entry(frame.pack).or_default().push((*frame, wanted));
            }
        }
        let mut filling = Filling::default();
        for (pack, frames) in packs {
            if self.stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            let copied = self.copy_pack(pack, &frames, &kind, &mut filling);
            if readable(copied, "a pack")?.is_none() {
                // Whoever names it goes on naming it.
                self.packs.remove(&pack);
                self.moves.retain(|frame, _| frame.pack != pack);
            }
        }
        self.close_frame(&mut filling)
    }

    fn copy_pack(
        &mut self,
        pack: PackId,
        frames: &[(FrameAt, u128)],
        kind: &impl Fn(&mut Moved) -> (u128, &mut u64),
        filling: &mut Filling,
    ) -> Result<()> {
        let key = layout::pack(
            self.order.incarnation,
            pack.origin.job,
            pack.origin.epoch,
            pack.number,
        );
        let cipher = self.reader.cipher(Class::Pack, pack.origin)?;
        let index = match self.packs.get(&pack).and_then(|stored| stored.index) {
            Some(at) => {
                let reader = self.reader.clone();
                readable(self.wait(async move { reader.index(pack, at).await }), &key)?
            }
            None => None,
        };
        let start = frames.first().map_or(0, |(frame, _)| frame.offset);
        let end = frames
            .iter()
            .map(|(frame, _)| u64::from(frame.offset) + u64::from(frame.sealed_len))
            .max()
            .unwrap_or(0);
        let range = u64::from(start)..end;
        let (stores, fetched) = (self.order.stores.clone(), key.clone());
        let span = self.wait(async move {
            try_each(&stores, |store| store.get_range(&fetched, range.clone())).await
        })?;
        self.bytes_read += span.len() as u64;
        for (frame, wanted) in frames {
            if self.stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            let content = self.open(frame, &span, start, &cipher, &key)?;
            let hashes = index
                .as_deref()
                .and_then(|index| index.of_frame(frame.offset));
            let begins = self.frames.len() * PAGES_PER_FRAME + filling.hashes.len();
            for slot in slots(*wanted) {
                let page = content
                    .get(slot * PAGE_BYTES..(slot + 1) * PAGE_BYTES)
                    .ok_or_else(|| Error::corrupted(&key, "a frame has fewer pages than named"))?;
                let hash = self.hasher.hash(page);
                if hashes.is_some_and(|hashes| hashes.get(slot) != Some(&hash)) {
                    return Err(Error::corrupted(&key, "a page is not the one in its index"));
                }
                filling.content.extend_from_slice(page);
                filling.hashes.push(hash);
                if filling.hashes.len() == PAGES_PER_FRAME {
                    self.close_frame(filling)?;
                }
            }
            if let Some(moved) = self.moves.get_mut(frame) {
                *kind(moved).1 = begins as u64;
            }
        }
        Ok(())
    }

    /// A frame's content: from what was fetched, or when that is damaged from whichever vault has it whole.
    fn open(
        &mut self,
        frame: &FrameAt,
        span: &Bytes,
        start: u32,
        cipher: &Arc<FrameCipher>,
        key: &str,
    ) -> Result<Vec<u8>> {
        let (at, sealed_len) = ((frame.offset - start) as usize, frame.sealed_len as usize);
        let (number, length) = (frame.number, frame.content_len as usize);
        let opened = span
            .get(at..at + sealed_len)
            .ok_or_else(|| Error::corrupted(key, "it is shorter than the frames in it"))
            .and_then(|sealed| cipher.open(&mut self.opener, number, length, sealed, key));
        match opened {
            Ok(content) => return Ok(content.to_vec()),
            Err(Error::Corrupted { .. }) => {}
            Err(error) => return Err(error),
        }
        let from = u64::from(frame.offset);
        let (stores, cipher) = (self.order.stores.clone(), cipher.clone());
        let key: Arc<str> = key.into();
        self.wait(async move {
            let (cipher, key) = (&*cipher, &*key);
            try_each(&stores, |store| async move {
                let sealed = store.get_range(key, from..from + sealed_len as u64).await?;
                let mut opener = Opener::new()?;
                Ok(cipher
                    .open(&mut opener, number, length, &sealed, key)?
                    .to_vec())
            })
            .await
        })
    }

    fn close_frame(&mut self, filling: &mut Filling) -> Result<()> {
        if filling.hashes.is_empty() {
            return Ok(());
        }
        let (number, sealed) = self.pages.cipher.seal(&mut self.sealer, &filling.content)?;
        let sealed_len = sealed.len() as u32;
        let (pack, offset) = self.pages.append(sealed, &filling.hashes)?;
        self.frames.push(FrameAt {
            pack,
            offset,
            sealed_len,
            content_len: filling.content.len() as u32,
            number,
        });
        filling.content.clear();
        filling.hashes.clear();
        Ok(())
    }

    fn rewrite_leaves(&mut self, manifest: &Arc<Manifest>) -> Result<()> {
        for at in manifest.files().iter().flat_map(|file| &file.leaves) {
            let was = manifest.place_of(*at);
            if self.new_leaves.contains_key(&was) {
                continue;
            }
            let leaf = self.leaf(manifest, *at)?;
            let moved = leaf
                .frames
                .iter()
                .any(|frame| self.packs.contains_key(&frame.pack));
            let leaf = if moved { self.moved(&leaf)? } else { leaf };
            let new = match moved || self.leaf_objects.contains(&was.pack) {
                true => Some(self.write_leaf(&leaf)?),
                false => None,
            };
            self.new_leaves.insert(was, new);
        }
        Ok(())
    }

    /// The same pages where they lie now; their sum is what it was.
    fn moved(&self, leaf: &Leaf) -> Result<Leaf> {
        let mut moved = Leaf {
            sum: leaf.sum,
            ..Leaf::default()
        };
        let mut known = HashMap::new();
        let mut push = |run: Run, frame: Option<FrameAt>| {
            let frame = frame.map(|frame| {
                *known.entry(frame).or_insert_with(|| {
                    moved.frames.push(frame);
                    moved.frames.len() as u32 - 1
                })
            });
            match moved.runs.last_mut() {
                Some(last)
                    if last.frame == frame
                        && (frame.is_none() || last.slot + last.pages == run.slot) =>
                {
                    last.pages += run.pages;
                }
                _ => moved.runs.push(Run { frame, ..run }),
            }
        };
        for run in &leaf.runs {
            let was = run.frame.map(|frame| leaf.frames[frame as usize]);
            let Some(old) = was.filter(|frame| self.packs.contains_key(&frame.pack)) else {
                push(*run, was);
                continue;
            };
            let lost = || Error::refused("a page that a backup needs was not copied");
            let pages = self.moves.get(&old).ok_or_else(lost)?;
            for page in 0..run.pages {
                let (frame, slot) = pages
                    .place_of(run.slot + page)
                    .and_then(|(frame, slot)| Some((*self.frames.get(frame)?, slot)))
                    .ok_or_else(lost)?;
                let one = Run {
                    first_page: run.first_page + page,
                    pages: 1,
                    frame: None,
                    slot,
                };
                push(one, Some(frame));
            }
        }
        Ok(moved)
    }

    fn write_leaf(&mut self, leaf: &Leaf) -> Result<NewLeaf> {
        let content = leaf.encode();
        let (number, sealed) = self.leaves.cipher.seal(&mut self.sealer, &content)?;
        let sealed_len = sealed.len() as u32;
        let (pack, offset) = self.leaves.append(sealed, &[])?;
        let ours = self.pages.cipher.origin();
        let mut packs: Vec<_> = leaf.pages_by_pack().into_iter().collect();
        packs.retain(|(pack, _)| pack.origin == ours);
        Ok(NewLeaf {
            at: FrameAt {
                pack,
                offset,
                sealed_len,
                content_len: content.len() as u32,
                number,
            },
            packs,
        })
    }

    /// Everything that they name is durable: one manifest for each backup concerned.
    fn publish(&self, uploaded: BTreeMap<PackId, Stored>) -> Result<Vec<RewrittenBackup>> {
        let mut done = Vec::new();
        for which in self.concerned.iter().copied() {
            let Some(manifest) = self.manifest(which)? else {
                continue;
            };
            let leaves = manifest.files().iter().flat_map(|file| &file.leaves);
            let Some(looked_at) = leaves
                .map(|at| self.new_leaves.get(&manifest.place_of(*at)))
                .collect::<Option<Vec<_>>>()
            else {
                continue;
            };
            let new: Vec<&NewLeaf> = looked_at.into_iter().flatten().collect();
            if new.is_empty() {
                continue;
            }
            let next = self.next(
                &manifest,
                &new,
                &uploaded,
                self.order.backups[which].generation,
            )?;
            let (named, sealed) = next.seal(&self.order.data_key)?;
            let (stores, key) = (self.order.stores.clone(), named.key.clone());
            self.wait(async move { put_everywhere(&stores, &key, sealed).await })?;
            done.push(difference(&manifest, &next, named));
        }
        Ok(done)
    }

    fn next(
        &self,
        manifest: &Manifest,
        new: &[&NewLeaf],
        uploaded: &BTreeMap<PackId, Stored>,
        generation: u32,
    ) -> Result<Manifest> {
        let mut used: BTreeMap<PackId, u32> = BTreeMap::new();
        for (pack, pages) in new.iter().flat_map(|leaf| &leaf.packs) {
            *used.entry(*pack).or_default() += pages;
        }
        let mut packs: Vec<NamedPack> = manifest
            .named_packs()
            .filter(|pack| !self.packs.contains_key(&pack.id))
            .collect();
        for (id, used) in used {
            let stored = *uploaded
                .get(&id)
                .ok_or_else(|| Error::refused("a pack that a leaf names was not stored"))?;
            packs.push(NamedPack {
                id,
                stored,
                used: Some(used),
            });
        }
        manifest.rewritten(Rewriting {
            job: self.order.job,
            epoch: self.order.epoch,
            generation,
            packs,
            moved: &|was| Some(self.new_leaves.get(was)?.as_ref()?.at),
            leaf_objects: uploaded,
        })
    }
}

/// What cannot be read is left alone, whatever it is; a store that does not answer is an error.
fn readable<T>(result: Result<T>, what: &str) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ (Error::Corrupted { .. } | Error::NotFound { .. })) => {
            tracing::error!(what, error = %error, "backup.compact.left_alone");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn difference(before: &Manifest, after: &Manifest, manifest: ManifestRef) -> RewrittenBackup {
    let (before, after) = (before.objects(), after.objects());
    let keys = |objects: &[holdfast_domain::job::ObjectRef]| -> BTreeSet<String> {
        objects.iter().map(|object| object.key.clone()).collect()
    };
    let (had, has) = (keys(&before), keys(&after));
    RewrittenBackup {
        manifest,
        added: after
            .into_iter()
            .filter(|object| !had.contains(&object.key))
            .collect(),
        dropped: had.difference(&has).cloned().collect(),
    }
}
