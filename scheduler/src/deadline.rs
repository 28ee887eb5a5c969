//! Ends what takes too long. Every operation reaches a terminal state by its deadline, whatever its
//! agent does (RELIABILITY §0.9).

use std::time::Duration;

use crate::duty::Duty;

pub const DUTY: Duty = Duty {
    name: "deadline",
    every: Duration::from_secs(15),
    on_hint: false,
    run: |control_plane| Box::pin(control_plane.enforce_deadlines()),
};
