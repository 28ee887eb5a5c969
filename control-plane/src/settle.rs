//! The end of an operation: the operation, its resource, its jobs, its pins and its event, together.

use std::collections::BTreeMap;

use holdfast_domain::activity::{ActivityEvent, ActivityStatus, Caller};
use holdfast_domain::job::{DropSpec, JobSpec, JobState};
use holdfast_domain::operation::{Failure, OperationKind, OperationState};
use holdfast_domain::server::{Server, ServerState};

use crate::operation::of_operation;
use crate::placement::placement;
use crate::store::job::{FOR_TIDINESS, NewJob};
use crate::store::operation::Record;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result};

pub(crate) enum Ending {
    Succeeded,
    Failed(Failure),
    Canceled,
}

impl Ending {
    fn failure(&self) -> Option<Failure> {
        match self {
            Self::Succeeded => None,
            Self::Failed(failure) => Some(failure.clone()),
            Self::Canceled => Some(Failure {
                code: "OperationCanceled".to_owned(),
                message: "The operation was canceled.".to_owned(),
            }),
        }
    }
}

/// Ends the operation. The caller holds its server. What still works on it is fenced off.
pub(crate) async fn settle(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    record: &Record,
    ending: Ending,
) -> Result<()> {
    let operation = &record.operation;
    let now = unit.now();
    for job in
        store::job::open_of_server(unit.conn(), operation.subscription, operation.server).await?
    {
        if job.operation == Some(operation.id) {
            store::job::end(unit.conn(), &job, JobState::Canceled, None, None, now).await?;
        }
    }
    let failure = ending.failure();
    settle_resource(control_plane, unit, record, failure.as_ref()).await?;
    store::pin::release(unit.conn(), operation).await?;
    let (state, kept) = match &ending {
        Ending::Succeeded => (OperationState::Succeeded, None),
        Ending::Failed(failure) => (OperationState::Failed, Some(failure)),
        Ending::Canceled => (OperationState::Canceled, None),
    };
    if !store::operation::end(
        unit.conn(),
        operation.subscription,
        operation.id,
        state,
        kept,
        now,
    )
    .await?
    {
        return Err(Error::corrupt(format!(
            "operation {} ended twice",
            operation.id
        )));
    }
    let status = match failure {
        None => ActivityStatus::Succeeded,
        Some(_) => ActivityStatus::Failed,
    };
    let properties = failure.map(|failure| said(&failure)).unwrap_or_default();
    unit.record(ActivityEvent {
        properties,
        ..of_operation(record, status, now)
    });
    unit.wake_operations();
    Ok(())
}

/// Code and message as the activity log shows them: text only, the message as the error's JSON.
pub(crate) fn said(failure: &Failure) -> BTreeMap<String, String> {
    let message = serde_json::json!({"error": {"code": failure.code, "message": failure.message}});
    BTreeMap::from([
        ("statusCode".to_owned(), failure.code.clone()),
        ("statusMessage".to_owned(), message.to_string()),
    ])
}

async fn settle_resource(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    record: &Record,
    failure: Option<&Failure>,
) -> Result<()> {
    let operation = &record.operation;
    let now = unit.now();
    let (subscription, id) = (operation.subscription, operation.server);
    let mut server = store::server::by_id(unit.conn(), subscription, id, Hold::Update)
        .await?
        .ok_or_else(|| Error::corrupt(format!("server {id} is missing")))?;
    let before = server.state;
    match (operation.kind, failure) {
        (OperationKind::CreateServer | OperationKind::RestoreServer, None) => {
            server.state = ServerState::Ready;
        }
        (OperationKind::CreateServer | OperationKind::RestoreServer, Some(_)) => {
            server.state = ServerState::Failed;
            store::server::release_name(unit.conn(), &server).await?;
            clear_away(control_plane, unit, &server, &record.caller).await?;
        }
        (OperationKind::StopServer, None) => {
            server.state = ServerState::Stopped;
            server.stopped_at = Some(now);
        }
        (OperationKind::StartServer, None) => {
            server.state = ServerState::Ready;
            server.stopped_at = None;
        }
        // What did not work leaves the server as its node is told to keep it.
        (OperationKind::StartServer, Some(_)) => server.state = ServerState::Stopped,
        (OperationKind::StopServer, Some(_)) | (OperationKind::RestartServer, _) => {
            server.state = ServerState::Ready;
        }
        (OperationKind::DeleteServer, None) => {
            server.state = ServerState::Dropped;
            server.dropped_at = Some(now);
            server.restorable_until = Some(now + control_plane.policy().dropped_kept_for);
            server.node = None;
            server.port = None;
            store::server::release_name(unit.conn(), &server).await?;
        }
        (OperationKind::CreateBackup, Some(failure)) => {
            if let Some(backup) = operation.backup {
                store::backup::failed(unit.conn(), subscription, backup, failure, now).await?;
            }
            return Ok(());
        }
        // A server that could not be dropped is still dropping: the delete can be asked for again.
        (OperationKind::DeleteServer, Some(_))
        | (OperationKind::CreateBackup, None)
        | (OperationKind::UpdateServer | OperationKind::DeleteBackup, _) => return Ok(()),
    }
    store::server::update(unit.conn(), &server, before).await
}

/// A server that was never made leaves nothing on its node: a job of its own removes what is there.
async fn clear_away(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    server: &Server,
    caller: &Caller,
) -> Result<()> {
    let (Some(node), Some(incarnation)) = (server.node, server.incarnation) else {
        return Ok(());
    };
    let now = unit.now();
    let incarnation =
        store::incarnation::get(unit.conn(), server.subscription, incarnation).await?;
    let vaults = store::node::vaults(unit.conn()).await?;
    let spec = JobSpec::Drop(DropSpec {
        placement: placement(server, &incarnation, &vaults)?,
        wrapped_key: incarnation.wrapped_key.clone(),
    });
    let job = NewJob {
        subscription: server.subscription,
        operation: None,
        server: server.id,
        incarnation: Some(incarnation.id),
        backup: None,
        base: None,
        node,
        priority: FOR_TIDINESS,
        spec: &spec,
        max_attempts: u32::MAX,
        deadline: now + control_plane.policy().clear_away,
        caller,
    };
    store::job::queue(unit.conn(), job, now).await?;
    unit.wake_node(node);
    Ok(())
}
