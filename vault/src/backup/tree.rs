//! A new directory tree, filled without ever following a symbolic link. Every directory is opened
//! part by part from the tree's own root, so that nothing a manifest says, and nobody who writes
//! beside us, leads outside it (RELIABILITY §4.5).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, fchown};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{symlinkat, syncfs};

use super::path;
use crate::{Error, Result};

/// User and group of what is made; `None` leaves them to the process.
pub(crate) type Owner = Option<(u32, u32)>;

pub(crate) struct Tree {
    root: OwnedFd,
    owner: Owner,
    /// The directory used last: files come in the order of their directories.
    last: Option<(String, OwnedFd)>,
}

impl Tree {
    /// A directory that exists and is empty (DESIGN §3.7).
    pub fn at_empty(dir: &Path, owner: Owner) -> Result<Self> {
        let unusable =
            |error: Errno| Error::io("the restore's directory cannot be opened", error.into());
        let root = open(dir, DIRECTORY, Mode::empty()).map_err(unusable)?;
        let mut entries = std::fs::read_dir(dir)
            .map_err(|error| Error::io("the restore's directory cannot be read", error))?;
        if entries.next().is_some() {
            return Err(Error::refused("the restore's directory is not empty"));
        }
        Ok(Self {
            root,
            owner,
            last: None,
        })
    }

    /// A directory of ours, made if need be, for the tablespaces of one restore.
    pub fn at(dir: &Path, owner: Owner) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| Error::io("the tablespaces' directory cannot be made", error))?;
        let root = open(dir, DIRECTORY, Mode::empty()).map_err(|error| {
            Error::io("the tablespaces' directory cannot be opened", error.into())
        })?;
        let tree = Self {
            root,
            owner,
            last: None,
        };
        tree.give(tree.root.as_fd())?;
        Ok(tree)
    }

    /// Makes a directory and those above it; one that is there is kept.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        path::check(path)?;
        self.enter(path).map(|_| ())
    }

    /// Makes a file that must not exist.
    pub fn file(&mut self, path: &str) -> Result<File> {
        path::check(path)?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(
            self.enter(parent)?,
            name,
            flags,
            Mode::S_IRUSR | Mode::S_IWUSR,
        )
        .map_err(|error| failed(path, error))?;
        self.give(file.as_fd())?;
        Ok(File::from(file))
    }

    /// Makes a symbolic link. Only ours: what a manifest holds never becomes a target.
    pub fn link(&mut self, path: &str, target: &Path) -> Result<()> {
        path::check(path)?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        symlinkat(target, self.enter(parent)?, name).map_err(|error| failed(path, error))
    }

    /// Everything written to this file system is on the disk afterwards: one call instead of an
    /// fsync for each file (PERFORMANCE, "one syncfs").
    pub fn sync(&self) -> Result<()> {
        syncfs(self.root.as_fd())
            .map_err(|error| Error::io("the restored files cannot be made durable", error.into()))
    }

    fn enter(&mut self, path: &str) -> Result<&OwnedFd> {
        if path.is_empty() {
            return Ok(&self.root);
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let mut dir: Option<OwnedFd> = None;
            for part in path.split('/') {
                let above = dir.as_ref().unwrap_or(&self.root);
                let made = match mkdirat(above, part, Mode::S_IRWXU) {
                    Ok(()) => true,
                    Err(Errno::EEXIST) => false,
                    Err(error) => return Err(failed(path, error)),
                };
                let next = openat(above, part, DIRECTORY, Mode::empty())
                    .map_err(|error| failed(path, error))?;
                if made {
                    self.give(next.as_fd())?;
                }
                dir = Some(next);
            }
            self.last = dir.map(|dir| (path.to_owned(), dir));
        }
        Ok(self.last.as_ref().map_or(&self.root, |(_, dir)| dir))
    }

    fn give(&self, made: impl AsFd) -> Result<()> {
        let Some((user, group)) = self.owner else {
            return Ok(());
        };
        fchown(made, Some(user), Some(group)).map_err(|error| {
            Error::io(
                "a restored file cannot be given to the server's user",
                error,
            )
        })
    }
}

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

fn failed(path: &str, error: Errno) -> Error {
    Error::io(format!("{path} cannot be made"), error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut tree = Tree::at_empty(dir.path(), None).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("base")).unwrap();
        assert!(tree.file("base/1259").is_err());
        assert!(tree.directory("base/5").is_err());
        std::os::unix::fs::symlink(outside.path().join("x"), dir.path().join("PG_VERSION"))
            .unwrap();
        assert!(tree.file("PG_VERSION").is_err());
        for hostile in ["../x", "/x", "a/../../x", ""] {
            assert!(
                matches!(tree.file(hostile), Err(Error::Refused { .. })),
                "{hostile:?}"
            );
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_holds_anything_is_not_restored_into() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("precious"), "x").unwrap();
        assert!(matches!(
            Tree::at_empty(dir.path(), None),
            Err(Error::Refused { .. })
        ));
    }
}
