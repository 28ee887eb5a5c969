//! Whether this process lives, whether it can serve, and what it measures. No token is asked for, and
//! no tenant's data is told: `/metrics` names servers, so only loopback gets it here.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{Extensions, StatusCode, header};
use serde_json::json;

use crate::arm::headers::Peer;
use crate::arm::{ArmError, Result};
use crate::config::Api;

/// The process answers.
pub async fn live() -> Response {
    (StatusCode::OK, axum::Json(json!({"status": "ok"}))).into_response()
}

/// The metadata store answers and has our schema.
pub async fn ready(State(api): State<Api>) -> Response {
    let (status, reason) = match api.control().check_schema().await {
        Ok(true) => (StatusCode::OK, "ready"),
        Ok(false) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the schema is not the one of this version",
        ),
        Err(error) => {
            tracing::warn!(%error, "not ready");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the metadata store does not answer",
            )
        }
    };
    (status, axum::Json(json!({"status": reason}))).into_response()
}

/// Prometheus text, for loopback.
pub async fn metrics(State(api): State<Api>, extensions: Extensions) -> Result<Response> {
    let local = extensions
        .get::<Peer>()
        .is_some_and(|Peer(peer)| peer.ip().to_canonical().is_loopback());
    if !local {
        return Err(ArmError::new(
            StatusCode::FORBIDDEN,
            "AuthorizationFailed",
            "Metrics are served to loopback, or on a listener of their own.",
        ));
    }
    scrape(State(api)).await
}

/// Prometheus text, for whoever reaches the listener.
pub async fn scrape(State(api): State<Api>) -> Result<Response> {
    let text = api.metrics().render(api.control()).await?;
    Ok((
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response())
}
