//! The server's log: what PostgreSQL writes to its standard error, one file beside the data directory.
//!
//! A tenant can make a server write as much as they like, so the file is cut when it has grown: it is
//! opened for appending, therefore a postmaster goes on writing at the new end.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// One generation is kept beside the current file, so a server's log takes twice this.
const LIMIT_BYTES: u64 = 64 << 20;

/// Opens the log for a postmaster's standard error. The file is the agent's; the descriptor is passed.
pub fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(Error::file("open the log", path))
}

/// Keeps the last part of a log that has grown too long as `….1` and empties the file.
pub fn trim(path: &Path) -> Result<()> {
    trim_to(path, LIMIT_BYTES)
}

fn trim_to(path: &Path, limit: u64) -> Result<()> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("look at the log", path)(error)),
    };
    if length <= limit {
        return Ok(());
    }
    let mut kept = path.as_os_str().to_owned();
    kept.push(".1");
    std::fs::copy(path, &kept).map_err(Error::file("copy the log", path))?;
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(0))
        .map_err(Error::file("empty the log", path))
}

/// The last lines, for an error that says why a server did not start. Empty when there is no log.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(8192)))?;
        let mut bytes = Vec::new();
        file.take(8192).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read()
        .map(|text| super::initdb::last_lines(&text, lines))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_that_has_grown_is_cut_while_it_is_open() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("server.log");
        let mut log = open(&path).expect("opened");
        log.write_all(b"first\nsecond\n").expect("written");
        assert_eq!(tail(&path, 1), "second");
        trim_to(&path, 4).expect("trimmed");
        log.write_all(b"third\n").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "third\n");
        assert!(dir.path().join("server.log.1").exists());
    }
}
