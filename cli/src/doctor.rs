//! `holdfast doctor`: what `up` needs on a machine, each with the cure when it is missing.
//!
//! `up` asks the same questions before it starts anything and prints only what is wrong.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use holdfast_agent::config::first_closed_parent;
use holdfast_agent::postgres::installation::{self, Installation};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, Uid, User, access, geteuid};

use crate::exit::Failure;
use crate::output::say;
use crate::site::metadata::OLDEST_MAJOR;
use crate::site::service_users;
use crate::state_dir::StateDir;
use crate::{down, run_record};

/// A metadata store, a small server and its first backup.
const NEEDED_BYTES: u64 = 2 << 30;

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
    let mut findings = examine(state, listen).await?;
    findings.push(servers(state, &installation::discover(&[]).await)?);
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
    let found = installation::discover(&[]).await;
    let mut findings = vec![
        programs(state, &found),
        service_user()?,
        directory(state.path()),
        passage(state.path())?,
        executables(state.path()),
        sockets(state),
        disk(state),
    ];
    if run_record::is_running(state).unwrap_or(false) {
        findings.push(Finding::fine("port", "the site runs already"));
    } else {
        findings.push(port(listen));
    }
    Ok(findings)
}

fn programs(state: &StateDir, found: &BTreeMap<u16, Installation>) -> Finding {
    let what = "PostgreSQL server binaries";
    if found.is_empty() {
        return Finding::missing(
            what,
            "no major from 13 to 18 in /usr/lib/postgresql/*/bin or HOLDFAST_PG_BIN",
            "apt-get install postgresql, or set HOLDFAST_PG_BIN to a directory with postgres and initdb",
        );
    }
    // A metadata store is of the newest major that was there at the first start.
    let metadata = state.metadata_data_dir();
    if let Some(major) = major_of(&metadata).filter(|major| !found.contains_key(major)) {
        return gone(what, &metadata, major);
    }
    if major_of(&metadata).is_none() && found.keys().all(|major| *major < OLDEST_MAJOR) {
        return Finding::missing(
            what,
            format!("the metadata store needs PostgreSQL {OLDEST_MAJOR} or newer"),
            "apt-get install postgresql, or set HOLDFAST_PG_BIN to a newer one beside what is there",
        );
    }
    for one in found.values() {
        if let Some(closed) = first_closed_parent(&one.bin_dir, service_can_enter) {
            return Finding::missing(
                what,
                format!(
                    "the user that runs PostgreSQL cannot reach {}: {} is closed to it",
                    one.bin_dir.display(),
                    closed.display()
                ),
                format!(
                    "chmod o+x '{}', or have it elsewhere and set HOLDFAST_PG_BIN",
                    closed.display()
                ),
            );
        }
    }
    let list: Vec<String> = found
        .values()
        .map(|one| format!("{} in {}", one.minor, one.bin_dir.display()))
        .collect();
    Finding::fine(what, list.join(", "))
}

/// Whether every server's major is still there. One that is not keeps that server down and no other.
fn servers(state: &StateDir, found: &BTreeMap<u16, Installation>) -> Result<Finding> {
    let what = "PostgreSQL of each server";
    for data_dir in down::data_dirs(state)? {
        if let Some(major) = major_of(&data_dir).filter(|major| !found.contains_key(major)) {
            return Ok(gone(what, &data_dir, major));
        }
    }
    Ok(Finding::fine(what, "there"))
}

fn gone(what: &'static str, data_dir: &Path, major: u16) -> Finding {
    Finding::missing(
        what,
        format!(
            "{} needs PostgreSQL {major}, which is not here any more",
            data_dir.display()
        ),
        format!("apt-get install postgresql-{major}, or set HOLDFAST_PG_BIN to where it is"),
    )
}

/// The major of a cluster, where there is one.
fn major_of(data_dir: &Path) -> Option<u16> {
    let text = std::fs::read_to_string(data_dir.join("PG_VERSION")).ok()?;
    text.trim().parse().ok()
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

/// Whether the user that runs PostgreSQL may pass through a directory, by its mode bits. What does not
/// exist yet is made passable; before the first start there may be no such user yet, and it is anybody.
fn service_can_enter(dir: &Path) -> bool {
    if !geteuid().is_root() {
        return true;
    }
    let user = [service_users::SERVERS, service_users::METADATA]
        .into_iter()
        .find_map(|name| User::from_name(name).ok().flatten());
    std::fs::metadata(dir).map_or(true, |found| {
        let bit = match &user {
            Some(user) if found.uid() == user.uid.as_raw() => 0o100,
            Some(user) if found.gid() == user.gid.as_raw() => 0o010,
            _ => 0o001,
        };
        found.mode() & bit != 0
    })
}

/// The service user must be able to pass through every parent: its data directories lie below.
fn passage(path: &Path) -> Result<Finding> {
    let what = "the way to the state directory";
    if !geteuid().is_root() {
        return Ok(Finding::fine(what, "yours"));
    }
    // The directory itself is opened by `up` when it is ours.
    let ours = std::fs::metadata(path).is_ok_and(|found| Uid::from_raw(found.uid()) == geteuid());
    let can_enter = |dir: &Path| (dir == path && ours) || service_can_enter(dir);
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
    let parent = nearest(&dir);
    match access(&parent, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Finding::fine(what, format!("in {}", dir.display())),
        Err(_) => Finding::missing(
            what,
            format!("you may not write to {}", parent.display()),
            format!("give yourself the right to write to {}", parent.display()),
        ),
    }
}

fn disk(state: &StateDir) -> Finding {
    let what = "free disk";
    match statvfs(&nearest(state.path())) {
        Err(errno) => Finding::missing(what, errno.to_string(), "choose another with --state-dir"),
        Ok(fs) => {
            let free = fs.blocks_available().saturating_mul(fs.fragment_size());
            let found = format!("{:.1} GiB", free as f64 / f64::from(1 << 30));
            // A site that is there is started on a full disk, too: how else would anybody make room?
            match free >= NEEDED_BYTES || state.site_file().exists() {
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

    #[tokio::test]
    async fn a_major_that_is_gone_is_named_with_what_needs_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::choose(Some(dir.path().to_path_buf())).expect("absolute");
        let found = installation::discover(&[]).await;
        let server = state.nodes_dir().join("eastus2-1/servers/x/data");
        let metadata = state.metadata_data_dir();
        for data_dir in [&server, &metadata] {
            std::fs::create_dir_all(data_dir).expect("made");
            std::fs::write(data_dir.join("PG_VERSION"), "12\n").expect("written");
        }
        let findings = [
            (servers(&state, &found).expect("looked"), &server),
            (programs(&state, &found), &metadata),
        ];
        for (finding, data_dir) in findings {
            assert!(
                finding.found.starts_with(&data_dir.display().to_string()),
                "{finding:?}"
            );
            let cure = finding.cure.expect("it is missing");
            assert!(cure.contains("postgresql-12"), "{cure}");
        }
    }

    #[tokio::test]
    async fn a_metadata_store_is_not_begun_with_a_major_that_is_too_old_for_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::choose(Some(dir.path().to_path_buf())).expect("absolute");
        let found = installation::discover(&[]).await;
        let any = found.into_values().next().expect("a major");
        let old = BTreeMap::from([(14, Installation { major: 14, ..any })]);
        let finding = programs(&state, &old);
        assert!(finding.cure.is_some(), "{finding:?}");
        assert!(finding.found.contains("PostgreSQL 15"), "{finding:?}");
    }

    #[test]
    fn programs_that_the_service_user_cannot_reach_are_named() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).expect("ours");
        let state = StateDir::choose(Some(dir.path().join("s"))).expect("absolute");
        let installation = Installation {
            major: 15,
            minor: "15.1".to_owned(),
            bin_dir: dir.path().join("bin"),
        };
        let found = BTreeMap::from([(15, installation)]);
        let finding = programs(&state, &found);
        let cure = finding.cure.expect("something is wrong");
        assert!(cure.contains(&dir.path().display().to_string()), "{cure}");
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
