//! Which process runs a site. Two facts are kept apart: *that* one runs is the lock that it holds for
//! as long as it lives (the kernel lets go of it when the process ends, however it ends), *which* one is
//! a file, believed only after `/proc` confirms it.

use std::fs::{File, TryLockError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::state_dir::{self, StateDir};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longer than anybody needs to look, shorter than a person notices.
const LOOKS_LAST: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    pub pid: i32,
    /// When the process started, in the kernel's ticks since boot: pids come around again.
    pub started_ticks: u64,
    pub url: String,
    pub phase: Phase,
}

/// How far the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Starting,
    /// Everything answers.
    Ready,
    Stopping,
}

/// Held by the process that runs the site.
#[derive(Debug)]
pub struct SiteLock(
    #[expect(dead_code, reason = "the lock lasts as long as the file is open")] File,
);

/// Takes the lock; `None` when another process has it. Commands that only look ([`is_running`]) have
/// it for an instant, too: a lock that is taken is asked for again for a moment.
pub async fn lock(state: &StateDir) -> Result<Option<SiteLock>> {
    let file = open(state)?;
    let deadline = Instant::now() + LOOKS_LAST;
    loop {
        if taken(file.try_lock(), state)? {
            return Ok(Some(SiteLock(file)));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether a process runs the site. Its own words are not needed for that.
pub fn is_running(state: &StateDir) -> Result<bool> {
    if !state.lock_file().exists() {
        return Ok(false);
    }
    // Shared: those who look do not see each other.
    Ok(!taken(open(state)?.try_lock_shared(), state)?)
}

fn open(state: &StateDir) -> Result<File> {
    let path = state.lock_file();
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("{} cannot be opened", path.display()))
}

fn taken(tried: Result<(), TryLockError>, state: &StateDir) -> Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{} cannot be locked", state.lock_file().display()))
        }
    }
}

/// The process that runs the site, as it described itself, if it is alive.
pub fn running(state: &StateDir) -> Result<Option<RunRecord>> {
    if !is_running(state)? {
        return Ok(None);
    }
    let record: Option<RunRecord> = state_dir::read_json(&state.run_file())?;
    Ok(record.filter(|record| record.is_alive()))
}

impl RunRecord {
    /// A record of this process.
    pub fn of_this_process(url: String, phase: Phase) -> Result<Self> {
        let pid = Pid::this().as_raw();
        let started_ticks = started_ticks(pid).context("/proc/self/stat cannot be read")?;
        Ok(Self {
            pid,
            started_ticks,
            url,
            phase,
        })
    }

    /// Whether the pid still belongs to the process that wrote this, and it is ours.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let is_holdfast = std::fs::read(format!("/proc/{}/cmdline", self.pid))
            .is_ok_and(|line| line.split(|&byte| byte == 0).any(|word| word == b"up"));
        is_holdfast && started_ticks(self.pid) == Some(self.started_ticks)
    }

    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may have ended since; whoever waits sees that.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Waits until no process runs the site. `false`: it still does.
pub async fn ended(state: &StateDir, within: Duration) -> Result<bool> {
    let deadline = Instant::now() + within;
    while is_running(state)? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(true)
}

/// Field 22 of `/proc/{pid}/stat`. The second one, the program's name, may contain anything.
fn started_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_site_runs_exactly_while_somebody_holds_its_lock() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::choose(Some(dir.path().to_path_buf())).expect("there");
        assert!(!is_running(&state).expect("asked"));
        let held = lock(&state).await.expect("opened").expect("free");
        assert!(is_running(&state).expect("asked"));
        assert!(lock(&state).await.expect("opened").is_none());
        drop(held);
        assert!(!is_running(&state).expect("asked"));
    }

    #[tokio::test]
    async fn somebody_who_only_looks_does_not_keep_a_site_from_starting() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::choose(Some(dir.path().to_path_buf())).expect("there");
        let looking = open(&state).expect("opened");
        assert!(taken(looking.try_lock_shared(), &state).expect("asked"));
        assert!(!is_running(&state).expect("two who look do not meet"));
        let (locked, ()) = tokio::join!(lock(&state), async {
            tokio::task::yield_now().await;
            drop(looking);
        });
        assert!(locked.expect("opened").is_some());
    }

    #[test]
    fn a_pid_that_came_around_again_is_not_believed() {
        let record = RunRecord::of_this_process(String::new(), Phase::Ready).expect("we live");
        assert_eq!(started_ticks(record.pid), Some(record.started_ticks));
        let other = RunRecord {
            started_ticks: record.started_ticks + 1,
            ..record
        };
        assert!(!other.is_alive());
    }
}
