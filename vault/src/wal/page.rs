//! The header every 8 KiB page of WAL begins with, and what it tells about the PostgreSQL version.
//!
//! The magic number is PostgreSQL's own version mark of the WAL format; the layouts of records that
//! matter here differ in two small points between the versions, kept in [`Dialect`]. Source:
//! PostgreSQL's `access/xlog_internal.h` of 13 to 18 (facts of the format).

use holdfast_domain::{Lsn, Timeline};

use super::walker::Fault;

/// PostgreSQL is always built with this by every distribution; a long header that says otherwise is refused.
pub const PAGE_BYTES: u64 = 8192;
/// Header of a page that does not begin a segment.
pub const SHORT_HEADER_BYTES: usize = 24;
/// Header of a segment's first page.
pub const LONG_HEADER_BYTES: usize = 40;

const FIRST_IS_CONTINUATION: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const FIRST_IS_OVERWRITE: u16 = 0x0008;
const KNOWN_FLAGS: u16 = 0x000F;

/// A version of the WAL format, recognised by the magic number of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    magic: u16,
    major: u16,
}

impl Dialect {
    /// `None` for a version nobody has taught this walker.
    #[must_use]
    pub fn from_magic(magic: u16) -> Option<Self> {
        let major = match magic {
            0xD106 => 13,
            0xD10D => 14,
            0xD110 => 15,
            0xD113 => 16,
            0xD116 => 17,
            0xD118 => 18,
            _ => return None,
        };
        Some(Self { magic, major })
    }

    #[must_use]
    pub fn magic(self) -> u16 {
        self.magic
    }

    #[must_use]
    pub fn major(self) -> u16 {
        self.major
    }

    /// Whether a full-page image with these flags is compressed, and so may carry a hole length.
    /// PostgreSQL 15 gave the one bit away to three methods and moved it.
    pub(super) fn image_is_compressed(self, flags: u8) -> bool {
        if self.major >= 15 {
            flags & 0x1C != 0
        } else {
            flags & 0x02 != 0
        }
    }
}

/// A page header that passed every check that needs no neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    pub dialect: Dialect,
    pub timeline: Timeline,
    /// Bytes of a record begun on an earlier page that are still to come.
    pub continuation: Option<u32>,
    /// The record begun on the page before was given up in a crash; this page begins afresh.
    pub overwrites: bool,
    pub system_identifier: Option<u64>,
}

/// How many bytes of header the page at `at` has.
#[must_use]
pub fn header_bytes(at: Lsn, segment_bytes: u64) -> usize {
    if at.0.is_multiple_of(segment_bytes) {
        LONG_HEADER_BYTES
    } else {
        SHORT_HEADER_BYTES
    }
}

/// A position just behind a page header names the same place in the log as the page's first byte:
/// PostgreSQL reports the former as "insert position" and the latter as end of the record before.
#[must_use]
pub fn before_header(at: Lsn, segment_bytes: u64) -> Lsn {
    let in_page = at.0 % PAGE_BYTES;
    let page = Lsn(at.0 - in_page);
    if in_page == header_bytes(page, segment_bytes) as u64 {
        page
    } else {
        at
    }
}

/// Reads the header of the page that begins at `at`; `bytes` holds exactly [`header_bytes`].
pub(super) fn parse(bytes: &[u8], at: Lsn, segment_bytes: u64) -> Result<PageHeader, Fault> {
    let u16_at = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
    let u32_at =
        |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;

    let magic = u16_at(0);
    let dialect = Dialect::from_magic(magic).ok_or(Fault::PageMagic(magic))?;
    let flags = u16_at(2);
    let long = bytes.len() == LONG_HEADER_BYTES;
    if flags & !KNOWN_FLAGS != 0 || (flags & LONG_HEADER != 0) != long {
        return Err(Fault::PageFlags(flags));
    }
    let address = Lsn(u64_at(8));
    if address != at {
        return Err(Fault::PageAddress(address));
    }
    let timeline = Timeline(u32_at(4));
    if timeline.0 == 0 {
        return Err(Fault::PageTimeline(timeline));
    }
    let remaining = u32_at(16);
    let continues = flags & FIRST_IS_CONTINUATION != 0;
    if continues == (remaining == 0) {
        return Err(Fault::Continuation {
            expected: u32::from(continues),
            found: remaining,
        });
    }
    let mut system_identifier = None;
    if long {
        if u64::from(u32_at(32)) != segment_bytes {
            return Err(Fault::SegmentSize(u32_at(32)));
        }
        if u64::from(u32_at(36)) != PAGE_BYTES {
            return Err(Fault::PageSize(u32_at(36)));
        }
        system_identifier = Some(u64_at(24));
    }
    Ok(PageHeader {
        dialect,
        timeline,
        continuation: continues.then_some(remaining),
        overwrites: flags & FIRST_IS_OVERWRITE != 0,
        system_identifier,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_behind_a_page_header_is_the_pages_first_byte() {
        const SEGMENT: u64 = 16 << 20;
        assert_eq!(before_header(Lsn(SEGMENT + 40), SEGMENT), Lsn(SEGMENT));
        assert_eq!(before_header(Lsn(SEGMENT + 24), SEGMENT), Lsn(SEGMENT + 24));
        assert_eq!(
            before_header(Lsn(SEGMENT + 8192 + 24), SEGMENT),
            Lsn(SEGMENT + 8192)
        );
        assert_eq!(
            before_header(Lsn(SEGMENT + 8192), SEGMENT),
            Lsn(SEGMENT + 8192)
        );
    }
}
