//! Who did what to which resource and how it ended: one line of the activity log.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{EventId, OperationId, SubscriptionId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActivityStatus {
    Started,
    Accepted,
    Succeeded,
    Failed,
}

/// Who caused something. `service` is the scheduler's own doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Object id of the principal.
    pub principal: String,
    /// What people know it by.
    pub name: String,
    pub client_address: Option<String>,
    /// The caller's `x-ms-client-request-id`.
    pub client_request_id: Option<String>,
    /// One id for all events of one request: the caller's, or ours.
    pub correlation_id: String,
    /// W3C trace context of the request, carried to the job.
    pub traceparent: Option<String>,
}

impl Caller {
    /// What the scheduler does by itself.
    #[must_use]
    pub fn service(correlation_id: String) -> Self {
        Self {
            principal: "holdfast".to_owned(),
            name: "holdfast".to_owned(),
            client_address: None,
            client_request_id: None,
            correlation_id,
            traceparent: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivityEvent {
    pub id: EventId,
    pub subscription: SubscriptionId,
    pub group: String,
    /// In the caller's case.
    pub resource_id: String,
    /// `Microsoft.DBforPostgreSQL/flexibleServers/write` and the like.
    pub action: String,
    pub status: ActivityStatus,
    pub operation: Option<OperationId>,
    pub caller: Caller,
    pub at: DateTime<Utc>,
    pub http_method: Option<String>,
    pub http_status: Option<u16>,
    /// Code and message of a failure, ids, reasons; text only.
    pub properties: BTreeMap<String, String>,
}
