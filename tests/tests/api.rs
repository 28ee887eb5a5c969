//! What the API answers when all is well: whole responses.

use anyhow::Result;
use chrono::TimeDelta;
use holdfast_domain::job::JobKind;
use holdfast_tests::api_client::{
    ApiClient, READER, create_body, request, server_path, servers_path,
};
use holdfast_tests::harness::{GROUP, Harness, SUBSCRIPTION};
use holdfast_tests::scripted_node::failure;
use http::{Method, header};
use insta::assert_json_snapshot;
use serde_json::{Value, json};

async fn setting() -> Result<(Harness, ApiClient)> {
    let harness = Harness::new().await?;
    let api = ApiClient::new(&harness).await?;
    Ok((harness, api))
}

async fn with_server() -> Result<(Harness, ApiClient)> {
    let (mut harness, api) = setting().await?;
    let accepted = api.call(Method::PUT, &server_path("pg1"), Some(create_body())).await?;
    anyhow::ensure!(accepted.status == 202, "{accepted:?}");
    harness.run_until_idle().await?;
    Ok((harness, api))
}

#[tokio::test]
async fn a_create_is_accepted_polled_and_read() -> Result<()> {
    let (mut harness, api) = setting().await?;
    let absent = api.get(&server_path("pg1")).await?;
    assert_eq!(absent.refusal(), (404, "ResourceNotFound"));

    let accepted = api.call(Method::PUT, &server_path("pg1"), Some(create_body())).await?;
    assert_json_snapshot!(accepted.stable(), @"");
    let operation = ApiClient::operation_of(&accepted)?;
    assert_json_snapshot!(api.get(&operation).await?.stable(), @"");

    harness.run_until_idle().await?;
    assert_json_snapshot!(api.get(&operation).await?.stable(), @"");
    assert_json_snapshot!(api.get(&server_path("pg1")).await?.stable(), @"");
    Ok(())
}

#[tokio::test]
async fn names_and_words_of_a_path_are_matched_without_case() -> Result<()> {
    let (_harness, api) = with_server().await?;
    let shouted = server_path("pg1")
        .to_uppercase()
        .replace(&SUBSCRIPTION.to_string().to_uppercase(), &SUBSCRIPTION.to_string());
    let read = api.get(&shouted).await?;
    assert_eq!(read.status, 200);
    assert_eq!(read.body["id"], server_path("pg1"));
    Ok(())
}

#[tokio::test]
async fn servers_are_listed_by_group_and_by_subscription() -> Result<()> {
    let (_harness, api) = with_server().await?;
    let one = api.get(&server_path("pg1")).await?.body;
    for list in [
        servers_path(),
        format!("/subscriptions/{SUBSCRIPTION}/providers/Microsoft.DBforPostgreSQL/flexibleServers"),
    ] {
        assert_eq!(api.get(&list).await?.body["value"], json!([one]));
    }
    Ok(())
}

#[tokio::test]
async fn retention_and_tags_are_patched_and_what_was_decided_at_creation_is_not() -> Result<()> {
    // FLX-007, FLX-036, FLX-037
    let (mut harness, api) = with_server().await?;
    let body = json!({"tags": {"team": "a"}, "properties": {"backup": {"backupRetentionDays": 35}}});
    let accepted = api.call(Method::PATCH, &server_path("pg1"), Some(body)).await?;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    harness.run_until_idle().await?;
    let read = api.get(&server_path("pg1")).await?.body;
    assert_eq!(read["properties"]["backup"]["backupRetentionDays"], 35);
    assert_eq!(read["tags"], json!({"team": "a"}));

    let geo = json!({"properties": {"backup": {"geoRedundantBackup": "Enabled"}}});
    let refused = api.call(Method::PATCH, &server_path("pg1"), Some(geo)).await?;
    assert_json_snapshot!(refused.stable(), @"");
    Ok(())
}

#[tokio::test]
async fn a_server_is_stopped_and_started() -> Result<()> {
    let (mut harness, api) = with_server().await?;
    let state = |body: &Value| body["properties"]["state"].as_str().unwrap_or("").to_owned();
    let stop = api.call(Method::POST, &format!("{}/stop", server_path("pg1")), None).await?;
    assert_eq!(stop.body["operation"], "StopServerManagementOperation");
    assert_eq!(state(&api.get(&server_path("pg1")).await?.body), "Stopping");
    harness.run_until_idle().await?;
    assert_eq!(state(&api.get(&server_path("pg1")).await?.body), "Stopped");

    let again = api.call(Method::POST, &format!("{}/restart", server_path("pg1")), None).await?;
    assert_eq!(again.refusal(), (400, "ServerIsNotReady"));

    let start = api.call(Method::POST, &format!("{}/start", server_path("pg1")), None).await?;
    assert_eq!(start.status, 202, "{start:?}");
    harness.run_until_idle().await?;
    assert_eq!(state(&api.get(&server_path("pg1")).await?.body), "Ready");
    // The result of a finished POST is there for those who follow `Location`.
    let location = start.headers[header::LOCATION].to_str()?.replace("https://api.test", "");
    assert_json_snapshot!(api.get(&location).await?.stable(), @"");
    Ok(())
}

#[tokio::test]
async fn a_deleted_server_is_gone_and_its_operation_still_answers() -> Result<()> {
    let (mut harness, api) = with_server().await?;
    let accepted = api.call(Method::DELETE, &server_path("pg1"), None).await?;
    assert_json_snapshot!(accepted.stable(), @"");
    harness.run_until_idle().await?;
    assert_eq!(api.get(&server_path("pg1")).await?.refusal(), (404, "ResourceNotFound"));
    let operation = api.get(&ApiClient::operation_of(&accepted)?).await?;
    assert_eq!(operation.body["status"], "Succeeded");
    let location = accepted.headers[header::LOCATION].to_str()?.replace("https://api.test", "");
    assert!(matches!(api.get(&location).await?.status, 200 | 204));
    assert_eq!(api.call(Method::DELETE, &server_path("pg1"), None).await?.status, 204);
    Ok(())
}

#[tokio::test]
async fn a_backup_is_requested_listed_read_and_deleted() -> Result<()> {
    // FLX-101, FLX-104, FLX-105
    let (mut harness, api) = with_server().await?;
    let backups = format!("{}/backups", server_path("pg1"));
    let accepted = api.call(Method::PUT, &format!("{backups}/b1"), None).await?;
    assert_json_snapshot!(accepted.stable(), @"");
    // Listed when complete, not before.
    assert_eq!(api.get(&format!("{backups}/b1")).await?.status, 404);
    harness.advance(TimeDelta::seconds(90)).await?;
    harness.run_until_idle().await?;
    assert_json_snapshot!(api.get(&backups).await?.stable(), @"");

    let again = api.call(Method::PUT, &format!("{backups}/b1"), None).await?;
    assert_eq!(again.refusal(), (409, "BackupAlreadyExists"));
    let deleted = api.call(Method::DELETE, &format!("{backups}/b1"), None).await?;
    assert_eq!(deleted.status, 202, "{deleted:?}");
    harness.run_until_idle().await?;
    assert_eq!(api.get(&format!("{backups}/b1")).await?.status, 404);
    assert_eq!(api.call(Method::DELETE, &format!("{backups}/b1"), None).await?.status, 204);
    Ok(())
}

#[tokio::test]
async fn a_restore_makes_a_server_like_its_source() -> Result<()> {
    // FLX-051, FLX-053, FLX-093, FLX-094
    let (mut harness, api) = with_server().await?;
    harness.advance(TimeDelta::hours(1)).await?;
    harness.write("pg1").await?;
    harness.advance(TimeDelta::hours(1)).await?;
    harness.run_until_idle().await?;
    let body = json!({
        "location": "East US 2",
        "properties": {
            "createMode": "PointInTimeRestore",
            "sourceServerResourceId": server_path("pg1"),
            "pointInTimeUTC": "2026-11-20T09:30:00Z",
            "storage": {},
        },
    });
    let accepted = api.call(Method::PUT, &server_path("pg2"), Some(body)).await?;
    assert_eq!(accepted.body["operation"], "RestoreSnapshotManagementOperation");
    harness.run_until_idle().await?;
    let operation = api.get(&ApiClient::operation_of(&accepted)?).await?;
    assert_json_snapshot!(operation.stable(), @"");
    let mut source = api.get(&server_path("pg1")).await?.body;
    let restored = api.get(&server_path("pg2")).await?.body;
    for field in ["version", "administratorLogin", "storage", "network"] {
        assert_eq!(restored["properties"][field], source["properties"][field], "{field}");
    }
    assert_eq!(restored["sku"], source["sku"].take());
    assert!(restored["properties"].get("sourceServerResourceId").is_none());
    Ok(())
}

#[tokio::test]
async fn restore_points_say_what_a_restore_would_use_and_reserve_nothing() -> Result<()> {
    let (mut harness, api) = with_server().await?;
    harness.advance(TimeDelta::hours(1)).await?;
    harness.write("pg1").await?;
    harness.run_until_idle().await?;
    let path = format!(
        "{}/providers/Holdfast.Recovery/restorePoints?api-version=2026-11-01&pointInTimeUTC=2026-11-20T08:30:00Z",
        server_path("pg1")
    );
    assert_json_snapshot!(api.get(&path).await?.stable(), @"");
    assert_eq!(harness.count("SELECT count(*) FROM pin").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_lock_stops_deleting_until_it_is_removed() -> Result<()> {
    // FLX-073; RELIABILITY F55
    let (mut harness, api) = with_server().await?;
    let lock = format!(
        "{}/providers/Microsoft.Authorization/locks/keep?api-version=2020-05-01",
        server_path("pg1")
    );
    let body = json!({"properties": {"level": "CanNotDelete", "notes": "production"}});
    let made = api.call(Method::PUT, &lock, Some(body)).await?;
    assert_json_snapshot!(made.stable(), @"");
    let refused = api.call(Method::DELETE, &server_path("pg1"), None).await?;
    assert_json_snapshot!(refused.stable(), @"");
    assert_eq!(api.get(&server_path("pg1")).await?.status, 200);

    assert_eq!(api.call(Method::DELETE, &lock, None).await?.status, 200);
    assert_eq!(api.call(Method::DELETE, &server_path("pg1"), None).await?.status, 202);
    harness.run_until_idle().await?;
    Ok(())
}

#[tokio::test]
async fn the_activity_log_tells_how_everything_began_and_ended() -> Result<()> {
    let (mut harness, api) = with_server().await?;
    harness.nodes[0].script.insert(JobKind::Drop, failure("DiskFull", false));
    api.call(Method::DELETE, &server_path("pg1"), None).await?;
    harness.run_until_idle().await?;
    let path = format!(
        "/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Insights/eventtypes/management/values\
         ?api-version=2015-04-01&$filter=eventTimestamp%20ge%20'2026-11-20T00:00:00Z'%20and%20resourceUri%20eq%20'{}'",
        server_path("pg1")
    );
    let events = api.get(&path).await?;
    let lines: Vec<String> = events.body["value"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|event| {
            let word = |field: &str| event[field]["value"].as_str().unwrap_or("?").to_owned();
            format!("{} {}", word("operationName"), word("status"))
        })
        .collect();
    assert_json_snapshot!(lines, @"");

    let unfiltered = format!(
        "/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Insights/eventtypes/management/values?api-version=2015-04-01"
    );
    assert_eq!(api.get(&unfiltered).await?.status, 400);
    Ok(())
}

#[tokio::test]
async fn a_failed_operation_says_why_at_the_top_level() -> Result<()> {
    let (mut harness, api) = setting().await?;
    harness.nodes[0].script.insert(JobKind::Provision, failure("DiskFull", false));
    let accepted = api.call(Method::PUT, &server_path("pg1"), Some(create_body())).await?;
    harness.run_until_idle().await?;
    let operation = api.get(&ApiClient::operation_of(&accepted)?).await?;
    assert_json_snapshot!(operation.stable(), @"");
    assert_eq!(api.get(&server_path("pg1")).await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn the_same_request_fifty_times_makes_one_server_and_one_operation() -> Result<()> {
    // RELIABILITY §4.9 row 25, F62
    let (mut harness, api) = setting().await?;
    let token = api.token(holdfast_tests::api_client::OWNER)?;
    let send = || {
        let request = request(Method::PUT, &server_path("pg1"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-ms-client-request-id", "11111111-1111-4111-8111-111111111111")
            .body(axum::body::Body::from(create_body().to_string()));
        async { api.send(request?).await }
    };
    let answers = futures::future::join_all((0..50).map(|_| send())).await;
    let mut operations = std::collections::BTreeSet::new();
    for answer in answers {
        operations.insert(ApiClient::operation_of(&answer?)?);
    }
    assert_eq!(operations.len(), 1);
    harness.run_until_idle().await?;
    assert_eq!(harness.count("SELECT count(*) FROM server").await?, 1);

    let mut other = create_body();
    other["properties"]["storage"]["storageSizeGB"] = 64.into();
    let taken = api.call(Method::PUT, &server_path("pg1"), Some(other)).await?;
    assert_eq!(taken.refusal(), (409, "ServerNameAlreadyExists"));
    Ok(())
}

#[tokio::test]
async fn a_resource_group_is_made_read_and_asked_for() -> Result<()> {
    let (_harness, api) = setting().await?;
    let version = "?api-version=2024-11-01";
    let path = format!("/subscriptions/{SUBSCRIPTION}/resourcegroups/Rg2{version}");
    assert_eq!(api.call(Method::HEAD, &path, None).await?.status, 404);
    let made = api.call(Method::PUT, &path, Some(json!({"location": "eastus2"}))).await?;
    assert_json_snapshot!(made.stable(), @"");
    assert_eq!(api.call(Method::HEAD, &path, None).await?.status, 204);
    let read = api.get(&path.replace("Rg2", "rG2")).await?;
    assert_eq!((read.status, &read.body["name"]), (200, &json!("Rg2")));

    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}{version}");
    let seen = api.call_as(READER, Method::GET, &group, None).await?;
    assert_eq!(seen.status, 200);
    Ok(())
}

#[tokio::test]
async fn the_service_says_that_it_lives_and_is_ready() -> Result<()> {
    let (_harness, api) = setting().await?;
    for path in ["/healthz", "/readyz"] {
        let plain = http::Request::get(path).body(axum::body::Body::empty())?;
        assert_eq!(api.send(plain).await?.status, 200, "{path}");
    }
    Ok(())
}
