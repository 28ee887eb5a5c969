//! What follows what: an operation, its jobs so far, and the next step.
//!
//! One pure function; there is no saga engine (DESIGN §2). Adding a step means changing [`steps`]
//! and adding a file in `agent/src/work`.

use chrono::{DateTime, Utc};

use crate::job::{JobError, JobKind, JobState};
use crate::operation::{Failure, OperationKind};

/// A job of the operation, as far as the plan cares.
#[derive(Debug, Clone, PartialEq)]
pub struct JobFact {
    pub kind: JobKind,
    pub state: JobState,
    pub error: Option<JobError>,
}

/// The operation, as far as the plan cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationFacts {
    pub kind: OperationKind,
    /// A restore to the latest state first makes the newest WAL durable.
    pub latest_meant: bool,
    pub cancel_asked: bool,
    pub deadline: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Queue this job.
    Run(JobKind),
    /// A job is under way.
    Wait,
    Succeeded,
    Failed(Failure),
    Canceled,
}

/// One step, and whether the operation goes on when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub job: JobKind,
    pub may_fail: bool,
}

/// The jobs of an operation, in order.
#[must_use]
pub fn steps(operation: &OperationFacts) -> Vec<Step> {
    let must = |job| Step {
        job,
        may_fail: false,
    };
    match operation.kind {
        OperationKind::CreateServer => vec![must(JobKind::Provision)],
        OperationKind::RestoreServer if operation.latest_meant => vec![
            // What cannot be flushed is not there to be had: everything durable is restored, and
            // the reached instant is reported.
            Step {
                job: JobKind::ArchiveWal,
                may_fail: true,
            },
            must(JobKind::Restore),
        ],
        OperationKind::RestoreServer => vec![must(JobKind::Restore)],
        OperationKind::StartServer | OperationKind::StopServer | OperationKind::RestartServer => {
            vec![must(JobKind::Power)]
        }
        OperationKind::DeleteServer => vec![must(JobKind::Drop)],
        OperationKind::CreateBackup => vec![must(JobKind::Snapshot)],
        // The catalogue alone: bytes go with the next prune.
        OperationKind::UpdateServer | OperationKind::DeleteBackup => vec![],
    }
}

/// Decides the next step. Total: every combination has an answer, and with jobs that end the
/// operation ends.
#[must_use]
pub fn next(operation: &OperationFacts, jobs: &[JobFact], now: DateTime<Utc>) -> Next {
    for step in steps(operation) {
        // The newest job of a kind speaks for the step.
        match jobs.iter().rev().find(|job| job.kind == step.job) {
            Some(job) if job.state == JobState::Done => continue,
            Some(job) if job.state == JobState::Failed && step.may_fail => continue,
            Some(job) if job.state == JobState::Failed => {
                return Next::Failed(failure(job.error.as_ref()));
            }
            Some(job) if job.state == JobState::Canceled => return Next::Canceled,
            Some(_) if now < operation.deadline => return Next::Wait,
            None if operation.cancel_asked => return Next::Canceled,
            None if now < operation.deadline => return Next::Run(step.job),
            Some(_) | None => {
                return Next::Failed(Failure {
                    code: "OperationTimedOut".to_owned(),
                    message: "The operation did not finish before its deadline. Nothing of it counts; try again, and look at the server's node if it happens again.".to_owned(),
                });
            }
        }
    }
    Next::Succeeded
}

fn failure(error: Option<&JobError>) -> Failure {
    error.map_or_else(
        || Failure {
            code: "JobFailed".to_owned(),
            message: "The work failed on its node without saying why; the node's log has more."
                .to_owned(),
        },
        |error| Failure {
            code: error.code.clone(),
            message: error.message.clone(),
        },
    )
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn ending() -> impl Strategy<Value = JobState> {
        prop_oneof![
            4 => Just(JobState::Done),
            1 => Just(JobState::Failed),
            1 => Just(JobState::Canceled),
        ]
    }

    proptest! {
        // XC-007
        #[test]
        fn every_plan_ends(
            kind in prop::sample::select(&OperationKind::ALL[..]),
            latest_meant: bool,
            cancel_asked: bool,
            endings in prop::collection::vec(ending(), 8),
        ) {
            let now = DateTime::from_timestamp(1_790_000_000, 0).expect("valid");
            let facts = OperationFacts { kind, latest_meant, cancel_asked, deadline: now + TimeDelta::hours(1) };
            let mut jobs = Vec::new();
            for state in endings {
                match next(&facts, &jobs, now) {
                    Next::Run(kind) => {
                        jobs.push(JobFact { kind, state: JobState::Leased, error: None });
                        prop_assert_eq!(next(&facts, &jobs, now), Next::Wait);
                        jobs.last_mut().expect("pushed").state = state;
                    }
                    Next::Wait => return Err(TestCaseError::fail("waits for nothing")),
                    Next::Succeeded | Next::Failed(_) | Next::Canceled => return Ok(()),
                }
            }
            Err::<(), _>(TestCaseError::fail("still not ended"))?;
        }

        #[test]
        fn past_its_deadline_an_operation_waits_for_nothing(
            kind in prop::sample::select(&OperationKind::ALL[..]), started: bool
        ) {
            let now = DateTime::from_timestamp(1_790_000_000, 0).expect("valid");
            let facts = OperationFacts { kind, latest_meant: false, cancel_asked: false, deadline: now };
            let jobs: Vec<JobFact> = steps(&facts).first().filter(|_| started)
                .map(|step| JobFact { kind: step.job, state: JobState::Leased, error: None })
                .into_iter().collect();
            prop_assert!(!matches!(next(&facts, &jobs, now), Next::Wait | Next::Run(_)));
        }
    }

    #[test]
    fn a_flush_that_fails_does_not_fail_the_restore() {
        let now = DateTime::from_timestamp(1_790_000_000, 0).expect("valid");
        let facts = OperationFacts {
            kind: OperationKind::RestoreServer,
            latest_meant: true,
            cancel_asked: false,
            deadline: now + TimeDelta::hours(1),
        };
        let flush = JobFact {
            kind: JobKind::ArchiveWal,
            state: JobState::Failed,
            error: None,
        };
        assert_eq!(next(&facts, &[flush], now), Next::Run(JobKind::Restore));
    }
}
