//! A data directory in a vault (DESIGN §3.1): *pages* of 8 KiB are grouped into *frames*, frames lie
//! in *packs*, each with an *index* of its pages' hashes; a *leaf* says for one segment of a file where
//! each page lies; the *manifest* has one line per file and names the leaves.
//!
//! Every backup restores by itself, in one pass. A differential writes only pages whose content
//! changed; for the others its leaves name the frames of earlier backups, and a leaf none of whose
//! pages changed is named again as it is. Bytes: `docs/VAULT-FORMAT.md` §4 to §6.

mod audit;
mod base;
mod compact;
mod index;
mod leaf;
mod manifest;
mod pack;
mod part;
mod path;
mod read;
mod restore;
mod segment;
mod tree;
mod writer;

#[cfg(test)]
mod tests;

use holdfast_domain::{BackupId, IncarnationId, JobId};

pub(crate) use audit::{Audit, needed_by};
pub use base::BaseIndex;
pub use compact::{Compaction, ToRewrite, compact};
pub use manifest::{FileEntry, Manifest, ManifestMeta, Tablespace, find_manifest};
pub use part::{Changes, PageCheck};
pub use restore::{RestoreInto, Restored, TablespaceRoot, lay_out, restore_to};
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

/// Says of all pages of a leaf at once that they are the ones, each at its place. Every page adds its
/// hash times twice its number plus one, modulo 2^128; zeros add nothing. One page can be replaced in it
/// without looking at the others, which a root over all hashes does not allow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PageSum(u128);

impl PageSum {
    pub fn add(&mut self, page: u32, hash: &PageHash) {
        self.0 = self.0.wrapping_add(Self::share(page, hash));
    }

    pub fn remove(&mut self, page: u32, hash: &PageHash) {
        self.0 = self.0.wrapping_sub(Self::share(page, hash));
    }

    /// The sum of both, whichever pages they stand for.
    pub fn merge(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    fn share(page: u32, hash: &PageHash) -> u128 {
        u128::from_le_bytes(*hash).wrapping_mul(2 * u128::from(page) + 1)
    }
}

/// Hashes pages under a key of the incarnation.
#[derive(Clone)]
pub(crate) struct PageHasher(secrecy::zeroize::Zeroizing<[u8; 32]>);

impl PageHasher {
    pub fn new(data_key: &crate::DataKey) -> Self {
        Self(data_key.page_hash_key())
    }

    pub fn hash(&self, page: &[u8]) -> PageHash {
        let mut half = [0; 16];
        half.copy_from_slice(&blake3::keyed_hash(&self.0, page).as_bytes()[..16]);
        half
    }
}

pub(crate) fn is_zeros(page: &[u8]) -> bool {
    // Most pages differ in their first bytes; a comparison with zeros is one memcmp for the others.
    page[..16] == [0; 16] && page == &ZEROS[..page.len()]
}

static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
