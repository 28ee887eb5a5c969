//! Runs the duties: once, for tests that turn the crank, or for ever, one task each.
//!
//! Any number of schedulers may do this on one database. Which of them does what is settled row by
//! row in the control plane; none of them leads.

use std::time::Duration;

use futures::future::join_all;
use holdfast_control_plane::{self as control_plane, ControlPlane};
use tokio_util::sync::CancellationToken;

use crate::duty::Duty;
use crate::{advance, deadline, forget, rescue, retention, snapshot};

/// All duties, in the order in which one crank runs them: what ended is noticed before what follows
/// from it is started.
pub const DUTIES: [Duty; 6] = [
    rescue::DUTY,
    deadline::DUTY,
    advance::DUTY,
    snapshot::DUTY,
    retention::DUTY,
    forget::DUTY,
];

/// A duty that always finds more to do still lets the clock and the shutdown have a word.
const IN_A_ROW: usize = 100;
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Runs every duty once. How much they did together; 0: nothing is due.
///
/// # Errors
/// The first failure, after every duty had its turn.
pub async fn run_once(control_plane: &ControlPlane) -> control_plane::Result<usize> {
    let mut done = Ok(0);
    for duty in DUTIES {
        done = match (done, duty.perform(control_plane).await) {
            (Ok(before), Ok(count)) => Ok(before + count),
            (Ok(_), Err(error)) | (Err(error), _) => Err(error),
        };
    }
    done
}

/// Runs the duties until `shutdown`. A run that has begun is brought to its end.
pub async fn run(control_plane: ControlPlane, shutdown: CancellationToken) {
    let duties = join_all(DUTIES.map(|duty| keep_doing(duty, &control_plane, &shutdown)));
    tokio::join!(duties, follow_hints(&control_plane, &shutdown));
}

/// Hears what other processes accept. While it cannot, work starts at its interval instead.
async fn follow_hints(control_plane: &ControlPlane, shutdown: &CancellationToken) {
    let follow = async {
        loop {
            if let Err(error) = control_plane.hints().follow(control_plane.pool()).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "hints are not heard"
                );
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown.cancelled() => {}
    }
}

async fn keep_doing(duty: Duty, control_plane: &ControlPlane, shutdown: &CancellationToken) {
    while !shutdown.is_cancelled() {
        // Listened for before looking: what is accepted during the run makes the next one earlier.
        let mut wake = control_plane.hints().subscribe();
        for _ in 0..IN_A_ROW {
            let more = duty.perform(control_plane).await.is_ok_and(|done| done > 0);
            if !more || shutdown.is_cancelled() {
                break;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = wake.operations(duty.every), if duty.on_hint => {}
            () = tokio::time::sleep(duty.every), if !duty.on_hint => {}
        }
    }
}
