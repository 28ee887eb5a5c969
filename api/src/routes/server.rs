//! `flexibleServers`: made, read, changed, started, stopped, deleted (contract §2.1, §3).

use axum::extract::Path;
use axum::response::Response;
use holdfast_control_plane::{PutMode, ServerView};
use holdfast_domain::job::Power;
use holdfast_domain::{Refusal, SubscriptionId};

use super::{accepted, accepted_or_absent, ok, restore};
use crate::arm::path::{self, GroupPath, ServerPath, SubscriptionPath};
use crate::arm::{ArmError, Call, Result};
use crate::wire::error::ErrorEnvelope;
use crate::wire::list::List;
use crate::wire::operation::AcceptedOperation;
use crate::wire::server::{self as wire, Server};
use crate::wire::server_body::{Put, ServerBody, read_patch};
use crate::wire::word::CreateMode;

pub(super) const READ: &str = "Microsoft.DBforPostgreSQL/flexibleServers/read";
const WRITE: &str = "Microsoft.DBforPostgreSQL/flexibleServers/write";
const DELETE: &str = "Microsoft.DBforPostgreSQL/flexibleServers/delete";
const START: &str = "Microsoft.DBforPostgreSQL/flexibleServers/start/action";
const STOP: &str = "Microsoft.DBforPostgreSQL/flexibleServers/stop/action";
const RESTART: &str = "Microsoft.DBforPostgreSQL/flexibleServers/restart/action";

/// Create a server, change it, or restore another one's state into a new one.
#[utoipa::path(
    put, operation_id = "servers_create_or_update", tag = "Servers",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}",
    params(ServerPath), request_body = ServerBody,
    responses((status = 202, description = "Accepted", body = AcceptedOperation), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn put(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(WRITE, &at.scope())?;
    let subscription = at.parse()?;
    let (body, idempotency) = call.json().await?;
    let mut put = Put::read(body)?;
    let mode = match put.mode {
        CreateMode::Default => PutMode::Default,
        CreateMode::Create => PutMode::Create,
        CreateMode::Update => PutMode::Update,
        CreateMode::PointInTimeRestore => {
            return restore::point_in_time(&at, subscription, &call, put, idempotency).await;
        }
        CreateMode::GeoRestore | CreateMode::ReviveDropped | CreateMode::Replica => {
            return Err(not_offered(put.mode));
        }
    };
    if put.wish.location.is_none() {
        return Err(ArmError::bad_request(
            "LocationRequired",
            "The location property is required for this definition.",
        )
        .at("location"));
    }
    if call.version.client_defaults_geo() && put.wish.geo == Some(false) {
        put.wish.geo = None;
    }
    let done = call
        .api
        .control()
        .put_server(
            &call.caller(),
            at.reference(subscription),
            &put.wish,
            mode,
            &idempotency,
        )
        .await?;
    Ok(accepted(&call, &done))
}

fn not_offered(mode: CreateMode) -> ArmError {
    let what = match mode {
        CreateMode::GeoRestore => {
            "GeoRestore is not offered yet: no copies are kept in a paired region. Use PointInTimeRestore in the source's region"
        }
        CreateMode::ReviveDropped => {
            "ReviveDropped is not offered yet. A dropped server's backups are kept for 5 days"
        }
        _ => "Read replicas are not offered. Use PointInTimeRestore for a copy of a server",
    };
    ArmError::from(Refusal::NotSupported(format!("{what}."))).at("properties.createMode")
}

/// Read a server.
#[utoipa::path(
    get, operation_id = "servers_get", tag = "Servers",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}",
    params(ServerPath),
    responses((status = 200, description = "The server", body = Server), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn get(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(READ, &at.scope())?;
    let view = call
        .api
        .control()
        .get_server(at.reference(at.parse()?))
        .await?;
    Ok(ok(Server::new(view, call.surroundings())))
}

/// Change retention, tags, storage, compute or the maintenance window.
#[utoipa::path(
    patch, operation_id = "servers_update", tag = "Servers",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}",
    params(ServerPath), request_body = ServerBody,
    responses((status = 202, description = "Accepted", body = AcceptedOperation), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn patch(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(WRITE, &at.scope())?;
    let subscription = at.parse()?;
    let (body, idempotency) = call.json().await?;
    let wish = read_patch(body)?;
    if wish.administrator_password.is_some() {
        // Nothing would carry it to the server; taking it and doing nothing would lock people out.
        return Err(ArmError::from(Refusal::NotSupported(
            "The administrator's password is changed over SQL: ALTER ROLE … PASSWORD. Leave administratorLoginPassword out.".to_owned(),
        ))
        .at("properties.administratorLoginPassword"));
    }
    let done = call
        .api
        .control()
        .update_server(
            &call.caller(),
            at.reference(subscription),
            &wish,
            call.version.client_defaults_geo(),
            &idempotency,
        )
        .await?;
    Ok(accepted(&call, &done))
}

/// Drop a server. Its backups are kept for 5 days.
#[utoipa::path(
    delete, operation_id = "servers_delete", tag = "Servers",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}",
    params(ServerPath),
    responses((status = 202, description = "Accepted", body = AcceptedOperation), (status = 204, description = "There is no such server"), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn delete(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(DELETE, &at.scope())?;
    let subscription = at.parse()?;
    let idempotency = call.no_body().await?;
    let done = call
        .api
        .control()
        .delete_server(&call.caller(), at.reference(subscription), &idempotency)
        .await?;
    Ok(accepted_or_absent(&call, done.as_ref()))
}

/// List the servers of a resource group.
#[utoipa::path(
    get, operation_id = "servers_list_by_resource_group", tag = "Servers",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers",
    params(GroupPath),
    responses((status = 200, description = "A page of servers", body = List<Server>), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn list_by_group(Path(at): Path<GroupPath>, call: Call) -> Result<Response> {
    call.rights.require_within(READ, &at.scope())?;
    let subscription = at.parse()?;
    let page = call
        .api
        .control()
        .list_servers_of_group(subscription, &at.group, &call.page()?)
        .await?;
    listed(&call, page.items, page.next.as_deref())
}

/// List the servers of a subscription.
#[utoipa::path(
    get, operation_id = "servers_list_by_subscription", tag = "Servers",
    path = "/subscriptions/{subscription}/providers/Microsoft.DBforPostgreSQL/flexibleServers",
    params(SubscriptionPath),
    responses((status = 200, description = "A page of servers", body = List<Server>), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn list_by_subscription(
    Path(at): Path<SubscriptionPath>,
    call: Call,
) -> Result<Response> {
    call.rights.require_within(READ, &at.scope())?;
    let subscription: SubscriptionId = path::subscription(&at.subscription)?;
    let page = call
        .api
        .control()
        .list_servers(subscription, &call.page()?)
        .await?;
    listed(&call, page.items, page.next.as_deref())
}

fn listed(call: &Call, views: Vec<ServerView>, next: Option<&str>) -> Result<Response> {
    let value = views
        .into_iter()
        .filter(|view| call.rights.allow(READ, &wire::id(&view.server)))
        .map(|view| Server::new(view, call.surroundings()))
        .collect();
    Ok(ok(List {
        value,
        next_link: call.next_link(next)?,
    }))
}

/// Start a stopped server.
#[utoipa::path(
    post, operation_id = "servers_start", tag = "Servers",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/start",
    params(ServerPath),
    responses((status = 202, description = "Accepted", body = AcceptedOperation), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn start(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(START, &at.scope())?;
    power(&at, &call, Power::Running).await
}

/// Stop a server. It keeps the backups that it has and takes no new ones.
#[utoipa::path(
    post, operation_id = "servers_stop", tag = "Servers",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/stop",
    params(ServerPath),
    responses((status = 202, description = "Accepted", body = AcceptedOperation), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn stop(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(STOP, &at.scope())?;
    power(&at, &call, Power::Stopped).await
}

/// Restart a server.
#[utoipa::path(
    post, operation_id = "servers_restart", tag = "Servers",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/restart",
    params(ServerPath),
    responses((status = 202, description = "Accepted", body = AcceptedOperation), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn restart(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(RESTART, &at.scope())?;
    power(&at, &call, Power::Restarted).await
}

async fn power(at: &ServerPath, call: &Call, to: Power) -> Result<Response> {
    let subscription = at.parse()?;
    let (body, idempotency) = call.optional_json().await?;
    if to == Power::Restarted && body.is_some_and(|body| body["restartWithFailover"] == true) {
        return Err(ArmError::from(Refusal::NotSupported(
            "A restart with failover needs high availability, which is not offered. Leave restartWithFailover out.".to_owned(),
        ))
        .at("restartWithFailover"));
    }
    let done = call
        .api
        .control()
        .power_server(&call.caller(), at.reference(subscription), to, &idempotency)
        .await?;
    Ok(accepted(call, &done))
}

/// List the read replicas of a server: there are none.
#[utoipa::path(
    get, operation_id = "replicas_list_by_server", tag = "Servers",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/replicas",
    params(ServerPath),
    responses((status = 200, description = "An empty list", body = List<Server>), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn list_replicas(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(READ, &at.scope())?;
    call.api
        .control()
        .get_server(at.reference(at.parse()?))
        .await?;
    Ok(ok(List::<Server>::whole(Vec::new())))
}
