//! Which servers a job is changing, and since when none is: the order between a job's end and what the
//! control plane said should be running.
//!
//! A hello that was asked before a job's end was reported may answer with the state before the job. Acting
//! on it would start a server that a user just stopped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_domain::IncarnationId;

/// Moments count up with every question; they order events of this process and mean nothing else.
#[derive(Debug, Default)]
pub struct BusyServers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    now: u64,
    servers: HashMap<IncarnationId, Busy>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Busy {
    jobs: u32,
    /// When the last of them ended.
    until: u64,
}

impl BusyServers {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new moment. Take one before asking what should be running.
    pub fn moment(&self) -> u64 {
        self.with(|state| {
            state.now += 1;
            state.now
        })
    }

    /// Until the guard goes, a job is changing this server.
    #[must_use]
    pub fn begin(self: &Arc<Self>, incarnation: IncarnationId) -> BusyGuard {
        self.with(|state| state.servers.entry(incarnation).or_default().jobs += 1);
        BusyGuard {
            servers: Arc::clone(self),
            incarnation,
        }
    }

    /// Whether a job changed the server after this moment, or still does.
    pub fn changed_since(&self, incarnation: IncarnationId, moment: u64) -> bool {
        self.with(|state| {
            state
                .servers
                .get(&incarnation)
                .is_some_and(|busy| busy.jobs > 0 || busy.until > moment)
        })
    }
}

/// See [`BusyServers::begin`].
#[derive(Debug)]
pub struct BusyGuard {
    servers: Arc<BusyServers>,
    incarnation: IncarnationId,
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.servers.with(|state| {
            state.now += 1;
            let now = state.now;
            if let Some(busy) = state.servers.get_mut(&self.incarnation) {
                busy.jobs = busy.jobs.saturating_sub(1);
                busy.until = now;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_when_it_was_asked_for_after_the_job() {
        let busy = Arc::new(BusyServers::default());
        let (server, other) = (IncarnationId::new(), IncarnationId::new());
        let before = busy.moment();
        let job = busy.begin(server);
        assert!(busy.changed_since(server, busy.moment()));
        drop(job);
        assert!(busy.changed_since(server, before));
        assert!(!busy.changed_since(server, busy.moment()));
        assert!(!busy.changed_since(other, before));
    }
}
