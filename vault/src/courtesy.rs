//! What a job may take of a machine that belongs to the servers on it: bytes a second, threads, their priority.
//!
//! The threads are a job's own and end with it. A priority that was lowered cannot be raised again without privileges,
//! so a thread of the runtime's is never lowered; and because a new thread has the priority of the one that
//! starts it, a lowered thread polls nothing that might start one: it [asks](ask) the runtime.

use std::io;
use std::num::NonZeroUsize;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::pace::Pace;
use crate::{Error, Result};

/// How many steps below the agent's own priority a courteous thread runs. Where the disk's scheduler looks at
/// priorities, one that was not set follows from this: (nice + 20) / 5, so 6 of best effort's 0 to 7 instead of 4
/// (the kernel's `block/ioprio`). Not the idle class: PostgreSQL holds a backup open until its files were read.
const STEPS_BELOW: i32 = 10;

/// Reading and hashing leave enough for compression on the machines we measure; more do not help.
const MOST_WORKERS: usize = 8;

/// Of one job, or of several that share a [`Pace`]. The default takes what there is.
#[derive(Debug, Clone, Default)]
pub struct Courtesy {
    /// Reading files of a data directory.
    pub reading: Pace,
    /// Packs and leaf objects that are put: all but a few of a backup's bytes. Counted once for each store, and not again when a
    /// put is tried again. A manifest, which makes a backup visible, does not wait; nor does WAL, which never comes this way.
    pub upload: Pace,
    /// Threads that read, compress and seal. `None`: one for each core, and at most eight.
    pub workers: Option<NonZeroUsize>,
    /// Whether those threads run at a lower priority than the process.
    pub low_priority: bool,
}

impl Courtesy {
    #[must_use]
    pub fn workers(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let most = self.workers.map_or(MOST_WORKERS, usize::from);
        cores.min(MOST_WORKERS).min(most)
    }

    /// What a thread of a job does first. For good: only for threads that end with the job.
    pub fn begin_thread(&self) {
        // On Linux it is the thread's, whatever POSIX says (setpriority(2)).
        if self.low_priority
            && let Err(error) = rustix::process::nice(STEPS_BELOW)
        {
            tracing::warn!(%error, "a job's thread could not lower its priority");
        }
    }

    /// Runs work on a thread of its own. What comes back hears of the end; dropped, it does not end the work.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>> {
        let (ended, end) = oneshot::channel();
        let courtesy = self.clone();
        std::thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || {
                courtesy.begin_thread();
                // Nobody may wait for it any more.
                let _ = ended.send(work());
            })
            .map_err(|error| Error::io("a thread cannot be started", error))?;
        Ok(end)
    }
}

/// As `ps -L` and `top -H` show it.
pub const THREAD_NAME: &str = "holdfast-job";

/// Waits, on a job's own thread, for what the runtime's threads do.
pub(crate) fn ask<T: Send + 'static>(
    runtime: &Handle,
    stop: &CancellationToken,
    question: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let asked = AbortOnDropHandle::new(runtime.spawn(question));
    match runtime.block_on(stop.run_until_cancelled(asked)) {
        None => Err(Error::Stopped),
        Some(Ok(answer)) => answer,
        Some(Err(error)) => Err(Error::io(
            "a task ended unexpectedly",
            io::Error::other(error),
        )),
    }
}
