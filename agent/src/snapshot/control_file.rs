//! `global/pg_control`: the one file whose content decides whether and from where a cluster starts.
//!
//! It is read last in a backup, in one read, until its CRC fits (PostgreSQL rewrites it in place).
//! It is written last in a restore, with a checkpoint position that cannot exist: should the backup
//! label get lost, the cluster refuses to start instead of starting damaged (RELIABILITY §5.4.3).
//!
//! The place of the CRC depends on the version. It is the first 4-byte offset that already holds
//! the CRC-32C of everything before it (288 for control version 1300, 292 for 1800).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use holdfast_domain::Lsn;

/// The file's size on every supported version.
pub const CONTROL_FILE_BYTES: usize = 8192;
/// Its place in a data directory.
pub const CONTROL_FILE: &str = "global/pg_control";

const CHECKPOINT: std::ops::Range<usize> = 32..40;
const CRC_PLACES: std::ops::RangeInclusive<usize> = 64..=512;
/// No checkpoint record can start here: it lies inside the first page's header.
const IMPOSSIBLE_CHECKPOINT: u64 = 0xDEAD;

/// Reads until the CRC fits, this often. A torn read lasts for microseconds.
const READS: u32 = 50;
const BETWEEN_READS: Duration = Duration::from_millis(10);

/// A control file whose CRC fits.
#[derive(Clone, PartialEq, Eq)]
pub struct ControlFile {
    bytes: Vec<u8>,
    crc_at: usize,
}

impl std::fmt::Debug for ControlFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlFile")
            .field("system_identifier", &self.system_identifier())
            .field("version", &self.version())
            .field("checkpoint", &self.checkpoint())
            .finish_non_exhaustive()
    }
}

/// Why bytes are not a control file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAControlFile {
    #[error("the control file has {0} bytes instead of {CONTROL_FILE_BYTES}")]
    Size(usize),
    #[error("the control file's checksum does not fit")]
    Checksum,
}

/// Why a control file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the control file could not be read")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Content(#[from] NotAControlFile),
}

impl ControlFile {
    pub fn parse(bytes: Vec<u8>) -> Result<Self, NotAControlFile> {
        if bytes.len() != CONTROL_FILE_BYTES {
            return Err(NotAControlFile::Size(bytes.len()));
        }
        let mut crc = crc32c::crc32c(&bytes[..*CRC_PLACES.start()]);
        for at in CRC_PLACES.step_by(4) {
            if crc.to_le_bytes() == bytes[at..at + 4] {
                return Ok(Self { bytes, crc_at: at });
            }
            crc = crc32c::crc32c_append(crc, &bytes[at..at + 4]);
        }
        Err(NotAControlFile::Checksum)
    }

    /// Reads it from a running server: one read per try, until the CRC fits. Blocks.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        for _ in 1..READS {
            match Self::read_once(path) {
                Err(ReadError::Content(_)) => std::thread::sleep(BETWEEN_READS),
                settled => return settled,
            }
        }
        Self::read_once(path)
    }

    fn read_once(path: &Path) -> Result<Self, ReadError> {
        let mut bytes = vec![0; CONTROL_FILE_BYTES];
        let length = File::open(path)?.read(&mut bytes)?;
        bytes.truncate(length);
        Ok(Self::parse(bytes)?)
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    #[must_use]
    pub fn system_identifier(&self) -> u64 {
        self.u64_at(0)
    }

    /// `pg_control_version`: 1300 for 13 to 16, 1800 for 18.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.u32_at(8)
    }

    #[must_use]
    pub fn catalog_version(&self) -> u32 {
        self.u32_at(12)
    }

    /// Position of the last checkpoint record.
    #[must_use]
    pub fn checkpoint(&self) -> Lsn {
        Lsn(self.u64_at(CHECKPOINT.start))
    }

    /// The same file, unable to start a cluster without a backup label.
    #[must_use]
    pub fn with_impossible_checkpoint(mut self) -> Self {
        self.bytes[CHECKPOINT].copy_from_slice(&IMPOSSIBLE_CHECKPOINT.to_le_bytes());
        let crc = crc32c::crc32c(&self.bytes[..self.crc_at]);
        self.bytes[self.crc_at..self.crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        self
    }

    fn u32_at(&self, at: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_le_bytes(word)
    }

    fn u64_at(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control_file(crc_at: usize) -> Vec<u8> {
        let mut bytes = vec![0; CONTROL_FILE_BYTES];
        bytes[0..8].copy_from_slice(&7_400_000_000_000_000_001_u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&1300_u32.to_le_bytes());
        bytes[32..40].copy_from_slice(&0x0300_0060_u64.to_le_bytes());
        for (at, byte) in bytes[40..crc_at].iter_mut().enumerate() {
            *byte = (at % 200) as u8 + 1;
        }
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn the_crc_is_found_where_each_version_keeps_it() {
        for place in [288, 292, 300] {
            let file = ControlFile::parse(control_file(place)).expect("a good file");
            assert_eq!(file.crc_at, place);
            assert_eq!(file.system_identifier(), 7_400_000_000_000_000_001);
            assert_eq!(file.checkpoint(), Lsn(0x0300_0060));
        }
    }

    #[test]
    fn a_torn_file_is_refused() {
        let mut bytes = control_file(288);
        bytes[50] ^= 1;
        assert_eq!(ControlFile::parse(bytes), Err(NotAControlFile::Checksum));
        assert_eq!(
            ControlFile::parse(vec![0; 100]),
            Err(NotAControlFile::Size(100))
        );
    }

    #[test]
    fn an_impossible_checkpoint_keeps_the_file_readable() {
        let file = ControlFile::parse(control_file(292)).expect("a good file");
        let patched = file.clone().with_impossible_checkpoint();
        let read = ControlFile::parse(patched.into_bytes()).expect("the CRC was made anew");
        assert_eq!(read.checkpoint(), Lsn(IMPOSSIBLE_CHECKPOINT));
        assert_eq!(read.system_identifier(), file.system_identifier());
    }
}
