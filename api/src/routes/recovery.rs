//! `Holdfast.Recovery`: what a restore would use, and where a server is reached. Ours.

use axum::extract::Path;
use axum::response::Response;
use chrono::{DateTime, Utc};
use holdfast_domain::instant;

use super::ok;
use crate::arm::path::ServerPath;
use crate::arm::{ArmError, Call, Result};
use crate::wire::error::ErrorEnvelope;
use crate::wire::recovery::RestorePoints;
use crate::wire::server::{self, Connection};

const READ_RESTORE_POINTS: &str = "Holdfast.Recovery/restorePoints/read";
const READ_CONNECTION: &str = "Holdfast.Recovery/connection/read";

/// Earliest, latest and age of the recovery point, and what a restore would use. Reserves nothing.
#[utoipa::path(
    get, operation_id = "restore_points_get", tag = "Recovery",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/providers/Holdfast.Recovery/restorePoints",
    params(ServerPath, ("pointInTimeUTC" = Option<String>, Query, description = "The instant to look at; absent means the latest")),
    responses((status = 200, description = "What a restore would use", body = RestorePoints), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn restore_points(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(READ_RESTORE_POINTS, &at.scope())?;
    let subscription = at.parse()?;
    let asked = call.parameter("pointInTimeUTC").map(time).transpose()?;
    let control = call.api.control();
    let view = control.get_server(at.reference(subscription)).await?;
    let preview = control
        .preview_restore(at.reference(subscription), asked)
        .await?;
    let id = server::id(&view.server);
    Ok(ok(RestorePoints::new(
        &id,
        view.server.settings.redundancy,
        preview,
    )))
}

/// Where a server is reached.
#[utoipa::path(
    get, operation_id = "connection_get", tag = "Recovery",
    path = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{server}/providers/Holdfast.Recovery/connection",
    params(ServerPath),
    responses((status = 200, description = "Host, port and socket", body = Connection), (status = "4XX", description = "Refused", body = ErrorEnvelope))
)]
pub async fn connection(Path(at): Path<ServerPath>, call: Call) -> Result<Response> {
    call.require(READ_CONNECTION, &at.scope())?;
    let view = call
        .api
        .control()
        .server_connection(at.reference(at.parse()?))
        .await?;
    Ok(ok(Connection::new(view, call.surroundings())))
}

/// In a query a bare `+` is a space, and people paste `+00:00` as it is.
fn time(text: &str) -> Result<DateTime<Utc>> {
    instant::parse(text)
        .or_else(|| instant::parse(&text.replacen(' ', "+", 1)))
        .ok_or_else(|| {
            ArmError::invalid(
                "pointInTimeUTC",
                "Give a time with an offset, such as 2026-11-20T09:30:00Z.",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_survives_the_query() {
        let expected = instant::parse("2026-11-20T09:30:00Z");
        for text in [
            "2026-11-20T09:30:00Z",
            "2026-11-20T09:30:00 00:00",
            "2026-11-20T09:30:00+00:00",
            "2026-11-20 09:30:00 +0000 UTC",
        ] {
            assert_eq!(time(text).ok(), expected, "{text}");
        }
        assert!(time("now").is_err());
    }
}
