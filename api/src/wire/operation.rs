//! Long-running operations (contract §5).
//!
//! Terminal words are exactly `Succeeded`, `Failed` and `Canceled`; the error stands at the top, or
//! clients lose its code (contract, fact 4). `resourceLocation` must never appear: it would redirect
//! the client's last GET.

use holdfast_domain::instant;
use holdfast_domain::operation::{Operation, OperationKind, OperationState};
use holdfast_domain::resource_id::PROVIDER;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::error::ErrorInfo;
use super::zulu_millis;

/// The body of a 202. It has no `status`: pollers would read it (contract, fact 2).
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedOperation {
    pub operation: String,
    pub start_time: String,
}

/// The body of `azureAsyncOperation/{id}`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    pub id: String,
    pub name: String,
    /// `InProgress`, `Succeeded`, `Failed` or `Canceled`.
    pub status: String,
    pub start_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub end_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub percent_complete: Option<f64>,
    /// Phase, bytes and how far recovery has come while it runs; what was reached afterwards.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub properties: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error: Option<ErrorInfo>,
}

/// The final body of `operationResults/{id}` of an action without a resource.
#[derive(Debug, Serialize, ToSchema)]
pub struct ActionResult {
    #[schema(value_type = Object)]
    pub properties: Map<String, Value>,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// The service's own names for operations (contract §5).
#[must_use]
pub fn internal_name(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::CreateServer | OperationKind::UpdateServer => {
            "UpsertServerManagementOperationV2"
        }
        OperationKind::RestoreServer => "RestoreSnapshotManagementOperation",
        OperationKind::DeleteServer => "DropServerManagementOperation",
        OperationKind::StartServer => "StartServerManagementOperation",
        OperationKind::StopServer => "StopServerManagementOperation",
        OperationKind::RestartServer => "RestartServerManagementOperation",
        OperationKind::CreateBackup => "SnapshotManagementOperation",
        OperationKind::DeleteBackup => "DropSnapshotManagementOperation",
    }
}

impl From<&Operation> for AcceptedOperation {
    fn from(operation: &Operation) -> Self {
        Self {
            operation: internal_name(operation.kind).to_owned(),
            start_time: zulu_millis(operation.created_at),
        }
    }
}

/// Code and message of an operation that did not succeed.
#[must_use]
pub fn failure(operation: &Operation) -> Option<ErrorInfo> {
    let (code, message) = match (operation.state, &operation.failure) {
        (OperationState::Failed | OperationState::Canceled, Some(failure)) => {
            (failure.code.clone(), failure.message.clone())
        }
        (OperationState::Failed, None) => (
            "OperationFailed".to_owned(),
            "The operation failed without saying why; the log of the server's node has more."
                .to_owned(),
        ),
        (OperationState::Canceled, None) => (
            "OperationCanceled".to_owned(),
            "The operation was canceled.".to_owned(),
        ),
        _ => return None,
    };
    Some(ErrorInfo {
        code,
        message,
        target: None,
        details: Vec::new(),
    })
}

impl From<&Operation> for OperationStatus {
    fn from(operation: &Operation) -> Self {
        let mut properties = match &operation.result {
            Some(Value::Object(result)) => result.clone(),
            _ => Map::new(),
        };
        if let Some(progress) = &operation.progress {
            let mut say = |key: &str, value: Value| {
                properties.entry(key).or_insert(value);
            };
            say("phase", json!(progress.phase));
            say("bytesDone", json!(progress.bytes_done));
            say("walBytesDone", json!(progress.wal_bytes_done));
            if let Some(total) = progress.bytes_total {
                say("bytesTotal", json!(total));
            }
            if let Some(total) = progress.wal_bytes_total {
                say("walBytesTotal", json!(total));
            }
            if let Some(at) = progress.recovered_up_to {
                say("walRecoveredUpTo", json!(instant::wire(at)));
            }
        }
        properties.remove("resourceLocation");
        properties.remove("provisioningState");
        let percent = match operation.state {
            OperationState::Succeeded => Some(100.0),
            _ => operation
                .progress
                .as_ref()
                .map(|progress| progress.percent.clamp(0.0, 100.0)),
        };
        Self {
            id: format!(
                "/subscriptions/{}/providers/{PROVIDER}/locations/{}/azureAsyncOperation/{}",
                operation.subscription, operation.region, operation.id
            ),
            name: operation.id.to_string(),
            status: match operation.state {
                OperationState::Accepted | OperationState::Running | OperationState::Canceling => {
                    "InProgress"
                }
                OperationState::Succeeded => "Succeeded",
                OperationState::Failed => "Failed",
                OperationState::Canceled => "Canceled",
            }
            .to_owned(),
            start_time: zulu_millis(operation.created_at),
            end_time: operation.ended_at.map(zulu_millis),
            percent_complete: percent,
            properties,
            error: failure(operation),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use holdfast_domain::job::Progress;
    use holdfast_domain::operation::Failure;
    use holdfast_domain::{OperationId, ServerId};

    use super::*;

    pub(crate) fn operation(state: OperationState) -> Operation {
        Operation {
            id: "01890000-0000-7000-8000-000000000001".parse::<OperationId>().expect("valid"),
            subscription: "11111111-2222-3333-4444-555555555555".parse().expect("valid"),
            kind: OperationKind::RestoreServer,
            state,
            server: ServerId::new(),
            backup: None,
            resource_id: "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg2".into(),
            region: "eastus2".into(),
            failure: None,
            progress: None,
            result: None,
            created_at: "2026-11-20T10:00:00.123456Z".parse().expect("valid"),
            deadline: "2026-11-22T10:00:00Z".parse().expect("valid"),
            ended_at: None,
        }
    }

    #[test]
    fn a_running_restore_shows_how_far_it_is() {
        // FLX-003, FLX-054
        let mut running = operation(OperationState::Running);
        running.progress = Some(Progress {
            phase: "ReplayingWal".into(),
            bytes_done: 100,
            bytes_total: Some(100),
            wal_bytes_done: 5,
            wal_bytes_total: Some(10),
            recovered_up_to: instant::parse("2026-11-20T09:30:00Z"),
            percent: 75.0,
        });
        assert_eq!(
            serde_json::to_value(OperationStatus::from(&running)).expect("JSON"),
            json!({
                "id": "/subscriptions/11111111-2222-3333-4444-555555555555/providers/Microsoft.DBforPostgreSQL/locations/eastus2/azureAsyncOperation/01890000-0000-7000-8000-000000000001",
                "name": "01890000-0000-7000-8000-000000000001",
                "status": "InProgress",
                "startTime": "2026-11-20T10:00:00.123Z",
                "percentComplete": 75.0,
                "properties": {"phase": "ReplayingWal", "bytesDone": 100, "bytesTotal": 100, "walBytesDone": 5, "walBytesTotal": 10, "walRecoveredUpTo": "2026-11-20T09:30:00.0000000+00:00"}
            })
        );
    }

    #[test]
    fn a_failure_stands_at_the_top() {
        // contract, fact 4
        let mut failed = operation(OperationState::Failed);
        failed.failure = Some(Failure {
            code: "WalGap".into(),
            message: "gone".into(),
        });
        let shown = serde_json::to_value(OperationStatus::from(&failed)).expect("JSON");
        assert_eq!(
            (&shown["status"], &shown["error"]),
            (
                &json!("Failed"),
                &json!({"code": "WalGap", "message": "gone"})
            )
        );
    }

    #[test]
    fn an_accepted_operation_says_no_status() {
        // contract, fact 2
        let body = serde_json::to_value(AcceptedOperation::from(&operation(
            OperationState::Accepted,
        )))
        .expect("JSON");
        assert_eq!(
            body,
            json!({"operation": "RestoreSnapshotManagementOperation", "startTime": "2026-11-20T10:00:00.123Z"})
        );
    }
}
