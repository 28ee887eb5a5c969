//! A leaf: for one segment of a file, up to 131,072 pages, where each page lies and what its hash is.
//! Immutable; a differential names it again when nothing in it changed.
//! Bytes: `docs/VAULT-FORMAT.md` §5.

use std::collections::HashMap;
use std::hash::Hash;

use holdfast_domain::JobId;
use uuid::Uuid;

use super::{PAGE_BYTES, PAGES_PER_FRAME, PAGES_PER_LEAF, PageHash};
use crate::seal::frame::{FRAME_OVERHEAD, MAX_PACK_BYTES, Origin};
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"HFLF";
const VERSION: u16 = 1;
const FIXED_BYTES: usize = 28;
const ORIGIN_BYTES: usize = 56;
const PACK_BYTES: usize = 8;
const FRAME_BYTES: usize = 24;
const RUN_BYTES: usize = 16;
/// In place of a frame: these pages are zeros and are stored nowhere.
const NO_FRAME: u32 = u32::MAX;

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
    pub hashes: Vec<PageHash>,
}

impl Leaf {
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
                + self.runs.len() * RUN_BYTES
                + self.hashes.len() * 16,
        );
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        let (packs_len, origins_len) = (packs.rows.len(), origins.rows.len());
        for count in [
            self.hashes.len(),
            self.runs.len(),
            self.frames.len(),
            packs_len,
            origins_len,
        ] {
            out.extend_from_slice(&(count as u32).to_le_bytes());
        }
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
        for run in &self.runs {
            for word in [
                run.first_page,
                run.pages,
                run.frame.unwrap_or(NO_FRAME),
                run.slot,
            ] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        for hash in &self.hashes {
            out.extend_from_slice(hash);
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
        let expected = FIXED_BYTES
            + origins * ORIGIN_BYTES
            + packs * PACK_BYTES
            + frames * FRAME_BYTES
            + runs * RUN_BYTES
            + pages * 16;
        if pages == 0
            || pages > PAGES_PER_LEAF
            || runs > pages
            || frames > pages
            || bytes.len() != expected
        {
            return Err(reader.corrupted("a leaf's counts and its length disagree"));
        }
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
        let runs: Vec<Run> = reader.rows(runs, RUN_BYTES)?.map(run).collect();
        let mut next: u32 = 0;
        for run in &runs {
            let left = pages as u32 - next;
            let fits = run.frame.is_none_or(|frame| {
                frames.get(frame as usize).is_some_and(|frame| {
                    u64::from(run.slot) + u64::from(run.pages)
                        <= u64::from(frame.content_len) / PAGE_BYTES as u64
                })
            });
            if run.first_page != next || run.pages == 0 || run.pages > left || !fits {
                return Err(reader.corrupted("a leaf's runs do not cover its pages"));
            }
            next += run.pages;
        }
        if next as usize != pages {
            return Err(reader.corrupted("a leaf's runs do not cover its pages"));
        }
        let hashes = reader
            .rows(pages, 16)?
            .map(|row| row.try_into().expect("rows are 16 bytes long"))
            .collect();
        Ok(Self {
            frames,
            runs,
            hashes,
        })
    }

    /// Where each page lies: frame and slot, or `None` for zeros.
    pub fn places(&self) -> impl Iterator<Item = Option<(u32, u32)>> + '_ {
        self.runs.iter().flat_map(|run| {
            (0..run.pages).map(move |page| run.frame.map(|frame| (frame, run.slot + page)))
        })
    }
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

fn run(row: &[u8]) -> Run {
    Run {
        first_page: word(row, 0),
        pages: word(row, 4),
        frame: Some(word(row, 8)).filter(|frame| *frame != NO_FRAME),
        slot: word(row, 12),
    }
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
        Ok(self.take(count * length)?.chunks_exact(length))
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
            hash in any::<u8>(),
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
            Leaf { frames, runs, hashes: (0..next).map(|page| [hash ^ page as u8; 16]).collect() }
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
        // Their sum is 2^32.
        let leaf = Leaf {
            frames: Vec::new(),
            runs: (0..u32::MAX / pages + 1)
                .map(|n| zeros(n * pages, pages))
                .collect(),
            hashes: vec![[0; 16]; pages as usize],
        };
        let decoded = Leaf::decode(&leaf.encode(), KEY);
        assert!(matches!(decoded, Err(Error::Corrupted { .. })));
    }

    proptest! {
        #[test]
        fn a_leaf_reads_back_as_it_was_written(leaf in any_leaf()) {
            let bytes = leaf.encode();
            prop_assume!(leaf.frames.len() <= leaf.hashes.len());
            let read = Leaf::decode(&bytes, KEY).unwrap();
            prop_assert_eq!(&read, &leaf);
            prop_assert_eq!(read.places().count(), leaf.hashes.len());
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
                prop_assert_eq!(read.places().count(), read.hashes.len());
                for (frame, slot) in read.places().flatten() {
                    let frame = &read.frames[frame as usize];
                    prop_assert!((slot as usize + 1) * PAGE_BYTES <= frame.content_len as usize);
                }
            }
        }
    }
}
