//! Reads record after record out of WAL that comes in pieces of any size.
//!
//! The walker sees every byte once, keeps the first few hundred of a record – its block references – and
//! the running CRC, and never more: a gigabyte of record costs as much memory as a commit. It believes nothing: each page
//! address, continuation, back link and CRC is checked, and the first byte that cannot be right ends
//! the walk with its LSN. On a stopped server that place *is* the end of the log (RELIABILITY §5.3.6);
//! in a stream it is damage. Rules: PostgreSQL's manual, "WAL Internals", `xlogreader.c` (as facts).

use holdfast_domain::{Lsn, Timeline};

use super::blocks::Head;
use super::page::{self, Dialect, LONG_HEADER_BYTES, PAGE_BYTES};
use super::record::{self, HEADER_BYTES, LARGEST_BYTES, PREFIX_BYTES, Record, RecordHeader};

/// The first byte of WAL that cannot be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the write-ahead log is not valid at {at}: {fault}")]
pub struct InvalidWal {
    pub at: Lsn,
    pub fault: Fault,
}

/// What is wrong there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("page magic {0:04X} belongs to no version from 13 to 18")]
    PageMagic(u16),
    #[error("page magic changes from {0:04X} to {1:04X}")]
    PageMagicChanges(u16, u16),
    #[error("page flags {0:04X}")]
    PageFlags(u16),
    #[error("the page says that it begins at {0}")]
    PageAddress(Lsn),
    #[error("the page belongs to {0:?}")]
    PageTimeline(Timeline),
    #[error("the segment says that segments have {0} bytes")]
    SegmentSize(u32),
    #[error("the segment says that pages have {0} bytes")]
    PageSize(u32),
    #[error("the segment belongs to the cluster {0}")]
    SystemIdentifier(u64),
    #[error("{found} bytes of a record should continue here, not {expected}")]
    Continuation { expected: u32, found: u32 },
    #[error("record length {0}")]
    RecordLength(u32),
    #[error("the record before should begin at {expected}, not {found}")]
    PreviousRecord { expected: Lsn, found: Lsn },
    #[error("the record has CRC {expected:08X}, its bytes {found:08X}")]
    Crc { expected: u32, found: u32 },
}

/// See the module. One walker walks one timeline's bytes in order.
#[derive(Debug, Clone)]
pub struct Walker {
    segment_bytes: u64,
    system_identifier: Option<u64>,
    /// Position of the next byte to be fed.
    at: Lsn,
    dialect: Option<Dialect>,
    timeline: Option<Timeline>,
    /// Start of the newest whole record, which the next one must name.
    previous: Option<Lsn>,
    first_start: Option<Lsn>,
    valid_end: Lsn,
    step: Step,
    /// The newest record's, for the next one.
    spare: Option<Box<Partial>>,
    /// Bytes of a page header that has not come completely.
    header: [u8; LONG_HEADER_BYTES],
    header_have: usize,
    invalid: Option<InvalidWal>,
}

#[derive(Debug, Clone)]
enum Step {
    /// The walk begins: the first page header says what the bytes after it are.
    Begin,
    /// The rest of a record that began before the walk did.
    Skip {
        left: u32,
    },
    /// Padding and page headers before the next record.
    Between,
    Record(Box<Partial>),
    /// After a segment switch, up to the segment's end.
    RestOfSegment,
    /// A length of zero: nothing was ever written from here on.
    Ended,
}

#[derive(Debug, Clone)]
struct Partial {
    start: Lsn,
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the record seen so far.
    seen: u32,
    header: Option<RecordHeader>,
    body_crc: u32,
}

impl Walker {
    /// Begins at a page boundary, in the middle of a record or not.
    ///
    /// # Panics
    /// When `at` is not a page boundary or the segment size no size PostgreSQL has: both are the caller's.
    #[must_use]
    pub fn at_page(at: Lsn, segment_bytes: u64) -> Self {
        assert!(at.0.is_multiple_of(PAGE_BYTES), "{at} is no page boundary");
        Self::new(at, segment_bytes, Step::Begin, None)
    }

    /// Begins where a record is known to begin (or to have just ended), anywhere in a page.
    #[must_use]
    pub fn at_record(at: Lsn, segment_bytes: u64, dialect: Dialect) -> Self {
        Self::new(at, segment_bytes, Step::Between, Some(dialect))
    }

    fn new(at: Lsn, segment_bytes: u64, step: Step, dialect: Option<Dialect>) -> Self {
        assert!(
            segment_bytes.is_power_of_two() && segment_bytes >= PAGE_BYTES,
            "{segment_bytes} is no segment size"
        );
        Self {
            segment_bytes,
            system_identifier: None,
            at,
            dialect,
            timeline: None,
            previous: None,
            first_start: None,
            valid_end: at,
            step,
            spare: None,
            header: [0; LONG_HEADER_BYTES],
            header_have: 0,
            invalid: None,
        }
    }

    /// Refuses segments of any other cluster.
    #[must_use]
    pub fn of_cluster(mut self, system_identifier: u64) -> Self {
        self.system_identifier = Some(system_identifier);
        self
    }

    /// Position of the next byte to be fed.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.at
    }

    /// Where the newest whole record ended (rounded up to eight), or the walk began.
    #[must_use]
    pub fn valid_end(&self) -> Lsn {
        self.valid_end
    }

    /// From here on [`Walker::first_start`] speaks of the bytes that follow.
    pub fn begin_range(&mut self) {
        self.first_start = None;
    }

    /// Where the first record begins that begins in this range, whole or not.
    #[must_use]
    pub fn first_start(&self) -> Option<Lsn> {
        self.first_start
    }

    /// Where the record under way begins; `None` between records.
    #[must_use]
    pub fn record_under_way(&self) -> Option<Lsn> {
        match &self.step {
            Step::Record(partial) => Some(partial.start),
            _ => None,
        }
    }

    /// The walk began inside a record whose end has not come yet.
    #[must_use]
    pub fn is_skipping(&self) -> bool {
        matches!(self.step, Step::Skip { .. })
    }

    /// A record of length zero was met: the log ends before it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.step, Step::Ended)
    }

    #[must_use]
    pub fn dialect(&self) -> Option<Dialect> {
        self.dialect
    }

    /// Timeline of the newest page.
    #[must_use]
    pub fn timeline(&self) -> Option<Timeline> {
        self.timeline
    }

    /// Takes the next bytes and hands each record over as soon as its last byte is there.
    /// After an error the walker stays where the error is.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Record)) -> Result<(), InvalidWal> {
        self.feed_with_heads(bytes, |record, _| each(record))
    }

    /// The same, with the beginning of each record's body for those who look into it.
    pub fn feed_with_heads(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Record, Head<'_>),
    ) -> Result<(), InvalidWal> {
        if let Some(invalid) = self.invalid {
            return Err(invalid);
        }
        while !bytes.is_empty() {
            let taken = self.advance(bytes, &mut each).map_err(|(at, fault)| {
                let invalid = InvalidWal { at, fault };
                self.invalid = Some(invalid);
                invalid
            })?;
            self.at = self.at + taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Handles as many bytes as belong to one thing and says how many that were (at least one).
    fn advance(
        &mut self,
        bytes: &[u8],
        each: &mut impl FnMut(Record, Head<'_>),
    ) -> Result<usize, (Lsn, Fault)> {
        if matches!(self.step, Step::Ended) {
            return Ok(bytes.len());
        }
        if matches!(self.step, Step::RestOfSegment) {
            let left = self.at.segment_end(self.segment_bytes).bytes_since(self.at);
            if left > 0 {
                return Ok(clamp(left, bytes));
            }
            self.step = Step::Between;
        }
        let in_page = self.at.0 % PAGE_BYTES;
        if in_page == 0 || self.header_have > 0 {
            return self.page_header(bytes);
        }
        let left_in_page = PAGE_BYTES - in_page;
        let available = &bytes[..clamp(left_in_page, bytes)];
        match &mut self.step {
            Step::Skip { left } => {
                let taken = clamp(u64::from(*left), available);
                *left -= taken as u32;
                if *left == 0 {
                    self.step = Step::Between;
                    self.valid_end = aligned(self.at + taken as u64);
                }
                Ok(taken)
            }
            Step::Between => {
                let padding = aligned(self.at).bytes_since(self.at);
                if padding > 0 {
                    return Ok(clamp(padding, available));
                }
                self.first_start.get_or_insert(self.at);
                if let Some(whole) = whole_record(available) {
                    let header = linked_header(whole, self.at, self.previous)?;
                    let body_crc = crc32c::crc32c(&whole[HEADER_BYTES..]);
                    let prefix = &whole[..whole.len().min(PREFIX_BYTES)];
                    return self.hand_over(self.at, header, prefix, body_crc, whole.len(), each);
                }
                let mut partial = self.spare.take().unwrap_or_else(|| {
                    Box::new(Partial {
                        start: self.at,
                        prefix: [0; PREFIX_BYTES],
                        seen: 0,
                        header: None,
                        body_crc: 0,
                    })
                });
                partial.start = self.at;
                (partial.seen, partial.header, partial.body_crc) = (0, None, 0);
                self.step = Step::Record(partial);
                self.record_bytes(available, each)
            }
            Step::Record(_) => self.record_bytes(available, each),
            // `Begin` only stands at a page boundary, the others were handled above.
            Step::Begin | Step::RestOfSegment | Step::Ended => Ok(available.len()),
        }
    }

    fn page_header(&mut self, bytes: &[u8]) -> Result<usize, (Lsn, Fault)> {
        let page = Lsn(self.at.0 - self.at.0 % PAGE_BYTES);
        let needed = page::header_bytes(page, self.segment_bytes);
        let taken = bytes.len().min(needed - self.header_have);
        self.header[self.header_have..self.header_have + taken].copy_from_slice(&bytes[..taken]);
        self.header_have += taken;
        if self.header_have < needed {
            return Ok(taken);
        }
        self.header_have = 0;
        self.enter_page(page, needed)
            .map_err(|fault| (page, fault))?;
        Ok(taken)
    }

    fn enter_page(&mut self, page: Lsn, header_bytes: usize) -> Result<(), Fault> {
        let header = page::parse(&self.header[..header_bytes], page, self.segment_bytes)?;
        if let Some(dialect) = self.dialect
            && dialect != header.dialect
        {
            return Err(Fault::PageMagicChanges(
                dialect.magic(),
                header.dialect.magic(),
            ));
        }
        if let (Some(expected), Some(found)) = (self.system_identifier, header.system_identifier)
            && expected != found
        {
            return Err(Fault::SystemIdentifier(found));
        }
        if self
            .timeline
            .is_some_and(|timeline| header.timeline < timeline)
        {
            return Err(Fault::PageTimeline(header.timeline));
        }
        let found = header.continuation.unwrap_or(0);
        match &mut self.step {
            Step::Begin => {
                self.step = match header.continuation {
                    Some(left) if left < LARGEST_BYTES => Step::Skip { left },
                    Some(left) => {
                        return Err(Fault::Continuation {
                            expected: 0,
                            found: left,
                        });
                    }
                    None => Step::Between,
                };
            }
            Step::Record(_) | Step::Skip { .. } if header.overwrites => {
                // The crash that cut the record off is history; PostgreSQL begins afresh on this page.
                self.step = Step::Between;
            }
            Step::Skip { left } if *left != found => {
                return Err(Fault::Continuation {
                    expected: *left,
                    found,
                });
            }
            Step::Record(partial) => {
                let expected = partial.header.map_or_else(
                    || u32_at(&partial.prefix).saturating_sub(partial.seen),
                    |header| header.bytes - partial.seen,
                );
                if expected != found {
                    return Err(Fault::Continuation { expected, found });
                }
            }
            Step::Between if found != 0 => {
                return Err(Fault::Continuation { expected: 0, found });
            }
            Step::Skip { .. } | Step::Between | Step::RestOfSegment | Step::Ended => {}
        }
        self.dialect = Some(header.dialect);
        self.timeline = Some(header.timeline);
        Ok(())
    }

    /// Bytes of the record under way, all of one page.
    fn record_bytes(
        &mut self,
        bytes: &[u8],
        each: &mut impl FnMut(Record, Head<'_>),
    ) -> Result<usize, (Lsn, Fault)> {
        let Step::Record(partial) = &mut self.step else {
            return Ok(bytes.len());
        };
        let fail = |fault| Err((partial.start, fault));

        if partial.header.is_none() {
            let taken = bytes.len().min(HEADER_BYTES - partial.seen as usize);
            let have = partial.seen as usize;
            partial.prefix[have..have + taken].copy_from_slice(&bytes[..taken]);
            partial.seen += taken as u32;
            // The length never crosses a page: records begin at multiples of eight.
            if have < 4 && partial.seen >= 4 {
                let length = u32_at(&partial.prefix);
                if length == 0 {
                    self.step = Step::Ended;
                    return Ok(taken);
                }
                if (length as usize) < HEADER_BYTES || length >= LARGEST_BYTES {
                    return fail(Fault::RecordLength(length));
                }
            }
            if (partial.seen as usize) < HEADER_BYTES {
                return Ok(taken);
            }
            let header = linked_header(&partial.prefix, partial.start, self.previous)?;
            partial.header = Some(header);
            if header.bytes == partial.seen {
                return self.record_complete(taken, each);
            }
            return Ok(taken);
        }

        let total = partial.header.map_or(partial.seen, |header| header.bytes);
        let taken = clamp(u64::from(total - partial.seen), bytes);
        let have = partial.seen as usize;
        if have < PREFIX_BYTES {
            let kept = taken.min(PREFIX_BYTES - have);
            partial.prefix[have..have + kept].copy_from_slice(&bytes[..kept]);
        }
        partial.body_crc = crc32c::crc32c_append(partial.body_crc, &bytes[..taken]);
        partial.seen += taken as u32;
        if partial.seen == total {
            return self.record_complete(taken, each);
        }
        Ok(taken)
    }

    /// The last `taken` bytes complete the record under way.
    fn record_complete(
        &mut self,
        taken: usize,
        each: &mut impl FnMut(Record, Head<'_>),
    ) -> Result<usize, (Lsn, Fault)> {
        let Step::Record(partial) = std::mem::replace(&mut self.step, Step::Between) else {
            return Ok(taken);
        };
        let Some(header) = partial.header else {
            return Ok(taken);
        };
        let prefix = &partial.prefix[..(header.bytes as usize).min(PREFIX_BYTES)];
        self.hand_over(partial.start, header, prefix, partial.body_crc, taken, each)?;
        self.spare = Some(partial);
        Ok(taken)
    }

    /// Checks the record whose last `taken` bytes are here and gives it out. `prefix` is its header and the
    /// beginning of its body.
    fn hand_over(
        &mut self,
        start: Lsn,
        header: RecordHeader,
        prefix: &[u8],
        body_crc: u32,
        taken: usize,
        each: &mut impl FnMut(Record, Head<'_>),
    ) -> Result<usize, (Lsn, Fault)> {
        let Some(dialect) = self.dialect else {
            return Ok(taken);
        };
        // The CRC covers the body, then the header up to the CRC itself.
        let found = crc32c::crc32c_append(body_crc, &prefix[..HEADER_BYTES - 4]);
        if found != header.crc {
            let expected = header.crc;
            return Err((start, Fault::Crc { expected, found }));
        }
        let end = aligned(self.at + taken as u64);
        let body = &prefix[HEADER_BYTES..];
        let record = record::read(&header, body, start, end, dialect);
        self.previous = Some(start);
        self.valid_end = end;
        if record.ends_segment() {
            self.step = Step::RestOfSegment;
            self.valid_end = end.segment_end(self.segment_bytes);
        }
        let body_bytes = header.bytes as usize - HEADER_BYTES;
        each(record, Head::new(body, body_bytes, dialect));
        Ok(taken)
    }
}

/// The record at the front when these bytes, which are of one page, hold all of it: the common case, in which
/// nothing needs to be kept.
fn whole_record(bytes: &[u8]) -> Option<&[u8]> {
    let (length, _) = bytes.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    (length >= HEADER_BYTES).then(|| bytes.get(..length))?
}

/// The header at the front, if it names the record before it.
fn linked_header(
    bytes: &[u8],
    start: Lsn,
    previous: Option<Lsn>,
) -> Result<RecordHeader, (Lsn, Fault)> {
    let mut fixed = [0; HEADER_BYTES];
    fixed.copy_from_slice(&bytes[..HEADER_BYTES]);
    let header = RecordHeader::parse(&fixed);
    let found = header.previous;
    match previous {
        Some(expected) if found != expected => {
            Err((start, Fault::PreviousRecord { expected, found }))
        }
        None if found >= start => Err((
            start,
            Fault::PreviousRecord {
                expected: start,
                found,
            },
        )),
        _ => Ok(header),
    }
}

/// Rounded up to eight, where the next record begins.
fn aligned(at: Lsn) -> Lsn {
    Lsn(at.0.next_multiple_of(8))
}

fn u32_at(bytes: &[u8; PREFIX_BYTES]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// At most `left`, at most what is there.
fn clamp(left: u64, bytes: &[u8]) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}
