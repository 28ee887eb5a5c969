//! `flexibleServers/backups` (contract §2.1, §4.1).

use axum::extract::Path;
use axum::response::Response;
use holdfast_control_plane::backup::BackupView;
use http::StatusCode;

use super::{accepted, accepted_or_absent, ok};
use crate::arm::path::{BackupPath, ServerPath};
use crate::arm::{ArmError, Call, Result};
use crate::wire::backup::Backup;
use crate::wire::error::ErrorEnvelope;
use crate::wire::list::List;
use crate::wire::operation::AcceptedOperation;
use crate::wire::server;

const READ: &str = "Microsoft.DBforPostgreSQL/flexibleServers/backups/read";
const WRITE: &str = "Microsoft.DBforPostgreSQL/flexibleServers/backups/write";
const DELETE: &str = "Microsoft.DBforPostgreSQL/flexibleServers/backups/delete";

/// Take an on-demand backup. There is no body.
#[utoipa::path(
    put, operation_id = "backups_create", tag = "Backups",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/backups/{backup}",
    params(BackupPath),
    responses((status = 202, description = "Accepted", body = AcceptedOperation), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn put(Path(at): Path<BackupPath>, call: Call) -> Result<Response> {
    call.require(WRITE, &at.scope())?;
    let subscription = at.parse()?;
    let idempotency = call.no_body().await?;
    let done = call
        .api
        .control()
        .request_backup(
            &call.caller(),
            at.server().reference(subscription),
            &at.backup,
            &idempotency,
        )
        .await?;
    Ok(accepted(&call, &done))
}

/// Anything below a backup: its bytes cannot be had (FLX-012, FLX-133). Asked with any method, and so in no
/// list of operations.
pub async fn export(Path(at): Path<BackupPath>, call: Call) -> Result<Response> {
    call.require(READ, &at.scope())?;
    at.parse()?;
    Err(ArmError::new(
        StatusCode::FORBIDDEN,
        "BackupExportNotSupported",
        "A backup cannot be exported: it is encrypted and can only be restored as a new server. For a portable copy run pg_dump against the server, or against one that was restored from the backup, and load it with pg_restore or psql.",
    ))
}

/// Read a complete backup.
#[utoipa::path(
    get, operation_id = "backups_get", tag = "Backups",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/backups/{backup}",
    params(BackupPath),
    responses((status = 200, description = "The backup", body = Backup), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn get(Path(at): Path<BackupPath>, call: Call) -> Result<Response> {
    call.require(READ, &at.scope())?;
    let subscription = at.parse()?;
    let server = at.server();
    let control = call.api.control();
    let view = control
        .get_backup(server.reference(subscription), &at.backup)
        .await?;
    let server = control.get_server(server.reference(subscription)).await?;
    Ok(ok(shown(&server::id(&server.server), &view)))
}

/// List the complete backups of a server.
#[utoipa::path(
    get, operation_id = "backups_list_by_server", tag = "Backups",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/backups",
    params(ServerPath),
    responses((status = 200, description = "The backups", body = List<Backup>), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn list(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(READ, &at.scope())?;
    let subscription = at.parse()?;
    let control = call.api.control();
    let server = control.get_server(at.reference(subscription)).await?;
    let id = server::id(&server.server);
    let views = control.list_backups(at.reference(subscription)).await?;
    Ok(ok(List::whole(
        views.iter().map(|view| shown(&id, view)).collect(),
    )))
}

/// Delete an on-demand backup.
#[utoipa::path(
    delete, operation_id = "backups_delete", tag = "Backups",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/backups/{backup}",
    params(BackupPath),
    responses((status = 202, description = "Accepted", body = AcceptedOperation), (status = 204, description = "There is no such backup"), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn delete(Path(at): Path<BackupPath>, call: Call) -> Result<Response> {
    call.require(DELETE, &at.scope())?;
    let subscription = at.parse()?;
    let idempotency = call.no_body().await?;
    let done = call
        .api
        .control()
        .delete_backup(
            &call.caller(),
            at.server().reference(subscription),
            &at.backup,
            &idempotency,
        )
        .await?;
    Ok(accepted_or_absent(&call, done.as_ref()))
}

fn shown(server_id: &str, view: &BackupView) -> Backup {
    let backup = &view.backup;
    Backup::new(server_id, &backup.name, backup.kind, backup.completed_time)
}
