//! Files of a server's own `pg_wal`: of a stopped server the place where its last commits are, of a running
//! one the place where a segment's beginning can be read again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use holdfast_domain::lsn::{parse_segment_file_name, segment_file_name};
use holdfast_domain::{Lsn, Timeline};

/// Segment sizes PostgreSQL can have.
const SEGMENT_SIZES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

#[derive(Debug, Clone)]
pub(super) struct PgWal {
    dir: PathBuf,
    segment_bytes: u64,
}

impl PgWal {
    pub fn new(data_dir: &Path, segment_bytes: u64) -> Self {
        Self {
            dir: data_dir.join("pg_wal"),
            segment_bytes,
        }
    }

    /// The same, the segment size taken from the files. `None` without any segment.
    pub fn of_unknown_size(data_dir: &Path) -> io::Result<Option<Self>> {
        let dir = data_dir.join("pg_wal");
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_segment =
                name.len() == 24 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit);
            let length = entry.metadata()?.len();
            if is_segment && length.is_power_of_two() && SEGMENT_SIZES.contains(&length) {
                return Ok(Some(Self {
                    dir,
                    segment_bytes: length,
                }));
            }
        }
        Ok(None)
    }

    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// First bytes of the segments there are of this timeline, in order. Files made in advance, or
    /// recycled, are among them.
    pub fn segments(&self, timeline: Timeline) -> io::Result<Vec<Lsn>> {
        let mut starts = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let parsed = name
                .to_str()
                .and_then(|name| parse_segment_file_name(name, self.segment_bytes));
            if let Some((of, start)) = parsed
                && of == timeline
            {
                starts.push(start);
            }
        }
        starts.sort_unstable();
        Ok(starts)
    }

    /// Timelines that have a history file here.
    pub fn newest_history(&self) -> io::Result<Option<Timeline>> {
        let mut newest = None;
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let timeline = name
                .to_str()
                .and_then(|name| name.strip_suffix(".history"))
                .filter(|digits| digits.len() == 8)
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                .map(Timeline);
            newest = newest.max(timeline);
        }
        Ok(newest)
    }

    pub fn history(&self, timeline: Timeline) -> io::Result<Vec<u8>> {
        std::fs::read(self.dir.join(timeline.history_file_name()))
    }

    /// `None` when there is no such segment.
    pub fn open(&self, timeline: Timeline, lsn: Lsn) -> io::Result<Option<File>> {
        let name = segment_file_name(timeline, lsn, self.segment_bytes);
        match File::open(self.dir.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bytes `[from, to)` of one segment.
    pub fn read(&self, timeline: Timeline, from: Lsn, to: Lsn) -> io::Result<Vec<u8>> {
        let file = self.open(timeline, from)?.ok_or(io::ErrorKind::NotFound)?;
        let length =
            usize::try_from(to.bytes_since(from)).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, from.0 % self.segment_bytes)?;
        Ok(bytes)
    }
}
