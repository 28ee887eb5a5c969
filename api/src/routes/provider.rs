//! The provider itself: its operations, and whether a server's name is free.

use axum::extract::Path;
use axum::response::Response;
use holdfast_domain::name;

use super::ok;
use crate::arm::body::typed;
use crate::arm::path::{self, LocationPath, SubscriptionPath};
use crate::arm::{ArmError, Call, Result};
use crate::wire::error::ErrorEnvelope;
use crate::wire::list::List;
use crate::wire::name_availability::{NameAnswer, NameQuestion};
use crate::wire::provider::{ProviderOperation, ProviderOperationDisplay};

const CHECK_NAME: &str = "Microsoft.DBforPostgreSQL/checkNameAvailability/action";
const CHECK_NAME_IN: &str = "Microsoft.DBforPostgreSQL/locations/checkNameAvailability/action";
const SERVER_TYPE: &str = "Microsoft.DBforPostgreSQL/flexibleServers";

/// Is this server name free?
#[utoipa::path(
    post, operation_id = "name_availability_check_globally", tag = "Provider",
    path = "/subscriptions/{subscription}/providers/Microsoft.DBforPostgreSQL/checkNameAvailability",
    params(SubscriptionPath), request_body = NameQuestion,
    responses((status = 200, description = "Free or not, and why", body = NameAnswer), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn check_name(Path(at): Path<SubscriptionPath>, call: Call) -> Result<Response> {
    call.require(CHECK_NAME, &at.scope())?;
    path::subscription(&at.subscription)?;
    answer(&call).await
}

/// Is this server name free, asked in a region? Names are free everywhere or nowhere.
#[utoipa::path(
    post, operation_id = "name_availability_check_with_location", tag = "Provider",
    path = "/subscriptions/{subscription}/providers/Microsoft.DBforPostgreSQL/locations/{location}/checkNameAvailability",
    params(LocationPath), request_body = NameQuestion,
    responses((status = 200, description = "Free or not, and why", body = NameAnswer), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn check_name_in(Path(at): Path<LocationPath>, call: Call) -> Result<Response> {
    call.require(CHECK_NAME_IN, &at.scope())?;
    path::subscription(&at.subscription)?;
    answer(&call).await
}

async fn answer(call: &Call) -> Result<Response> {
    let (body, _) = call.json().await?;
    let question: NameQuestion = typed(body)?;
    if !question.kind.eq_ignore_ascii_case(SERVER_TYPE) {
        return Err(ArmError::invalid("type", format!("Use {SERVER_TYPE}.")));
    }
    let say = |reason: Option<&str>, message: String| NameAnswer {
        name: question.name.clone(),
        kind: question.kind.clone(),
        available: reason.is_none(),
        reason: reason.map(ToOwned::to_owned),
        message,
    };
    let answer = match name::new_server(&question.name) {
        Err(refusal) => say(Some("Invalid"), refusal.to_string()),
        Ok(name) if call.api.control().server_name_available(&name).await? => {
            say(None, String::new())
        }
        Ok(_) => say(
            Some("AlreadyExists"),
            "Specified server name is already used.".to_owned(),
        ),
    };
    Ok(ok(answer))
}

/// What roles can be made of.
#[utoipa::path(
    get, operation_id = "operations_list", tag = "Provider",
    path = "/providers/Microsoft.DBforPostgreSQL/operations",
    responses((status = 200, description = "All operations", body = List<ProviderOperation>), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn operations(_call: Call) -> Result<Response> {
    const OPERATIONS: &[(&str, &str, &str)] = &[
        ("flexibleServers/read", "Servers", "Read servers"),
        (
            "flexibleServers/write",
            "Servers",
            "Create, change and restore servers",
        ),
        ("flexibleServers/delete", "Servers", "Delete servers"),
        ("flexibleServers/start/action", "Servers", "Start servers"),
        ("flexibleServers/stop/action", "Servers", "Stop servers"),
        (
            "flexibleServers/restart/action",
            "Servers",
            "Restart servers",
        ),
        (
            "flexibleServers/restore/action",
            "Servers",
            "Restore from servers",
        ),
        ("flexibleServers/backups/read", "Backups", "Read backups"),
        (
            "flexibleServers/backups/write",
            "Backups",
            "Take on-demand backups",
        ),
        (
            "flexibleServers/backups/delete",
            "Backups",
            "Delete on-demand backups",
        ),
        (
            "locations/azureAsyncOperation/read",
            "Operations",
            "Read operations",
        ),
        ("checkNameAvailability/action", "Names", "Check names"),
        (
            "locations/checkNameAvailability/action",
            "Names",
            "Check names in a region",
        ),
    ];
    let value = OPERATIONS
        .iter()
        .map(|(name, resource, operation)| ProviderOperation {
            name: format!("Microsoft.DBforPostgreSQL/{name}"),
            display: ProviderOperationDisplay {
                provider: "Holdfast".to_owned(),
                resource: (*resource).to_owned(),
                operation: (*operation).to_owned(),
                description: (*operation).to_owned(),
            },
            is_data_action: false,
            origin: "user".to_owned(),
        })
        .collect();
    Ok(ok(List::whole(value)))
}
