//! Directories that outlive a power cut (RELIABILITY L21): a file is durable when it and every directory
//! between it and something durable was fsynced.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Makes a directory for its owner only, with its parents, and the entries of those it made durable.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut existing = dir;
    while !existing.exists() {
        missing.push(existing);
        match existing.parent() {
            Some(parent) => existing = parent,
            None => break,
        }
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    for made in missing {
        sync(made)?;
        if let Some(parent) = made.parent() {
            sync(parent)?;
        }
    }
    Ok(())
}

/// Fsyncs the file at `path` below `root` and the directories between them, `root` included.
pub(super) fn settle(root: &Path, path: &str) -> io::Result<()> {
    let mut at = root.join(path);
    while at.starts_with(root) {
        sync(&at)?;
        if !at.pop() {
            break;
        }
    }
    Ok(())
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_lies_below_the_root_and_exists() {
        let root = tempfile::tempdir().unwrap();
        let vault = root.path().join("made/for/us");
        create_private_dir(&vault).unwrap();
        create_private_dir(&vault).unwrap();
        std::fs::create_dir_all(vault.join("wal/a")).unwrap();
        std::fs::write(vault.join("wal/a/1"), "rows").unwrap();
        settle(&vault, "wal/a/1").unwrap();
        let error = settle(&vault, "wal/a/2").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
