//! Duty: forgets what nobody may ask about any more.

use chrono::TimeDelta;
use holdfast_domain::operation::KEPT_FOR;

use crate::{ControlPlane, Result, store};

/// Backups that are gone or were never made stay as tombstones this long (RELIABILITY §5.6).
const TOMBSTONES_KEPT_FOR: TimeDelta = TimeDelta::days(90);

impl ControlPlane {
    /// Answers how many rows went. Each statement stands for itself: half of it is fine.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn forget(&self) -> Result<usize> {
        let now = self.clock().now();
        let mut conn = self.pool().acquire().await?;
        let rows = store::operation::forget(&mut conn, now - KEPT_FOR).await?
            + store::idempotency::forget(&mut conn, now - self.policy().idempotency).await?
            + store::activity::forget(&mut conn, now - self.policy().activity_kept).await?
            + store::backup::forget(&mut conn, now - TOMBSTONES_KEPT_FOR).await?
            + store::node::forget_tokens(&mut conn, now).await?;
        Ok(usize::try_from(rows).unwrap_or(usize::MAX))
    }
}
