//! What one worker does with one stripe of a file: read → check → compare with the base → group into
//! frames → compress and seal → append (DESIGN §3.2). Buffers are reused; a file is never held whole.
//!
//! A stripe is 64 MiB, so that all workers share one large relation. Pages of small files, and what
//! little a differential finds, share frames across files: a thousand of them cost a handful of frames.
//! A leaf is written when the last of its stripes has its places.

use std::io;
use std::sync::Arc;

use super::leaf::{FrameAt, Leaf};
use super::part::{Before, Changes, Growing, Known, Part, Source};
use super::writer::Shared;
use super::{PAGE_BYTES, PAGES_PER_FRAME, PageHash, is_zeros};
use crate::seal::frame::Sealer;
use crate::{Error, Result};

const FRAME_BYTES: usize = PAGES_PER_FRAME * PAGE_BYTES;
pub(crate) const PAGES_PER_STRIPE: usize = 8192;

/// Stripes that wait for the frame being filled hold their places in memory; above this many runs the
/// frame is closed early.
const MAX_WAITING_RUNS: usize = 128 << 10;

pub(crate) struct Task {
    pub part: Arc<Part>,
    pub stripe: u32,
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    sealer: Sealer,
    /// The frame being filled, its first `filled` bytes, and behind it as much again for what is being read.
    buffer: Vec<u8>,
    filled: usize,
    /// Of the pages in the frame.
    hashes: Vec<PageHash>,
    /// Stripes that need only that frame's place.
    waiting: Vec<(Task, Growing)>,
    waiting_runs: usize,
}

impl Worker {
    pub fn new(shared: Arc<Shared>) -> Result<Self> {
        Ok(Self {
            shared,
            sealer: Sealer::new()?,
            buffer: vec![0; 2 * FRAME_BYTES],
            filled: 0,
            hashes: Vec::with_capacity(PAGES_PER_FRAME),
            waiting: Vec::new(),
            waiting_runs: 0,
        })
    }

    /// Closes the last frame and writes the leaves that waited for it.
    pub fn finish(mut self) -> Result<()> {
        self.close_frame(None)
    }

    pub fn store(&mut self, task: Task) -> Result<()> {
        let part = Arc::clone(&task.part);
        let first = task.stripe * PAGES_PER_STRIPE as u32;
        let end = part.pages().min(first + PAGES_PER_STRIPE as u32);
        let base = part.base(&self.shared)?;
        if base.is_none() && part.pages() as usize >= PAGES_PER_FRAME {
            // What is stored whole begins a frame of its own, so that its frames line up with its pages.
            self.close_frame(None)?;
        }
        let mut known = match &base {
            Some(base) => Some(Known::load(&self.shared, base, first, end)?),
            None => None,
        };
        let mut growing = Growing::new(first);
        let mut page = first;
        while page < end {
            if self.shared.is_stopped() {
                return Err(Error::Stopped);
            }
            let count = (end - page).min(PAGES_PER_FRAME as u32);
            match known.as_mut().filter(|known| known.trusts_changes()) {
                Some(known) => self.take_changed(&part, &mut growing, known, page, count)?,
                None => self.take_read(&part, &mut growing, known.as_mut(), page, count)?,
            }
            page += count;
            self.shared.covered(part.bytes_of(count, page));
        }
        self.shared.stripe_done();
        if growing.is_placed() {
            self.complete(&task, growing)
        } else {
            self.waiting_runs += growing.runs();
            self.waiting.push((task, growing));
            if self.waiting_runs > MAX_WAITING_RUNS {
                self.close_frame(None)?;
            }
            Ok(())
        }
    }

    /// Reads only pages that may have changed; the others lie where the base has them.
    fn take_changed(
        &mut self,
        part: &Part,
        growing: &mut Growing,
        known: &mut Known<'_>,
        first: u32,
        count: u32,
    ) -> Result<()> {
        let (mut page, end) = (first, first + count);
        while page < end {
            let changed = known.may_have_changed(page);
            let mut next = page + 1;
            while next < end && known.may_have_changed(next) == changed {
                next += 1;
            }
            if changed {
                self.take_read(part, growing, Some(known), page, next - page)?;
            } else {
                for page in page..next {
                    growing.keep(known.place(page), known.frame_of(page));
                }
            }
            page = next;
        }
        Ok(())
    }

    /// Reads pages behind those of the frame being filled and decides where each lies. What goes into the
    /// frame is there already, unless something before it does not.
    fn take_read(
        &mut self,
        part: &Part,
        growing: &mut Growing,
        mut known: Option<&mut Known<'_>>,
        first: u32,
        count: u32,
    ) -> Result<()> {
        let from = self.filled;
        let pages = &mut self.buffer[from..from + count as usize * PAGE_BYTES];
        if let Source::File(_) = &*part.source {
            self.shared.may_read(pages.len() as u64)?;
        }
        read_pages(part, first, pages)?;
        self.shared.read(pages.len() as u64);
        for index in 0..count {
            let at = from + index as usize * PAGE_BYTES;
            let page = &self.buffer[at..at + PAGE_BYTES];
            let known = known.as_deref_mut();
            let Some(hash) = place_page(&self.shared, part, growing, known, first + index, page)
            else {
                continue;
            };
            growing.place_in_filling((self.filled / PAGE_BYTES) as u32);
            if at != self.filled {
                self.buffer.copy_within(at..at + PAGE_BYTES, self.filled);
            }
            self.filled += PAGE_BYTES;
            self.hashes.push(hash);
            if self.filled == FRAME_BYTES {
                self.close_frame(Some(growing))?;
            }
        }
        Ok(())
    }

    /// Seals the frame being filled, gives it its place, and completes the stripes that waited for it.
    fn close_frame(&mut self, current: Option<&mut Growing>) -> Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        let pages = &self.shared.pages;
        let content = &self.buffer[..self.filled];
        let (number, sealed) = pages.cipher.seal(&mut self.sealer, content)?;
        let sealed_len = sealed.len() as u32;
        let (pack, offset) = pages.append(sealed, &self.hashes)?;
        let placed = FrameAt {
            pack,
            offset,
            sealed_len,
            content_len: self.filled as u32,
            number,
        };
        self.filled = 0;
        self.hashes.clear();
        if let Some(current) = current {
            current.filling_is(placed);
        }
        self.waiting_runs = 0;
        for (task, mut growing) in std::mem::take(&mut self.waiting) {
            growing.filling_is(placed);
            self.complete(&task, growing)?;
        }
        Ok(())
    }

    /// A stripe knows all its places; with the last one of its part the leaf can be named.
    fn complete(&mut self, task: &Task, growing: Growing) -> Result<()> {
        match task.part.complete(&self.shared, task.stripe, growing)? {
            None => Ok(()),
            Some(leaf) => self.write_leaf(&task.part, &leaf),
        }
    }

    fn write_leaf(&mut self, part: &Part, leaf: &Leaf) -> Result<()> {
        let content = leaf.encode();
        let leaves = &self.shared.leaves;
        let (number, sealed) = leaves.cipher.seal(&mut self.sealer, &content)?;
        let sealed_len = sealed.len() as u32;
        let (object, offset) = leaves.append(sealed, &[])?;
        self.shared.name_new(
            part.slot,
            leaf,
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

/// Decides where a page lies: nowhere (zeros), where the base has it, or in the frame being filled; the
/// latter is for the caller, who gets its hash. Content decides, by its hash.
fn place_page(
    shared: &Shared,
    part: &Part,
    growing: &mut Growing,
    known: Option<&mut Known<'_>>,
    number: u32,
    page: &[u8],
) -> Option<PageHash> {
    let hash = (!is_zeros(page)).then(|| shared.hasher.hash(page));
    if let Some(known) = known {
        let before = known.before(number);
        if before == Before::of(hash) && growing.keep(known.place(number), known.frame_of(number)) {
            // In a sum that starts from the base's, what stays is in it already.
            if !known.trusts_changes() {
                growing.count(number, hash);
            }
            return None;
        }
        if known.trusts_changes() {
            growing.discount(number, before);
        } else if before != Before::Unknown && matches!(part.changes, Changes::Remember) {
            shared.remember_changed(part, number);
        }
    }
    growing.count(number, hash);
    if hash.is_none() {
        growing.place(None, 0);
    }
    hash
}

/// Reads whole pages; what is beyond the end, of the file or of its recorded length, is zeros
/// (RELIABILITY §5.2.5: replay repairs what a shrinking file has lost).
fn read_pages(part: &Part, first: u32, pages: &mut [u8]) -> Result<()> {
    let at = part.start + u64::from(first) * PAGE_BYTES as u64;
    let wanted = pages.len().min((part.start + part.bytes - at) as usize);
    let failed = |error| Error::io(format!("{} cannot be read", part.path), error);
    let filled = match &*part.source {
        Source::File(file) => read_up_to(file, &mut pages[..wanted], at).map_err(failed)?,
        Source::Bytes(content) => {
            let from = (at as usize).min(content.len());
            let upto = (from + wanted).min(content.len());
            pages[..upto - from].copy_from_slice(&content[from..upto]);
            upto - from
        }
    };
    pages[filled..].fill(0);
    if let (Some(check), Source::File(file)) = (&part.check, &*part.source) {
        let first = at / PAGE_BYTES as u64;
        // A page that is not wholly there has no checksum to look at.
        for (index, page) in pages[..filled].chunks_exact_mut(PAGE_BYTES).enumerate() {
            check(file, first + index as u64, page).map_err(failed)?;
        }
    }
    Ok(())
}

fn read_up_to(file: &std::fs::File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
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
