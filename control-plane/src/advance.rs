//! Duty: moves every operation that can move. What follows what is said in `domain::plan`.

use holdfast_domain::operation::Failure;
use holdfast_domain::plan::{Next, OperationFacts, next};
use holdfast_domain::restore::RestoreTarget;
use holdfast_domain::{OperationId, ServerId, SubscriptionId};

use crate::compose::{self, Composed};
use crate::error::one_of_many;
use crate::settle::{Ending, settle};
use crate::store::job::NewJob;
use crate::store::operation::{Input, Record};
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result};

impl ControlPlane {
    /// One transaction an operation: queue its next job, or end it together with its resource and its
    /// event. Answers how many moved.
    ///
    /// # Errors
    /// Only the store's. An operation that cannot be moved now does not keep the others.
    pub async fn advance_operations(&self) -> Result<usize> {
        let open = {
            let mut conn = self.pool().acquire().await?;
            store::operation::open(&mut conn).await?
        };
        let mut moved = 0;
        for which in open {
            let outcome = self.advance_one(which).await;
            moved += usize::from(one_of_many("advance", which.1, outcome)?);
        }
        Ok(moved)
    }

    async fn advance_one(
        &self,
        (subscription, id, server): (SubscriptionId, OperationId, ServerId),
    ) -> Result<bool> {
        let mut unit = Unit::begin(self).await?;
        let held =
            store::server::by_id(unit.conn(), subscription, server, Hold::UpdateOrSkip).await?;
        if held.is_none() {
            // Somebody is at it; what they do counts.
            return Ok(false);
        }
        // Jobs before their operation, as leases and renewals lock them: else one would wait for the
        // other in a circle.
        store::job::hold_open(unit.conn(), subscription, server).await?;
        let Some(record) =
            store::operation::get(unit.conn(), subscription, id, Hold::Update).await?
        else {
            return Ok(false);
        };
        let moved = step(self, &mut unit, &record).await?;
        if moved {
            unit.commit().await?;
        }
        Ok(moved)
    }
}

/// Takes the operation's next step. The caller holds its server.
pub(crate) async fn step(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    record: &Record,
) -> Result<bool> {
    let operation = &record.operation;
    if operation.state.is_terminal() {
        return Ok(false);
    }
    let now = unit.now();
    let facts = OperationFacts {
        kind: operation.kind,
        latest_meant: matches!(
            record.input,
            Some(Input::Restore {
                target: RestoreTarget::Latest | RestoreTarget::LatestUntil(_),
                ..
            })
        ),
        cancel_asked: false,
        deadline: operation.deadline,
    };
    let jobs = store::job::facts(unit.conn(), operation.subscription, operation.id).await?;
    let ending = match next(&facts, &jobs, now) {
        Next::Wait => return Ok(false),
        Next::Succeeded => Ending::Succeeded,
        Next::Failed(failure) => Ending::Failed(failure),
        Next::Canceled => Ending::Canceled,
        Next::Run(kind) => match compose::compose(control_plane, unit, record, kind).await {
            Ok(Composed::Order(order)) => {
                let job = NewJob {
                    subscription: operation.subscription,
                    operation: Some(operation.id),
                    server: operation.server,
                    incarnation: order.incarnation,
                    backup: operation.backup,
                    base: order.base,
                    node: order.node,
                    priority: store::job::FOR_A_USER,
                    spec: &order.spec,
                    max_attempts: control_plane.policy().max_attempts,
                    deadline: order.deadline.unwrap_or(operation.deadline),
                    caller: &record.caller,
                };
                let queued = store::job::queue(unit.conn(), job, now).await?;
                if queued.is_some() {
                    unit.wake_node(order.node);
                }
                return Ok(queued.is_some());
            }
            Ok(Composed::Later) => return Ok(false),
            // What was possible when it was accepted is not any more.
            Err(Error::Refused(refusal)) => Ending::Failed(Failure {
                code: "OperationNoLongerPossible".to_owned(),
                message: refusal.to_string(),
            }),
            Err(error) => return Err(error),
        },
    };
    settle(control_plane, unit, record, ending).await?;
    Ok(true)
}
