//! Who runs PostgreSQL. Started as root, the agent gives every postmaster to an unprivileged user, so
//! that a tenant who escapes from SQL meets neither the vault's keys nor the agent's certificate
//! (DESIGN §3.18, RELIABILITY §4.3). Started by anybody else, it runs PostgreSQL as itself.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{Gid, Uid, User, fchownat, geteuid};
use tokio::process::Command;

use crate::error::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUser {
    name: String,
    /// `None`: the agent's own user; nothing is to be changed or given away.
    ids: Option<(Uid, Gid)>,
    agent_name: String,
}

impl ServiceUser {
    /// `name` counts only when the agent is root, and must not be root itself: PostgreSQL refuses it.
    pub fn resolve(name: &str) -> Result<Self> {
        let look_up = |found: nix::Result<Option<User>>, who: &str| {
            found
                .map_err(|errno| Error::system("look up the service user")(errno.into()))?
                .ok_or_else(|| Error::Configuration(format!("there is no user {who} on this node")))
        };
        let own_id = geteuid();
        let own = look_up(User::from_uid(own_id), &own_id.to_string())?;
        if !own_id.is_root() {
            return Ok(Self {
                name: own.name.clone(),
                ids: None,
                agent_name: own.name,
            });
        }
        let user = look_up(User::from_name(name), name)?;
        if user.uid.is_root() {
            return Err(Error::Configuration(
                "service_user must not be root: PostgreSQL refuses to run as root".into(),
            ));
        }
        Ok(Self {
            name: user.name,
            ids: Some((user.uid, user.gid)),
            agent_name: own.name,
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user whose connections are the agent's: what `pg_ident.conf` maps to its role.
    #[must_use]
    pub fn agent_name(&self) -> &str {
        &self.agent_name
    }

    #[must_use]
    pub fn ids(&self) -> Option<(u32, u32)> {
        self.ids.map(|(uid, gid)| (uid.as_raw(), gid.as_raw()))
    }

    /// Makes a program run as this user, without supplementary groups and with an environment that
    /// holds nothing of the agent's.
    pub fn apply(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C");
        // Relocated installations (wheels, tarballs) sometimes find their libraries only by this.
        if let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        if let Some((uid, gid)) = self.ids {
            command.gid(gid.as_raw()).uid(uid.as_raw());
        }
    }

    /// Gives one file or directory (never what a link points to) to this user.
    pub fn chown(&self, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.ids else {
            return Ok(());
        };
        fchownat(
            AT_FDCWD,
            path,
            Some(uid),
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .map_err(|errno| Error::file("give away", path)(errno.into()))
    }

    /// Gives a whole tree to this user. Blocking.
    pub fn chown_tree(&self, path: &Path) -> Result<()> {
        if self.ids.is_none() {
            return Ok(());
        }
        self.chown(path)?;
        let metadata = std::fs::symlink_metadata(path).map_err(Error::file("look at", path))?;
        if metadata.is_dir() {
            for entry in std::fs::read_dir(path).map_err(Error::file("list", path))? {
                self.chown_tree(&entry.map_err(Error::file("list", path))?.path())?;
            }
        }
        Ok(())
    }

    /// A directory of this user's, mode 0700, made with its parents (which stay the agent's, mode 0711)
    /// unless it exists.
    pub fn create_dir(&self, path: &Path) -> Result<()> {
        self.create_dir_with(path, 0o700)
    }

    pub fn create_dir_with(&self, path: &Path, mode: u32) -> Result<()> {
        if let Some(parent) = path.parent() {
            create_passage(parent)?;
        }
        match DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made.map_err(Error::file("create the directory", path))?,
        }
        // The process's umask must not decide who reaches a socket.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .map_err(Error::file("set the mode of", path))?;
        self.chown(path)
    }

    /// Whether this user may pass through a directory, by its mode bits (access lists aside).
    #[must_use]
    pub fn can_enter(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Ok(metadata) = std::fs::metadata(path) else {
            return false;
        };
        match self.ids {
            None => true,
            Some((uid, _)) if metadata.uid() == uid.as_raw() => metadata.mode() & 0o100 != 0,
            Some((_, gid)) if metadata.gid() == gid.as_raw() => metadata.mode() & 0o010 != 0,
            Some(_) => metadata.mode() & 0o001 != 0,
        }
    }
}

/// A directory of the agent's that others may pass through but not list.
pub fn create_passage(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(Error::file("create the directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_private_whatever_the_umask() {
        let user = ServiceUser::resolve("postgres").expect("this machine has the user");
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("a/b");
        user.create_dir(&path).expect("made");
        user.create_dir(&path).expect("twice is fine");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(user.can_enter(&path));
    }

    #[test]
    fn root_never_runs_postgres() {
        if geteuid().is_root() {
            assert!(ServiceUser::resolve("root").is_err());
        }
    }
}
