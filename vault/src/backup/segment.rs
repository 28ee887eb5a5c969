//! What one worker does with one file: read → check → compare with the base → group into frames →
//! compress and seal → append (DESIGN §3.2). Buffers are reused; a file is never held whole.
//!
//! Pages of small files share frames, so that a thousand of them cost a handful of frames. A leaf is
//! written when the last frame that it names has its place.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::base::BaseLeaf;
use super::leaf::{FrameAt, Leaf, Run};
use super::writer::Shared;
use super::{PAGE_BYTES, PAGES_PER_FRAME, PAGES_PER_LEAF, PageHash};
use crate::{Error, Result};

/// Looks at each page that was read, and may read it again into place: torn pages, checksums
/// (RELIABILITY §5.2.5). Gets the file, the page's number in it, and the page. Runs on workers.
pub type PageCheck = Arc<dyn Fn(&File, u64, &mut [u8]) -> io::Result<()> + Send + Sync>;

/// Leaves that wait for the frame being filled hold their hashes in memory; above this many pages
/// the frame is closed early.
const MAX_WAITING_PAGES: usize = 4 * PAGES_PER_LEAF;
/// Marks the frame being filled until it has its place.
const ZEROS: u32 = u32::MAX;

pub(crate) struct Task {
    pub file: usize,
    pub path: String,
    pub source: Source,
    /// The length when it was opened. What the file has lost since is read as zeros.
    pub bytes: u64,
    pub check: Option<PageCheck>,
}

pub(crate) enum Source {
    File(File),
    Bytes(Bytes),
}

/// Which leaf of which file.
#[derive(Clone, Copy)]
pub(crate) struct LeafSlot {
    pub file: usize,
    pub part: usize,
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    /// Pages just read.
    group: Vec<u8>,
    /// The frame being filled.
    frame: Vec<u8>,
    /// Leaves that need only that frame's place.
    waiting: Vec<(LeafSlot, Builder)>,
    waiting_pages: usize,
}

/// A leaf as it grows.
#[derive(Default)]
struct Builder {
    hashes: Vec<PageHash>,
    /// Frame (index into `frames`, or [`ZEROS`]) and slot of each page.
    places: Vec<(u32, u32)>,
    frames: Vec<Option<FrameAt>>,
    /// The index that stands for the frame being filled.
    filling: Option<u32>,
    /// Frames of the base that were taken over: base index → ours.
    taken: HashMap<u32, u32>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            group: vec![0; PAGES_PER_FRAME * PAGE_BYTES],
            frame: Vec::with_capacity(PAGES_PER_FRAME * PAGE_BYTES),
            waiting: Vec::new(),
            waiting_pages: 0,
        }
    }

    pub fn store(&mut self, task: &Task) -> Result<()> {
        let leaf_bytes = (PAGES_PER_LEAF * PAGE_BYTES) as u64;
        for part in 0..task.bytes.div_ceil(leaf_bytes) {
            let start = part * leaf_bytes;
            let bytes = (task.bytes - start).min(leaf_bytes);
            let slot = LeafSlot {
                file: task.file,
                part: part as usize,
            };
            self.store_part(task, slot, start, bytes)?;
        }
        self.shared.file_done();
        Ok(())
    }

    /// Closes the last frame and writes the leaves that waited for it.
    pub fn finish(mut self) -> Result<()> {
        self.close_frame(None)
    }

    fn store_part(&mut self, task: &Task, slot: LeafSlot, start: u64, bytes: u64) -> Result<()> {
        let pages = bytes.div_ceil(PAGE_BYTES as u64) as usize;
        let base = self.shared.base_leaf(&task.path, slot.part)?;
        if pages >= PAGES_PER_FRAME || self.waiting_pages + pages > MAX_WAITING_PAGES {
            // A large file begins a frame of its own, so that its frames line up with its pages.
            self.close_frame(None)?;
        }
        let mut leaf = Builder {
            hashes: Vec::with_capacity(pages),
            places: Vec::with_capacity(pages),
            ..Builder::default()
        };
        let mut base_places = base.as_ref().map(|base| base.leaf.places());
        for first in (0..pages).step_by(PAGES_PER_FRAME) {
            if self.shared.is_stopped() {
                return Err(Error::Stopped);
            }
            let count = PAGES_PER_FRAME.min(pages - first);
            let mut group = std::mem::take(&mut self.group);
            let read = self.read_group(task, start, bytes, first, &mut group[..count * PAGE_BYTES]);
            let taken = read.and_then(|()| {
                for (index, page) in group[..count * PAGE_BYTES]
                    .chunks_exact(PAGE_BYTES)
                    .enumerate()
                {
                    let known = base_places.as_mut().and_then(Iterator::next);
                    self.take_page(&mut leaf, base.as_ref(), first + index, known, page)?;
                }
                Ok(())
            });
            self.group = group;
            taken?;
            let read = (count * PAGE_BYTES) as u64;
            self.shared.bytes_read.fetch_add(
                read.min(bytes - (first * PAGE_BYTES) as u64),
                Ordering::Relaxed,
            );
        }
        match &base {
            Some(base) if leaf.hashes == base.leaf.hashes => self.shared.name_again(slot, base),
            _ if leaf.filling.is_none() => self.write_leaf(slot, leaf),
            _ => {
                self.waiting_pages += pages;
                self.waiting.push((slot, leaf));
                Ok(())
            }
        }
    }

    /// Reads whole pages; what is beyond the end, of the file or of its recorded length, is zeros
    /// (RELIABILITY §5.2.5: replay repairs what a shrinking file has lost).
    fn read_group(
        &self,
        task: &Task,
        start: u64,
        bytes: u64,
        first: usize,
        group: &mut [u8],
    ) -> Result<()> {
        let at = start + (first * PAGE_BYTES) as u64;
        let wanted = group.len().min((start + bytes - at) as usize);
        let failed = |error| Error::io(format!("{} cannot be read", task.path), error);
        let filled = match &task.source {
            Source::File(file) => read_up_to(file, &mut group[..wanted], at).map_err(failed)?,
            Source::Bytes(content) => {
                let from = (at as usize).min(content.len());
                let upto = (from + wanted).min(content.len());
                group[..upto - from].copy_from_slice(&content[from..upto]);
                upto - from
            }
        };
        group[filled..].fill(0);
        if let (Some(check), Source::File(file)) = (&task.check, &task.source) {
            let first = at / PAGE_BYTES as u64;
            // A page that is not wholly there has no checksum to look at.
            for (index, page) in group[..filled].chunks_exact_mut(PAGE_BYTES).enumerate() {
                check(file, first + index as u64, page).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Decides where one page lies: nowhere (zeros), where the base has it, or in the frame being
    /// filled. Content decides, by its hash.
    fn take_page(
        &mut self,
        leaf: &mut Builder,
        base: Option<&BaseLeaf>,
        page_number: usize,
        known: Option<Option<(u32, u32)>>,
        page: &[u8],
    ) -> Result<()> {
        if is_zeros(page) {
            leaf.hashes.push(self.shared.hasher.zero());
            leaf.places.push((ZEROS, 0));
            return Ok(());
        }
        let hash = self.shared.hasher.hash(page);
        leaf.hashes.push(hash);
        if let (Some(base), Some(Some((frame, slot)))) = (base, known)
            && base.leaf.hashes[page_number] == hash
        {
            let frame = leaf.take_over(frame, base.leaf.frames[frame as usize]);
            leaf.places.push((frame, slot));
            return Ok(());
        }
        let frame = leaf.filling_frame();
        leaf.places
            .push((frame, (self.frame.len() / PAGE_BYTES) as u32));
        self.frame.extend_from_slice(page);
        if self.frame.len() == PAGES_PER_FRAME * PAGE_BYTES {
            self.close_frame(Some(leaf))?;
        }
        Ok(())
    }

    /// Seals the frame being filled, gives it its place, and writes the leaves that waited for it.
    fn close_frame(&mut self, current: Option<&mut Builder>) -> Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let (number, sealed) = self.shared.pages.cipher.seal(&self.frame)?;
        let sealed_len = sealed.len() as u32;
        let (pack, offset) = self.shared.pages.append(sealed)?;
        let placed = FrameAt {
            pack,
            offset,
            sealed_len,
            content_len: self.frame.len() as u32,
            number,
        };
        self.frame.clear();
        if let Some(current) = current {
            current.place_filling(placed);
        }
        self.waiting_pages = 0;
        for (slot, mut leaf) in std::mem::take(&mut self.waiting) {
            leaf.place_filling(placed);
            self.write_leaf(slot, leaf)?;
        }
        Ok(())
    }

    fn write_leaf(&self, slot: LeafSlot, leaf: Builder) -> Result<()> {
        let leaf = leaf.finish();
        let content = leaf.encode();
        let (number, sealed) = self.shared.leaves.cipher.seal(&content)?;
        let sealed_len = sealed.len() as u32;
        let (object, offset) = self.shared.leaves.append(sealed)?;
        self.shared.name_new(
            slot,
            &leaf,
            FrameAt {
                pack: object,
                offset,
                sealed_len,
                content_len: content.len() as u32,
                number,
            },
        )
    }
}

impl Builder {
    fn filling_frame(&mut self) -> u32 {
        *self.filling.get_or_insert_with(|| {
            self.frames.push(None);
            self.frames.len() as u32 - 1
        })
    }

    fn place_filling(&mut self, placed: FrameAt) {
        if let Some(index) = self.filling.take() {
            self.frames[index as usize] = Some(placed);
        }
    }

    fn take_over(&mut self, base_index: u32, frame: FrameAt) -> u32 {
        *self.taken.entry(base_index).or_insert_with(|| {
            self.frames.push(Some(frame));
            self.frames.len() as u32 - 1
        })
    }

    fn finish(self) -> Leaf {
        let frames = self
            .frames
            .into_iter()
            .map(|frame| frame.expect("a leaf is written after its last frame has its place"))
            .collect();
        let mut runs: Vec<Run> = Vec::new();
        for (page, (frame, slot)) in self.places.into_iter().enumerate() {
            let frame = Some(frame).filter(|frame| *frame != ZEROS);
            match runs.last_mut() {
                Some(last)
                    if last.frame == frame
                        && (frame.is_none() || last.slot + last.pages == slot) =>
                {
                    last.pages += 1;
                }
                _ => runs.push(Run {
                    first_page: page as u32,
                    pages: 1,
                    frame,
                    slot,
                }),
            }
        }
        Leaf {
            frames,
            runs,
            hashes: self.hashes,
        }
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn is_zeros(page: &[u8]) -> bool {
    // Most pages differ in their first bytes; the rest is compared only when those are zeros.
    page[..16] == [0; 16] && page.iter().all(|byte| *byte == 0)
}
