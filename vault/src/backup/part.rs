//! One GiB of one file on its way into a leaf: where it is read from, what the base knew of it, and
//! the places of its pages as the workers find them, stripe by stripe.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use roaring::RoaringBitmap;

use super::base::BaseLeaf;
use super::index::PackIndex;
use super::leaf::{FrameAt, Leaf, PackId, Run};
use super::read::lock;
use super::writer::Shared;
use super::{PAGE_BYTES, PAGES_PER_LEAF, PageHash, PageSum};
use crate::Result;

/// Looks at each page that was read, and may read it again into place: torn pages, checksums
/// (RELIABILITY §5.2.5). Gets the file, the page's number in it, and the page. Runs on workers.
pub type PageCheck = Arc<dyn Fn(&File, u64, &mut [u8]) -> io::Result<()> + Send + Sync>;

/// What is known about the pages of a file that may differ from the base's.
#[derive(Debug, Clone, Default)]
pub enum Changes {
    /// Nothing: every page is read and compared.
    #[default]
    Unknown,
    /// Nothing either, and the pages that turn out to differ from the base's are remembered, so that
    /// another's opinion can be compared with the truth.
    Remember,
    /// These and those beyond the base's end; the others are not even read. Whoever says so must be
    /// able to prove it: see the agent's change map.
    Only(Arc<RoaringBitmap>),
}

/// Which leaf of which file.
#[derive(Clone, Copy)]
pub(crate) struct LeafSlot {
    pub file: usize,
    pub part: usize,
}

pub(crate) enum Source {
    File(File),
    Bytes(Bytes),
}

pub(crate) struct Part {
    pub slot: LeafSlot,
    pub path: Arc<str>,
    pub source: Arc<Source>,
    /// Where in the file the part begins.
    pub start: u64,
    /// The length when it was opened. What the file has lost since is read as zeros.
    pub bytes: u64,
    pub check: Option<PageCheck>,
    pub changes: Changes,
    base: Mutex<Option<Option<Arc<PartBase>>>>,
    assembly: Mutex<Assembly>,
}

/// What the base has of this part.
pub(crate) struct PartBase {
    leaf: BaseLeaf,
    pages: u32,
    /// Pages of this part, of those that the base has, which alone may have changed.
    changed: Option<RoaringBitmap>,
}

struct Assembly {
    left: u32,
    stripes: Vec<Option<Growing>>,
}

impl Part {
    pub fn new(
        slot: LeafSlot,
        path: Arc<str>,
        source: Arc<Source>,
        start: u64,
        bytes: u64,
        check: Option<PageCheck>,
        changes: Changes,
    ) -> Self {
        let mut part = Self {
            slot,
            path,
            source,
            start,
            bytes,
            check,
            changes,
            base: Mutex::default(),
            assembly: Mutex::new(Assembly {
                left: 0,
                stripes: Vec::new(),
            }),
        };
        let stripes = part.stripes();
        part.assembly = Mutex::new(Assembly {
            left: stripes,
            stripes: (0..stripes).map(|_| None).collect(),
        });
        part
    }

    pub fn pages(&self) -> u32 {
        self.bytes.div_ceil(PAGE_BYTES as u64) as u32
    }

    /// The number in the file of the part's page 0.
    pub fn first_page(&self) -> u32 {
        (self.slot.part * PAGES_PER_LEAF) as u32
    }

    pub fn stripes(&self) -> u32 {
        self.pages()
            .div_ceil(super::segment::PAGES_PER_STRIPE as u32)
    }

    /// Bytes of the file in the `count` pages that end before page `end`.
    pub fn bytes_of(&self, count: u32, end: u32) -> u64 {
        let at = |page: u32| (u64::from(page) * PAGE_BYTES as u64).min(self.bytes);
        at(end) - at(end - count)
    }

    /// Loaded by whoever comes first; the others wait for it.
    pub fn base(&self, shared: &Shared) -> Result<Option<Arc<PartBase>>> {
        let mut base = lock(&self.base);
        if let Some(loaded) = &*base {
            return Ok(loaded.clone());
        }
        let loaded = match shared.base_leaf(&self.path, self.slot.part)? {
            Some(leaf) => Some(Arc::new(self.relate(shared, leaf)?)),
            None => None,
        };
        *base = Some(loaded.clone());
        Ok(loaded)
    }

    /// That only some pages may have changed is of use when the base's hashes of those can be read –
    /// the leaf's sum needs them – and when the file has not become shorter.
    fn relate(&self, shared: &Shared, leaf: BaseLeaf) -> Result<PartBase> {
        let mut base = PartBase {
            pages: leaf.leaf.pages() as u32,
            leaf,
            changed: None,
        };
        let Changes::Only(changed) = &self.changes else {
            return Ok(base);
        };
        if base.pages > self.pages() {
            return Ok(base);
        }
        let first = self.first_page();
        let mut ours = RoaringBitmap::new();
        for page in changed.range(first..first.saturating_add(base.pages)) {
            ours.insert(page - first);
        }
        // The page that ends a file may have been cut short in the base.
        if self.pages() > base.pages || !self.bytes.is_multiple_of(PAGE_BYTES as u64) {
            ours.insert(base.pages - 1);
        }
        let mut known = None;
        for page in &ours {
            let Some((frame, _)) = base.leaf.leaf.places_from(page).next().flatten() else {
                continue;
            };
            if known == Some(frame) {
                continue;
            }
            known = Some(frame);
            let pack = base.leaf.leaf.frames[frame as usize].pack;
            if shared.base_index(pack)?.is_none() {
                return Ok(base);
            }
        }
        base.changed = Some(ours);
        Ok(base)
    }

    /// Takes in a stripe's places. With the last one: the leaf to write, or `None` when nothing
    /// changed and the base's leaf was named again.
    pub fn complete(&self, shared: &Shared, stripe: u32, growing: Growing) -> Result<Option<Leaf>> {
        let stripes = {
            let mut assembly = lock(&self.assembly);
            assembly.stripes[stripe as usize] = Some(growing);
            assembly.left -= 1;
            if assembly.left > 0 {
                return Ok(None);
            }
            std::mem::take(&mut assembly.stripes)
        };
        let base = lock(&self.base).take().flatten();
        if let Some(base) = &base
            && base.pages == self.pages()
            && stripes.iter().flatten().all(|stripe| stripe.same)
        {
            shared.name_again(self.slot, &base.leaf)?;
            return Ok(None);
        }
        let mut leaf = Leaf::default();
        if let Some(base) = &base
            && base.changed.is_some()
        {
            leaf.sum = base.leaf.leaf.sum;
        }
        for stripe in stripes.into_iter().flatten() {
            stripe.append_to(&mut leaf);
        }
        Ok(Some(leaf))
    }
}

/// What the base had at a page's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing, or nothing that can be compared with.
    Unknown,
    Zeros,
    Page(PageHash),
}

impl Before {
    /// What a page is that has this hash; zeros have none.
    pub fn of(hash: Option<PageHash>) -> Self {
        hash.map_or(Self::Zeros, Self::Page)
    }
}

/// What the base knew about the pages of one stripe.
pub(crate) struct Known<'a> {
    base: &'a PartBase,
    first: u32,
    places: Vec<Option<(u32, u32)>>,
    indexes: HashMap<PackId, Option<Arc<PackIndex>>>,
}

impl<'a> Known<'a> {
    pub fn load(shared: &Shared, base: &'a PartBase, first: u32, end: u32) -> Result<Self> {
        let leaf = &base.leaf.leaf;
        let places: Vec<_> = leaf
            .places_from(first)
            .take((end - first) as usize)
            .collect();
        let mut indexes = HashMap::new();
        let mut last = None;
        for (offset, place) in places.iter().enumerate() {
            let Some((frame, _)) = place else { continue };
            let wanted = base
                .changed
                .as_ref()
                .is_none_or(|changed| changed.contains(first + offset as u32));
            if !wanted || last == Some(*frame) {
                continue;
            }
            last = Some(*frame);
            let pack = leaf.frames[*frame as usize].pack;
            if let std::collections::hash_map::Entry::Vacant(entry) = indexes.entry(pack) {
                entry.insert(shared.base_index(pack)?);
            }
        }
        Ok(Self {
            base,
            first,
            places,
            indexes,
        })
    }

    /// Whether pages that did not change are known, and are not read.
    pub fn trusts_changes(&self) -> bool {
        self.base.changed.is_some()
    }

    pub fn may_have_changed(&self, page: u32) -> bool {
        self.is_beyond(page)
            || self
                .base
                .changed
                .as_ref()
                .is_none_or(|changed| changed.contains(page))
    }

    /// The base's file ended before this page.
    pub fn is_beyond(&self, page: u32) -> bool {
        page >= self.base.pages
    }

    /// The base's place of a page: `None` beyond its end, `Some(None)` for zeros.
    pub fn place(&self, page: u32) -> Option<Option<(u32, u32)>> {
        self.places.get((page - self.first) as usize).copied()
    }

    pub fn frame_of(&self, page: u32) -> Option<FrameAt> {
        let (frame, _) = self.place(page)??;
        Some(self.base.leaf.leaf.frames[frame as usize])
    }

    pub fn before(&self, page: u32) -> Before {
        match self.place(page) {
            None => Before::Unknown,
            Some(None) => Before::Zeros,
            Some(Some((frame, slot))) => {
                let frame = &self.base.leaf.leaf.frames[frame as usize];
                self.indexes
                    .get(&frame.pack)
                    .and_then(Option::as_deref)
                    .and_then(|index| index.of_frame(frame.offset)?.get(slot as usize))
                    .map_or(Before::Unknown, |hash| Before::Page(*hash))
            }
        }
    }
}

/// The places of a stripe's pages as they are found.
pub(crate) struct Growing {
    next: u32,
    runs: Vec<Run>,
    frames: Vec<Option<FrameAt>>,
    /// The index that stands for the frame being filled.
    filling: Option<u32>,
    /// Frames of the base that were taken over: base index → ours.
    taken: HashMap<u32, u32>,
    sum: PageSum,
    /// Every page lies where the base has it.
    same: bool,
}

impl Growing {
    pub fn new(first: u32) -> Self {
        Self {
            next: first,
            runs: Vec::new(),
            frames: Vec::new(),
            filling: None,
            taken: HashMap::new(),
            sum: PageSum::default(),
            same: true,
        }
    }

    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    pub fn is_placed(&self) -> bool {
        self.filling.is_none()
    }

    /// The page lies where the base has it. `false`: the base has no such page.
    pub fn keep(&mut self, place: Option<Option<(u32, u32)>>, frame: Option<FrameAt>) -> bool {
        match (place, frame) {
            (Some(None), _) => self.push(None, 0),
            (Some(Some((base_index, slot))), Some(frame)) => {
                let index = *self.taken.entry(base_index).or_insert_with(|| {
                    self.frames.push(Some(frame));
                    self.frames.len() as u32 - 1
                });
                self.push(Some(index), slot);
            }
            _ => return false,
        }
        true
    }

    pub fn place(&mut self, frame: Option<u32>, slot: u32) {
        self.same = false;
        self.push(frame, slot);
    }

    pub fn place_in_filling(&mut self, slot: u32) {
        let filling = *self.filling.get_or_insert_with(|| {
            self.frames.push(None);
            self.frames.len() as u32 - 1
        });
        self.place(Some(filling), slot);
    }

    pub fn filling_is(&mut self, placed: FrameAt) {
        if let Some(index) = self.filling.take() {
            self.frames[index as usize] = Some(placed);
        }
    }

    pub fn count(&mut self, page: u32, hash: Option<PageHash>) {
        if let Some(hash) = hash {
            self.sum.add(page, &hash);
        }
    }

    /// The page is not any more what the base's sum says.
    pub fn discount(&mut self, page: u32, before: Before) {
        if let Before::Page(hash) = before {
            self.sum.remove(page, &hash);
        }
    }

    fn push(&mut self, frame: Option<u32>, slot: u32) {
        let page = self.next;
        self.next += 1;
        match self.runs.last_mut() {
            Some(last)
                if last.frame == frame && (frame.is_none() || last.slot + last.pages == slot) =>
            {
                last.pages += 1;
            }
            _ => self.runs.push(Run {
                first_page: page,
                pages: 1,
                frame,
                slot,
            }),
        }
    }

    /// Stripes come in order.
    fn append_to(self, leaf: &mut Leaf) {
        let before = leaf.frames.len() as u32;
        leaf.frames.extend(
            self.frames
                .into_iter()
                .map(|frame| frame.expect("a leaf is written after its last frame has its place")),
        );
        leaf.runs.extend(self.runs.into_iter().map(|run| Run {
            frame: run.frame.map(|frame| frame + before),
            ..run
        }));
        leaf.sum.merge(self.sum);
    }
}
