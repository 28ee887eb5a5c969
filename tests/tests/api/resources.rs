//! What the API says of locks, resource groups, the activity log and itself: whole responses.

use anyhow::Result;
use holdfast_domain::job::JobKind;
use holdfast_tests::api_client::{READER, server_path};
use holdfast_tests::harness::{GROUP, SUBSCRIPTION};
use holdfast_tests::scripted_node::failure;
use http::Method;
use insta::assert_json_snapshot;
use serde_json::json;

use crate::with_server::{created, empty};

#[tokio::test]
async fn a_lock_stops_deleting_until_it_is_removed() -> Result<()> {
    // FLX-073; RELIABILITY F55
    let (mut harness, api) = created().await?;
    let lock = format!(
        "{}/providers/Microsoft.Authorization/locks/keep?api-version=2020-05-01",
        server_path("pg1")
    );
    let body = json!({"properties": {"level": "CanNotDelete", "notes": "production"}});
    let made = api.call(Method::PUT, &lock, Some(body)).await?;
    assert_json_snapshot!(made.stable(), @r#"
    {
      "body": {
        "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1/providers/Microsoft.Authorization/locks/keep",
        "name": "keep",
        "properties": {
          "level": "CanNotDelete",
          "notes": "production"
        },
        "type": "Microsoft.Authorization/locks"
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "x-ms-correlation-request-id": "[uuid 1]",
        "x-ms-request-id": "[uuid 2]"
      },
      "status": 201
    }
    "#);
    let refused = api.call(Method::DELETE, &server_path("pg1"), None).await?;
    assert_json_snapshot!(refused.stable(), @r#"
    {
      "body": {
        "error": {
          "code": "ScopeLocked",
          "message": "The scope '/subscriptions/5ab5c21b-7100-4000-8000-000000000001/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1' cannot perform delete operation because following scope(s) are locked: '/subscriptions/5ab5c21b-7100-4000-8000-000000000001/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1'. Please remove the lock and try again."
        }
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "x-ms-correlation-request-id": "[uuid 1]",
        "x-ms-request-id": "[uuid 2]"
      },
      "status": 409
    }
    "#);
    assert_eq!(api.get(&server_path("pg1")).await?.status, 200);

    assert_eq!(api.call(Method::DELETE, &lock, None).await?.status, 200);
    assert_eq!(
        api.call(Method::DELETE, &server_path("pg1"), None)
            .await?
            .status,
        202
    );
    harness.run_until_idle().await?;
    Ok(())
}

#[tokio::test]
async fn the_activity_log_tells_how_everything_began_and_ended() -> Result<()> {
    let (mut harness, api) = created().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Drop, failure("DiskFull", false));
    // In whatever case somebody writes it, it is logged under its own name.
    let shouted = server_path("pg1").replace("/rg1/", "/RG1/");
    let dropped = api.call(Method::DELETE, &shouted, None).await?;
    harness.run_until_idle().await?;
    let path = format!(
        "/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Insights/eventtypes/management/values\
         ?api-version=2015-04-01&$filter=eventTimestamp%20ge%20'2026-11-20T00:00:00Z'%20and%20resourceUri%20eq%20'{}'",
        server_path("pg1")
    );
    let events = api.get(&path).await?;
    let ids = events.body["value"].as_array().into_iter().flatten();
    for event in ids {
        let id = event["resourceId"].as_str().unwrap_or_default();
        assert!(id.starts_with(&server_path("pg1")), "{id}");
    }
    let lines: Vec<String> = events.body["value"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|event| {
            let word = |field: &str| event[field]["value"].as_str().unwrap_or("?").to_owned();
            format!("{} {}", word("operationName"), word("status"))
        })
        .collect();
    assert_json_snapshot!(lines, @r#"
    [
      "Microsoft.DBforPostgreSQL/flexibleServers/delete Failed",
      "Microsoft.DBforPostgreSQL/flexibleServers/delete Accepted",
      "Microsoft.DBforPostgreSQL/flexibleServers/delete Started",
      "Microsoft.DBforPostgreSQL/flexibleServers/backups/write Succeeded",
      "Microsoft.DBforPostgreSQL/flexibleServers/backups/write Started",
      "Microsoft.DBforPostgreSQL/flexibleServers/write Succeeded",
      "Microsoft.DBforPostgreSQL/flexibleServers/write Accepted",
      "Microsoft.DBforPostgreSQL/flexibleServers/write Started"
    ]
    "#);

    let base = format!(
        "/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Insights/eventtypes/management/values\
         ?api-version=2015-04-01&$filter=eventTimestamp%20ge%20'2026-11-20T00:00:00Z'%20and%20"
    );
    let count = async |term: String| {
        let found = api.get(&format!("{base}{term}")).await?;
        anyhow::ensure!(found.status == 200, "{term}: {found:?}");
        anyhow::Ok(found.body["value"].as_array().map_or(0, Vec::len))
    };
    assert_eq!(
        count(format!(
            "resourceGroupName%20eq%20'{}'%20and%20resourceUri%20eq%20'{}'",
            GROUP.to_uppercase(),
            server_path("pg1")
        ))
        .await?,
        lines.len()
    );
    assert_eq!(count("resourceGroupName%20eq%20'other'".into()).await?, 0);
    let deleted = dropped.headers["x-ms-correlation-request-id"].to_str()?;
    assert_eq!(count(format!("correlationId%20eq%20'{deleted}'")).await?, 3);
    assert_eq!(
        count("correlationId%20eq%20'00000000-0000-4000-8000-000000000000'".into()).await?,
        0
    );

    let unfiltered = format!(
        "/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Insights/eventtypes/management/values?api-version=2015-04-01"
    );
    assert_eq!(api.get(&unfiltered).await?.status, 400);
    Ok(())
}

#[tokio::test]
async fn a_resource_group_is_made_read_and_asked_for() -> Result<()> {
    let (_harness, api) = empty().await?;
    let version = "?api-version=2024-11-01";
    let path = format!("/subscriptions/{SUBSCRIPTION}/resourcegroups/Rg2{version}");
    assert_eq!(api.call(Method::HEAD, &path, None).await?.status, 404);
    let made = api
        .call(Method::PUT, &path, Some(json!({"location": "eastus2"})))
        .await?;
    assert_json_snapshot!(made.stable(), @r#"
    {
      "body": {
        "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/resourceGroups/Rg2",
        "location": "eastus2",
        "name": "Rg2",
        "properties": {
          "provisioningState": "Succeeded"
        },
        "type": "Microsoft.Resources/resourceGroups"
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "x-ms-correlation-request-id": "[uuid 1]",
        "x-ms-request-id": "[uuid 2]"
      },
      "status": 201
    }
    "#);
    assert_eq!(api.call(Method::HEAD, &path, None).await?.status, 204);
    let read = api.get(&path.replace("Rg2", "rG2")).await?;
    assert_eq!((read.status, &read.body["name"]), (200, &json!("Rg2")));

    let moved = api
        .call(Method::PUT, &path, Some(json!({"location": "westus"})))
        .await?;
    assert_eq!(moved.refusal(), (409, "InvalidResourceGroupLocation"));

    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}{version}");
    let seen = api.call_as(READER, Method::GET, &group, None).await?;
    assert_eq!(seen.status, 200);
    Ok(())
}

#[tokio::test]
async fn the_service_says_that_it_lives_and_is_ready() -> Result<()> {
    let (_harness, api) = empty().await?;
    for path in ["/healthz", "/readyz"] {
        let plain = http::Request::get(path).body(axum::body::Body::empty())?;
        assert_eq!(api.send(plain).await?.status, 200, "{path}");
    }
    Ok(())
}
