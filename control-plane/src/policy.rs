//! The installation's own durations and limits. The product's are in the domain.

use chrono::TimeDelta;

#[derive(Debug, Clone)]
pub struct Policy {
    /// How long a dropped server's backups are kept (DESIGN §3.15).
    pub dropped_kept_for: TimeDelta,
    /// Between unlinking something from the catalogue and deleting its bytes (DESIGN §3.9).
    pub prune_grace: TimeDelta,
    /// How long a lease lasts without renewal (RELIABILITY §3.3).
    pub lease: TimeDelta,
    /// A repeated request gets the first answer again for this long (contract, fact 9).
    pub idempotency: TimeDelta,
    /// How long activity events can be read.
    pub activity_kept: TimeDelta,
    /// How long a restore of the latest state waits for its source to flush.
    pub flush: TimeDelta,
    /// How long a node may take to remove what a failed create left there.
    pub clear_away: TimeDelta,
    pub max_attempts: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            dropped_kept_for: TimeDelta::days(5),
            prune_grace: TimeDelta::hours(24),
            lease: TimeDelta::seconds(60),
            idempotency: TimeDelta::minutes(10),
            activity_kept: TimeDelta::days(90),
            flush: TimeDelta::minutes(10),
            clear_away: TimeDelta::days(30),
            max_attempts: 10,
        }
    }
}
