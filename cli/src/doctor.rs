//! `holdfast doctor`: what `up` needs on a machine, each with the cure when it is missing.
//!
//! `up` asks the same questions before it starts anything and prints only what is wrong.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use holdfast_agent::config::first_closed_parent;
use holdfast_agent::postgres::installation;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, Uid, User, access, geteuid};

use crate::exit::Failure;
use crate::output::say;
use crate::run_record;
use crate::site::service_users;
use crate::state_dir::StateDir;

/// A metadata store, a small server and its first backup.
const NEEDED_BYTES: u64 = 2 << 30;
/// `/run/holdfast-1a2b3c4d/southcentralus/{a UUID}/.s.PGSQL.65535` without its beginning.
const SOCKET_TAIL_BYTES: usize = "/southcentralus/".len() + 36 + "/.s.PGSQL.65535".len();
const SOCKET_PATH_MAX: usize = 107;

/// One prerequisite, looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: &'static str,
    /// How it is here.
    pub found: String,
    /// What to do; `None` when nothing is missing.
    pub cure: Option<String>,
}

impl Finding {
    fn fine(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            found: found.into(),
            cure: None,
        }
    }

    fn missing(what: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            what,
            found: found.into(),
            cure: Some(cure.into()),
        }
    }
}

/// Prints everything and fails when something is missing.
pub async fn run(state: &StateDir, listen: SocketAddr) -> Result<()> {
    let findings = examine(state, listen).await?;
    for finding in &findings {
        match &finding.cure {
            None => say(format!("ok       {}: {}", finding.what, finding.found)),
            Some(cure) => say(format!(
                "MISSING  {}: {}\n         cure: {cure}",
                finding.what, finding.found
            )),
        }
    }
    if findings.iter().any(|finding| finding.cure.is_some()) {
        bail!(Failure::Said);
    }
    say("\nNothing is missing: `holdfast up` will start.");
    Ok(())
}

/// Fails with what is missing, before anything was changed.
pub async fn require(state: &StateDir, listen: SocketAddr) -> Result<()> {
    let findings = examine(state, listen).await?;
    let missing: Vec<String> = findings
        .into_iter()
        .filter_map(|finding| {
            Some(format!(
                "{}: {}\n  cure: {}",
                finding.what, finding.found, finding.cure?
            ))
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot run a site yet\n{}", missing.join("\n"))
}

async fn examine(state: &StateDir, listen: SocketAddr) -> Result<Vec<Finding>> {
    let mut findings = vec![
        programs().await,
        service_user()?,
        directory(state.path()),
        passage(state.path())?,
        executables(state.path()),
        sockets(state),
        disk(state.path()),
    ];
    if run_record::is_running(state).unwrap_or(false) {
        findings.push(Finding::fine("port", "the site runs already"));
    } else {
        findings.push(port(listen));
    }
    Ok(findings)
}

async fn programs() -> Finding {
    let what = "PostgreSQL server binaries";
    let found = installation::discover(&[]).await;
    if found.is_empty() {
        return Finding::missing(
            what,
            "no major from 13 to 18 in /usr/lib/postgresql/*/bin or HOLDFAST_PG_BIN",
            "apt-get install postgresql, or set HOLDFAST_PG_BIN to a directory with postgres and initdb",
        );
    }
    let list: Vec<String> = found
        .values()
        .map(|one| format!("{} in {}", one.minor, one.bin_dir.display()))
        .collect();
    Finding::fine(what, list.join(", "))
}

fn service_user() -> Result<Finding> {
    let what = "a user that runs PostgreSQL";
    if !geteuid().is_root() {
        return Ok(Finding::fine(
            what,
            "you: PostgreSQL runs as the user that runs the site",
        ));
    }
    if service_users::available()? {
        return Ok(Finding::fine(
            what,
            "an unprivileged one; PostgreSQL refuses to run as root",
        ));
    }
    Ok(Finding::missing(
        what,
        "PostgreSQL refuses to run as root, and there is no user for it",
        "useradd --system --user-group --no-create-home holdfast",
    ))
}

fn directory(path: &Path) -> Finding {
    let what = "the state directory";
    let existing = nearest(path);
    let shown = path.display().to_string();
    if !existing.is_dir() {
        return Finding::missing(
            what,
            format!("{} is not a directory", existing.display()),
            "choose another with --state-dir",
        );
    }
    let may_write = access(&existing, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    match may_write {
        true => Finding::fine(what, shown),
        false => Finding::missing(
            what,
            format!("{shown}: you may not write to {}", existing.display()),
            "choose another with --state-dir, or run as its owner",
        ),
    }
}

/// The service user must be able to pass through every parent: its data directories lie below.
fn passage(path: &Path) -> Result<Finding> {
    let what = "the way to the state directory";
    if !geteuid().is_root() {
        return Ok(Finding::fine(what, "yours"));
    }
    // Before the first start there may be no such user yet; then it is anybody.
    let user = [service_users::SERVERS, service_users::METADATA]
        .into_iter()
        .find_map(|name| User::from_name(name).ok().flatten());
    let can_enter = |dir: &Path| {
        // What does not exist yet is made passable, and the directory itself is when it is ours.
        std::fs::metadata(dir).map_or(true, |found| {
            if dir == path && Uid::from_raw(found.uid()) == geteuid() {
                return true;
            }
            let bit = match &user {
                Some(user) if found.uid() == user.uid.as_raw() => 0o100,
                Some(user) if found.gid() == user.gid.as_raw() => 0o010,
                _ => 0o001,
            };
            found.mode() & bit != 0
        })
    };
    Ok(match first_closed_parent(path, can_enter) {
        None => Finding::fine(what, "open to the service user"),
        Some(closed) => Finding::missing(
            what,
            format!(
                "the user that runs PostgreSQL cannot pass through {}",
                closed.display()
            ),
            format!(
                "chmod o+x '{}', or choose another with --state-dir",
                closed.display()
            ),
        ),
    })
}

/// `restore_command` is a program in the state directory.
fn executables(path: &Path) -> Finding {
    let what = "programs in the state directory";
    let no_exec = statvfs(&nearest(path)).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOEXEC));
    match no_exec {
        false => Finding::fine(what, "may be run"),
        true => Finding::missing(
            what,
            format!(
                "{} is mounted noexec, and a restore runs a program from there",
                path.display()
            ),
            "choose another with --state-dir",
        ),
    }
}

fn sockets(state: &StateDir) -> Finding {
    let what = "Unix sockets";
    let dir = state.run_dir();
    let longest = dir.as_os_str().len() + SOCKET_TAIL_BYTES;
    if longest > SOCKET_PATH_MAX {
        return Finding::missing(
            what,
            format!(
                "paths below {} reach {longest} of {SOCKET_PATH_MAX} bytes",
                dir.display()
            ),
            "unset XDG_RUNTIME_DIR, or point it to a shorter path",
        );
    }
    let parent = nearest(&dir);
    match access(&parent, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Finding::fine(what, format!("in {}", dir.display())),
        Err(_) => Finding::missing(
            what,
            format!("you may not write to {}", parent.display()),
            "set XDG_RUNTIME_DIR to a directory of yours",
        ),
    }
}

fn disk(path: &Path) -> Finding {
    let what = "free disk";
    match statvfs(&nearest(path)) {
        Err(errno) => Finding::missing(what, errno.to_string(), "choose another with --state-dir"),
        Ok(fs) => {
            let free = fs.blocks_available().saturating_mul(fs.fragment_size());
            let found = format!("{:.1} GiB", free as f64 / f64::from(1 << 30));
            match free >= NEEDED_BYTES {
                true => Finding::fine(what, found),
                false => Finding::missing(
                    what,
                    found,
                    "free 2 GiB, or choose another disk with --state-dir",
                ),
            }
        }
    }
}

fn port(listen: SocketAddr) -> Finding {
    let what = "port";
    match TcpListener::bind(listen) {
        Ok(_) => Finding::fine(what, format!("{listen} is free")),
        Err(error) => Finding::missing(
            what,
            format!("{listen}: {error}"),
            "choose another with --listen 127.0.0.1:PORT (0 takes a free one)",
        ),
    }
}

/// The path itself, or the nearest parent that exists.
fn nearest(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"))
        .to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_fresh_directory_on_this_machine_lacks_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        // As `mktemp -d` makes it.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).expect("ours");
        let state = StateDir::choose(Some(dir.path().to_path_buf())).expect("absolute");
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let findings = examine(&state, listen).await.expect("looked at");
        let missing: Vec<_> = findings
            .iter()
            .filter(|finding| finding.cure.is_some())
            .collect();
        assert!(missing.is_empty(), "{missing:#?}");
        let mode = std::fs::metadata(dir.path()).expect("there").mode() & 0o777;
        assert_eq!(mode, 0o700, "looking changes nothing");
    }

    #[test]
    fn the_first_parent_that_is_closed_to_the_service_user_is_named() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).expect("ours");
        let finding = passage(&dir.path().join("a/b")).expect("looked at");
        let cure = finding.cure.expect("something is wrong");
        assert!(
            cure.contains(&format!("chmod o+x '{}'", dir.path().display())),
            "{cure}"
        );
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let finding = port(taken.local_addr().expect("bound"));
        assert!(finding.cure.is_some_and(|cure| cure.contains("--listen")));
    }
}
