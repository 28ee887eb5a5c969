//! Keeps a recovery away from directories that are somebody else's.
//!
//! Replaying CREATE TABLESPACE makes a link to the path that the *source* used, and on the same node
//! that path is the live source's: the copy would write into it. Tablespaces of the backup itself
//! are remapped; one that was made after it cannot be. So every WAL file is looked through before
//! PostgreSQL gets it, and such a record ends the restore with its reason (F14, DESIGN §3.17).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use holdfast_domain::Lsn;
use holdfast_vault::wal::record::rmgr;
use holdfast_vault::wal::walker::Walker;

use crate::error::{Error, Result};

/// `XLOG_TBLSPC_CREATE` among the records of the tablespace resource manager.
const CREATE: u8 = 0x00;
const CHUNK: usize = 1 << 20;

/// Follows the records of a plan's files in their order.
pub struct TablespaceGuard {
    segment_bytes: u64,
    next: Lsn,
    walker: Walker,
}

impl TablespaceGuard {
    /// `begin`: the first byte of the first file.
    #[must_use]
    pub fn new(begin: Lsn, segment_bytes: u64) -> Self {
        Self {
            segment_bytes,
            next: begin,
            walker: Walker::at_page(begin, segment_bytes),
        }
    }

    /// Looks through the file that begins at `start`, unless that has happened. Blocks.
    pub fn admit(&mut self, start: Lsn, file: &Path) -> Result<()> {
        if start != self.next {
            return Ok(());
        }
        let created = self.find_creation(file)?;
        if let Some(at) = created {
            return Err(Error::Failed {
                code: "TablespaceCreated",
                message: format!(
                    "a tablespace was created at {at}, after this backup began, and cannot be placed on another \
                     server; restore to a time before it, or from a backup that was taken after it"
                ),
                retryable: false,
            });
        }
        self.next = start + self.segment_bytes;
        Ok(())
    }

    fn find_creation(&mut self, path: &Path) -> Result<Option<Lsn>> {
        let mut file = File::open(path).map_err(Error::file("open", path))?;
        let mut chunk = vec![0; CHUNK];
        let mut created = None;
        loop {
            let count = file.read(&mut chunk).map_err(Error::file("read", path))?;
            if count == 0 {
                return Ok(created);
            }
            let fed = self.walker.feed(&chunk[..count], |record| {
                if record.rmgr == rmgr::TABLESPACE && record.info & 0xF0 == CREATE {
                    created.get_or_insert(record.start);
                }
            });
            if let Err(invalid) = fed {
                // Whether that is damage is PostgreSQL's to say, and the history file's. A timeline
                // that begins inside a file is none: the walk goes on with the next file.
                tracing::debug!(%invalid, "the records of a WAL file could not be followed to its end");
                self.walker = Walker::at_page(self.next + self.segment_bytes, self.segment_bytes);
                return Ok(created);
            }
        }
    }
}
