//! HTTP as Resource Manager speaks it.
//!
//! [`table_of_contents`] lists every route in reading order. A request passes, from the outside in:
//! [`edge`] (TLS, limits, ids, trace), [`auth::token`] (who calls), [`arm::path`] (fixed words without
//! case), the router, and a handler in [`mod@routes`], which says who may, reads what was sent, calls one use
//! case and converts the answer. Deciding anything is the business of the control plane.

pub mod arm;
pub mod auth;
mod config;
pub mod edge;
mod error;
pub mod metrics;
pub mod openapi;
pub mod routes;
pub mod wire;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{any, get};
use holdfast_control_plane::ControlPlane;
use tower::ServiceBuilder;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use auth::AuthConfig;
pub use config::{Api, ApiConfig};
pub use edge::{serve, serve_metrics};
pub use error::Error;

use routes::{
    activity, backup, health, lock, operation, provider, recovery, resource_group, server,
};

const BELOW_A_BACKUP: &str = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/backups/{backup}/{*below}";

/// Every route that a token opens, in reading order.
#[must_use]
pub fn table_of_contents() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        // …/flexibleServers/{server}
        .routes(routes!(
            server::put,
            server::get,
            server::patch,
            server::delete
        ))
        .routes(routes!(server::start))
        .routes(routes!(server::stop))
        .routes(routes!(server::restart))
        .routes(routes!(server::list_by_group))
        .routes(routes!(server::list_by_subscription))
        .routes(routes!(server::list_replicas))
        // …/flexibleServers/{server}/backups/{backup}
        .routes(routes!(backup::put, backup::get, backup::delete))
        .routes(routes!(backup::list))
        // …/locations/{location}/azureAsyncOperation|operationResults/{operation}
        .routes(routes!(operation::status))
        .routes(routes!(operation::result))
        // Holdfast.Recovery
        .routes(routes!(recovery::restore_points))
        .routes(routes!(recovery::connection))
        // Microsoft.Authorization/locks on a subscription, a group, a server
        .routes(routes!(
            lock::on_subscription::put,
            lock::on_subscription::get,
            lock::on_subscription::delete
        ))
        .routes(routes!(lock::on_subscription::list))
        .routes(routes!(
            lock::on_group::put,
            lock::on_group::get,
            lock::on_group::delete
        ))
        .routes(routes!(lock::on_group::list))
        .routes(routes!(
            lock::on_server::put,
            lock::on_server::get,
            lock::on_server::delete
        ))
        .routes(routes!(lock::on_server::list))
        // Microsoft.Insights/eventtypes/management/values
        .routes(routes!(activity::list))
        // …/resourceGroups/{group}
        .routes(routes!(
            resource_group::put,
            resource_group::get,
            resource_group::head
        ))
        // The provider itself
        .routes(routes!(provider::check_name))
        .routes(routes!(provider::check_name_in))
        .routes(routes!(provider::operations))
}

/// The whole API. Serve it with [`serve`], which knows who is at the other end.
///
/// # Errors
/// When the configuration or the token keys cannot be used.
pub fn router(control: ControlPlane, auth: AuthConfig, config: ApiConfig) -> Result<Router, Error> {
    Ok(router_of(Api::new(control, auth, config)?))
}

/// As [`router`], for whoever also wants [`metrics_router`] of the same [`Api`].
pub fn router_of(api: Api) -> Router {
    let arm = Router::from(table_of_contents())
        // …/flexibleServers/{server}/backups/{backup}/{whatever}: there is no way to a backup's bytes.
        .route(BELOW_A_BACKUP, any(backup::export))
        .route_layer(from_fn(edge::note_route))
        .method_not_allowed_fallback(edge::method_not_allowed)
        .fallback(edge::no_such_route)
        .with_state(api.clone());
    let arm = ServiceBuilder::new()
        .layer(from_fn_with_state(api.clone(), edge::authenticate))
        .layer(from_fn(edge::canonical_path))
        .service(arm);
    Router::new()
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback_service(arm)
        .layer(from_fn_with_state(api.clone(), edge::observe))
        .with_state(api)
}

/// `/metrics` alone, for a listener of its own.
pub fn metrics_router(api: Api) -> Router {
    Router::new()
        .route("/metrics", get(health::scrape))
        .with_state(api)
}
