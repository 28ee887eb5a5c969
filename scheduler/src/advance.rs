//! Asks the domain's plan about every open operation and does what it says: queues the next job, or ends
//! the operation together with its resource and its event (DESIGN §2). A new operation, a reported job
//! and a queued cancel each make a hint, so a user waits for the work and not for the interval.

use std::time::Duration;

use crate::duty::Duty;

pub const DUTY: Duty = Duty {
    name: "advance",
    every: Duration::from_secs(1),
    on_hint: true,
    run: |control_plane| Box::pin(control_plane.advance_operations()),
};
