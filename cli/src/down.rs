//! `holdfast down`: a clean stop. Servers make their last WAL durable, and what they were doing is
//! there again at the next `up`.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::exit::Failure;
use crate::output::say;
use crate::run_record;
use crate::state_dir::StateDir;

/// Longer than the site's own limits for its parts together.
const WITHIN: Duration = Duration::from_secs(240);

pub async fn run(state: &StateDir) -> Result<()> {
    if stop(state).await? {
        say(format!(
            "Stopped. Everything is kept in {}.",
            state.path().display()
        ));
    } else {
        say(format!("No site runs in {}.", state.path().display()));
    }
    Ok(())
}

/// Stops the site and waits until it has ended. Answers with whether it ran.
pub async fn stop(state: &StateDir) -> Result<bool> {
    if !run_record::is_running(state)? {
        return Ok(false);
    }
    match run_record::running(state)? {
        Some(record) => record.signal(Signal::SIGTERM),
        // It has the lock and has not said yet who it is, or it is just ending.
        None if run_record::ended(state, Duration::from_secs(10)).await? => return Ok(true),
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
