//! Who has a data directory open, and how it is ended.
//!
//! Two postmasters on one directory destroy it, and PostgreSQL's own guard is a pid file that a crash
//! leaves behind and that names a pid somebody else may have by now. So the truth is asked from the
//! kernel: every PostgreSQL process has its data directory as working directory. A pid file is removed
//! only when no live process has, trying for 30 s (DESIGN §3.7, §6).

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::error::{Error, Result};

/// How long a live postmaster gets for a fast shutdown, then for an immediate one.
const FAST: Duration = Duration::from_secs(12);
const IMMEDIATE: Duration = Duration::from_secs(22);
const GIVE_UP: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Ends whatever has the directory open – a postmaster of an earlier agent, or the children that a
/// killed one left – and removes a pid file that nobody stands behind. A directory that does not exist
/// is free.
pub async fn evict(data_dir: &Path) -> Result<()> {
    let Ok(directory) = data_dir.canonicalize() else {
        return Ok(());
    };
    let started = Instant::now();
    let mut last_signal = None;
    loop {
        let holders = look(&directory).await?;
        if holders.is_empty() {
            return remove_pid_file(&directory);
        }
        let waited = started.elapsed();
        if waited >= GIVE_UP {
            return Err(Error::Occupied {
                path: directory,
                pid: holders[0].as_raw(),
            });
        }
        let signal = match waited {
            _ if waited < FAST => Signal::SIGINT,
            _ if waited < IMMEDIATE => Signal::SIGQUIT,
            _ => Signal::SIGKILL,
        };
        if last_signal != Some(signal) {
            last_signal = Some(signal);
            // The postmaster passes a shutdown on to its children; without one they are told directly.
            let postmaster = pid_in_file(&directory).filter(|pid| holders.contains(pid));
            let told = match (postmaster, signal) {
                (Some(pid), Signal::SIGINT | Signal::SIGQUIT) => vec![pid],
                _ => holders,
            };
            tracing::info!(path = %directory.display(), ?told, %signal, "ending an earlier postmaster");
            for pid in told {
                if holds(pid, &directory) {
                    // It may be gone since; the next look shows.
                    let _ = kill(pid, signal);
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Every live process whose working directory is this one, in no order.
pub async fn holders(data_dir: &Path) -> Result<Vec<i32>> {
    let Ok(directory) = data_dir.canonicalize() else {
        return Ok(Vec::new());
    };
    Ok(look(&directory)
        .await?
        .into_iter()
        .map(Pid::as_raw)
        .collect())
}

async fn look(directory: &Path) -> Result<Vec<Pid>> {
    let directory = directory.to_path_buf();
    tokio::task::spawn_blocking(move || scan(&directory)).await?
}

fn scan(directory: &Path) -> Result<Vec<Pid>> {
    let own = Pid::this();
    let processes = std::fs::read_dir("/proc").map_err(Error::file("list", "/proc"))?;
    Ok(processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .map(Pid::from_raw)
        .filter(|&pid| pid != own && holds(pid, directory))
        .collect())
}

/// A zombie has no working directory any more and holds nothing.
fn holds(pid: Pid, directory: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd: PathBuf| cwd == directory)
}

fn pid_in_file(directory: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    (pid > 0).then(|| Pid::from_raw(pid))
}

fn remove_pid_file(directory: &Path) -> Result<()> {
    let path = directory.join("postmaster.pid");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("remove the stale", path)(error))
        }
        Ok(()) => {
            tracing::info!(path = %path.display(), "removed a stale pid file");
            Ok(())
        }
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_pid_file_goes_even_when_its_pid_lives_elsewhere() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("postmaster.pid");
        // Our own pid: alive, but not in that directory.
        std::fs::write(&file, format!("{}\n/x\n", std::process::id())).expect("written");
        evict(dir.path()).await.expect("nobody is there");
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn a_directory_that_does_not_exist_is_free() {
        evict(Path::new("/nonexistent/data")).await.expect("free");
    }

    #[tokio::test]
    async fn whatever_has_the_directory_open_is_ended_first() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut child = tokio::process::Command::new("/bin/sleep")
            .arg("600")
            .current_dir(dir.path())
            .spawn()
            .expect("sleep exists");
        assert_eq!(
            holders(dir.path()).await.expect("listed"),
            [child.id().expect("alive").cast_signed()]
        );
        // Reaped at the same time, as a postmaster's parent does.
        let (evicted, status) = tokio::join!(evict(dir.path()), child.wait());
        evicted.expect("it ended");
        assert!(!status.expect("reaped").success());
    }
}
