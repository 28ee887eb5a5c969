//! What the API says of operations, to those who poll and to those who follow `Location`.

use anyhow::Result;
use holdfast_tests::api_client::{Answer, ApiClient, create_body, server_path};
use holdfast_tests::harness::{GROUP, Harness, SUBSCRIPTION};
use http::{Method, header};
use serde_json::json;

use crate::with_server::empty;

/// Lets the operation end and answers with what its `Location` says then.
async fn outcome(harness: &mut Harness, api: &ApiClient, accepted: &Answer) -> Result<Answer> {
    anyhow::ensure!(accepted.status == 202, "{accepted:?}");
    harness.run_until_idle().await?;
    let location = accepted.headers[header::LOCATION]
        .to_str()?
        .replace("https://api.test", "");
    api.get(&location).await
}

#[tokio::test]
async fn a_group_may_be_called_backups() -> Result<()> {
    let (mut harness, api) = empty().await?;
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/backups");
    let made = api
        .call(Method::PUT, &group, Some(json!({"location": "eastus2"})))
        .await?;
    assert_eq!(made.status, 201, "{made:?}");
    let server = server_path("pg1").replace(&format!("/{GROUP}/"), "/backups/");
    let backup = format!("{server}/backups/b1");
    let tags = json!({"tags": {"team": "a"}});
    for (method, path, body, status, name) in [
        (Method::PUT, server.clone(), Some(create_body()), 200, "pg1"),
        (Method::PATCH, server.clone(), Some(tags), 200, "pg1"),
        (Method::PUT, backup.clone(), None, 200, "b1"),
        (Method::DELETE, backup, None, 204, ""),
        (Method::POST, format!("{server}/restart"), None, 200, "pg1"),
        (Method::POST, format!("{server}/stop"), None, 200, "pg1"),
        (Method::DELETE, server, None, 204, ""),
    ] {
        let case = format!("{method} {path}");
        let accepted = api.call(method, &path, body).await?;
        let result = outcome(&mut harness, &api, &accepted).await?;
        assert_eq!(result.status, status, "{case}: {result:?}");
        assert_eq!(
            result.body["name"].as_str().unwrap_or_default(),
            name,
            "{case}"
        );
    }
    Ok(())
}
