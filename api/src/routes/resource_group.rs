//! Resource groups: enough to put servers into (contract, other-apis §3; az sends HEAD and GET first).

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use holdfast_control_plane::resource_group::ResourceGroup as Group;
use holdfast_domain::region::Site;
use holdfast_domain::resource_id::group_scope;
use http::StatusCode;

use super::ok;
use crate::arm::body::typed;
use crate::arm::path::GroupPath;
use crate::arm::{Call, Result};
use crate::wire::error::ErrorEnvelope;
use crate::wire::resource_group::{ResourceGroup, ResourceGroupBody, ResourceGroupProperties};
use crate::wire::server_body::check_tags;

const READ: &str = "Microsoft.Resources/subscriptions/resourceGroups/read";
const WRITE: &str = "Microsoft.Resources/subscriptions/resourceGroups/write";

/// Make a resource group or change its tags.
#[utoipa::path(
    put, operation_id = "resource_groups_put", tag = "Resource groups",
    path = "/subscriptions/{subscription}/resourceGroups/{group}",
    params(GroupPath), request_body = ResourceGroupBody,
    responses((status = 200, description = "Changed", body = ResourceGroup), (status = 201, description = "Made", body = ResourceGroup), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn put(Path(at): Path<GroupPath>, call: Call) -> Result<Response> {
    call.require(WRITE, &at.scope())?;
    let subscription = at.parse()?;
    let (body, _) = call.json().await?;
    let body: ResourceGroupBody = typed(body)?;
    check_tags(body.tags.as_ref())?;
    let (group, new) = call
        .api
        .control()
        .put_resource_group(
            &call.caller(),
            subscription,
            &at.group,
            body.location.as_deref(),
            body.tags,
        )
        .await?;
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, axum::Json(shown(group, call.api.control().site()))).into_response())
}

/// Read a resource group.
#[utoipa::path(
    get, operation_id = "resource_groups_get", tag = "Resource groups",
    path = "/subscriptions/{subscription}/resourceGroups/{group}",
    params(GroupPath),
    responses((status = 200, description = "The group", body = ResourceGroup), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn get(Path(at): Path<GroupPath>, call: Call) -> Result<Response> {
    call.require(READ, &at.scope())?;
    let group = call
        .api
        .control()
        .get_resource_group(at.parse()?, &at.group)
        .await?;
    Ok(ok(shown(group, call.api.control().site())))
}

/// Ask whether a resource group is there.
#[utoipa::path(
    head, operation_id = "resource_groups_exists", tag = "Resource groups",
    path = "/subscriptions/{subscription}/resourceGroups/{group}",
    params(GroupPath),
    responses((status = 204, description = "It is there"), (status = 404, description = "It is not"), (status = "4XX", description = "Refused; no body says why"))
)]
pub async fn head(Path(at): Path<GroupPath>, call: Call) -> Result<Response> {
    call.require(READ, &at.scope())?;
    let there = call
        .api
        .control()
        .resource_group_exists(at.parse()?, &at.group)
        .await?;
    Ok(if there {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    }
    .into_response())
}

fn shown(group: Group, site: &Site) -> ResourceGroup {
    // Groups show the region's name, servers its display name; clients take either for both.
    let location = site
        .region(&group.location)
        .map_or_else(|| group.location.clone(), |region| region.name.clone());
    ResourceGroup {
        id: group_scope(group.subscription, &group.name),
        name: group.name,
        kind: "Microsoft.Resources/resourceGroups".to_owned(),
        location,
        tags: group.tags,
        properties: ResourceGroupProperties {
            provisioning_state: "Succeeded".to_owned(),
        },
    }
}
