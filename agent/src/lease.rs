//! How work arrives, how it keeps its lease, and how it stops (RELIABILITY §3.3, DESIGN §3.8).
//!
//! One long poll asks for jobs; each job runs in a task of its own beside a keeper that renews the lease
//! about once a second – far more often than the lease needs – because that carries progress up and cancellations
//! down, and stops the work by itself when 40 s passed without a renewal. A job whose lease is lost reports nothing: somebody else holds it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use holdfast_domain::job::{
    JobError, JobOutcome, JobResult, LeaseRef, LeaseRequest, LeasedJob, Progress, ProgressResponse,
};
use holdfast_domain::{BootId, JobId};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::client::Gateway;
use crate::error::{Error, Result, chain};
use crate::fence::{Fence, since_boot};
use crate::job::JobContext;
use crate::node::Node;
use crate::trace::set_parent;
use crate::work;

/// How long the scheduler may hold back an empty answer.
const WAIT_S: u32 = 25;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long cancelled work may tidy up before it is dropped.
const TIDY_UP: Duration = Duration::from_secs(5);
/// How often a lease is renewed. Somebody may wait for the end of a job that is not wanted any more.
const RENEW_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After this an end that nobody would hear is given up; the scheduler's reaper has long acted.
const REPORT_FOR: Duration = Duration::from_secs(600);

/// Leases and does jobs until told to stop; then ends what runs and reports it as worth another attempt.
pub async fn serve(
    node: Arc<Node>,
    gateway: Arc<Gateway>,
    boot: BootId,
    max_jobs: u32,
    shutdown: CancellationToken,
) {
    let mut desk = Desk {
        node,
        gateway,
        boot,
        running: HashMap::new(),
        tasks: JoinSet::new(),
        shutdown: shutdown.clone(),
    };
    let mut pause = FIRST_PAUSE;
    while !shutdown.is_cancelled() {
        desk.sweep();
        let capacity = max_jobs.saturating_sub(u32::try_from(desk.tasks.len()).unwrap_or(u32::MAX));
        if capacity == 0 {
            tokio::select! {
                _ = desk.tasks.join_next() => {}
                () = shutdown.cancelled() => {}
            }
            continue;
        }
        let request = LeaseRequest {
            boot,
            capacity,
            wait_s: WAIT_S,
        };
        let answer = tokio::select! {
            answer = desk.gateway.lease(&request) => answer,
            () = shutdown.cancelled() => break,
        };
        match answer {
            Ok(answer) => {
                pause = FIRST_PAUSE;
                for job in answer.jobs {
                    desk.take(job).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not ask for work");
                tokio::select! {
                    () = tokio::time::sleep(jittered(pause)) => {}
                    () = shutdown.cancelled() => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    // The shutdown token has reached every job; each tidies up and reports.
    while desk.tasks.join_next().await.is_some() {}
}

/// Between half and the whole: agents that lost one scheduler must not come back as one.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.5..1.0))
}

struct Desk {
    node: Arc<Node>,
    gateway: Arc<Gateway>,
    boot: BootId,
    /// To end an older attempt of a job that was leased again.
    running: HashMap<JobId, (CancellationToken, watch::Receiver<bool>)>,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Desk {
    fn sweep(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.running.retain(|_, (_, ended)| !*ended.borrow());
    }

    async fn take(&mut self, job: LeasedJob) {
        // The scheduler gave it away and we got it again: two attempts never run side by side.
        if let Some((lost, mut ended)) = self.running.remove(&job.job) {
            lost.cancel();
            let _ = ended.wait_for(|ended| *ended).await;
        }
        let lost = CancellationToken::new();
        let (end, ended) = watch::channel(false);
        self.running.insert(job.job, (lost.clone(), ended));
        let keeper = Keeper {
            node: Arc::clone(&self.node),
            gateway: Arc::clone(&self.gateway),
            lease: LeaseRef {
                job: job.job,
                epoch: job.epoch,
                boot: self.boot,
            },
            lost,
            shutdown: self.shutdown.clone(),
        };
        self.tasks.spawn(async move {
            keeper.run(job).await;
            // Nobody may listen any more.
            let _ = end.send(true);
        });
    }
}

/// What the keeper of one job knows.
struct Keeper {
    node: Arc<Node>,
    gateway: Arc<Gateway>,
    lease: LeaseRef,
    /// Fired from outside when a newer lease of the same job arrived.
    lost: CancellationToken,
    shutdown: CancellationToken,
}

/// Why work was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The lease is not ours any more: no report.
    Lost,
    /// The user or the scheduler does not want it any more.
    Canceled,
    /// The agent stops.
    Leaving,
}

impl Keeper {
    async fn run(self, job: LeasedJob) {
        let kind = job.spec.kind();
        let span = tracing::info_span!(
            "job", otel.name = %format!("job.{}", name_of(&job)), job.id = %job.job, job.kind = ?kind,
            lease.epoch = job.epoch, lease.attempt = job.attempt
        );
        if let Some(traceparent) = &job.traceparent {
            set_parent(&span, traceparent);
        }
        async {
            tracing::info!("job begins");
            // Until the end was reported, an older word about this server's power does not count.
            let _busy = work::changes(&job.spec).map(|incarnation| self.node.busy(incarnation));
            let result = self.keep(job).await;
            match &result {
                Some(JobResult::Done(_)) => tracing::info!("job is done"),
                Some(JobResult::Canceled) => tracing::info!("job was cancelled"),
                Some(JobResult::Failed(error)) => {
                    tracing::warn!(
                        code = error.code,
                        message = error.message,
                        retryable = error.retryable,
                        "job failed"
                    );
                }
                None => tracing::warn!("job's lease was lost"),
            }
            if let Some(result) = result {
                self.report(&result).await;
            }
        }
        .instrument(span)
        .await;
    }

    /// Runs the work and keeps its lease. `None`: the lease was lost.
    async fn keep(&self, job: LeasedJob) -> Option<JobResult> {
        let lease_time = Duration::from_secs(job.lease_s.max(1).into());
        let fence = Fence::new(since_boot().ok()?, lease_time);
        let cancel = CancellationToken::new();
        let (progress, newest) = watch::channel(None);
        let context = JobContext {
            job: job.job,
            epoch: job.epoch,
            lease: self.lease,
            attempt: job.attempt,
            cancel: cancel.clone(),
            clock: self.node.clock().clone(),
            node: Arc::clone(&self.node),
            fence: fence.clone(),
            progress,
            gateway: Some(Arc::clone(&self.gateway)),
        };
        let spec = job.spec;
        let mut work = AbortOnDropHandle::new(spawn_work(context, spec));
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first renewal goes out at once: the lease may be half over when its answer arrives.
        let mut renewal: Option<Renewal<'_>> = None;
        let mut last_renewal: Option<Instant> = None;
        let mut stop: Option<(Stop, Instant)> = None;
        let renew_every = RENEW_EVERY.min(lease_time / 4);
        loop {
            tokio::select! {
                ended = &mut work => {
                    return match (stop, ended) {
                        (Some((Stop::Lost, _)), _) => None,
                        (_, Ok(Ok(outcome))) => Some(JobResult::Done(outcome)),
                        (Some((Stop::Canceled, _)), _) => Some(JobResult::Canceled),
                        (Some((Stop::Leaving, _)), _) => Some(JobResult::Failed(leaving())),
                        (None, Ok(Err(error))) => Some(JobResult::Failed(error)),
                        (None, Err(panic)) => Some(JobResult::Failed(Error::from(panic).into())),
                    };
                }
                (sent, answer) = renewed(&mut renewal) => {
                    renewal = None;
                    match answer {
                        Ok(answer) => {
                            fence.renewed(sent);
                            if answer.cancel && stop.is_none() {
                                stop = Some((Stop::Canceled, Instant::now()));
                            }
                        }
                        Err(Error::StaleLease) => stop = Some((Stop::Lost, Instant::now())),
                        Err(error) => tracing::warn!(error = chain(&error), "could not renew a lease"),
                    }
                }
                _ = look.tick() => {
                    if fence.check().is_err() && !matches!(stop, Some((Stop::Lost, _))) {
                        stop = Some((Stop::Lost, Instant::now()));
                    }
                }
                () = self.lost.cancelled(), if !matches!(stop, Some((Stop::Lost, _))) => {
                    stop = Some((Stop::Lost, Instant::now()));
                }
                () = self.shutdown.cancelled(), if stop.is_none() => {
                    stop = Some((Stop::Leaving, Instant::now()));
                }
            }
            if let Some((why, since)) = stop {
                cancel.cancel();
                // Work without a lease has no effect to tidy up after.
                let patience = if why == Stop::Lost {
                    Duration::from_secs(1)
                } else {
                    TIDY_UP
                };
                if since.elapsed() >= patience {
                    work.abort();
                }
                if why == Stop::Lost {
                    continue;
                }
            }
            let due = last_renewal.is_none_or(|at| at.elapsed() >= renew_every);
            if due && renewal.is_none() {
                last_renewal = Some(Instant::now());
                let progress: Option<Progress> = newest.borrow().clone();
                renewal = Some(Box::pin(self.renew(progress)));
            }
        }
    }

    /// One renewal and when it was sent: an answer proves the lease at that time, not at its own.
    async fn renew(&self, progress: Option<Progress>) -> (Duration, Result<ProgressResponse>) {
        let sent = since_boot().unwrap_or_default();
        (sent, self.gateway.progress(self.lease, progress).await)
    }

    /// Says how the job ended until somebody heard it, or nobody wants to.
    async fn report(&self, result: &JobResult) {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.gateway.report(self.lease, result).await {
                Ok(()) => return,
                Err(Error::StaleLease) => {
                    tracing::warn!("the report came too late: the job has another holder");
                    return;
                }
                Err(Error::Refused {
                    status,
                    code,
                    message,
                    ..
                }) if (400..500).contains(&status) && status != 408 && status != 429 => {
                    tracing::error!(
                        status,
                        code,
                        message,
                        "the scheduler does not accept a report"
                    );
                    return;
                }
                Err(error) => tracing::warn!(error = chain(&error), "could not report a job"),
            }
            let patience = if self.shutdown.is_cancelled() {
                TIDY_UP
            } else {
                REPORT_FOR
            };
            if begun.elapsed() >= patience || self.lost.is_cancelled() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                () = self.lost.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

type Renewal<'a> = Pin<Box<dyn Future<Output = (Duration, Result<ProgressResponse>)> + Send + 'a>>;

/// The renewal under way, or for ever.
async fn renewed(renewal: &mut Option<Renewal<'_>>) -> (Duration, Result<ProgressResponse>) {
    match renewal {
        Some(renewal) => renewal.await,
        None => std::future::pending().await,
    }
}

fn spawn_work(
    context: JobContext,
    spec: holdfast_domain::job::JobSpec,
) -> JoinHandle<Result<JobOutcome, JobError>> {
    tokio::spawn(async move { work::run(&context, spec).await }.in_current_span())
}

fn leaving() -> JobError {
    JobError {
        code: "NodeStopping".into(),
        message: "the node's agent was stopped; the work starts again when it is back".into(),
        retryable: true,
    }
}

/// The kind as it is written on the wire: `archive-wal`.
fn name_of(job: &LeasedJob) -> String {
    serde_json::to_value(job.spec.kind())
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
