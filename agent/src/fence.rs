//! When a lease must be taken for lost (RELIABILITY §3.3): 40 seconds without a successful renewal,
//! measured on `CLOCK_BOOTTIME` so that a suspended machine counts its sleep.
//!
//! The scheduler gives a lease away after 60 s. The difference is for a renewal whose answer was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::error::{Error, Result};

/// Without a renewal for this long, work stops by itself.
pub const STOP_AFTER: Duration = Duration::from_secs(40);

/// Time since the machine started, sleep included.
pub fn since_boot() -> Result<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .map_err(|errno| Error::system("read CLOCK_BOOTTIME")(errno.into()))
}

/// The last instant at which a lease was known to be ours. Cheap to clone and to ask.
#[derive(Debug, Clone)]
pub struct Fence {
    renewed_ms: Arc<AtomicU64>,
    stop_after: Duration,
}

/// Never runs out: work without a control plane.
const UNATTENDED: u64 = u64::MAX;

impl Fence {
    /// A lease renewed `at` (on [`since_boot`]). A lease shorter than the usual minute is given up
    /// at two thirds of its length.
    #[must_use]
    pub fn new(at: Duration, lease: Duration) -> Self {
        Self {
            renewed_ms: Arc::new(AtomicU64::new(millis(at))),
            stop_after: STOP_AFTER.min(lease * 2 / 3),
        }
    }

    #[must_use]
    pub fn unattended() -> Self {
        Self {
            renewed_ms: Arc::new(AtomicU64::new(UNATTENDED)),
            stop_after: STOP_AFTER,
        }
    }

    /// A renewal that was *sent* at this time succeeded.
    pub fn renewed(&self, at: Duration) {
        self.renewed_ms.fetch_max(millis(at), Ordering::AcqRel);
    }

    /// Whether the lease still stands at this time.
    #[must_use]
    pub fn stands_at(&self, at: Duration) -> bool {
        let renewed = self.renewed_ms.load(Ordering::Acquire);
        renewed == UNATTENDED || millis(at).saturating_sub(renewed) < millis(self.stop_after)
    }

    /// `Err(StaleLease)` once the lease must be taken for lost; also when the clock cannot be read.
    pub fn check(&self) -> Result<()> {
        if self.stands_at(since_boot()?) {
            Ok(())
        } else {
            Err(Error::StaleLease)
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_lease_is_given_up_forty_seconds_after_its_last_renewal() {
        let at = Duration::from_secs;
        let fence = Fence::new(at(100), MINUTE);
        assert!(fence.stands_at(at(139)));
        assert!(!fence.stands_at(at(140)));
        fence.renewed(at(130));
        assert!(fence.stands_at(at(169)));
        fence.renewed(at(110)); // an answer that comes late takes nothing back
        assert!(fence.stands_at(at(169)));
        assert!(!fence.stands_at(at(170)));
    }

    #[test]
    fn a_short_lease_is_given_up_earlier() {
        let fence = Fence::new(Duration::ZERO, Duration::from_secs(9));
        assert!(fence.stands_at(Duration::from_secs(5)));
        assert!(!fence.stands_at(Duration::from_secs(6)));
    }

    #[test]
    fn the_boot_clock_runs() {
        assert!(since_boot().expect("Linux has it") > Duration::ZERO);
    }
}
