//! The calls, a file a noun. A handler says who may, reads what was sent, calls one use case and
//! converts the answer; [`crate::table_of_contents`] says where each is reached.

pub mod activity;
pub mod backup;
pub mod health;
pub mod lock;
pub mod operation;
pub mod provider;
pub mod recovery;
pub mod resource_group;
pub mod restore;
pub mod server;

use axum::response::{IntoResponse, Response};
use holdfast_control_plane::{Accepted, ServerRef};
use holdfast_domain::SubscriptionId;
use http::StatusCode;
use serde::Serialize;

use crate::arm::Call;
use crate::arm::operation_url;
use crate::arm::path::ServerPath;

fn ok(body: impl Serialize) -> Response {
    (StatusCode::OK, axum::Json(body)).into_response()
}

fn accepted(call: &Call, accepted: &Accepted) -> Response {
    operation_url::accepted(
        &accepted.operation,
        &call.api.config().public_url,
        &call.version,
    )
}

/// Deleting what is not there is done already (contract §2.1).
fn accepted_or_absent(call: &Call, deleted: Option<&Accepted>) -> Response {
    deleted.map_or_else(
        || StatusCode::NO_CONTENT.into_response(),
        |operation| accepted(call, operation),
    )
}

impl ServerPath {
    fn reference(&self, subscription: SubscriptionId) -> ServerRef<'_> {
        ServerRef {
            subscription,
            group: &self.group,
            name: &self.server,
        }
    }
}
