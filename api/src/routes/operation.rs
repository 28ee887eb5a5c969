//! Polling (contract §5; facts 3 and 4).
//!
//! Whoever may read something of the subscription may ask; of an operation on what they may not read
//! they hear what they would hear of one that never was (RELIABILITY §4.9 row 26).

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use holdfast_domain::operation::{Operation, OperationKind, OperationState};
use holdfast_domain::region::canonical;
use holdfast_domain::resource_id::ServerResourceId;
use holdfast_domain::{OperationId, Refusal};
use http::StatusCode;
use serde_json::Map;

use super::ok;
use crate::arm::operation_url::{retry, still_running};
use crate::arm::path::{self, OperationPath};
use crate::arm::{ArmError, Call, Result};
use crate::wire::backup::Backup;
use crate::wire::error::{ErrorEnvelope, ErrorInfo};
use crate::wire::operation::{ActionResult, OperationStatus, failure};
use crate::wire::server::{self, Server};

const READ: &str = "Microsoft.DBforPostgreSQL/locations/azureAsyncOperation/read";

/// How an operation stands.
#[utoipa::path(
    get, operation_id = "operations_status", tag = "Operations",
    path = "/subscriptions/{subscription}/providers/Microsoft.DBforPostgreSQL/locations/{location}/azureAsyncOperation/{operation}",
    params(OperationPath),
    responses((status = 200, description = "Running or ended", body = OperationStatus), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn status(Path(at): Path<OperationPath>, call: Call) -> Result<Response> {
    let operation = find(&at, &call).await?;
    Ok(retry(ok(OperationStatus::from(&operation))))
}

/// What came of an operation. Answers after the resource is gone, too.
#[utoipa::path(
    get, operation_id = "operations_result", tag = "Operations",
    path = "/subscriptions/{subscription}/providers/Microsoft.DBforPostgreSQL/locations/{location}/operationResults/{operation}",
    params(OperationPath),
    responses((status = 200, description = "The resource, or the end of an action", body = ActionResult), (status = 202, description = "Still running"), (status = 204, description = "The resource is gone"), (status = "4XX", description = "The operation failed", body = ErrorEnvelope))
)]
pub async fn result(Path(at): Path<OperationPath>, call: Call) -> Result<Response> {
    let operation = find(&at, &call).await?;
    match operation.state {
        OperationState::Accepted | OperationState::Running | OperationState::Canceling => Ok(
            still_running(&operation, &call.api.config().public_url, &call.version),
        ),
        OperationState::Succeeded => succeeded(&operation, &call).await,
        OperationState::Failed | OperationState::Canceled => {
            let error = failure(&operation).unwrap_or_else(|| ErrorInfo {
                code: "OperationFailed".to_owned(),
                message: "The operation failed.".to_owned(),
                target: None,
                details: Vec::new(),
            });
            Ok((StatusCode::BAD_REQUEST, axum::Json(ErrorEnvelope { error })).into_response())
        }
    }
}

async fn find(at: &OperationPath, call: &Call) -> Result<Operation> {
    call.rights.require_within(READ, &at.scope())?;
    let subscription = path::subscription(&at.subscription)?;
    let unknown = || {
        ArmError::from(Refusal::OperationNotFound(
            at.operation.chars().take(64).collect(),
        ))
    };
    let id: OperationId = at.operation.parse().map_err(|_| unknown())?;
    let operation = call
        .api
        .control()
        .get_operation(subscription, &canonical(&at.location), id)
        .await?;
    if call.rights.allow(READ, &operation.resource_id) {
        Ok(operation)
    } else {
        Err(unknown())
    }
}

async fn succeeded(operation: &Operation, call: &Call) -> Result<Response> {
    // Only a backup's id ends in its name; `backups` can be the name of a group, too.
    let (id, backup) = match operation.kind {
        OperationKind::DeleteServer | OperationKind::DeleteBackup => {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        OperationKind::CreateBackup => operation
            .resource_id
            .rsplit_once("/backups/")
            .unwrap_or_default(),
        _ => (operation.resource_id.as_str(), ""),
    };
    let id = ServerResourceId::parse(id)?;
    let at = holdfast_control_plane::ServerRef {
        subscription: id.subscription,
        group: &id.group,
        name: &id.name,
    };
    let control = call.api.control();
    match operation.kind {
        OperationKind::StartServer | OperationKind::StopServer | OperationKind::RestartServer => {
            Ok(ok(ActionResult {
                properties: Map::new(),
                name: id.name,
                kind: "PostgreSQL".to_owned(),
            }))
        }
        OperationKind::CreateBackup => {
            let view = match control.get_backup(at, backup).await {
                Ok(view) => view,
                Err(error) => return absent(error),
            };
            let server = control.get_server(at).await?;
            let backup = &view.backup;
            Ok(ok(Backup::new(
                &server::id(&server.server),
                &backup.name,
                backup.kind,
                backup.completed_time,
            )))
        }
        _ => match control.get_server(at).await {
            Ok(view) => Ok(ok(Server::new(view, call.surroundings()))),
            Err(error) => absent(error),
        },
    }
}

/// What an operation made may be gone again; a 404 here would read as a failure of the operation.
fn absent(error: holdfast_control_plane::Error) -> Result<Response> {
    match error {
        holdfast_control_plane::Error::Refused(
            Refusal::ResourceNotFound { .. } | Refusal::ResourceGroupNotFound(_),
        ) => Ok(StatusCode::NO_CONTENT.into_response()),
        error => Err(error.into()),
    }
}
