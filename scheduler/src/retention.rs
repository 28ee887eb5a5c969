//! Lets go of what no window, pin or tombstone needs any more, in two phases: first the catalogue, then,
//! after the grace, the bytes (DESIGN §3.9, §3.10). Also purges servers whose `restorable_until` has
//! passed, and tails of WAL that a complete segment replaced.

use std::time::Duration;

use crate::duty::Duty;

pub const DUTY: Duty = Duty {
    name: "retention",
    every: Duration::from_secs(60),
    on_hint: false,
    run: |control_plane| Box::pin(control_plane.sweep()),
};
