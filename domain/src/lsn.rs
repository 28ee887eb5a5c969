//! Positions in PostgreSQL's write-ahead log.
//!
//! An LSN is a byte position in the WAL of one cluster; together with a timeline it names one byte
//! of history. Sources: PostgreSQL's manual, "WAL Internals", and `access/xlog_internal.h`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A WAL byte position. Written `XXXXXXXX/XXXXXXXX` in hexadecimal, as PostgreSQL does.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    pub const ZERO: Lsn = Lsn(0);

    /// The start of the segment that holds this byte.
    #[must_use]
    pub fn segment_start(self, segment_size: u64) -> Lsn {
        Lsn(self.0 - self.0 % segment_size)
    }

    /// The first byte after the segment that holds the byte *before* this position: an end that
    /// lies on a boundary belongs to the segment it closes.
    #[must_use]
    pub fn segment_end(self, segment_size: u64) -> Lsn {
        Lsn(self.0.div_ceil(segment_size) * segment_size)
    }

    /// Bytes from `earlier` to this position; 0 when `earlier` is later.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Sixteen hexadecimal digits: sorts as text in the order of the log (object keys).
    #[must_use]
    pub fn sortable(self) -> String {
        format!("{:016X}", self.0)
    }
}

impl std::ops::Add<u64> for Lsn {
    type Output = Lsn;
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WAL position of the form X/X")]
pub struct NotAnLsn(String);

impl FromStr for Lsn {
    type Err = NotAnLsn;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || NotAnLsn(text.chars().take(40).collect());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let half = |part: &str| match part.len() {
            1..=8 if part.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u64::from_str_radix(part, 16).map_err(|_| bad())
            }
            _ => Err(bad()),
        };
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A PostgreSQL timeline: 1 for a new cluster, raised by each end of recovery.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    pub const FIRST: Timeline = Timeline(1);

    /// `00000002.history`.
    #[must_use]
    pub fn history_file_name(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {}", self.0)
    }
}

/// The 24-digit name of the WAL segment of `timeline` that holds the byte at `lsn`.
#[must_use]
pub fn segment_file_name(timeline: Timeline, lsn: Lsn, segment_size: u64) -> String {
    let number = lsn.0 / segment_size;
    let per_id = 0x1_0000_0000 / segment_size;
    format!(
        "{:08X}{:08X}{:08X}",
        timeline.0,
        number / per_id,
        number % per_id
    )
}

/// The timeline and first byte of the segment with this 24-digit name, or `None` for any other name.
#[must_use]
pub fn parse_segment_file_name(name: &str, segment_size: u64) -> Option<(Timeline, Lsn)> {
    if name.len() != 24
        || !name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
    {
        return None;
    }
    let part = |range| u64::from_str_radix(&name[range], 16).ok();
    let (timeline, id, segment) = (part(0..8)?, part(8..16)?, part(16..24)?);
    let per_id = 0x1_0000_0000 / segment_size;
    if segment >= per_id || timeline == 0 {
        return None;
    }
    let start = (id * per_id + segment).checked_mul(segment_size)?;
    Some((Timeline(timeline as u32), Lsn(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB16: u64 = 16 << 20;

    #[test]
    fn an_lsn_reads_as_postgres_writes_it() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        for bad in [
            "",
            "/",
            "1/",
            "/1",
            "1/123456789",
            "1/G",
            "+1/2",
            "1/-2",
            "1 /2",
        ] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_segment_name_leads_back_to_its_first_byte() {
        let lsn = Lsn(0x16_B374_D848);
        let name = segment_file_name(Timeline(3), lsn, MIB16);
        assert_eq!(name, "0000000300000016000000B3");
        assert_eq!(
            parse_segment_file_name(&name, MIB16),
            Some((Timeline(3), lsn.segment_start(MIB16)))
        );
        for foreign in [
            "00000001000000000000000G",
            "../x",
            "000000010000000000000100",
            "000000000000000000000001",
            "00000002.history",
        ] {
            assert_eq!(parse_segment_file_name(foreign, MIB16), None, "{foreign}");
        }
    }

    #[test]
    fn an_end_on_a_boundary_closes_its_segment() {
        assert_eq!(Lsn(MIB16).segment_end(MIB16), Lsn(MIB16));
        assert_eq!(Lsn(MIB16 + 1).segment_end(MIB16), Lsn(2 * MIB16));
    }
}
