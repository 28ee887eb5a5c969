//! `holdfast down`: a clean stop. Servers make their last WAL durable, and what they were doing is
//! there again at the next `up`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_agent::postgres::occupancy;
use nix::sys::signal::Signal;

use crate::exit::Failure;
use crate::output::say;
use crate::run_record;
use crate::state_dir::StateDir;

/// Longer than the site's own limits for its parts together.
const WITHIN: Duration = Duration::from_secs(240);

pub async fn run(state: &StateDir) -> Result<()> {
    let kept = format!("Everything is kept in {}.", state.path().display());
    let stopped = stop(state).await?;
    let mut ended = 0;
    if state.lock_file().exists() {
        match run_record::lock(state).await? {
            Some(_lock) => ended = end_leftovers(state).await?,
            // By somebody who waited for this one to stop.
            None if stopped => {}
            None => bail!(Failure::Conflict("a site was started meanwhile".into())),
        }
    }
    say(match (stopped, ended) {
        (true, _) => format!("Stopped. {kept}"),
        (false, 0) => format!("No site runs in {}.", state.path().display()),
        (false, _) => {
            format!("The site had crashed and left PostgreSQL running; {ended} stopped. {kept}")
        }
    });
    Ok(())
}

/// A site that was killed leaves its postmasters running: ends them, and says how many there were. The
/// caller holds the site's lock.
pub async fn end_leftovers(state: &StateDir) -> Result<usize> {
    let mut data_dirs = data_dirs(state)?;
    data_dirs.push(state.metadata_data_dir());
    let mut ended = 0;
    for data_dir in data_dirs {
        ended += usize::from(!occupancy::holders(&data_dir).await?.is_empty());
        // Also when nobody is there: a pid file that a crash left goes.
        occupancy::evict(&data_dir).await?;
    }
    Ok(ended)
}

/// `nodes/{node}/servers/{incarnation}/data`, and those that were never finished.
pub(crate) fn data_dirs(state: &StateDir) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for node in entries(&state.nodes_dir())? {
        for server in entries(&node.join("servers"))? {
            found.push(server.join("data"));
        }
    }
    Ok(found)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect()
            })
            .with_context(|| format!("{} cannot be listed", dir.display())),
    }
}

/// Stops the site and waits until it has ended. Answers with whether it ran: one that was ending by itself,
/// or dying, did not.
pub async fn stop(state: &StateDir) -> Result<bool> {
    if !run_record::is_running(state)? {
        return Ok(false);
    }
    match run_record::running(state)? {
        Some(record) => record.signal(Signal::SIGTERM),
        // It has the lock and has not said yet who it is, or it is just ending.
        None if run_record::ended(state, Duration::from_secs(10)).await? => return Ok(false),
        None => match run_record::running(state)? {
            Some(record) => record.signal(Signal::SIGTERM),
            None => {
                return Err(Failure::Conflict(format!(
                    "a process holds {} and does not say who it is: end it",
                    state.lock_file().display()
                ))
                .into());
            }
        },
    }
    if run_record::ended(state, WITHIN).await? {
        return Ok(true);
    }
    Err(Failure::TooLong(format!(
        "the site did not stop within {} s; see {}",
        WITHIN.as_secs(),
        state.log_file().display()
    ))
    .into())
}
