//! What a job's work is given: its lease, the order to stop, a way to say how far it is, the node.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_domain::job::{LeaseRef, Progress};
use holdfast_domain::{BootId, JobId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::Gateway;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::fence::Fence;
use crate::node::Node;

#[derive(Debug)]
pub struct JobContext {
    pub job: JobId,
    pub epoch: i64,
    pub lease: LeaseRef,
    pub attempt: u32,
    /// Fired when the job is no longer wanted, the lease is lost or the agent stops. Five seconds later
    /// the work is dropped where it stands.
    pub cancel: CancellationToken,
    pub clock: Clock,
    pub node: Arc<Node>,
    pub(crate) fence: Fence,
    pub(crate) progress: watch::Sender<Option<Progress>>,
    pub(crate) gateway: Option<Arc<Gateway>>,
}

impl JobContext {
    /// Work without a control plane: `holdfast vault restore`, and tests of single jobs.
    #[must_use]
    pub fn unattended(node: Arc<Node>) -> Self {
        let job = JobId::new();
        let boot = BootId::new();
        Self {
            job,
            epoch: 1,
            lease: LeaseRef {
                job,
                epoch: 1,
                boot,
            },
            attempt: 1,
            cancel: CancellationToken::new(),
            clock: node.clock().clone(),
            fence: Fence::unattended(),
            progress: watch::Sender::new(None),
            gateway: None,
            node,
        }
    }

    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Says how far the work is. Cheap: the newest is sent about once a second. The percentage never
    /// falls, whatever is passed.
    pub fn progress(&self, mut progress: Progress) {
        self.progress.send_modify(|last| {
            if let Some(last) = last {
                progress.percent = progress.percent.max(last.percent);
            }
            progress.percent = progress.percent.clamp(0.0, 100.0);
            *last = Some(progress);
        });
    }

    /// The newest progress, for tests and for work without a control plane.
    #[must_use]
    pub fn last_progress(&self) -> Option<Progress> {
        self.progress.borrow().clone()
    }

    /// Whether the work may still have effects. Ask before each one that others can see.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::Canceled);
        }
        self.fence.check()
    }

    /// Which of these keys may be deleted now, under this lease (RELIABILITY §3.3, fencing (c)).
    pub async fn validate(&self, keys: &[String]) -> Result<Vec<String>> {
        self.check()?;
        match &self.gateway {
            Some(gateway) => tokio::select! {
                answer = gateway.validate(self.lease, keys) => answer,
                () = self.cancel.cancelled() => Err(Error::Canceled),
            },
            // Nobody can say what is pinned: nothing may go.
            None => Ok(Vec::new()),
        }
    }
}
