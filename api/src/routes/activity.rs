//! The activity log: `Microsoft.Insights/eventtypes/management/values` (contract, other-apis §1).

use axum::extract::Path;
use axum::response::Response;
use serde_json::{Map, Value};

use super::ok;
use crate::arm::path::{self, SubscriptionPath};
use crate::arm::{ArmError, Call, Result, filter};
use crate::wire::activity::Event;
use crate::wire::error::ErrorEnvelope;
use crate::wire::list::List;

const READ: &str = "Microsoft.Insights/eventtypes/values/read";

/// Read the activity log, newest first. `$filter` with `eventTimestamp ge '…'` is required.
#[utoipa::path(
    get, operation_id = "activity_log_list", tag = "Activity log",
    path = "/subscriptions/{subscription}/providers/Microsoft.Insights/eventtypes/management/values",
    params(
        SubscriptionPath,
        ("$filter" = String, Query, description = "eventTimestamp ge '…' [and eventTimestamp le '…'] [and resourceGroupName|resourceUri|resourceProvider|correlationId|status|caller eq '…']"),
        ("$select" = Option<String>, Query, description = "Comma-separated members to return"),
    ),
    responses((status = 200, description = "A page of events", body = List<Event>), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn list(Path(at): Path<SubscriptionPath>, call: Call) -> Result<Response> {
    call.rights.require_within(READ, &at.scope())?;
    let subscription = path::subscription(&at.subscription)?;
    let control = call.api.control();
    let filter = filter::activity(
        call.parameter("$filter"),
        subscription,
        control.clock().now(),
    )?;
    let page = control.query_activity(&filter, &call.page()?).await?;
    let selected: Option<Vec<&str>> = call
        .parameter("$select")
        .filter(|select| !select.trim().is_empty())
        .map(|select| select.split(',').map(str::trim).collect());
    let value: Vec<Value> = page
        .items
        .into_iter()
        .filter(|event| call.rights.allow(READ, &event.resource_id))
        .map(|event| {
            let event = Event::new(event, &call.rights.identity.tenant);
            let event = serde_json::to_value(event).map_err(|error| ArmError::internal(&error))?;
            Ok(select(event, selected.as_deref()))
        })
        .collect::<Result<_>>()?;
    Ok(ok(List {
        value,
        next_link: call.next_link(page.next.as_deref())?,
    }))
}

/// Only the named members; names that no event has are ignored.
fn select(event: Value, names: Option<&[&str]>) -> Value {
    match (event, names) {
        (Value::Object(members), Some(names)) => members
            .into_iter()
            .filter(|(member, _)| names.iter().any(|name| name.eq_ignore_ascii_case(member)))
            .collect::<Map<_, _>>()
            .into(),
        (event, _) => event,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_selected_members_are_shown() {
        let event = json!({"caller": "a", "status": {"value": "Succeeded"}, "id": "x"});
        assert_eq!(
            select(event.clone(), Some(&["Status", "caller", "colour"])),
            json!({"caller": "a", "status": {"value": "Succeeded"}})
        );
        assert_eq!(select(event.clone(), None), event);
    }
}
