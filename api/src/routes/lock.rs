//! `Microsoft.Authorization/locks` on a subscription, a group or a server (contract, other-apis §2).
//!
//! Only who may `Microsoft.Authorization/locks/*` makes and removes them: owners, not contributors.
//! The three scopes have the same four calls, so a macro writes the handlers.

use axum::response::{IntoResponse, Response};
use holdfast_domain::{Refusal, SubscriptionId};
use http::StatusCode;
use serde_json::Value;

use super::ok;
use crate::arm::body::typed;
use crate::arm::path::{self, GroupPath, ServerPath, SubscriptionPath};
use crate::arm::{ArmError, Call, Result};
use crate::wire::list::List;
use crate::wire::lock::{LockBody, ManagementLock};

const READ: &str = "Microsoft.Authorization/locks/read";
const WRITE: &str = "Microsoft.Authorization/locks/write";
const DELETE: &str = "Microsoft.Authorization/locks/delete";

macro_rules! locks_on {
    ($module:ident, $at:ty, $one:tt, $all:tt, $put:tt, $get:tt, $delete:tt, $list:tt) => {
        pub mod $module {
            use axum::extract::Path;
            use serde::Deserialize;
            use utoipa::IntoParams;

            use super::*;
            use crate::wire::error::ErrorEnvelope;

            /// The last segment of a lock's path.
            #[derive(Debug, Deserialize, IntoParams)]
            #[into_params(parameter_in = Path)]
            pub struct LockName {
                /// The lock's name.
                pub lock: String,
            }

            /// Make or change a lock.
            #[utoipa::path(
                put, operation_id = $put, tag = "Locks", path = $one, params($at, LockName), request_body = LockBody,
                responses((status = 200, description = "Changed", body = ManagementLock), (status = 201, description = "Made", body = ManagementLock), (status = "4XX", description = "Refused", body = ErrorEnvelope))
            )]
            pub async fn put(Path(at): Path<$at>, Path(name): Path<LockName>, call: Call) -> Result<Response> {
                call.require(WRITE, &at.scope())?;
                let subscription = at.subscription()?;
                let (body, _) = call.json().await?;
                let body = read(body)?;
                check_name(&name.lock)?;
                at.check_there(&call, subscription).await?;
                let (lock, new) = call
                    .api
                    .control()
                    .put_lock(&call.caller(), subscription, &at.scope(), &name.lock, body.properties.level.into(), body.properties.notes)
                    .await?;
                let status = if new { StatusCode::CREATED } else { StatusCode::OK };
                Ok((status, axum::Json(ManagementLock::from(lock))).into_response())
            }

            /// Read a lock.
            #[utoipa::path(
                get, operation_id = $get, tag = "Locks", path = $one, params($at, LockName),
                responses((status = 200, description = "The lock", body = ManagementLock), (status = "4XX", description = "Refused", body = ErrorEnvelope))
            )]
            pub async fn get(Path(at): Path<$at>, Path(name): Path<LockName>, call: Call) -> Result<Response> {
                call.require(READ, &at.scope())?;
                let subscription = at.subscription()?;
                let lock = call.api.control().get_lock(subscription, &at.scope(), &name.lock).await?;
                let lock = lock.ok_or_else(|| not_found(&name.lock, &at.scope()))?;
                Ok(ok(ManagementLock::from(lock)))
            }

            /// Remove a lock.
            #[utoipa::path(
                delete, operation_id = $delete, tag = "Locks", path = $one, params($at, LockName),
                responses((status = 200, description = "Removed"), (status = 204, description = "There is no such lock"), (status = "4XX", description = "Refused", body = ErrorEnvelope))
            )]
            pub async fn delete(Path(at): Path<$at>, Path(name): Path<LockName>, call: Call) -> Result<Response> {
                call.require(DELETE, &at.scope())?;
                let subscription = at.subscription()?;
                let there = call.api.control().delete_lock(&call.caller(), subscription, &at.scope(), &name.lock).await?;
                Ok(if there { StatusCode::OK } else { StatusCode::NO_CONTENT }.into_response())
            }

            /// List the locks on the scope, above it and, without `$filter=atScope()`, below it.
            #[utoipa::path(
                get, operation_id = $list, tag = "Locks", path = $all, params($at),
                responses((status = 200, description = "The locks", body = List<ManagementLock>), (status = "4XX", description = "Refused", body = ErrorEnvelope))
            )]
            pub async fn list(Path(at): Path<$at>, call: Call) -> Result<Response> {
                call.require(READ, &at.scope())?;
                let subscription = at.subscription()?;
                super::list(&call, subscription, &at.scope()).await
            }
        }
    };
}

locks_on!(
    on_subscription,
    SubscriptionPath,
    "/subscriptions/{subscription}/providers/Microsoft.Authorization/locks/{lock}",
    "/subscriptions/{subscription}/providers/Microsoft.Authorization/locks",
    "locks_put_on_subscription",
    "locks_get_on_subscription",
    "locks_delete_on_subscription",
    "locks_list_on_subscription"
);
locks_on!(
    on_group,
    GroupPath,
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Authorization/locks/{lock}",
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Authorization/locks",
    "locks_put_on_group",
    "locks_get_on_group",
    "locks_delete_on_group",
    "locks_list_on_group"
);
locks_on!(
    on_server,
    ServerPath,
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/providers/Microsoft.Authorization/locks/{lock}",
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/providers/Microsoft.Authorization/locks",
    "locks_put_on_server",
    "locks_get_on_server",
    "locks_delete_on_server",
    "locks_list_on_server"
);

/// What a lock can be on.
trait Lockable {
    fn subscription(&self) -> Result<SubscriptionId>;
    /// Only what is there can be locked.
    async fn check_there(&self, call: &Call, subscription: SubscriptionId) -> Result<()>;
}

impl Lockable for SubscriptionPath {
    fn subscription(&self) -> Result<SubscriptionId> {
        Ok(path::subscription(&self.subscription)?)
    }

    async fn check_there(&self, call: &Call, subscription: SubscriptionId) -> Result<()> {
        if call.api.control().subscription_exists(subscription).await? {
            return Ok(());
        }
        Err(Refusal::SubscriptionNotFound(subscription.to_string()).into())
    }
}

impl Lockable for GroupPath {
    fn subscription(&self) -> Result<SubscriptionId> {
        Ok(self.parse()?)
    }

    async fn check_there(&self, call: &Call, subscription: SubscriptionId) -> Result<()> {
        call.api
            .control()
            .get_resource_group(subscription, &self.group)
            .await?;
        Ok(())
    }
}

impl Lockable for ServerPath {
    fn subscription(&self) -> Result<SubscriptionId> {
        Ok(self.parse()?)
    }

    async fn check_there(&self, call: &Call, subscription: SubscriptionId) -> Result<()> {
        call.api
            .control()
            .get_server(self.reference(subscription))
            .await?;
        Ok(())
    }
}

fn read(body: Value) -> Result<LockBody> {
    let body: LockBody = typed(body)?;
    if body
        .properties
        .notes
        .as_ref()
        .is_some_and(|notes| notes.chars().count() > 512)
    {
        return Err(ArmError::invalid(
            "properties.notes",
            "Give at most 512 characters.",
        ));
    }
    Ok(body)
}

fn check_name(name: &str) -> Result<()> {
    let fine = (1..=90).contains(&name.len())
        && name.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'(' | b')' | b' ')
        });
    if fine {
        return Ok(());
    }
    Err(Refusal::InvalidResourceName {
        what: "lock",
        name: name.to_owned(),
        rule: "use 1 to 90 letters, digits, spaces, '-', '_', '.', '(' and ')'",
    }
    .into())
}

fn not_found(name: &str, scope: &str) -> ArmError {
    ArmError::new(
        StatusCode::NOT_FOUND,
        "LockNotFound",
        format!("The lock '{name}' could not be found on '{scope}'."),
    )
}

async fn list(call: &Call, subscription: SubscriptionId, scope: &str) -> Result<Response> {
    let at_scope = match call.parameter("$filter").map(str::trim) {
        None | Some("") => false,
        Some(filter) if filter.eq_ignore_ascii_case("atScope()") => true,
        Some(_) => {
            return Err(ArmError::invalid(
                "$filter",
                "The only filter of locks is atScope().",
            ));
        }
    };
    let locks = call
        .api
        .control()
        .list_locks(subscription, scope, at_scope)
        .await?;
    Ok(ok(List::whole(
        locks.into_iter().map(ManagementLock::from).collect(),
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::word::LockLevel;

    #[test]
    fn a_lock_has_one_of_two_levels() {
        // contract, other-apis §2: NotSpecified is refused
        assert!(
            read(json!({"properties": {"level": "cannotdelete", "notes": "keep", "owners": []}}))
                .is_ok_and(|b| b.properties.level == LockLevel::CanNotDelete)
        );
        for bad in [
            json!({"properties": {"level": "NotSpecified"}}),
            json!({"properties": {}}),
            json!({}),
            json!({"properties": {"level": "ReadOnly", "notes": "x".repeat(513)}}),
        ] {
            assert_eq!(
                read(bad).map(|_| ()).map_err(|e| e.status().as_u16()),
                Err(400)
            );
        }
        assert!(check_name("keep it").is_ok());
        assert!(check_name("a/b").is_err());
    }
}
