//! Where a site keeps what: one directory, and a second, short one for sockets.
//!
//! | path | what | who may read it |
//! |---|---|---|
//! | `site.json` | ids that never change | the owner |
//! | `roles.toml` | who may do what besides the administrator; written by the user | the owner |
//! | `limits.toml` | what backups may take of the machine; written by the user | the owner |
//! | `run.json`, `site.lock` | which process runs the site | the owner |
//! | `ca.pem` | the authority's certificate, for clients | everybody |
//! | `authority/`, `issuer/`, `keys/` | private keys | the owner |
//! | `bin/holdfast` | the executable, for PostgreSQL's `restore_command` | everybody |
//! | `metadata/` | the embedded metadata PostgreSQL | its service user |
//! | `nodes/{node}/` | an agent's state, data directories in it | agent; data: the service user |
//! | `vaults/{region}/{zone}/{n}/` | the stores | the owner |
//! | `log/` | what the site writes when nobody watches | the owner |
//!
//! The directories on the way are 0711: the service user passes through and cannot list them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Uid, geteuid};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The given directory, or the user's default. Absolute from here on: paths in it are written
    /// into configuration files.
    pub fn choose(given: Option<PathBuf>) -> Result<Self> {
        let path = match given {
            Some(path) => path,
            None if geteuid().is_root() => PathBuf::from("/var/lib/holdfast"),
            None => std::env::home_dir()
                .filter(|home| home.is_absolute())
                .context("HOME is not set: give --state-dir")?
                .join(".holdfast"),
        };
        let path = std::path::absolute(&path)
            .with_context(|| format!("{} cannot be made absolute", path.display()))?;
        // One site has one name, however its directory is spelled.
        let path = path.canonicalize().unwrap_or(path);
        ensure!(
            path.to_str()
                .is_some_and(|text| !text.chars().any(char::is_control)),
            "the state directory's path must be plain text"
        );
        ensure!(path.parent().is_some(), "the state directory must not be /");
        Ok(Self(path))
    }

    /// Makes the directory, or lets the service user pass through the one that is there. Its spelling may change: what did not exist could not be resolved before.
    pub fn create(&self) -> Result<Self> {
        passage(&self.0)?;
        let path = self
            .0
            .canonicalize()
            .context("the state directory cannot be resolved")?;
        let found = fs::metadata(&path)?;
        if geteuid().is_root() && Uid::from_raw(found.uid()).is_root() {
            // One that was there may be closed; data directories in it are another user's (DESIGN §6).
            let mode = found.permissions().mode() & 0o7777;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o011))
                .with_context(|| format!("{} cannot be opened to others", path.display()))?;
        }
        Ok(Self(path))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn site_file(&self) -> PathBuf {
        self.0.join("site.json")
    }

    /// The user's own, if there is one: who may do what besides the administrator.
    #[must_use]
    pub fn roles_file(&self) -> PathBuf {
        self.0.join("roles.toml")
    }

    /// The user's own, if there is one: what backups may take of the machine.
    #[must_use]
    pub fn limits_file(&self) -> PathBuf {
        self.0.join("limits.toml")
    }

    #[must_use]
    pub fn run_file(&self) -> PathBuf {
        self.0.join("run.json")
    }

    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.0.join("site.lock")
    }

    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    #[must_use]
    pub fn authority_dir(&self) -> PathBuf {
        self.0.join("authority")
    }

    #[must_use]
    pub fn issuer_dir(&self) -> PathBuf {
        self.0.join("issuer")
    }

    #[must_use]
    pub fn keys_dir(&self) -> PathBuf {
        self.0.join("keys")
    }

    #[must_use]
    pub fn executable(&self) -> PathBuf {
        self.0.join("bin/holdfast")
    }

    #[must_use]
    pub fn metadata_dir(&self) -> PathBuf {
        self.0.join("metadata")
    }

    #[must_use]
    pub fn metadata_data_dir(&self) -> PathBuf {
        self.metadata_dir().join("data")
    }

    #[must_use]
    pub fn nodes_dir(&self) -> PathBuf {
        self.0.join("nodes")
    }

    #[must_use]
    pub fn vaults_dir(&self) -> PathBuf {
        self.0.join("vaults")
    }

    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.0.join("log")
    }

    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.log_dir().join("site.log")
    }

    /// Everything that a site makes in its directory: what `destroy` removes, and nothing else.
    #[must_use]
    pub fn contents(&self) -> Vec<PathBuf> {
        vec![
            self.run_file(),
            self.nodes_dir(),
            self.metadata_dir(),
            self.vaults_dir(),
            self.authority_dir(),
            self.issuer_dir(),
            self.keys_dir(),
            self.0.join("bin"),
            self.ca_file(),
            self.log_dir(),
            self.site_file(),
            // Last: whoever finds the lock free may start a site.
            self.lock_file(),
        ]
    }

    /// For sockets: a path of theirs has at most 107 bytes (DESIGN §6). Named after the state
    /// directory, so that every command finds the same one.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        let digest = aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA256,
            self.0.as_os_str().as_encoded_bytes(),
        );
        let name: String = digest.as_ref()[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        // Not $XDG_RUNTIME_DIR: it goes when its user logs out, and the site stays.
        let base = if geteuid().is_root() { "/run" } else { "/tmp" };
        Path::new(base).join(format!("holdfast-{name}"))
    }

    /// Makes [`Self::run_dir`]. In a directory that everybody may write to, somebody else may have
    /// made it first; that one is not used.
    pub fn create_run_dir(&self) -> Result<PathBuf> {
        let dir = self.run_dir();
        match fs::DirBuilder::new().mode(0o711).create(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.with_context(|| format!("{} cannot be made", dir.display()))?,
        }
        let found = fs::symlink_metadata(&dir)?;
        if !found.is_dir() || Uid::from_raw(found.uid()) != geteuid() {
            bail!(
                "{} is not a directory of this user: remove it",
                dir.display()
            );
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        Ok(dir)
    }
}

/// A directory that others may pass through but not list.
pub fn passage(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .with_context(|| format!("{} cannot be made", path.display()))
}

/// A directory for its owner alone.
pub fn private_dir(path: &Path) -> Result<()> {
    holdfast_vault::store::create_private_dir(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("{} cannot be made", path.display()))
}

/// Replaces a file as a whole: a reader sees the old content or the new one.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        // The umask of whoever started us decides nothing.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(parent) => fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

/// Writes a value as JSON, for the owner alone.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    replace(path, &text, 0o600)
}

/// A value written by [`write_json`]; `None` when there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("{} cannot be read", path.display()))?,
    };
    let value =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_has_one_run_directory_however_it_is_spelled() {
        let dir = tempfile::tempdir().expect("a directory");
        let plain = StateDir::choose(Some(dir.path().to_path_buf())).expect("there");
        let odd = StateDir::choose(Some(
            dir.path()
                .join(".")
                .join("..")
                .join(dir.path().file_name().expect("it has a name")),
        ));
        assert_eq!(plain.run_dir(), odd.expect("there").run_dir());
    }

    #[test]
    fn sockets_fit_into_their_107_bytes() {
        let deep = PathBuf::from(format!("/{}", "very-long-name/".repeat(20)));
        let state = StateDir::choose(Some(deep)).expect("absolute");
        let socket = state
            .run_dir()
            .join("southcentralus/01234567-89ab-cdef-0123-456789abcdef/.s.PGSQL.65535");
        assert!(socket.as_os_str().len() <= 107, "{}", socket.display());
    }

    #[test]
    fn the_service_user_may_pass_through_a_directory_that_was_there() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("ours");
        let state = StateDir::choose(Some(dir.path().to_path_buf())).expect("there");
        state.create().expect("taken");
        let mode = fs::metadata(dir.path())
            .expect("there")
            .permissions()
            .mode()
            & 0o777;
        let expected = if geteuid().is_root() { 0o711 } else { 0o700 };
        assert_eq!(mode, expected, "passable, and never listable");
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("x.json");
        for value in [1, 2] {
            write_json(&file, &value).expect("written");
        }
        assert_eq!(read_json::<i32>(&file).expect("read"), Some(2));
        assert_eq!(
            fs::metadata(&file).expect("there").permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }
}
