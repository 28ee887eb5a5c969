//! Frozen copies of servers: files that share what a server's files held between the start and the stop of a
//! backup, made in moments where the file system can (issue 3 §6, FLX-136, FLX-153; ADR 19).
//!
//! [`freeze`] makes one while PostgreSQL holds a backup open, and the backup is read from it afterwards. The newest one of a
//! server is kept beside its data, with a [`record`] of what it is; a restore of that backup on the same node
//! clones it back ([`thaw`]) instead of fetching pages. It is never needed: whatever is in doubt is fetched.
//!
//! Directories, in the server's own, entered by nobody but the agent: `frozen/` is kept, `frozen.{job}.{epoch}/` is
//! being made or read. In each `files/` is the data directory without its control file, which lies beside it: no
//! postmaster can be started on them.

pub mod freeze;
pub mod record;
pub mod thaw;

use std::io;
use std::path::{Path, PathBuf};

use holdfast_domain::JobId;

pub use freeze::{Frozen, Place};
pub use record::Identity;
pub use thaw::FrozenCopy;

use crate::error::{Error, Result};

const KEPT: &str = "frozen";
const FILES: &str = "files";
const CONTROL: &str = "pg_control";

/// Cloning waits for the file system's journal more than it computes.
const THREADS: usize = 8;

fn kept_in(server_dir: &Path) -> PathBuf {
    server_dir.join(KEPT)
}

fn unfinished_in(server_dir: &Path, job: JobId, epoch: i64) -> PathBuf {
    server_dir.join(format!("{KEPT}.{job}.{epoch}"))
}

/// Removes the frozen copy of a server, if it has one. Blocks.
pub fn remove(server_dir: &Path) -> Result<()> {
    let kept = kept_in(server_dir);
    // Half a copy must not look like one, should this be interrupted.
    record::remove(&kept)?;
    remove_tree(&kept)
}

/// Removes what attempts left that did not come to their end. Blocks.
pub fn clear_unfinished(server_dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(server_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::file("list", server_dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::file("list", server_dir))?;
        let name = entry.file_name();
        let is_unfinished = name
            .to_str()
            .and_then(|name| name.strip_prefix(KEPT))
            .is_some_and(|rest| rest.starts_with('.'));
        if is_unfinished {
            tracing::info!(path = %entry.path().display(), "removing what an unfinished backup had frozen");
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod volume_fixture;
