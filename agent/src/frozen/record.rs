//! What a frozen copy is, and how each of its files looked when it was made.
//!
//! Pages are not read again to believe a copy: that would take as long as the database is large. Whatever writes to a
//! file, or puts another in its place, changes its inode number, its length or the time of its last change, which
//! only the kernel sets (`ctime`). What happens below the file system is found as it is in a live server: by the pages'
//! checksums, which stay on (ADR 19).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use holdfast_domain::{BackupId, IncarnationId, Lsn, Timeline};
use holdfast_vault::backup::{Manifest, ManifestMeta};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Beside the copy's files; written last, so that a copy with a record is whole.
const FILE: &str = "record.json";

/// Which attempt's backup a copy is. Two attempts never start at the same position: each start is a record of
/// the log. A manifest's hash would not do, because rewriting packs gives a backup another manifest (ADR 18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    incarnation: IncarnationId,
    backup: BackupId,
    timeline: Timeline,
    start: Lsn,
    stop: Lsn,
}

impl Identity {
    #[must_use]
    pub fn new(incarnation: IncarnationId, backup: BackupId, meta: &ManifestMeta) -> Self {
        Self {
            incarnation,
            backup,
            timeline: meta.timeline,
            start: meta.start_lsn,
            stop: meta.stop_lsn,
        }
    }

    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        Self::new(manifest.incarnation, manifest.backup, &manifest.meta)
    }
}

/// How a file looks that nobody has touched. Times are seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    inode: u64,
    pub bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            inode: found.ino(),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub of: Identity,
    pub control: Mark,
    /// Every file, by its path in the data directory.
    pub files: Vec<(String, Mark)>,
}

impl Record {
    /// `None`: there is no copy, or not a whole one.
    pub fn read(copy: &Path) -> Result<Option<Self>> {
        let path = copy.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)
                .inspect_err(|error| {
                    tracing::warn!(path = %path.display(), %error, "the record of a frozen copy cannot be read");
                })
                .ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }

    /// Makes it durable.
    pub fn write(&self, copy: &Path) -> Result<()> {
        let path = copy.join(FILE);
        let bytes =
            serde_json::to_vec(self).map_err(|error| Error::file("write", &path)(error.into()))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| File::open(copy)?.sync_all())
            .map_err(Error::file("write", path))
    }
}

pub(super) fn remove(copy: &Path) -> Result<()> {
    let path: PathBuf = copy.join(FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_shows_although_length_and_time_of_it_are_put_back() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("16384");
        std::fs::write(&path, b"as it was").expect("written");
        let file = File::open(&path).expect("open");
        let mark = Mark::of(&file).expect("looked at");
        assert_eq!(
            Mark::of(&file).expect("looked at"),
            mark,
            "reading changes nothing"
        );
        let modified = file
            .metadata()
            .expect("looked at")
            .modified()
            .expect("a time");
        // Older kernels tell times apart only every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, b"as it is!").expect("written");
        let written = File::options().write(true).open(&path).expect("open");
        written.set_modified(modified).expect("set");
        let found = Mark::of(&file).expect("looked at");
        assert_eq!((found.bytes, found.modified), (mark.bytes, mark.modified));
        assert_ne!(found, mark);
    }
}
