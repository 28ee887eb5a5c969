//! Duty: whatever is overdue ends. Every job and operation reaches a terminal state (RELIABILITY §0.9).

use holdfast_domain::job::{JobError, JobState};
use holdfast_domain::{JobId, ServerId, SubscriptionId};

use crate::error::one_of_many;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Result, job, rescue};

impl ControlPlane {
    /// Ends jobs past their deadline, and flushes that wait for a node that fell silent: a restore of
    /// the latest state goes on with what is durable. Operations past theirs end when they advance.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn enforce_deadlines(&self) -> Result<usize> {
        let now = self.clock().now();
        let overdue = {
            let mut conn = self.pool().acquire().await?;
            store::job::overdue(&mut conn, now, store::node::silent_since(now)).await?
        };
        let error = JobError {
            code: "OperationTimedOut".to_owned(),
            message: "The work was not finished in time. Look at the server's node and try again."
                .to_owned(),
            retryable: false,
        };
        let mut ended = 0;
        for late in overdue {
            ended += one_of_many("deadline", late.0, self.end_late(late, &error).await)?;
        }
        Ok(ended)
    }

    async fn end_late(
        &self,
        late: (JobId, SubscriptionId, ServerId),
        error: &JobError,
    ) -> Result<usize> {
        let Some(mut unit) = Unit::begin(self).await?.holding(late).await? else {
            return Ok(0);
        };
        let Some(job) = store::job::get(unit.conn(), late.0, Hold::Update).await? else {
            return Ok(0);
        };
        let open = matches!(job.state, JobState::Queued | JobState::Leased);
        if !open || (job.deadline > unit.now() && job.state == JobState::Leased) {
            return Ok(0);
        }
        rescue::failed(self, &mut unit, &job, error, None).await?;
        job::follow(self, &mut unit, &job).await?;
        unit.commit().await?;
        Ok(1)
    }
}
