//! `holdfast server …`: small questions about servers, asked over the public API.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use holdfast_agent::postgres::OPERATOR_ROLE;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::exit::Failure;
use crate::output::say;
use crate::site::token;
use crate::state_dir::StateDir;
use crate::status::identity;
use crate::up::require_running;

const RECOVERY_API_VERSION: &str = "2026-11-01";
const WITHIN: Duration = Duration::from_secs(30);
/// What may stand in a part of a URI as it is.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// `Holdfast.Recovery/connection`, as far as it is used here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    port: u16,
    socket_directory: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resource {
    properties: Connection,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    error: RefusalBody,
}

#[derive(Debug, Deserialize)]
struct RefusalBody {
    code: String,
    message: String,
}

/// Prints the URI of the operator's way in: over the socket the server believes the user that runs the
/// site without a password, and makes them the administrator. Nobody's password is kept anywhere.
pub async fn connection_string(
    state: &StateDir,
    name: &str,
    group: Option<&str>,
    database: &str,
) -> Result<()> {
    let record = require_running(state)?;
    let identity = identity(state)?;
    let token = token::mint(state, &identity)?;
    let group = group.unwrap_or(&identity.resource_group);
    let url = format!(
        "{}/subscriptions/{}/resourceGroups/{}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{}/providers/Holdfast.Recovery/connection?api-version={RECOVERY_API_VERSION}",
        record.url,
        identity.subscription,
        utf8_percent_encode(group, RESERVED),
        utf8_percent_encode(name, RESERVED),
    );
    let ca = reqwest::Certificate::from_pem(&std::fs::read(state.ca_file())?)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where a command makes its client"
    )]
    let client = reqwest::Client::builder()
        .tls_certs_only([ca])
        .timeout(WITHIN)
        // It is this machine's own address.
        .no_proxy()
        .build()?;
    let answer = client
        .get(&url)
        .bearer_auth(token.text)
        .send()
        .await
        .context("the API does not answer")?;
    let status = answer.status();
    let body = answer
        .bytes()
        .await
        .context("the API's answer was cut short")?;
    if !status.is_success() {
        let said = serde_json::from_slice::<Refusal>(&body).map_or_else(
            |_| status.to_string(),
            |it| format!("{}: {}", it.error.code, it.error.message),
        );
        return Err(match status.as_u16() {
            404 => Failure::NotFound(said).into(),
            409 => Failure::Conflict(said).into(),
            401 | 403 => Failure::NotAllowed(said).into(),
            _ => anyhow!(said),
        });
    }
    let Resource { properties } =
        serde_json::from_slice(&body).context("the API's answer is not understood")?;
    let socket = properties
        .socket_directory
        .context("the server is not on this machine: it has no socket here")?;
    say(uri(&socket, properties.port, database));
    Ok(())
}

fn uri(socket_dir: &str, port: u16, database: &str) -> String {
    let host = utf8_percent_encode(socket_dir, RESERVED);
    let database = utf8_percent_encode(database, RESERVED);
    format!("postgresql://{OPERATOR_ROLE}@{host}:{port}/{database}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_directory_stands_in_the_uri_as_its_host() {
        assert_eq!(
            uri("/run/holdfast-1a2b3c4d/eastus2-1/10240", 10_240, "my shop"),
            "postgresql://holdfast_operator@%2Frun%2Fholdfast-1a2b3c4d%2Feastus2-1%2F10240:10240/my%20shop"
        );
    }
}
