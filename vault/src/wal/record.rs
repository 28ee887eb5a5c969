//! One WAL record as far as Holdfast looks into it: header, first block's relation, commit stamp.
//!
//! Only the first bytes of a record are ever kept (`PREFIX_BYTES`); bodies, which may be as large as
//! a gigabyte, run past. Everything read from a body is optional: a record whose CRC is right but
//! whose body reads strangely simply has no relation, and so counts as a modification.
//! Source: PostgreSQL's `access/xlogrecord.h`, `access/xact.h`, `replication/message.h`, 13 to 18.

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::Lsn;
use holdfast_domain::wal::Stamp;

use super::page::Dialect;

/// The fixed header before every record's body.
pub const HEADER_BYTES: usize = 24;
/// Header plus the most that 33 block references take, and what comes before the main data.
pub(super) const PREFIX_BYTES: usize = HEADER_BYTES + super::blocks::MOST_REFERENCE_BYTES;
/// No version writes a record of a gigabyte or more.
pub(super) const LARGEST_BYTES: u32 = 1 << 30;
/// Microseconds from 1970 to 2000-01-01, where PostgreSQL's time begins.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Numbers of the built-in resource managers, the same in 13 to 18.
pub mod rmgr {
    pub const XLOG: u8 = 0;
    pub const XACT: u8 = 1;
    pub const SMGR: u8 = 2;
    pub const CLOG: u8 = 3;
    pub const DATABASE: u8 = 4;
    pub const TABLESPACE: u8 = 5;
    pub const MULTIXACT: u8 = 6;
    pub const RELMAP: u8 = 7;
    pub const STANDBY: u8 = 8;
    pub const HEAP2: u8 = 9;
    pub const HEAP: u8 = 10;
    pub const BTREE: u8 = 11;
    pub const HASH: u8 = 12;
    pub const GIN: u8 = 13;
    pub const GIST: u8 = 14;
    pub const SEQUENCE: u8 = 15;
    pub const SPGIST: u8 = 16;
    pub const BRIN: u8 = 17;
    pub const COMMIT_TS: u8 = 18;
    pub const REPLICATION_ORIGIN: u8 = 19;
    pub const GENERIC: u8 = 20;
    pub const LOGICAL_MESSAGE: u8 = 21;
}

/// The operation in `info` of heap, heap2 and transaction records.
pub(super) const OPERATION: u8 = 0x70;
const XLOG_SWITCH: u8 = 0x40;
pub(super) const XACT_COMMIT: u8 = 0x00;
pub(super) const XACT_ABORT: u8 = 0x20;
pub(super) const XACT_COMMIT_PREPARED: u8 = 0x30;
pub(super) const XACT_ABORT_PREPARED: u8 = 0x40;
const XACT_HAS_FLAGS: u8 = 0x80;
const XACT_FLAG_SUBTRANSACTIONS: u8 = 0x02;

/// A relation's files: tablespace, database and file number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelFileLocator {
    pub tablespace: u32,
    pub database: u32,
    pub relation: u32,
}

/// A whole record, its CRC checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub start: Lsn,
    /// As PostgreSQL counts it: the first byte after the record, rounded up to eight.
    pub end: Lsn,
    pub bytes: u32,
    pub rmgr: u8,
    /// Without the four bits that belong to the log itself.
    pub info: u8,
    pub xid: u32,
    /// The relation of the first block reference.
    pub relation: Option<RelFileLocator>,
    /// The time in a commit or abort record, prepared ones included.
    pub stamped_at: Option<DateTime<Utc>>,
    /// A commit or abort that ends subtransactions too: what they wrote carries other ids.
    pub ends_subtransactions: bool,
    /// Whether a logical message belongs to its transaction.
    pub transactional_message: bool,
}

impl Record {
    /// The commit or abort this record is.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        self.stamped_at.map(|at| Stamp {
            at,
            lsn: self.start,
            end: self.end,
        })
    }

    /// Nothing after this record in its segment means anything.
    pub(super) fn ends_segment(&self) -> bool {
        self.rmgr == rmgr::XLOG && self.info == XLOG_SWITCH
    }
}

/// The fixed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub bytes: u32,
    pub xid: u32,
    pub previous: Lsn,
    pub info: u8,
    pub rmgr: u8,
    pub crc: u32,
}

impl RecordHeader {
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let u32_at =
            |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        Self {
            bytes: u32_at(0),
            xid: u32_at(4),
            previous: Lsn(u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32),
            info: bytes[16],
            rmgr: bytes[17],
            crc: u32_at(20),
        }
    }
}

/// Makes the record out of its header and the first bytes of its body.
pub(super) fn read(
    header: &RecordHeader,
    body: &[u8],
    start: Lsn,
    end: Lsn,
    dialect: Dialect,
) -> Record {
    let mut record = Record {
        start,
        end,
        bytes: header.bytes,
        rmgr: header.rmgr,
        info: header.info & 0xF0,
        xid: header.xid,
        relation: None,
        stamped_at: None,
        ends_subtransactions: false,
        transactional_message: false,
    };
    match header.rmgr {
        rmgr::XACT if is_stamped(record.info) => {
            let data = main_data(body, dialect);
            record.stamped_at = data.and_then(|data| {
                let micros = i64::from_le_bytes(data.get(..8)?.try_into().ok()?);
                postgres_time(micros)
            });
            // A word of flags follows the time when the record says so.
            record.ends_subtransactions = record.info & XACT_HAS_FLAGS != 0
                && data
                    .and_then(|data| data.get(8))
                    .is_none_or(|flags| flags & XACT_FLAG_SUBTRANSACTIONS != 0);
        }
        rmgr::LOGICAL_MESSAGE => {
            // Database oid, then the flag.
            record.transactional_message = main_data(body, dialect)
                .and_then(|data| data.get(4).copied())
                .is_none_or(|flag| flag != 0);
        }
        _ => record.relation = first_block(body, dialect),
    }
    record
}

fn is_stamped(info: u8) -> bool {
    matches!(
        info & OPERATION,
        XACT_COMMIT | XACT_ABORT | XACT_COMMIT_PREPARED | XACT_ABORT_PREPARED
    )
}

/// Microseconds since 2000-01-01 as an instant.
#[must_use]
pub fn postgres_time(micros: i64) -> Option<DateTime<Utc>> {
    let epoch = DateTime::from_timestamp_micros(POSTGRES_EPOCH_US)?;
    epoch.checked_add_signed(TimeDelta::microseconds(micros))
}

/// The instant as PostgreSQL writes it into WAL and replication messages.
#[must_use]
pub fn to_postgres_time(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros().saturating_sub(POSTGRES_EPOCH_US)
}

/// The start of the main data of a record that has no block references.
fn main_data(body: &[u8], dialect: Dialect) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        match *body.get(at)? {
            255 => return body.get(at + 2..),
            254 => return body.get(at + 5..),
            253 => at += 1 + 2,
            // Top-level transaction id, from 14 on.
            252 if dialect.major() >= 14 => at += 1 + 4,
            _ => return None,
        }
    }
}

/// The relation of the first block reference. PostgreSQL writes block references before everything
/// else, and the first can never say "same relation as before".
fn first_block(body: &[u8], dialect: Dialect) -> Option<RelFileLocator> {
    const HIGHEST_BLOCK_ID: u8 = 32;
    const HAS_IMAGE: u8 = 0x10;
    const SAME_RELATION: u8 = 0x80;
    const IMAGE_HAS_HOLE: u8 = 0x01;
    let id = *body.first()?;
    let flags = *body.get(1)?;
    if id > HIGHEST_BLOCK_ID || flags & SAME_RELATION != 0 {
        return None;
    }
    let mut at = 4;
    if flags & HAS_IMAGE != 0 {
        let image_flags = *body.get(at + 4)?;
        at += 5;
        if dialect.image_is_compressed(image_flags) && image_flags & IMAGE_HAS_HOLE != 0 {
            at += 2;
        }
    }
    let part = |i: usize| {
        let bytes = body.get(at + i..at + i + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    Some(RelFileLocator {
        tablespace: part(0)?,
        database: part(4)?,
        relation: part(8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_time_begins_in_the_year_2000_and_comes_back() {
        let epoch = postgres_time(0).map(|at| at.to_rfc3339());
        assert_eq!(epoch.as_deref(), Some("2000-01-01T00:00:00+00:00"));
        let later = postgres_time(123_456_789_012_345);
        assert_eq!(later.map(to_postgres_time), Some(123_456_789_012_345));
        assert_eq!(postgres_time(i64::MAX), None);
        assert_eq!(postgres_time(i64::MIN), None);
    }

    #[test]
    fn the_stamp_is_found_behind_origin_and_top_level_transaction() {
        let fifteen = Dialect::from_magic(0xD110).expect("a known magic");
        let mut body = vec![253, 1, 0, 252, 9, 0, 0, 0, 255, 8];
        body.extend(5_i64.to_le_bytes());
        assert_eq!(main_data(&body, fifteen).map(|d| d[0]), Some(5));
        let thirteen = Dialect::from_magic(0xD106).expect("a known magic");
        assert_eq!(main_data(&body, thirteen), None, "13 has no such field");
    }

    #[test]
    fn the_first_blocks_relation_is_found_behind_a_compressed_image_in_each_version() {
        let relation = [1_u32, 2, 3].map(u32::to_le_bytes).concat();
        for (magic, image_flags) in [(0xD106_u16, 0x03_u8), (0xD110, 0x05), (0xD118, 0x11)] {
            let dialect = Dialect::from_magic(magic).expect("a known magic");
            let mut body = vec![0, 0x10, 0, 0, 50, 0, 60, 0, image_flags, 7, 0];
            body.extend(&relation);
            assert_eq!(
                first_block(&body, dialect),
                Some(RelFileLocator {
                    tablespace: 1,
                    database: 2,
                    relation: 3
                }),
                "{magic:X}"
            );
        }
    }
}
