//! Drops what nobody may ask for any more: operations 30 days after they ended, idempotency records
//! after 10 minutes, the activity log after 90 days.

use std::time::Duration;

use crate::duty::Duty;

pub const DUTY: Duty = Duty {
    name: "forget",
    every: Duration::from_secs(600),
    on_hint: false,
    run: |control_plane| Box::pin(control_plane.forget()),
};
