//! Takes back the jobs of agents that went silent: their lease is over by the database's clock, so
//! nothing they still say about it counts (RELIABILITY §3.3). Queued again with back-off, or failed
//! for good.

use std::time::Duration;

use crate::duty::Duty;

pub const DUTY: Duty = Duty {
    name: "rescue",
    every: Duration::from_secs(5),
    on_hint: false,
    run: |control_plane| Box::pin(control_plane.rescue_leases()),
};
