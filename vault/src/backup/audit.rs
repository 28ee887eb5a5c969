//! Reading through everything that backups need, without restoring it: every pack and leaf object once,
//! however many backups name it, and every leaf's sum compared with the pages that it names.
//!
//! First the packs: each frame is opened, each page hashed, and the hashes compared with the pack's own
//! index. From then on the index speaks for the pages, so that a leaf – which may name pages of many
//! packs – is compared without reading them again. Kept meanwhile: 24 bytes a frame, 40 a leaf.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use holdfast_domain::IncarnationId;

use super::index::PackIndex;
use super::leaf::{FrameAt, Leaf, PackId};
use super::manifest::{FrameIn, Manifest};
use super::pack::Stored;
use super::read::LeafReader;
use super::{PAGE_BYTES, PAGES_PER_FRAME, PAGES_PER_LEAF, PageHasher, PageSum};
use crate::key::DataKey;
use crate::seal::frame::{FRAME_HEADER_BYTES, FRAME_OVERHEAD, FrameCipher, Opener};
use crate::seal::{Class, HEADER_BYTES, Header};
use crate::store::Store;
use crate::verify::{Damage, Finding};
use crate::{Error, Result, layout};

/// Objects that are in memory at a time: of 8 MiB as this version writes them, of 64 at most.
const OBJECTS_AT_A_TIME: usize = 4;

/// Where a frame lies, and its number: what a leaf or a manifest says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct FrameRow {
    offset: u32,
    sealed_len: u32,
    content_len: u32,
    number: u64,
}

/// Everything that some backups need, each object and each leaf once.
pub(crate) struct Audit {
    store: Store,
    data_key: DataKey,
    incarnation: IncarnationId,
    hasher: PageHasher,
    reader: LeafReader,
    packs: HashMap<PackId, Stored>,
    leaf_objects: HashMap<PackId, Stored>,
    leaves: HashMap<PackId, BTreeMap<FrameRow, WantedLeaf>>,
}

/// A leaf that a manifest names, and what it has to be.
#[derive(Debug, Clone, Copy)]
struct WantedLeaf {
    pages: u32,
}

/// What was read, and what was found.
#[derive(Debug, Default)]
pub(crate) struct Audited {
    pub objects: u64,
    pub bytes: u64,
    pub findings: Vec<Finding>,
}

impl Audit {
    pub fn new(store: Store, data_key: DataKey, incarnation: IncarnationId) -> Self {
        let stores = vec![store.clone()];
        Self {
            hasher: PageHasher::new(&data_key),
            reader: LeafReader::new(stores, data_key.clone(), incarnation),
            store,
            data_key,
            incarnation,
            packs: HashMap::new(),
            leaf_objects: HashMap::new(),
            leaves: HashMap::new(),
        }
    }

    /// Takes in what a backup needs. Two manifests that disagree about an object or a leaf cannot both
    /// be right.
    pub fn add(&mut self, manifest: &Manifest) -> Vec<Finding> {
        let mut findings = Vec::new();
        let key = layout::manifest(manifest.incarnation, manifest.backup, manifest.generation);
        let mut disagrees = |what: String| {
            findings.push(Finding::new(Damage::Damaged, &key, what));
        };
        for (id, stored) in manifest.stored_packs() {
            let known = *self.packs.entry(id).or_insert(stored);
            if (known.bytes, known.index) != (stored.bytes, stored.index) {
                disagrees(format!("it describes {} otherwise", self.pack_key(id)));
            }
        }
        for (id, stored) in manifest.stored_leaf_objects() {
            let known = *self.leaf_objects.entry(id).or_insert(stored);
            if known.bytes != stored.bytes {
                disagrees(format!("it describes {} otherwise", self.leaves_key(id)));
            }
        }
        for file in manifest.files() {
            let mut left = file.bytes.div_ceil(PAGE_BYTES as u64);
            for at in &file.leaves {
                let pages = left.min(PAGES_PER_LEAF as u64) as u32;
                left -= u64::from(pages);
                let row = FrameRow {
                    offset: at.1,
                    sealed_len: at.2,
                    content_len: at.3,
                    number: at.4,
                };
                let leaves = self.leaves.entry(manifest.leaf_object(*at)).or_default();
                let known = leaves.entry(row).or_insert(WantedLeaf { pages });
                if known.pages != pages {
                    disagrees(format!("{} has another length than its leaves", file.path));
                }
            }
        }
        findings
    }

    /// Reads all of it. `each` hears of every object that was read: its bytes.
    pub async fn run(self, each: &(dyn Fn(u64) + Send + Sync)) -> Result<Audited> {
        let mut audited = Audited::default();
        let frames = self.read_packs(&mut audited, each).await?;
        self.read_leaves(&frames, &mut audited, each).await?;
        Ok(audited)
    }

    fn pack_key(&self, id: PackId) -> String {
        layout::pack(self.incarnation, id.origin.job, id.origin.epoch, id.number)
    }

    fn leaves_key(&self, id: PackId) -> String {
        layout::leaves(self.incarnation, id.origin.job, id.origin.epoch, id.number)
    }

    /// The frames of each pack that is good.
    async fn read_packs(
        &self,
        audited: &mut Audited,
        each: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<HashMap<PackId, Vec<FrameRow>>> {
        let mut packs: Vec<_> = self
            .packs
            .iter()
            .map(|(id, stored)| (*id, *stored))
            .collect();
        packs.sort_unstable_by_key(|(id, _)| *id);
        let mut frames = HashMap::with_capacity(packs.len());
        let mut reading = futures::stream::iter(packs)
            .map(|(id, stored)| async move { (id, stored, self.read_pack(id, stored).await) })
            .buffer_unordered(OBJECTS_AT_A_TIME);
        while let Some((id, stored, read)) = reading.next().await {
            match read? {
                Ok(rows) => {
                    audited.objects += 1;
                    audited.bytes += stored.bytes;
                    frames.insert(id, rows);
                }
                Err(finding) => audited.findings.push(finding),
            }
            each(stored.bytes);
        }
        Ok(frames)
    }

    async fn read_pack(
        &self,
        id: PackId,
        stored: Stored,
    ) -> Result<Result<Vec<FrameRow>, Finding>> {
        let key = self.pack_key(id);
        let bytes = match whole(&self.store, &key, stored.bytes, &self.data_key).await {
            Ok(bytes) => bytes,
            Err(finding) => return Ok(Err(finding)),
        };
        let cipher = self.reader.cipher(Class::Pack, id.origin)?;
        let (hasher, data_key) = (self.hasher.clone(), self.data_key.clone());
        on_a_thread(move || {
            open_pack(&bytes, stored.index, &cipher, &hasher, &key)
                .map_err(|error| found_in(&key, &error, &bytes, &cipher, &data_key))
        })
        .await
    }

    async fn read_leaves(
        &self,
        frames: &HashMap<PackId, Vec<FrameRow>>,
        audited: &mut Audited,
        each: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<()> {
        let mut objects: Vec<_> = self
            .leaf_objects
            .iter()
            .map(|(id, it)| (*id, *it))
            .collect();
        objects.sort_unstable_by_key(|(id, _)| *id);
        let mut reading =
            futures::stream::iter(objects)
                .map(|(id, stored)| async move {
                    (stored, self.read_leaf_object(id, stored, frames).await)
                })
                .buffer_unordered(OBJECTS_AT_A_TIME);
        while let Some((stored, read)) = reading.next().await {
            let findings = read?;
            if findings.is_empty() {
                audited.objects += 1;
                audited.bytes += stored.bytes;
            }
            audited.findings.extend(findings);
            each(stored.bytes);
        }
        Ok(())
    }

    async fn read_leaf_object(
        &self,
        id: PackId,
        stored: Stored,
        frames: &HashMap<PackId, Vec<FrameRow>>,
    ) -> Result<Vec<Finding>> {
        let key: Arc<str> = self.leaves_key(id).into();
        let bytes = match whole(&self.store, &key, stored.bytes, &self.data_key).await {
            Ok(bytes) => bytes,
            Err(finding) => return Ok(vec![finding]),
        };
        let cipher = self.reader.cipher(Class::Leaves, id.origin)?;
        if bytes.get(..HEADER_BYTES) != Some(&cipher.pack_header()[..]) {
            let error = Error::corrupted(&*key, "its header is not that of its attempt");
            return Ok(vec![found_in(
                &key,
                &error,
                &bytes,
                &cipher,
                &self.data_key,
            )]);
        }
        // Only those that somebody names: what the others in it name may have been pruned.
        let empty = BTreeMap::new();
        let wanted = self.leaves.get(&id).unwrap_or(&empty);
        let mut findings = Vec::new();
        for (row, leaf) in wanted {
            let opened = {
                let (bytes, cipher, key, row) = (bytes.clone(), cipher.clone(), key.clone(), *row);
                on_a_thread(move || open_leaf(&bytes, row, &cipher, &key)).await?
            };
            let checked = match opened {
                Ok(opened) => self.check_leaf(&opened, *leaf, frames, &key).await,
                Err(error) => Err(error),
            };
            match checked {
                Ok(()) => {}
                Err(error @ Error::StoreUnavailable { .. }) => return Err(error),
                Err(error) => {
                    findings.push(found_in(&key, &error, &bytes, &cipher, &self.data_key));
                    break;
                }
            }
        }
        Ok(findings)
    }

    /// Each frame that the leaf names is in its pack, and the pages have the sum that it says. A leaf
    /// with a page in a pack that is bad itself cannot be summed up, and that pack is named already.
    async fn check_leaf(
        &self,
        leaf: &Leaf,
        wanted: WantedLeaf,
        frames: &HashMap<PackId, Vec<FrameRow>>,
        key: &str,
    ) -> Result<()> {
        if leaf.pages() != wanted.pages as usize {
            return Err(Error::corrupted(
                key,
                "a leaf has another length than its file",
            ));
        }
        let mut by_pack: BTreeMap<PackId, Vec<usize>> = BTreeMap::new();
        for (number, run) in leaf.runs.iter().enumerate() {
            if let Some(frame) = run.frame {
                let pack = leaf.frames[frame as usize].pack;
                by_pack.entry(pack).or_default().push(number);
            }
        }
        let mut sum = PageSum::default();
        let mut all_good = true;
        for (pack, runs) in by_pack {
            let Some(stored) = self.packs.get(&pack) else {
                let name = self.pack_key(pack);
                return Err(Error::corrupted(
                    key,
                    format!("a leaf names {name}, which no manifest does"),
                ));
            };
            let (Some(rows), Some(at)) = (frames.get(&pack), stored.index) else {
                all_good = false;
                continue;
            };
            let index = self.reader.index(pack, at).await?;
            for run in runs.into_iter().map(|number| &leaf.runs[number]) {
                let Some(frame) = run.frame else { continue };
                let frame = leaf.frames[frame as usize];
                let first = run.slot as usize;
                let hashes = index
                    .of_frame(frame.offset)
                    .filter(|_| rows.binary_search(&FrameRow::from(frame)).is_ok())
                    .and_then(|hashes| hashes.get(first..first + run.pages as usize));
                let Some(hashes) = hashes else {
                    let name = self.pack_key(pack);
                    return Err(Error::corrupted(
                        key,
                        format!("a leaf names a frame that {name} does not have"),
                    ));
                };
                for (page, hash) in hashes.iter().enumerate() {
                    sum.add(run.first_page + page as u32, hash);
                }
            }
        }
        if all_good && sum != leaf.sum {
            return Err(Error::corrupted(
                key,
                "the pages that a leaf names are not those that it recorded",
            ));
        }
        Ok(())
    }
}

impl FrameRow {
    fn open<'a>(
        self,
        object: &[u8],
        cipher: &FrameCipher,
        opener: &'a mut Opener,
        key: &str,
    ) -> Result<&'a [u8]> {
        let start = self.offset as usize;
        let sealed = object
            .get(start..start + self.sealed_len as usize)
            .ok_or_else(|| Error::corrupted(key, "it is shorter than the frames in it"))?;
        cipher.open(opener, self.number, self.content_len as usize, sealed, key)
    }
}

impl From<FrameAt> for FrameRow {
    fn from(frame: FrameAt) -> Self {
        Self {
            offset: frame.offset,
            sealed_len: frame.sealed_len,
            content_len: frame.content_len,
            number: frame.number,
        }
    }
}

/// Notes with each finding that this backup needs what it was found in.
pub(crate) fn needed_by(manifest: &Manifest, findings: &mut [Finding]) {
    let needed: HashSet<String> = manifest.objects().into_iter().map(|it| it.key).collect();
    for finding in findings {
        if needed.contains(&finding.key) {
            finding.backups.insert(manifest.backup);
        }
    }
}

/// The bytes of an object whose length is known.
async fn whole(
    store: &Store,
    key: &str,
    length: u64,
    data_key: &DataKey,
) -> Result<Bytes, Finding> {
    let read = async {
        let is = store.head(key).await?;
        if is != length {
            return Err(Error::corrupted(
                key,
                format!("it has {is} bytes, and {length} were written"),
            ));
        }
        store.get_range(key, 0..length).await
    };
    read.await
        .map_err(|error| Finding::of(key, &error, &[], data_key))
}

fn found_in(
    key: &str,
    error: &Error,
    bytes: &[u8],
    cipher: &FrameCipher,
    data_key: &DataKey,
) -> Finding {
    let mut finding = Finding::of(key, error, bytes, data_key);
    let header = Header::decode(bytes, key);
    // Ours and whole, of another attempt or class.
    if finding.damage == Damage::Damaged
        && header.is_ok_and(|header| header.encode()[..] != cipher.pack_header()[..])
    {
        finding.damage = Damage::Foreign;
    }
    finding
}

async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Stopped)
}

/// Opens every frame of a pack and compares its pages with the index at its end.
fn open_pack(
    bytes: &[u8],
    index_at: Option<FrameIn>,
    cipher: &FrameCipher,
    hasher: &PageHasher,
    key: &str,
) -> Result<Vec<FrameRow>> {
    let corrupted = |what: &str| Error::corrupted(key, what);
    if bytes.get(..HEADER_BYTES) != Some(&cipher.pack_header()[..]) {
        return Err(corrupted("its header is not that of its attempt"));
    }
    let index_at = index_at.ok_or_else(|| corrupted("nothing says where its index is"))?;
    let mut opener = Opener::new()?;
    let (mut rows, mut index) = (Vec::new(), PackIndex::default());
    let mut at = HEADER_BYTES;
    while at < index_at.0 as usize {
        let row = frame_at(bytes, at).ok_or_else(|| corrupted("a frame lies outside of it"))?;
        let pages = row.content_len as usize / PAGE_BYTES;
        if !(row.content_len as usize).is_multiple_of(PAGE_BYTES)
            || !(1..=PAGES_PER_FRAME).contains(&pages)
        {
            return Err(corrupted("a frame of pages has another length than pages"));
        }
        let content = row.open(bytes, cipher, &mut opener, key)?;
        let hashes: Vec<_> = content
            .chunks_exact(PAGE_BYTES)
            .map(|page| hasher.hash(page))
            .collect();
        index.push(row.offset, &hashes);
        rows.push(row);
        at += row.sealed_len as usize;
    }
    let end = at + index_at.1 as usize;
    let sealed = bytes
        .get(at..end)
        .filter(|_| at == index_at.0 as usize && end == bytes.len())
        .ok_or_else(|| corrupted("its index is not where the manifest says"))?;
    let content = cipher.open(&mut opener, index_at.3, index_at.2 as usize, sealed, key)?;
    if PackIndex::decode(content, key)? != index {
        return Err(corrupted("its index is not that of its pages"));
    }
    Ok(rows)
}

/// The frame that begins here, by its own header, if the object holds all of it.
fn frame_at(bytes: &[u8], at: usize) -> Option<FrameRow> {
    let header = bytes.get(at..at.checked_add(FRAME_HEADER_BYTES)?)?;
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let row = FrameRow {
        offset: u32::try_from(at).ok()?,
        sealed_len: word(12).checked_add(FRAME_OVERHEAD as u32)?,
        content_len: word(8),
        number: u64::from(word(0)) | u64::from(word(4)) << 32,
    };
    (at + row.sealed_len as usize <= bytes.len()).then_some(row)
}

fn open_leaf(bytes: &[u8], row: FrameRow, cipher: &FrameCipher, key: &str) -> Result<Leaf> {
    let mut opener = Opener::new()?;
    Leaf::decode(row.open(bytes, cipher, &mut opener, key)?, key)
}
