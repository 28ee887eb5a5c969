//! What a running restore tells (FLX-003, FLX-054): phases in their order, bytes, the instant up to
//! which it has recovered, and one number for the whole that never falls.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use holdfast_domain::job::Progress;

use crate::job::JobContext;

/// Copying and replaying share this part by their bytes; what is before and after is short.
const PREPARED_PERCENT: f64 = 2.0;
const REPLAYED_PERCENT: f64 = 95.0;

pub struct RestoreProgress<'a> {
    ctx: &'a JobContext,
    state: Mutex<Progress>,
}

impl<'a> RestoreProgress<'a> {
    #[must_use]
    pub fn new(ctx: &'a JobContext) -> Self {
        let state = Progress {
            phase: "Preparing".into(),
            ..Progress::default()
        };
        ctx.progress(state.clone());
        Self {
            ctx,
            state: Mutex::new(state),
        }
    }

    /// How much there is to do, once that is known.
    pub fn planned(&self, data_bytes: u64, wal_bytes: u64) {
        self.change(|state| {
            state.bytes_total = Some(data_bytes);
            state.wal_bytes_total = Some(wal_bytes);
            state.percent = PREPARED_PERCENT;
        });
    }

    pub fn copied(&self, bytes: u64) {
        self.change(|state| {
            state.phase = "CopyingData".into();
            state.bytes_done = bytes.min(state.bytes_total.unwrap_or(bytes));
            state.percent = shared_percent(state);
        });
    }

    pub fn replayed(&self, wal_bytes: u64, recovered_up_to: Option<DateTime<Utc>>) {
        self.change(|state| {
            state.phase = "ReplayingWal".into();
            state.bytes_done = state.bytes_total.unwrap_or(state.bytes_done);
            let bytes = wal_bytes.min(state.wal_bytes_total.unwrap_or(wal_bytes));
            state.wal_bytes_done = state.wal_bytes_done.max(bytes);
            state.recovered_up_to = state.recovered_up_to.max(recovered_up_to);
            state.percent = shared_percent(state);
        });
    }

    pub fn finishing(&self, recovered_up_to: DateTime<Utc>) {
        self.change(|state| {
            state.phase = "Finishing".into();
            state.wal_bytes_done = state.wal_bytes_total.unwrap_or(state.wal_bytes_done);
            state.recovered_up_to = Some(recovered_up_to);
            state.percent = REPLAYED_PERCENT;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        self.ctx.progress(state.clone());
    }
}

fn shared_percent(state: &Progress) -> f64 {
    let total = state.bytes_total.unwrap_or(0) + state.wal_bytes_total.unwrap_or(0);
    let done = state.bytes_done + state.wal_bytes_done;
    let share = done as f64 / total.max(1) as f64;
    PREPARED_PERCENT + share.min(1.0) * (REPLAYED_PERCENT - PREPARED_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_and_replaying_share_the_way_by_their_bytes() {
        let mut state = Progress {
            bytes_total: Some(300),
            wal_bytes_total: Some(100),
            ..Progress::default()
        };
        assert!((shared_percent(&state) - 2.0).abs() < 1e-9);
        state.bytes_done = 300;
        assert!((shared_percent(&state) - (2.0 + 93.0 * 0.75)).abs() < 1e-9);
        state.wal_bytes_done = 100;
        assert!((shared_percent(&state) - 95.0).abs() < 1e-9);
    }
}
