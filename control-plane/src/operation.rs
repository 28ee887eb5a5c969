//! What a user asked for and polls: accepted here, moved by [`crate::advance`], ended by
//! [`crate::settle`].

use holdfast_domain::activity::{ActivityEvent, ActivityStatus, Caller};
use holdfast_domain::operation::{KEPT_FOR, Operation, OperationKind, OperationState};
use holdfast_domain::region::canonical;
use holdfast_domain::server::Server;
use holdfast_domain::{BackupId, OperationId, Refusal, SubscriptionId};

use crate::activity::event;
use crate::store::operation::{Input, Record};
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result};

/// The answer to whoever asked for an operation.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub operation: Operation,
    /// The same request came before: this is its answer again.
    pub replayed: bool,
}

impl ControlPlane {
    /// An operation by the id in its URL. Ended ones stay readable for 30 days.
    ///
    /// # Errors
    /// [`Refusal::OperationNotFound`], also for another region's.
    pub async fn get_operation(
        &self,
        subscription: SubscriptionId,
        region: &str,
        id: OperationId,
    ) -> Result<Operation> {
        let mut conn = self.pool().acquire().await?;
        let now = self.clock().now();
        store::operation::get(&mut conn, subscription, id, Hold::None)
            .await?
            .map(|record| record.operation)
            .filter(|operation| {
                operation.region == canonical(region)
                    && operation.ended_at.is_none_or(|ended| now - ended < KEPT_FOR)
            })
            .ok_or_else(|| Refusal::OperationNotFound(id.to_string()).into())
    }
}

/// What is asked for.
pub(crate) struct Ask<'a> {
    pub id: OperationId,
    pub kind: OperationKind,
    pub caller: &'a Caller,
    pub method: &'static str,
    pub server: &'a Server,
    pub backup: Option<BackupId>,
    /// In the caller's case.
    pub resource_id: String,
    pub input: Option<Input>,
}

/// The action names of the activity log (contract, other-apis §1).
pub(crate) fn action(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::CreateServer | OperationKind::RestoreServer | OperationKind::UpdateServer => {
            "Microsoft.DBforPostgreSQL/flexibleServers/write"
        }
        OperationKind::DeleteServer => "Microsoft.DBforPostgreSQL/flexibleServers/delete",
        OperationKind::StartServer => "Microsoft.DBforPostgreSQL/flexibleServers/start/action",
        OperationKind::StopServer => "Microsoft.DBforPostgreSQL/flexibleServers/stop/action",
        OperationKind::RestartServer => "Microsoft.DBforPostgreSQL/flexibleServers/restart/action",
        OperationKind::CreateBackup => "Microsoft.DBforPostgreSQL/flexibleServers/backups/write",
        OperationKind::DeleteBackup => "Microsoft.DBforPostgreSQL/flexibleServers/backups/delete",
    }
}

/// Accepts: the operation's row, and the events Started and Accepted under one correlation id.
///
/// # Errors
/// [`Refusal::ServerIsBusy`] while another one that this one excludes is under way.
pub(crate) async fn accept(unit: &mut Unit, ask: Ask<'_>) -> Result<Record> {
    let now = unit.now();
    let record = Record {
        operation: Operation {
            id: ask.id,
            subscription: ask.server.subscription,
            kind: ask.kind,
            state: OperationState::Accepted,
            server: ask.server.id,
            backup: ask.backup,
            resource_id: ask.resource_id,
            region: ask.server.region.clone(),
            failure: None,
            progress: None,
            result: None,
            created_at: now,
            deadline: now + ask.kind.time_limit(),
            ended_at: None,
        },
        group: ask.server.group.clone(),
        action: action(ask.kind).to_owned(),
        input: ask.input,
        caller: ask.caller.clone(),
    };
    if !store::operation::insert(unit.conn(), &record).await? {
        return Err(Refusal::ServerIsBusy { server: ask.server.name.clone() }.into());
    }
    for (status, http_status) in [(ActivityStatus::Started, None), (ActivityStatus::Accepted, Some(202))] {
        let event = ActivityEvent {
            http_method: Some(ask.method.to_owned()),
            http_status,
            ..of_operation(&record, status, now)
        };
        unit.record(event);
    }
    unit.wake_operations();
    Ok(record)
}

/// An event about an operation, under its caller.
pub(crate) fn of_operation(
    record: &Record,
    status: ActivityStatus,
    now: chrono::DateTime<chrono::Utc>,
) -> ActivityEvent {
    ActivityEvent {
        operation: Some(record.operation.id),
        ..event(
            record.operation.subscription,
            &record.group,
            &record.operation.resource_id,
            &record.action,
            status,
            &record.caller,
            now,
        )
    }
}

/// The operation as it stands after a transaction's own changes.
pub(crate) async fn reread(unit: &mut Unit, record: &Record) -> Result<Operation> {
    let (subscription, id) = (record.operation.subscription, record.operation.id);
    store::operation::get(unit.conn(), subscription, id, Hold::None)
        .await?
        .map(|record| record.operation)
        .ok_or_else(|| Error::corrupt(format!("operation {id} vanished")))
}
