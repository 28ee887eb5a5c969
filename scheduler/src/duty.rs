//! What a duty is: when to call which use case of the control plane.
//!
//! A duty looks at the whole state, decides, writes and returns how much it did. It has no input and
//! keeps nothing between runs, so it may run at any moment, twice, half, or on two machines at once,
//! and needs no retry loop: it comes around again by itself.

use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_control_plane::{self as control_plane, ControlPlane};
use tracing::Instrument;

/// One duty. Each has a file of its own with its [`Duty`] in it.
#[derive(Clone, Copy)]
pub struct Duty {
    pub name: &'static str,
    /// The longest pause between two runs.
    pub every: Duration,
    /// Whether a hint that operations changed makes the next run earlier.
    pub on_hint: bool,
    pub run: fn(&ControlPlane) -> BoxFuture<'_, control_plane::Result<usize>>,
}

impl Duty {
    /// One run, logged with how long it took. How much it did.
    ///
    /// # Errors
    /// What the control plane says; the duty is due again all the same.
    pub async fn perform(&self, control_plane: &ControlPlane) -> control_plane::Result<usize> {
        let span = tracing::debug_span!("duty.run", duty.name = self.name);
        let started = tokio::time::Instant::now();
        let done = (self.run)(control_plane).instrument(span).await;
        let duration_ms = started.elapsed().as_secs_f64() * 1e3;
        match &done {
            Ok(0) => {}
            Ok(count) => tracing::info!(
                duty.name = self.name,
                duty.changes = count,
                duration_ms,
                "duty done"
            ),
            Err(error) => tracing::warn!(
                duty.name = self.name,
                duration_ms,
                error = error as &dyn std::error::Error,
                "duty failed; it comes around again"
            ),
        }
        done
    }
}
