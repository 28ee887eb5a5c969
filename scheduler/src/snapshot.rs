//! Takes the automatic backups: the first at once (FLX-013), one a day in each server's own slot
//! (FLX-014), none while nothing was modified (FLX-015), and at once when something is after a missed
//! slot (FLX-016). On-demand backups of one server run one after the other. Two schedulers in one tick
//! are harmless: each looks at the facts again with the server's row held, and a life has one open
//! automatic backup at most.

use std::time::Duration;

use crate::duty::Duty;

pub const DUTY: Duty = Duty {
    name: "snapshot",
    every: Duration::from_secs(10),
    on_hint: true,
    run: |control_plane| Box::pin(control_plane.schedule_snapshots()),
};
