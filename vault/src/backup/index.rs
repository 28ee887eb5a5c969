//! A pack's index: the hashes of the pages in it, the last frame of the pack. A differential compares
//! by them. They lie with the pages, not with the leaves, so that a differential writes hashes of what
//! it changed and of nothing else. Bytes: `docs/VAULT-FORMAT.md` §4.

use super::{PAGES_PER_FRAME, PageHash};
use crate::seal::frame::MAX_PACK_BYTES;
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"HFPX";
const VERSION: u16 = 1;
const FIXED_BYTES: usize = 12;
const FRAME_BYTES: usize = 8;
const HASH_BYTES: usize = 16;

/// More pages than this lie in no pack, so that its index is a frame like any other.
pub(crate) const MAX_PACK_PAGES: usize = 262_144;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PackIndex {
    /// Offset in the pack, and which hash is the first: in the order of the pack.
    frames: Vec<(u32, u32)>,
    hashes: Vec<PageHash>,
}

impl PackIndex {
    pub fn pages(&self) -> usize {
        self.hashes.len()
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        self.hashes.len() * HASH_BYTES + self.frames.len() * FRAME_BYTES
    }

    /// Frames come in the order in which they lie in the pack.
    pub fn push(&mut self, offset: u32, hashes: &[PageHash]) {
        self.frames.push((offset, self.hashes.len() as u32));
        self.hashes.extend_from_slice(hashes);
    }

    /// The hashes of the pages of the frame at this offset.
    pub fn of_frame(&self, offset: u32) -> Option<&[PageHash]> {
        let at = self
            .frames
            .binary_search_by_key(&offset, |frame| frame.0)
            .ok()?;
        let first = self.frames[at].1 as usize;
        let end = self
            .frames
            .get(at + 1)
            .map_or(self.hashes.len(), |next| next.1 as usize);
        self.hashes.get(first..end)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(
            FIXED_BYTES + self.frames.len() * FRAME_BYTES + self.hashes.len() * HASH_BYTES,
        );
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&(self.frames.len() as u32).to_le_bytes());
        for (index, (offset, first)) in self.frames.iter().enumerate() {
            let end = self
                .frames
                .get(index + 1)
                .map_or(self.hashes.len() as u32, |next| next.1);
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&(end - first).to_le_bytes());
        }
        for hash in &self.hashes {
            out.extend_from_slice(hash);
        }
        out
    }

    pub fn decode(bytes: &[u8], key: &str) -> Result<Self> {
        let corrupted = |what: &str| Error::corrupted(key, what);
        let (fixed, rest) = bytes
            .split_at_checked(FIXED_BYTES)
            .ok_or_else(|| corrupted("a pack's index is too short"))?;
        if &fixed[0..4] != MAGIC || fixed[4..6] != VERSION.to_le_bytes() || fixed[6..8] != [0; 2] {
            return Err(corrupted(
                "a pack's index has a version that is not known here",
            ));
        }
        let word = |row: &[u8]| u32::from_le_bytes([row[0], row[1], row[2], row[3]]);
        let count = word(&fixed[8..12]) as usize;
        let (rows, hashes) = count
            .checked_mul(FRAME_BYTES)
            .and_then(|length| rest.split_at_checked(length))
            .ok_or_else(|| corrupted("a pack's index is too short"))?;
        let mut index = Self {
            frames: Vec::with_capacity(count),
            hashes: hashes
                .chunks_exact(HASH_BYTES)
                .map(|row| row.try_into().expect("rows are 16 bytes long"))
                .collect(),
        };
        let (mut first, mut after) = (0u32, 0u64);
        for row in rows.chunks_exact(FRAME_BYTES) {
            let (offset, pages) = (word(row), word(&row[4..]));
            let ordered = u64::from(offset) >= after && u64::from(offset) < MAX_PACK_BYTES;
            if !ordered || !(1..=PAGES_PER_FRAME as u32).contains(&pages) {
                return Err(corrupted("a pack's index names a frame that cannot be"));
            }
            index.frames.push((offset, first));
            (first, after) = (first + pages, u64::from(offset) + 1);
        }
        if first as usize * HASH_BYTES != hashes.len() {
            return Err(corrupted("a pack's index has another number of hashes"));
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_index_reads_back_and_a_changed_one_never_panics(
            frames in proptest::collection::vec((1u32..100_000, 1usize..=128), 0..30),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
        ) {
            let (mut index, mut offset) = (PackIndex::default(), 0);
            let mut expected = Vec::new();
            for (number, (step, pages)) in frames.into_iter().enumerate() {
                offset += step;
                let hashes: Vec<PageHash> = (0..pages).map(|page| [(number * 7 + page) as u8; 16]).collect();
                index.push(offset, &hashes);
                expected.push((offset, hashes));
            }
            let mut bytes = index.encode();
            let read = PackIndex::decode(&bytes, "k").unwrap();
            prop_assert_eq!(&read, &index);
            for (offset, hashes) in expected {
                prop_assert_eq!(read.of_frame(offset), Some(&hashes[..]));
                prop_assert_eq!(read.of_frame(offset + 100_001), None);
            }
            prop_assert!(PackIndex::decode(&bytes[..at.index(bytes.len())], "k").is_err());
            let at = at.index(bytes.len());
            bytes[at] = value;
            if let Ok(read) = PackIndex::decode(&bytes, "k") {
                for (offset, _) in &read.frames {
                    prop_assert!(read.of_frame(*offset).is_some_and(|hashes| !hashes.is_empty()));
                }
            }
        }
    }
}
