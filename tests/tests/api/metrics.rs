//! `/metrics`: who gets it, and what a page says after a server was made.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::body::Body;
use holdfast_api::arm::headers::Peer;
use holdfast_tests::api_client::{ApiClient, server_path};
use holdfast_tests::harness::Harness;
use http::{Method, Request};

use crate::with_server::{created, empty};

async fn page(api: &ApiClient, from: &str) -> Result<(u16, String)> {
    let mut request = Request::get("/metrics").body(Body::empty())?;
    let peer: SocketAddr = from.parse()?;
    request.extensions_mut().insert(Peer(peer));
    api.send_for_text(request).await
}

/// The value on the line with this name and these labels.
fn value<'a>(page: &'a str, line: &str) -> Result<&'a str> {
    page.lines()
        .find_map(|one| one.strip_prefix(line)?.strip_prefix(' '))
        .with_context(|| format!("{line} in\n{page}"))
}

#[tokio::test]
async fn metrics_are_for_this_machine() -> Result<()> {
    let (_harness, api) = empty().await?;
    assert_eq!(page(&api, "203.0.113.7:1234").await?.0, 403);
    assert_eq!(page(&api, "127.0.0.1:1234").await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn a_page_names_servers_operations_and_requests() -> Result<()> {
    let (harness, api): (Harness, ApiClient) = created().await?;
    for made_up in ["BREW", "PROPFIND", "x1"] {
        let request = Request::builder()
            .method(Method::from_bytes(made_up.as_bytes())?)
            .uri("/healthz")
            .body(Body::empty())?;
        assert_eq!(api.send_for_text(request).await?.0, 405);
    }
    let (_, page) = page(&api, "[::1]:1234").await?;
    assert!(page.contains("http_request_method=\"_OTHER\""), "{page}");
    assert!(!page.contains("BREW"), "{page}");
    let created = "{type=\"create-server\",status=\"succeeded\"}";
    let name = "holdfast_operation_duration_seconds";
    assert_eq!(value(&page, &format!("{name}_count{created}"))?, "1");
    assert_eq!(value(&page, &format!("{name}_sum{created}"))?, "0");
    assert_eq!(value(&page, "holdfast_prune_deleted_bytes_total")?, "0");
    let server = server_path("pg1");
    let lag = format!("holdfast_wal_archive_lag_seconds{{server=\"{server}\"}}");
    assert_eq!(value(&page, &lag)?, "0");
    let success = format!("holdfast_backup_last_success_timestamp_seconds{{server=\"{server}\"}}");
    let now = harness.now().timestamp().to_string();
    assert_eq!(value(&page, &success)?, now);
    Ok(())
}
