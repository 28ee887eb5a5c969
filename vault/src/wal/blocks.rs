//! Which blocks of which relations a WAL record changes.
//!
//! Everything that PostgreSQL changes in a relation's main fork under its log is named in the record's
//! block references, which come before all else in a record: that is what recovery relies on, and what
//! PostgreSQL 17 makes its own summaries from. Sources: `access/xlogrecord.h`, `xlogreader.c`, 13 to 18.

use super::page::Dialect;
use super::record::RelFileLocator;

/// 33 references of at most 27 bytes; origin, top-level transaction and the main data's length.
pub(super) const MOST_REFERENCE_BYTES: usize = 33 * 27 + 3 + 5 + 5;

const HIGHEST_BLOCK_ID: u8 = 32;
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_LEVEL_XID: u8 = 252;

const FORK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const SAME_RELATION: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;

/// The fork that holds a relation's rows or index entries.
pub const MAIN_FORK: u8 = 0;

/// One block that a record changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRef {
    pub relation: RelFileLocator,
    pub fork: u8,
    pub block: u32,
}

/// A record whose references are not as PostgreSQL writes them, or go on where nothing was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the block references of a record cannot be read")]
pub struct Unreadable;

/// The beginning of a record's body: all of its references, perhaps not all of its data.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    body: &'a [u8],
    /// Of the whole body.
    bytes: usize,
    dialect: Dialect,
}

impl<'a> Head<'a> {
    pub(super) fn new(body: &'a [u8], bytes: usize, dialect: Dialect) -> Self {
        Self {
            body,
            bytes,
            dialect,
        }
    }

    /// Hands over each block that the record names, in its order.
    pub fn blocks(&self, mut each: impl FnMut(BlockRef)) -> Result<(), Unreadable> {
        self.read(&mut each).map(|_| ())
    }

    /// As much of the main data – what the record says beside its blocks – as was kept, when the record
    /// has no block references.
    pub fn data(&self) -> Result<&'a [u8], Unreadable> {
        let mut blocks = 0;
        let at = self.read(&mut |_| blocks += 1)?;
        match blocks {
            0 => self.body.get(at..).ok_or(Unreadable),
            _ => Err(Unreadable),
        }
    }

    /// Reads the references; returns where what follows them begins.
    fn read(&self, each: &mut impl FnMut(BlockRef)) -> Result<usize, Unreadable> {
        let mut at = 0;
        // As PostgreSQL does: what is left is data when the headers so far account for all of it.
        let mut data = 0usize;
        let mut relation = None;
        while self.bytes.saturating_sub(at) > data {
            match self.byte(at)? {
                DATA_SHORT => return Ok(at + 2),
                DATA_LONG => return Ok(at + 5),
                ORIGIN => at += 3,
                TOP_LEVEL_XID if self.dialect.major() >= 14 => at += 5,
                id if id <= HIGHEST_BLOCK_ID => {
                    let flags = self.byte(at + 1)?;
                    data += usize::from(self.half(at + 2)?);
                    at += 4;
                    if flags & HAS_IMAGE != 0 {
                        data += usize::from(self.half(at)?);
                        let image = self.byte(at + 4)?;
                        at += 5;
                        if self.dialect.image_is_compressed(image) && image & IMAGE_HAS_HOLE != 0 {
                            at += 2;
                        }
                    }
                    if flags & SAME_RELATION == 0 {
                        relation = Some(RelFileLocator {
                            tablespace: self.word(at)?,
                            database: self.word(at + 4)?,
                            relation: self.word(at + 8)?,
                        });
                        at += 12;
                    }
                    each(BlockRef {
                        relation: relation.ok_or(Unreadable)?,
                        fork: flags & FORK,
                        block: self.word(at)?,
                    });
                    at += 4;
                }
                _ => return Err(Unreadable),
            }
        }
        Ok(at)
    }

    fn byte(&self, at: usize) -> Result<u8, Unreadable> {
        self.body.get(at).copied().ok_or(Unreadable)
    }

    fn half(&self, at: usize) -> Result<u16, Unreadable> {
        Ok(u16::from_le_bytes([self.byte(at)?, self.byte(at + 1)?]))
    }

    fn word(&self, at: usize) -> Result<u32, Unreadable> {
        let bytes = self.body.get(at..at + 4).ok_or(Unreadable)?;
        Ok(u32::from_le_bytes(
            bytes.try_into().map_err(|_| Unreadable)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fifteen() -> Dialect {
        Dialect::from_magic(0xD110).expect("a known magic")
    }

    fn blocks(head: &Head<'_>) -> Result<Vec<(u32, u8, u32)>, Unreadable> {
        let mut all = Vec::new();
        head.blocks(|block| all.push((block.relation.relation, block.fork, block.block)))?;
        Ok(all)
    }

    /// A reference with so many bytes of data, and perhaps an image of so many.
    fn reference(
        id: u8,
        relation: Option<u32>,
        block: u32,
        data: u16,
        image: Option<u16>,
    ) -> Vec<u8> {
        let mut flags = 0;
        let mut out = vec![id, 0];
        out.extend(data.to_le_bytes());
        if let Some(image) = image {
            flags |= HAS_IMAGE;
            out.extend(image.to_le_bytes());
            out.extend([0, 0, 0]);
        }
        match relation {
            Some(relation) => out.extend([1663, 5, relation].map(u32::to_le_bytes).concat()),
            None => flags |= SAME_RELATION,
        }
        out.extend(block.to_le_bytes());
        out[1] = flags;
        out
    }

    #[test]
    fn all_references_are_found_with_and_without_main_data() {
        let mut body = reference(0, Some(16384), 7, 10, None);
        body.extend(reference(1, None, 8, 0, Some(100)));
        body.extend(reference(2, Some(16390), 9, 0, None));
        let expected = vec![(16384, 0, 7), (16384, 0, 8), (16390, 0, 9)];
        // 110 bytes of data and image follow; the head need not hold them.
        let head = Head::new(&body, body.len() + 110, fifteen());
        assert_eq!(blocks(&head), Ok(expected.clone()));
        assert_eq!(head.data(), Err(Unreadable));
        body.extend([DATA_SHORT, 3]);
        let head = Head::new(&body, body.len() + 110 + 3, fifteen());
        assert_eq!(blocks(&head), Ok(expected));
    }

    #[test]
    fn a_record_without_references_shows_its_data() {
        let body = [ORIGIN, 1, 0, DATA_SHORT, 4, 1, 2, 3, 4];
        let head = Head::new(&body, body.len(), fifteen());
        assert_eq!(blocks(&head), Ok(vec![]));
        assert_eq!(head.data(), Ok(&[1, 2, 3, 4][..]));
    }

    #[test]
    fn what_was_not_kept_is_not_taken_for_nothing() {
        let body = reference(0, Some(16384), 7, 10, None);
        let head = Head::new(&body, body.len() + 500, fifteen());
        assert_eq!(blocks(&head), Err(Unreadable));
        let orphan = reference(0, None, 7, 0, None);
        let head = Head::new(&orphan, orphan.len(), fifteen());
        assert_eq!(blocks(&head), Err(Unreadable));
    }

    proptest! {
        #[test]
        fn hostile_bodies_never_panic(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            more in 0usize..1000,
        ) {
            let head = Head::new(&body, body.len() + more, fifteen());
            let _ = blocks(&head);
            let _ = head.data();
        }
    }
}
