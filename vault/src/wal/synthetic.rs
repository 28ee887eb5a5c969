//! WAL made for tests: the pages and records PostgreSQL would write, without PostgreSQL.
//!
//! The walker's agreement with real WAL is tested in `agent/src/stream/tests/waldump.rs`; here the shapes that real servers
//! make once a year can be made at will.

use chrono::{DateTime, Utc};
use holdfast_domain::{Lsn, Timeline};

use super::page::{LONG_HEADER_BYTES, PAGE_BYTES, header_bytes};
use super::record::{HEADER_BYTES, rmgr, to_postgres_time};

pub(crate) const SEGMENT: u64 = 1 << 20;
pub(crate) const SYSTEM: u64 = 7_123_456_789;

pub(crate) struct SyntheticWal {
    pub start: Lsn,
    pub bytes: Vec<u8>,
    pub magic: u16,
    timeline: Timeline,
    previous: Lsn,
    /// Bytes of the record under way that the next page must announce.
    overwrite_next: bool,
}

impl SyntheticWal {
    pub fn new(start: Lsn, timeline: Timeline) -> Self {
        assert!(start.0.is_multiple_of(SEGMENT), "tests begin at a segment");
        Self {
            start,
            bytes: Vec::new(),
            magic: 0xD110,
            timeline,
            previous: Lsn::ZERO,
            overwrite_next: false,
        }
    }

    pub fn position(&self) -> Lsn {
        self.start + self.bytes.len() as u64
    }

    fn page_header(&mut self, continuation: u32) {
        let at = self.position();
        let length = header_bytes(at, SEGMENT);
        let long = length == LONG_HEADER_BYTES;
        let flags = u16::from(continuation > 0)
            | if long { 2 } else { 0 }
            | if self.overwrite_next { 8 } else { 0 };
        self.overwrite_next = false;
        self.bytes.extend(self.magic.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(self.timeline.0.to_le_bytes());
        self.bytes.extend(at.0.to_le_bytes());
        self.bytes.extend(continuation.to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(SYSTEM.to_le_bytes());
            self.bytes.extend((SEGMENT as u32).to_le_bytes());
            self.bytes.extend((PAGE_BYTES as u32).to_le_bytes());
        }
    }

    /// Writes one record and says where it begins and ends.
    pub fn push(&mut self, rmgr: u8, info: u8, xid: u32, body: &[u8]) -> (Lsn, Lsn) {
        while !self.position().0.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if self.position().0.is_multiple_of(PAGE_BYTES) {
            self.page_header(0);
        }
        let start = self.position();
        let mut record = Vec::with_capacity(HEADER_BYTES + body.len());
        record.extend(((HEADER_BYTES + body.len()) as u32).to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.previous.0.to_le_bytes());
        record.extend([info, rmgr, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend(crc.to_le_bytes());
        record.extend(body);
        self.previous = start;
        let mut left = &record[..];
        while !left.is_empty() {
            if self.position().0.is_multiple_of(PAGE_BYTES) {
                self.page_header(left.len() as u32);
            }
            let room = (PAGE_BYTES - self.position().0 % PAGE_BYTES) as usize;
            let (now, later) = left.split_at(room.min(left.len()));
            self.bytes.extend(now);
            left = later;
        }
        (start, Lsn(self.position().0.next_multiple_of(8)))
    }

    pub fn commit(&mut self, at: DateTime<Utc>) -> (Lsn, Lsn) {
        let mut body = vec![255, 8];
        body.extend(to_postgres_time(at).to_le_bytes());
        self.push(rmgr::XACT, 0, 700, &body)
    }

    /// A heap insert of `length` bytes into a relation.
    pub fn insert(&mut self, relation: u32, length: usize) -> (Lsn, Lsn) {
        let mut body = vec![0, 0, 0, 0];
        for part in [1663_u32, 5, relation, 0] {
            body.extend(part.to_le_bytes());
        }
        body.extend([254]);
        body.extend((length as u32).to_le_bytes());
        body.extend((0..length).map(|i| i as u8));
        self.push(rmgr::HEAP, 0, 700, &body)
    }

    /// A segment switch: what is left of the segment is zeros.
    pub fn switch(&mut self) {
        self.push(rmgr::XLOG, 0x40, 0, &[]);
        self.fill_to(self.position().segment_end(SEGMENT));
    }

    /// Zeros, as in a file that was made longer than what was written.
    pub fn fill_to(&mut self, end: Lsn) {
        self.bytes.resize(end.bytes_since(self.start) as usize, 0);
    }

    /// Cuts the log at the page boundary inside the newest record, as a crash would, and goes on with a
    /// page that says so.
    pub fn crash_at(&mut self, page: Lsn, last_whole_record: Lsn) {
        assert!(
            page.0.is_multiple_of(PAGE_BYTES),
            "a crash keeps whole pages"
        );
        self.bytes.truncate(page.bytes_since(self.start) as usize);
        self.previous = last_whole_record;
        self.overwrite_next = true;
        self.page_header(0);
    }

    /// Aligned end of everything written.
    pub fn end(&mut self) -> Lsn {
        while !self.position().0.is_multiple_of(8) {
            self.bytes.push(0);
        }
        self.position()
    }
}
