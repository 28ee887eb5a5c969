//! Where a restore happens: a new directory of its own for every attempt (RELIABILITY §5.4.2).
//!
//! The name carries incarnation, job and epoch, so that no two attempts ever meet in one place. It
//! is renamed to the server's own name last. What an earlier attempt left is ended and removed first;
//! a recovery that failed is kept aside for diagnosis – the newest one of a server, the newest few of a
//! node, and none while its disk is nearly full – and is never started again.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use holdfast_domain::{IncarnationId, JobId};

use crate::error::{Error, Result};
use crate::node::Node;
use crate::postgres::occupancy;
use crate::postgres::service_user::create_passage;

const FAILED: &str = ".failed";

/// The directory of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Building {
    root: PathBuf,
}

impl Building {
    /// Makes it. Whatever has that name already – a directory, a file, a link – is an error.
    pub fn create(node: &Node, incarnation: IncarnationId, job: JobId, epoch: i64) -> Result<Self> {
        let root = node.building_dir(incarnation, job, epoch);
        create_passage(&node.servers_dir())?;
        // Others may pass through to the data directory, which is the service user's alone.
        std::fs::DirBuilder::new()
            .mode(0o711)
            .create(&root)
            .map_err(Error::file("create the directory", &root))?;
        let building = Self { root };
        node.service_user().create_dir(&building.data())?;
        node.service_user().create_dir(&building.tablespaces())?;
        // Plain WAL passes through here: for nobody but the agent.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(building.spool())
            .map_err(Error::file("create the directory", building.spool()))?;
        Ok(building)
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Beside the data directory; the links in `pg_tblspc` are relative, so that they survive the
    /// last rename.
    #[must_use]
    pub fn tablespaces(&self) -> PathBuf {
        self.root.join("tablespaces")
    }

    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("server.log")
    }

    /// See [`require_space`].
    pub fn require_space(&self, bytes: u64) -> Result<()> {
        require_space(&self.root, bytes)
    }

    /// Begins anew with the server's own directories. Blocks.
    pub fn empty(&self, node: &Node) -> Result<()> {
        for directory in [self.data(), self.tablespaces()] {
            std::fs::remove_dir_all(&directory).map_err(Error::file("remove", &directory))?;
            node.service_user().create_dir(&directory)?;
        }
        Ok(())
    }

    /// Removes the attempt and everything in it.
    pub async fn remove(self, node: &Node) -> Result<()> {
        node.remove_dir(&self.root).await
    }

    /// Puts the attempt aside for diagnosis, without the WAL that it had spooled.
    pub async fn keep_failed(self) -> Result<()> {
        occupancy::evict(&self.data()).await?;
        match tokio::fs::remove_dir_all(self.spool()).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("remove", self.spool())(error));
            }
            _ => {}
        }
        let kept = self.root.with_extension(&FAILED[1..]);
        tokio::fs::rename(&self.root, &kept)
            .await
            .map_err(Error::file("put aside", &self.root))
    }
}

/// Refuses before anything is written when the volume cannot take `bytes` and a tenth more.
pub fn require_space(directory: &Path, bytes: u64) -> Result<()> {
    let needed = bytes.saturating_add(bytes / 10);
    let volume = nix::sys::statvfs::statvfs(directory)
        .map_err(|errno| Error::file("measure the free space of", directory)(errno.into()))?;
    let free = volume
        .blocks_available()
        .saturating_mul(volume.fragment_size());
    if free >= needed {
        return Ok(());
    }
    Err(Error::Failed {
        code: "InsufficientStorage",
        message: format!(
            "the restore needs {needed} bytes on the node and {free} are free; \
             free some space or restore on another node"
        ),
        retryable: true,
    })
}

/// The sockets of one attempt: nobody but the postmaster's user and root can enter. Gone with it.
pub struct PrivateDir(PathBuf);

impl PrivateDir {
    pub fn create(node: &Node, job: JobId, epoch: i64) -> Result<Self> {
        // Short: a socket's path has at most 107 bytes. The end of a time-ordered id is its random part.
        let job = job.0.simple().to_string();
        node.private_dir(&format!("r{}-{epoch}", &job[20..]))
            .map(Self)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ends and removes what earlier attempts of this server left. Of failed ones the newest may stay.
pub async fn clear_earlier(
    node: &Node,
    incarnation: IncarnationId,
    keep_failed: bool,
) -> Result<()> {
    let mut failed = failed(&node.servers_dir(), &format!("{incarnation}."))?;
    failed.sort_by_key(|path| epoch_in(path));
    if keep_failed {
        failed.pop();
    }
    for path in node.unfinished(incarnation)?.iter().chain(&failed) {
        tracing::info!(path = %path.display(), "removing what an earlier attempt left");
        node.remove_dir(path).await?;
    }
    Ok(())
}

/// Of all restores of this node that failed, the newest stay; none when `most` is zero.
pub async fn keep_newest_failed(node: &Node, most: usize) -> Result<()> {
    if !node.servers_dir().exists() {
        return Ok(());
    }
    let mut kept = failed(&node.servers_dir(), "")?;
    kept.sort_by_key(|path| {
        std::fs::metadata(path)
            .and_then(|found| found.modified())
            .ok()
    });
    kept.truncate(kept.len().saturating_sub(most));
    for path in kept {
        tracing::info!(path = %path.display(), "removing what a failed restore left");
        node.remove_dir(&path).await?;
    }
    Ok(())
}

fn failed(servers: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(servers).map_err(Error::file("list", servers))? {
        let name = entry.map_err(Error::file("list", servers))?.file_name();
        if name
            .to_str()
            .is_some_and(|name| name.starts_with(prefix) && name.ends_with(FAILED))
        {
            found.push(servers.join(name));
        }
    }
    Ok(found)
}

/// The epoch in `{incarnation}.{job}.{epoch}.failed`.
fn epoch_in(path: &Path) -> i64 {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.rsplit('.')
        .nth(1)
        .and_then(|epoch| epoch.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_ordered_by_their_epoch() {
        assert_eq!(epoch_in(Path::new("/s/a.b.12.failed")), 12);
        assert_eq!(epoch_in(Path::new("/s/a.b.9.building")), 9);
        assert_eq!(epoch_in(Path::new("/s/nonsense")), 0);
    }
}
