//! A data directory in a vault (DESIGN §3.1): *pages* of 8 KiB are grouped into *frames*, frames lie
//! in *packs*; a *leaf* says for one segment of a file where each page lies and what its hash is; the
//! *manifest* has one line per file and names the leaves.
//!
//! Every backup restores by itself, in one pass. A differential writes only pages whose content
//! changed; for the others its leaves name the frames of earlier backups, and a leaf none of whose
//! pages changed is named again as it is. Bytes: `docs/VAULT-FORMAT.md` §4 to §6.

mod base;
mod leaf;
mod manifest;
mod pack;
mod path;
mod read;
mod restore;
mod segment;
mod tree;
mod writer;

#[cfg(test)]
mod tests;

use holdfast_domain::{BackupId, IncarnationId, JobId};

pub use base::BaseIndex;
pub use manifest::{FileEntry, Manifest, ManifestMeta, Tablespace, find_manifest};
pub use restore::{RestoreInto, Restored, TablespaceRoot, restore_to};
pub use segment::PageCheck;
pub use writer::{BackupWriter, FinishedBackup, WriterProgress};

/// The unit of change: PostgreSQL's page, of every server that Holdfast runs.
pub const PAGE_BYTES: usize = 8192;
/// What is compressed and sealed together.
pub const PAGES_PER_FRAME: usize = 128;
/// What one leaf describes: PostgreSQL's relation segment of 1 GiB.
pub const PAGES_PER_LEAF: usize = 131_072;

/// The path of the control file, which a restore writes last and by itself (RELIABILITY §5.4.3).
pub const PG_CONTROL: &str = "global/pg_control";

/// Which attempt writes: everything it puts carries job and epoch in its key (DESIGN §3.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    pub incarnation: IncarnationId,
    pub backup: BackupId,
    pub job: JobId,
    pub epoch: i64,
}

/// The first half of a keyed BLAKE3 hash of a page.
pub(crate) type PageHash = [u8; 16];

/// Hashes pages under a key of the incarnation.
#[derive(Clone)]
pub(crate) struct PageHasher {
    key: secrecy::zeroize::Zeroizing<[u8; 32]>,
    zero: PageHash,
}

impl PageHasher {
    pub fn new(data_key: &crate::DataKey) -> Self {
        let mut hasher = Self {
            key: data_key.page_hash_key(),
            zero: [0; 16],
        };
        hasher.zero = hasher.hash(&[0; PAGE_BYTES]);
        hasher
    }

    pub fn hash(&self, page: &[u8]) -> PageHash {
        let mut half = [0; 16];
        half.copy_from_slice(&blake3::keyed_hash(&self.key, page).as_bytes()[..16]);
        half
    }

    /// The hash of a page of zeros, which is stored nowhere.
    pub fn zero(&self) -> PageHash {
        self.zero
    }
}
