//! `createMode: PointInTimeRestore` (contract §3.3): the state of one server at an instant, as a new one.
//!
//! Needs rights on both: write on the target, which the path names, and read and restore on the source,
//! which the body names. Read alone is not enough: whoever restores chooses the copy's password and so
//! sees every row. The source is judged before anything is looked up, so that nobody learns through a
//! restore what they may not read (RELIABILITY §4.2, §4.9 row 11).

use axum::response::Response;
use holdfast_control_plane::Idempotency;
use holdfast_domain::SubscriptionId;
use holdfast_domain::resource_id::ServerResourceId;

use super::{accepted, server};
use crate::arm::path::ServerPath;
use crate::arm::{ArmError, Call, Result};
use crate::wire::server_body::Put;

const READ_BACKUPS: &str = "Microsoft.DBforPostgreSQL/flexibleServers/backups/read";
const RESTORE: &str = "Microsoft.DBforPostgreSQL/flexibleServers/restore/action";

pub(super) async fn point_in_time(
    target: &ServerPath,
    subscription: SubscriptionId,
    call: &Call,
    put: Put,
    idempotency: Idempotency,
) -> Result<Response> {
    let source = put.source.as_deref().ok_or_else(|| {
        ArmError::invalid(
            "properties.sourceServerResourceId",
            "Give the resource id of the server to restore from.",
        )
    })?;
    let source = ServerResourceId::parse(source)?;
    let scope = source.to_string();
    call.require(server::READ, &scope)?;
    call.require(READ_BACKUPS, &scope)?;
    call.require(RESTORE, &scope)?;
    if source.subscription == subscription
        && source.group.eq_ignore_ascii_case(&target.group)
        && source.name.eq_ignore_ascii_case(&target.server)
    {
        return Err(ArmError::invalid(
            "properties.sourceServerResourceId",
            "A restore makes a new server and never overwrites one; choose another name for it.",
        ));
    }
    let at = put.restore_time()?;
    let done = call
        .api
        .control()
        .restore_server(
            &call.caller(),
            target.reference(subscription),
            &source,
            at,
            &put.wish,
            &idempotency,
        )
        .await?;
    Ok(accepted(call, &done))
}
