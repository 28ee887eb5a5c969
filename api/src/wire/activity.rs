//! One event of the activity log (contract, other-apis §1). All values of `properties` and `claims`
//! are text in the clients' eyes.

use std::collections::BTreeMap;

use holdfast_domain::activity::{ActivityEvent, ActivityStatus};
use holdfast_domain::instant;
use serde::Serialize;
use utoipa::ToSchema;

use super::zulu;

/// A word and how to show it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Localized {
    pub value: String,
    pub localized_value: String,
}

impl Localized {
    fn of(value: impl Into<String>) -> Self {
        let value = value.into();
        Self {
            localized_value: value.clone(),
            value,
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub authorization: EventAuthorization,
    pub caller: String,
    pub channels: String,
    pub claims: BTreeMap<String, String>,
    pub category: Localized,
    pub correlation_id: String,
    pub description: String,
    pub event_data_id: String,
    pub event_name: Localized,
    pub event_timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub http_request: Option<EventHttpRequest>,
    pub id: String,
    pub level: String,
    pub operation_id: String,
    pub operation_name: Localized,
    pub properties: BTreeMap<String, String>,
    pub resource_group_name: String,
    pub resource_id: String,
    pub resource_provider_name: Localized,
    pub resource_type: Localized,
    pub status: Localized,
    pub sub_status: Localized,
    pub submission_timestamp: String,
    pub subscription_id: String,
    pub tenant_id: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct EventAuthorization {
    pub action: String,
    pub scope: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventHttpRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub client_request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub client_ip_address: Option<String>,
    pub method: String,
}

/// The words of `status.value`.
#[must_use]
pub fn status_word(status: ActivityStatus) -> &'static str {
    match status {
        ActivityStatus::Started => "Started",
        ActivityStatus::Accepted => "Accepted",
        ActivityStatus::Succeeded => "Succeeded",
        ActivityStatus::Failed => "Failed",
    }
}

impl Event {
    #[must_use]
    pub fn new(event: ActivityEvent, tenant: &str) -> Self {
        let at = zulu(event.at);
        // `Microsoft.DBforPostgreSQL/flexibleServers/backups/write` → its type.
        let resource_type = event
            .action
            .rsplit_once('/')
            .map_or(event.action.as_str(), |(kind, _)| {
                kind.strip_suffix("/action").unwrap_or(kind)
            })
            .to_owned();
        let provider = resource_type
            .split('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let sub_status = event.http_status.map_or_else(String::new, |status| {
            let words = http::StatusCode::from_u16(status)
                .ok()
                .and_then(|status| status.canonical_reason())
                .unwrap_or_default();
            format!("{words} (HTTP Status Code: {status})")
        });
        let operation = event
            .operation
            .map_or_else(|| event.caller.correlation_id.clone(), |id| id.to_string());
        let mut properties = event.properties;
        if let Some(status) = event.http_status {
            properties
                .entry("statusCode".to_owned())
                .or_insert_with(|| status.to_string());
        }
        Self {
            authorization: EventAuthorization {
                action: event.action.clone(),
                scope: event.resource_id.clone(),
            },
            caller: event.caller.name,
            channels: "Operation".to_owned(),
            claims: BTreeMap::from([(
                "http://schemas.microsoft.com/identity/claims/objectidentifier".to_owned(),
                event.caller.principal,
            )]),
            category: Localized::of("Administrative"),
            correlation_id: event.caller.correlation_id,
            description: String::new(),
            event_data_id: event.id.to_string(),
            event_name: Localized::of(match event.status {
                ActivityStatus::Started => "BeginRequest",
                _ => "EndRequest",
            }),
            event_timestamp: at.clone(),
            http_request: event.http_method.map(|method| EventHttpRequest {
                client_request_id: event.caller.client_request_id,
                client_ip_address: event.caller.client_address,
                method,
            }),
            id: format!(
                "{}/events/{}/ticks/{}",
                event.resource_id,
                event.id,
                instant::ticks(event.at)
            ),
            level: match event.status {
                ActivityStatus::Failed => "Error",
                _ => "Informational",
            }
            .to_owned(),
            operation_id: operation,
            operation_name: Localized::of(event.action),
            properties,
            resource_group_name: event.group,
            resource_id: event.resource_id,
            resource_provider_name: Localized::of(provider),
            resource_type: Localized::of(resource_type),
            status: Localized::of(status_word(event.status)),
            sub_status: Localized::of(sub_status),
            submission_timestamp: at,
            subscription_id: event.subscription.to_string(),
            tenant_id: tenant.to_owned(),
        }
    }
}
