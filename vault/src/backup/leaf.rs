//! A leaf: for one segment of a file, up to 131,072 pages, where each page lies. Immutable; a
//! differential names it again when nothing in it changed. The pages' hashes are not in it – they lie
//! with the pages, in their pack's [`index`](super::index) – only their sum is.
//! Bytes: `docs/VAULT-FORMAT.md` §5.

use std::collections::HashMap;
use std::hash::Hash;

use holdfast_domain::JobId;
use uuid::Uuid;

use super::{PAGE_BYTES, PAGES_PER_FRAME, PAGES_PER_LEAF, PageSum};
use crate::seal::frame::{FRAME_OVERHEAD, MAX_PACK_BYTES, Origin};
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"HFLF";
const VERSION: u16 = 1;
const FIXED_BYTES: usize = 44;
const ORIGIN_BYTES: usize = 56;
const PACK_BYTES: usize = 8;
const FRAME_BYTES: usize = 24;

/// A pack or leaf object of one origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PackId {
    pub origin: Origin,
    pub number: u32,
}

/// Where a frame lies and how to open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FrameAt {
    pub pack: PackId,
    pub offset: u32,
    /// Bytes in the pack, header and tag included.
    pub sealed_len: u32,
    pub content_len: u32,
    /// The frame's number within its origin.
    pub number: u64,
}

/// Pages that follow each other both in the file and in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub first_page: u32,
    pub pages: u32,
    /// Index into the leaf's frames; `None`: zeros.
    pub frame: Option<u32>,
    /// Which page of the frame is the run's first.
    pub slot: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub frames: Vec<FrameAt>,
    /// In order, without a gap, from page 0 to the last.
    pub runs: Vec<Run>,
    pub sum: PageSum,
}

impl Leaf {
    /// Pages that it describes.
    pub fn pages(&self) -> usize {
        self.runs
            .last()
            .map_or(0, |run| run.first_page as usize + run.pages as usize)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut origins = Table::default();
        let mut packs = Table::default();
        let frames: Vec<u32> = self
            .frames
            .iter()
            .map(|frame| {
                let origin = origins.index_of(frame.pack.origin);
                packs.index_of((origin, frame.pack.number))
            })
            .collect();
        let mut out = Vec::with_capacity(
            FIXED_BYTES
                + origins.rows.len() * ORIGIN_BYTES
                + packs.rows.len() * PACK_BYTES
                + self.frames.len() * FRAME_BYTES
                + self.runs.len() * 5,
        );
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        let (packs_len, origins_len) = (packs.rows.len(), origins.rows.len());
        for count in [
            self.pages(),
            self.runs.len(),
            self.frames.len(),
            packs_len,
            origins_len,
        ] {
            out.extend_from_slice(&(count as u32).to_le_bytes());
        }
        out.extend_from_slice(&self.sum.to_bytes());
        for origin in &origins.rows {
            out.extend_from_slice(origin.job.0.as_bytes());
            out.extend_from_slice(&origin.epoch.to_le_bytes());
            out.extend_from_slice(&origin.salt);
        }
        for (origin, number) in &packs.rows {
            out.extend_from_slice(&origin.to_le_bytes());
            out.extend_from_slice(&number.to_le_bytes());
        }
        for (frame, pack) in self.frames.iter().zip(frames) {
            out.extend_from_slice(&pack.to_le_bytes());
            out.extend_from_slice(&frame.offset.to_le_bytes());
            out.extend_from_slice(&frame.sealed_len.to_le_bytes());
            out.extend_from_slice(&frame.content_len.to_le_bytes());
            out.extend_from_slice(&frame.number.to_le_bytes());
        }
        // Column by column, which compresses better than row by row.
        for run in &self.runs {
            put_varint(&mut out, run.pages);
        }
        for run in &self.runs {
            put_varint(&mut out, run.frame.map_or(0, |frame| frame + 1));
        }
        for run in &self.runs {
            put_varint(&mut out, run.slot);
        }
        out
    }

    /// Reads a leaf and checks everything that reading pages by it relies on.
    pub fn decode(bytes: &[u8], key: &str) -> Result<Self> {
        let mut reader = Reader { rest: bytes, key };
        let fixed = reader.take(FIXED_BYTES)?;
        if &fixed[0..4] != MAGIC || fixed[4..6] != VERSION.to_le_bytes() || fixed[6..8] != [0; 2] {
            return Err(reader.corrupted("a leaf has a version that is not known here"));
        }
        let count = |at| word(fixed, at) as usize;
        let (pages, runs, frames, packs, origins) =
            (count(8), count(12), count(16), count(20), count(24));
        if pages == 0 || pages > PAGES_PER_LEAF || runs > pages || frames > pages {
            return Err(reader.corrupted("a leaf's counts cannot be"));
        }
        let sum = PageSum::from_bytes(fixed[28..44].try_into().expect("16 bytes of 44"));
        let origins: Vec<Origin> = reader.rows(origins, ORIGIN_BYTES)?.map(origin).collect();
        let packs = reader
            .rows(packs, PACK_BYTES)?
            .map(|row| {
                Some(PackId {
                    origin: *origins.get(word(row, 0) as usize)?,
                    number: word(row, 4),
                })
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::corrupted(key, "a leaf names a pack of no origin"))?;
        let frames = reader
            .rows(frames, FRAME_BYTES)?
            .map(|row| frame(row, &packs))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::corrupted(key, "a leaf names a frame that cannot be"))?;
        let runs = reader.runs(runs, pages, &frames)?;
        if !reader.rest.is_empty() {
            return Err(reader.corrupted("bytes follow a leaf's end"));
        }
        Ok(Self { frames, runs, sum })
    }

    /// How many pages lie in each pack. Every frame is in it, even one whose pages none names.
    pub fn pages_by_pack(&self) -> HashMap<PackId, u32> {
        let mut frames = vec![0; self.frames.len()];
        for run in &self.runs {
            if let Some(frame) = run.frame {
                frames[frame as usize] += run.pages;
            }
        }
        let mut packs = HashMap::new();
        for (frame, pages) in self.frames.iter().zip(frames) {
            *packs.entry(frame.pack).or_default() += pages;
        }
        packs
    }

    /// Where the pages from `first` on lie: frame and slot, or `None` for zeros.
    pub fn places_from(&self, first: u32) -> impl Iterator<Item = Option<(u32, u32)>> + '_ {
        let at = self
            .runs
            .partition_point(|run| run.first_page + run.pages <= first);
        self.runs[at..].iter().flat_map(move |run| {
            let skip = first.saturating_sub(run.first_page);
            (skip..run.pages).map(move |page| run.frame.map(|frame| (frame, run.slot + page)))
        })
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn word(row: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
}

fn origin(row: &[u8]) -> Origin {
    let part = "rows are 56 bytes long";
    Origin {
        job: JobId(Uuid::from_bytes(row[0..16].try_into().expect(part))),
        epoch: i64::from_le_bytes(row[16..24].try_into().expect(part)),
        salt: row[24..56].try_into().expect(part),
    }
}

fn frame(row: &[u8], packs: &[PackId]) -> Option<FrameAt> {
    let frame = FrameAt {
        pack: *packs.get(word(row, 0) as usize)?,
        offset: word(row, 4),
        sealed_len: word(row, 8),
        content_len: word(row, 12),
        number: u64::from(word(row, 16)) | u64::from(word(row, 20)) << 32,
    };
    let pages = frame.content_len as usize / PAGE_BYTES;
    let whole = (frame.content_len as usize).is_multiple_of(PAGE_BYTES);
    let inside = u64::from(frame.offset) + u64::from(frame.sealed_len) <= MAX_PACK_BYTES;
    let sealed = frame.sealed_len as usize > FRAME_OVERHEAD;
    (whole && inside && sealed && (1..=PAGES_PER_FRAME).contains(&pages)).then_some(frame)
}

struct Reader<'a> {
    rest: &'a [u8],
    key: &'a str,
}

impl<'a> Reader<'a> {
    fn corrupted(&self, what: &str) -> Error {
        Error::corrupted(self.key, what)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| self.corrupted("a leaf is too short"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn rows(&mut self, count: usize, length: usize) -> Result<std::slice::ChunksExact<'a, u8>> {
        let bytes = count
            .checked_mul(length)
            .ok_or_else(|| self.corrupted("a leaf is too short"))?;
        Ok(self.take(bytes)?.chunks_exact(length))
    }

    /// LEB128, at most 32 bits.
    fn varint(&mut self) -> Result<u32> {
        let mut value: u64 = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value)
                    .map_err(|_| self.corrupted("a leaf has a number that is too large"));
            }
        }
        Err(self.corrupted("a leaf has a number that is too large"))
    }

    fn runs(&mut self, count: usize, pages: usize, frames: &[FrameAt]) -> Result<Vec<Run>> {
        let mut runs = Vec::with_capacity(count.min(self.rest.len()));
        let mut next = 0;
        for _ in 0..count {
            let length = self.varint()?;
            if length == 0 || length as usize > pages - next as usize {
                return Err(self.corrupted("a leaf's runs do not cover its pages"));
            }
            runs.push(Run {
                first_page: next,
                pages: length,
                frame: None,
                slot: 0,
            });
            next += length;
        }
        if next as usize != pages {
            return Err(self.corrupted("a leaf's runs do not cover its pages"));
        }
        for run in &mut runs {
            run.frame = self.varint()?.checked_sub(1);
        }
        for run in &mut runs {
            run.slot = self.varint()?;
            let fits = run.frame.map_or(run.slot == 0, |frame| {
                frames.get(frame as usize).is_some_and(|frame| {
                    u64::from(run.slot) + u64::from(run.pages)
                        <= u64::from(frame.content_len) / PAGE_BYTES as u64
                })
            });
            if !fits {
                return Err(self.corrupted("a leaf's run lies outside its frame"));
            }
        }
        Ok(runs)
    }
}

/// Gives each distinct row its place in a table.
struct Table<T> {
    rows: Vec<T>,
    places: HashMap<T, u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            places: HashMap::new(),
        }
    }
}

impl<T: Copy + Eq + Hash> Table<T> {
    fn index_of(&mut self, row: T) -> u32 {
        *self.places.entry(row).or_insert_with(|| {
            self.rows.push(row);
            self.rows.len() as u32 - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "leaves/a/b.1/0";

    prop_compose! {
        fn any_leaf()(
            origins in 1u32..4,
            frames in proptest::collection::vec((0u32..4, 0u32..5, 80u32..1 << 20, 1u32..=128, any::<u64>()), 1..20),
            runs in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 1u32..200), 1..40),
            sum in any::<u128>(),
        ) -> Leaf {
            let frames: Vec<FrameAt> = frames
                .into_iter()
                .map(|(origin, number, offset, pages, frame)| FrameAt {
                    pack: PackId {
                        origin: Origin {
                            job: JobId(Uuid::from_u128(u128::from(origin % origins))),
                            epoch: i64::from(origin),
                            salt: [origin as u8; 32],
                        },
                        number,
                    },
                    offset,
                    sealed_len: pages * 100 + FRAME_OVERHEAD as u32,
                    content_len: pages * PAGE_BYTES as u32,
                    number: frame,
                })
                .collect();
            let mut next = 0;
            let runs: Vec<Run> = runs
                .into_iter()
                .map(|(frame, zeros, pages)| {
                    let index = frame.index(frames.len());
                    let room = frames[index].content_len / PAGE_BYTES as u32;
                    let pages = if zeros { pages } else { pages.min(room) };
                    let first_page = next;
                    next += pages;
                    let frame = (!zeros).then_some(index as u32);
                    Run { first_page, pages, frame, slot: if zeros { 0 } else { room - pages } }
                })
                .collect();
            Leaf { frames, runs, sum: PageSum::from_bytes(sum.to_le_bytes()) }
        }
    }

    #[test]
    fn runs_that_go_beyond_the_pages_are_refused_before_they_are_summed() {
        let pages = PAGES_PER_LEAF as u32;
        let zeros = |first_page, pages| Run {
            first_page,
            pages,
            frame: None,
            slot: 0,
        };
        let leaf = Leaf {
            runs: vec![zeros(0, pages), zeros(pages, pages)],
            ..Leaf::default()
        };
        let mut bytes = leaf.encode();
        bytes[8..12].copy_from_slice(&pages.to_le_bytes());
        let decoded = Leaf::decode(&bytes, KEY);
        assert!(matches!(decoded, Err(Error::Corrupted { .. })));
    }

    proptest! {
        #[test]
        fn a_leaf_reads_back_as_it_was_written(leaf in any_leaf()) {
            let bytes = leaf.encode();
            prop_assume!(leaf.frames.len() <= leaf.pages());
            let read = Leaf::decode(&bytes, KEY).unwrap();
            prop_assert_eq!(&read, &leaf);
            let all: Vec<_> = read.places_from(0).collect();
            prop_assert_eq!(all.len(), leaf.pages());
            for first in [1, leaf.pages() / 3, leaf.pages() - 1, leaf.pages()] {
                prop_assert!(read.places_from(first as u32).eq(all[first..].iter().copied()));
            }
        }

        #[test]
        fn a_changed_leaf_never_panics_and_never_points_outside(
            leaf in any_leaf(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = leaf.encode();
            prop_assert!(Leaf::decode(&bytes[..cut.index(bytes.len())], KEY).is_err());
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(read) = Leaf::decode(&bytes, KEY) {
                prop_assert_eq!(read.places_from(0).count(), read.pages());
                for (frame, slot) in read.places_from(0).flatten() {
                    let frame = &read.frames[frame as usize];
                    prop_assert!((slot as usize + 1) * PAGE_BYTES <= frame.content_len as usize);
                }
            }
        }
    }
}
