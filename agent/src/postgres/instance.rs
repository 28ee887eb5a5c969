//! A postmaster that is kept running: started, watched, started again with growing pauses when it
//! dies, and stopped on request (issue 2 §4, fault "kill -9 of a postmaster").

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Postmaster, PostmasterSpec, StopMode, server_log};
use crate::error::{Error, Result, chain};

/// Crash recovery reads WAL since the last checkpoint; this is far beyond what `max_wal_size` allows.
const READY_WITHIN: Duration = Duration::from_secs(15 * 60);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A server that ran this long starts with the shortest pause again.
const SETTLED_AFTER: Duration = Duration::from_secs(60);
/// A server that failed so often in a row is not coming up by itself.
pub const FAILING_AFTER: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceState {
    Starting,
    Running {
        pid: u32,
    },
    /// It died or would not start; another attempt follows after a pause.
    Failing {
        reason: String,
        attempts: u32,
    },
    Stopped,
}

impl InstanceState {
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }
}

/// The watch over one server's postmaster. Dropped, it shuts the server down immediately.
#[derive(Debug)]
pub struct Instance {
    spec: Arc<PostmasterSpec>,
    state: watch::Receiver<InstanceState>,
    orders: watch::Sender<Orders>,
    has_run: Arc<AtomicBool>,
    supervisor: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Orders {
    stop: Option<StopMode>,
    /// Counts the wishes to read the configuration again.
    reloads: u64,
}

impl Instance {
    /// Begins to run the server; [`Instance::ready`] tells when it takes connections.
    #[must_use]
    pub fn start(spec: PostmasterSpec) -> Self {
        let spec = Arc::new(spec);
        let (state_sender, state) = watch::channel(InstanceState::Starting);
        let (orders, orders_receiver) = watch::channel(Orders::default());
        let has_run = Arc::new(AtomicBool::new(false));
        let supervisor = tokio::spawn(supervise(
            Arc::clone(&spec),
            state_sender,
            orders_receiver,
            Arc::clone(&has_run),
        ));
        Self {
            spec,
            state,
            orders,
            has_run,
            supervisor,
        }
    }

    #[must_use]
    pub fn spec(&self) -> &PostmasterSpec {
        &self.spec
    }

    #[must_use]
    pub fn state(&self) -> InstanceState {
        self.state.borrow().clone()
    }

    /// It was told to stop and will not be started again.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.orders.borrow().stop.is_some()
    }

    /// It has taken connections in this instance's life.
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.has_run.load(Ordering::Relaxed)
    }

    /// To wait for changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<InstanceState> {
        self.state.clone()
    }

    /// Waits until the server takes connections. Its third failed attempt in a row is the answer.
    pub async fn ready(&self) -> Result<()> {
        let mut state = self.state.clone();
        let found = state
            .wait_for(|state| match state {
                InstanceState::Running { .. } | InstanceState::Stopped => true,
                InstanceState::Failing { attempts, .. } => *attempts >= FAILING_AFTER,
                InstanceState::Starting => false,
            })
            .await
            .map(|state| state.clone());
        match found {
            Ok(InstanceState::Running { .. }) => Ok(()),
            Ok(InstanceState::Failing { reason, attempts }) => Err(Error::NotStarted {
                status: format!("{attempts} attempts"),
                said: reason,
            }),
            _ => Err(Error::NotStarted {
                status: "stopped meanwhile".into(),
                said: String::new(),
            }),
        }
    }

    /// Makes the server read its configuration files again.
    pub fn reload(&self) {
        self.orders.send_modify(|orders| orders.reloads += 1);
    }

    /// Asks for a shutdown and waits for it; after that it is not started again. When the time is
    /// over the order still stands: call again, harder or longer.
    pub async fn stop(&self, mode: StopMode, within: Duration) -> Result<()> {
        self.orders
            .send_modify(|orders| orders.stop = orders.stop.max(Some(mode)));
        let mut state = self.state.clone();
        let stopped = state.wait_for(|state| *state == InstanceState::Stopped);
        match tokio::time::timeout(within, stopped).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Slow {
                what: "shut down",
                within,
            }),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

async fn supervise(
    spec: Arc<PostmasterSpec>,
    state: watch::Sender<InstanceState>,
    mut orders: watch::Receiver<Orders>,
    has_run: Arc<AtomicBool>,
) {
    let mut attempts = 0;
    let mut pause = FIRST_PAUSE;
    while orders.borrow().stop.is_none() {
        state.send_replace(InstanceState::Starting);
        let begun = Instant::now();
        let reason = one_life(&spec, &state, &mut orders, &has_run).await;
        if orders.borrow().stop.is_some() {
            break;
        }
        if begun.elapsed() > SETTLED_AFTER {
            (attempts, pause) = (0, FIRST_PAUSE);
        }
        attempts += 1;
        tracing::error!(path = %spec.data_dir.display(), attempts, reason, "a postmaster ended by itself");
        state.send_replace(InstanceState::Failing { reason, attempts });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Also when nobody holds the instance any more.
            _ = orders.wait_for(|orders| orders.stop.is_some()) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    state.send_replace(InstanceState::Stopped);
}

/// From spawn to exit. Returns why it ended, for a person.
async fn one_life(
    spec: &PostmasterSpec,
    state: &watch::Sender<InstanceState>,
    orders: &mut watch::Receiver<Orders>,
    has_run: &AtomicBool,
) -> String {
    let postmaster = match Postmaster::spawn(spec).await {
        Ok(postmaster) => postmaster,
        Err(error) => return chain(&error),
    };
    // A stop that was ordered meanwhile is news to this process; reloads are not.
    let mut heard = Orders {
        stop: None,
        reloads: orders.borrow().reloads,
    };
    let mut ready = Box::pin(postmaster.wait_ready(READY_WITHIN));
    let mut waiting = true;
    loop {
        tokio::select! {
            answer = &mut ready, if waiting => {
                waiting = false;
                match answer {
                    Ok(()) => {
                        has_run.store(true, Ordering::Relaxed);
                        state.send_replace(InstanceState::Running { pid: postmaster.pid() });
                    }
                    // Ended: the arm below has the status. Slow: let it go on, and say so.
                    Err(error) if postmaster.exited().is_none() => {
                        tracing::warn!(path = %spec.data_dir.display(), error = chain(&error), "a server is slow to start");
                        ready = Box::pin(postmaster.wait_ready(READY_WITHIN));
                        waiting = true;
                    }
                    Err(_) => {}
                }
            }
            status = postmaster.wait() => {
                return format!("{status}: {}", server_log::tail(&spec.log_file, 3));
            }
            changed = orders.changed() => {
                let now = *orders.borrow_and_update();
                if changed.is_err() {
                    return "nobody wants it any more".into();
                }
                if now.reloads != heard.reloads {
                    postmaster.signal(Signal::SIGHUP);
                }
                if now.stop != heard.stop && let Some(mode) = now.stop {
                    postmaster.signal(mode.signal());
                }
                heard = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::cluster_fixture::Cluster;
    use crate::postgres::occupancy;

    async fn running_pid(instance: &Instance, other_than: u32) -> u32 {
        let mut state = instance.watch();
        let found = state
            .wait_for(|s| matches!(s, InstanceState::Running { pid } if *pid != other_than))
            .await
            .expect("the supervisor lives")
            .clone();
        match found {
            InstanceState::Running { pid } => pid,
            other => unreachable!("waited for Running, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_killed_postmaster_is_started_again_and_its_data_is_there() {
        let cluster = Cluster::create().await;
        let instance = Instance::start(cluster.spec());
        instance.ready().await.expect("started");
        let first = running_pid(&instance, 0).await;
        let session = cluster.connect().await;
        session
            .batch_execute("CREATE TABLE public.t AS SELECT 7 AS x")
            .await
            .expect("written");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(first.cast_signed()),
            Signal::SIGKILL,
        )
        .expect("sent");
        let second = running_pid(&instance, first).await;
        assert_ne!(first, second);
        let session = cluster.connect().await;
        let row = session
            .query_one("SELECT x FROM public.t", &[])
            .await
            .expect("read");
        assert_eq!(row.get::<_, i32>(0), 7);
        instance
            .stop(StopMode::Fast, Duration::from_secs(30))
            .await
            .expect("stopped");
        assert_eq!(instance.state(), InstanceState::Stopped);
        assert!(
            occupancy::holders(&cluster.data_dir())
                .await
                .expect("listed")
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_postmaster_of_an_earlier_agent_makes_room() {
        let cluster = Cluster::create().await;
        let earlier = Postmaster::spawn(&cluster.spec()).await.expect("spawned");
        earlier
            .wait_ready(Duration::from_secs(60))
            .await
            .expect("ready");
        let instance = Instance::start(cluster.spec());
        instance.ready().await.expect("started");
        assert!(earlier.exited().is_some_and(|status| status.success()));
        instance
            .stop(StopMode::Fast, Duration::from_secs(30))
            .await
            .expect("stopped");
    }

    #[tokio::test]
    async fn a_stale_pid_file_does_not_keep_a_server_down() {
        let cluster = Cluster::create().await;
        // Of a process that lives, but is no postmaster: PostgreSQL alone would refuse to start.
        let parent = nix::unistd::getppid();
        let pid_file = cluster.data_dir().join("postmaster.pid");
        std::fs::write(&pid_file, format!("{parent}\n/elsewhere\n")).expect("written");
        let instance = Instance::start(cluster.spec());
        instance.ready().await.expect("started");
        instance
            .stop(StopMode::Immediate, Duration::from_secs(30))
            .await
            .expect("stopped");
    }

    #[tokio::test]
    async fn a_server_that_cannot_start_says_why() {
        let cluster = Cluster::create().await;
        let mut spec = cluster.spec();
        spec.settings
            .push(("shared_buffers".into(), "nonsense".into()));
        let instance = Instance::start(spec);
        let error = instance.ready().await.expect_err("it cannot start");
        assert!(error.to_string().contains("shared_buffers"), "{error}");
        instance
            .stop(StopMode::Fast, Duration::from_secs(30))
            .await
            .expect("stopped");
    }
}
