//! What the API says of servers: whole responses.

use anyhow::Result;
use chrono::TimeDelta;
use holdfast_domain::job::JobKind;
use holdfast_tests::api_client::{
    ApiClient, OWNER, create_body, request, server_path, servers_path,
};
use holdfast_tests::harness::SUBSCRIPTION;
use holdfast_tests::scripted_node::failure;
use http::{Method, header};
use insta::assert_json_snapshot;
use serde_json::{Value, json};

use crate::with_server::{created, empty};

#[tokio::test]
async fn a_create_is_accepted_polled_and_read() -> Result<()> {
    let (mut harness, api) = empty().await?;
    let absent = api.get(&server_path("pg1")).await?;
    assert_eq!(absent.refusal(), (404, "ResourceNotFound"));

    let accepted = api
        .call(Method::PUT, &server_path("pg1"), Some(create_body()))
        .await?;
    assert_json_snapshot!(accepted.stable(), @r#"
    {
      "body": {
        "operation": "UpsertServerManagementOperationV2",
        "startTime": "2026-11-20T08:00:00.000Z"
      },
      "headers": {
        "azure-asyncoperation": "https://api.test/subscriptions/5ab5c21b-7100-4000-8000-000000000001/providers/Microsoft.DBforPostgreSQL/locations/eastus2/azureAsyncOperation/[uuid 1]?api-version=2026-10-01",
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "location": "https://api.test/subscriptions/5ab5c21b-7100-4000-8000-000000000001/providers/Microsoft.DBforPostgreSQL/locations/eastus2/operationResults/[uuid 1]?api-version=2026-10-01",
        "retry-after": "1",
        "x-ms-correlation-request-id": "[uuid 2]",
        "x-ms-request-id": "[uuid 1]"
      },
      "status": 202
    }
    "#);
    let operation = ApiClient::operation_of(&accepted)?;
    assert_json_snapshot!(api.get(&operation).await?.stable(), @r#"
    {
      "body": {
        "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/providers/Microsoft.DBforPostgreSQL/locations/eastus2/azureAsyncOperation/[uuid 1]",
        "name": "[uuid 1]",
        "startTime": "2026-11-20T08:00:00.000Z",
        "status": "InProgress"
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "retry-after": "1",
        "x-ms-correlation-request-id": "[uuid 2]",
        "x-ms-request-id": "[uuid 3]"
      },
      "status": 200
    }
    "#);

    harness.run_until_idle().await?;
    assert_json_snapshot!(api.get(&operation).await?.stable(), @r#"
    {
      "body": {
        "endTime": "2026-11-20T08:00:00.000Z",
        "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/providers/Microsoft.DBforPostgreSQL/locations/eastus2/azureAsyncOperation/[uuid 1]",
        "name": "[uuid 1]",
        "percentComplete": 100.0,
        "startTime": "2026-11-20T08:00:00.000Z",
        "status": "Succeeded"
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "retry-after": "1",
        "x-ms-correlation-request-id": "[uuid 2]",
        "x-ms-request-id": "[uuid 3]"
      },
      "status": 200
    }
    "#);
    assert_json_snapshot!(api.get(&server_path("pg1")).await?.stable(), @r#"
    {
      "body": {
        "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1",
        "location": "East US 2",
        "name": "pg1",
        "properties": {
          "administratorLogin": "hfadmin",
          "authConfig": {
            "activeDirectoryAuth": "Disabled",
            "passwordAuth": "Enabled"
          },
          "backup": {
            "backupRetentionDays": 7,
            "earliestRestoreDate": "2026-11-20T08:00:00.0000000+00:00",
            "geoRedundantBackup": "Disabled"
          },
          "dataEncryption": {
            "type": "SystemManaged"
          },
          "fullyQualifiedDomainName": "pg1.postgres.test",
          "highAvailability": {
            "mode": "Disabled",
            "state": "NotEnabled"
          },
          "maintenanceWindow": {
            "customWindow": "Disabled",
            "dayOfWeek": 0,
            "startHour": 0,
            "startMinute": 0
          },
          "minorVersion": "15.18",
          "network": {
            "publicNetworkAccess": "Enabled"
          },
          "privateEndpointConnections": [],
          "replica": {
            "capacity": 0,
            "role": "Primary"
          },
          "replicaCapacity": 0,
          "replicationRole": "Primary",
          "state": "Ready",
          "storage": {
            "autoGrow": "Disabled",
            "storageSizeGB": 32,
            "tier": "P4",
            "type": ""
          },
          "version": "15"
        },
        "sku": {
          "name": "Standard_D2s_v3",
          "tier": "GeneralPurpose"
        },
        "systemData": {
          "createdAt": "2026-11-20T08:00:00.0000000Z"
        },
        "type": "Microsoft.DBforPostgreSQL/flexibleServers"
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "x-ms-correlation-request-id": "[uuid 1]",
        "x-ms-request-id": "[uuid 2]"
      },
      "status": 200
    }
    "#);
    Ok(())
}

#[tokio::test]
async fn names_and_words_of_a_path_are_matched_without_case() -> Result<()> {
    let (_harness, api) = created().await?;
    let shouted = server_path("pg1").to_uppercase().replace(
        &SUBSCRIPTION.to_string().to_uppercase(),
        &SUBSCRIPTION.to_string(),
    );
    let read = api.get(&shouted).await?;
    assert_eq!(read.status, 200);
    assert_eq!(read.body["id"], server_path("pg1"));
    Ok(())
}

#[tokio::test]
async fn servers_are_listed_by_group_and_by_subscription() -> Result<()> {
    let (_harness, api) = created().await?;
    let one = api.get(&server_path("pg1")).await?.body;
    for list in [
        servers_path(),
        format!(
            "/subscriptions/{SUBSCRIPTION}/providers/Microsoft.DBforPostgreSQL/flexibleServers"
        ),
    ] {
        assert_eq!(api.get(&list).await?.body["value"], json!([one]));
    }
    Ok(())
}

#[tokio::test]
async fn retention_and_tags_are_patched_and_what_was_decided_at_creation_is_not() -> Result<()> {
    // FLX-007, FLX-036, FLX-037
    let (mut harness, api) = created().await?;
    let body =
        json!({"tags": {"team": "a"}, "properties": {"backup": {"backupRetentionDays": 35}}});
    let accepted = api
        .call(Method::PATCH, &server_path("pg1"), Some(body))
        .await?;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    harness.run_until_idle().await?;
    let read = api.get(&server_path("pg1")).await?.body;
    assert_eq!(read["properties"]["backup"]["backupRetentionDays"], 35);
    assert_eq!(read["tags"], json!({"team": "a"}));

    let geo = json!({"properties": {"backup": {"geoRedundantBackup": "Enabled"}}});
    let refused = api
        .call(Method::PATCH, &server_path("pg1"), Some(geo))
        .await?;
    assert_json_snapshot!(refused.stable(), @r#"
    {
      "body": {
        "error": {
          "code": "InvalidParameterValue",
          "message": "'properties.backup.geoRedundantBackup' can only be set when the server is created. Leave it out or give the current value 'Disabled'.",
          "target": "properties.backup.geoRedundantBackup"
        }
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "x-ms-correlation-request-id": "[uuid 1]",
        "x-ms-request-id": "[uuid 2]"
      },
      "status": 400
    }
    "#);
    Ok(())
}

#[tokio::test]
async fn a_server_is_stopped_and_started() -> Result<()> {
    let (mut harness, api) = created().await?;
    let state = |body: &Value| {
        body["properties"]["state"]
            .as_str()
            .unwrap_or("")
            .to_owned()
    };
    let stop = api
        .call(Method::POST, &format!("{}/stop", server_path("pg1")), None)
        .await?;
    assert_eq!(stop.body["operation"], "StopServerManagementOperation");
    assert_eq!(state(&api.get(&server_path("pg1")).await?.body), "Stopping");
    harness.run_until_idle().await?;
    assert_eq!(state(&api.get(&server_path("pg1")).await?.body), "Stopped");

    let again = api
        .call(
            Method::POST,
            &format!("{}/restart", server_path("pg1")),
            None,
        )
        .await?;
    assert_eq!(again.refusal(), (400, "ServerIsNotReady"));

    // Nothing else is done to a stopped server (contract, flexible-servers §6).
    let tags = json!({"tags": {"team": "a"}});
    for method in [Method::PATCH, Method::PUT] {
        let mut body = tags.clone();
        if method == Method::PUT {
            body["location"] = "eastus2".into();
            body["properties"]["createMode"] = "Update".into();
        }
        let refused = api.call(method, &server_path("pg1"), Some(body)).await?;
        assert_eq!(refused.refusal(), (400, "ServerIsNotReady"), "{refused:?}");
    }
    // What would be lost does not grow while nothing is written.
    let points = format!(
        "{}/providers/Holdfast.Recovery/restorePoints",
        server_path("pg1")
    );
    let before = api.get(&points).await?;
    let age = &before.body["properties"]["recoveryPointAgeSeconds"];
    assert!(age.is_number(), "{before:?}");
    harness.advance(TimeDelta::hours(3)).await?;
    let later = api.get(&points).await?;
    assert_eq!(&later.body["properties"]["recoveryPointAgeSeconds"], age);

    let start = api
        .call(Method::POST, &format!("{}/start", server_path("pg1")), None)
        .await?;
    assert_eq!(start.status, 202, "{start:?}");
    harness.run_until_idle().await?;
    assert_eq!(state(&api.get(&server_path("pg1")).await?.body), "Ready");
    // The result of a finished POST is there for those who follow `Location`.
    let location = start.headers[header::LOCATION]
        .to_str()?
        .replace("https://api.test", "");
    assert_json_snapshot!(api.get(&location).await?.stable(), @r#"
    {
      "body": {
        "name": "pg1",
        "properties": {},
        "type": "PostgreSQL"
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "x-ms-correlation-request-id": "[uuid 1]",
        "x-ms-request-id": "[uuid 2]"
      },
      "status": 200
    }
    "#);
    Ok(())
}

#[tokio::test]
async fn a_deleted_server_is_gone_and_its_operation_still_answers() -> Result<()> {
    let (mut harness, api) = created().await?;
    let accepted = api.call(Method::DELETE, &server_path("pg1"), None).await?;
    assert_json_snapshot!(accepted.stable(), @r#"
    {
      "body": {
        "operation": "DropServerManagementOperation",
        "startTime": "2026-11-20T08:00:00.000Z"
      },
      "headers": {
        "azure-asyncoperation": "https://api.test/subscriptions/5ab5c21b-7100-4000-8000-000000000001/providers/Microsoft.DBforPostgreSQL/locations/eastus2/azureAsyncOperation/[uuid 1]?api-version=2026-10-01",
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "location": "https://api.test/subscriptions/5ab5c21b-7100-4000-8000-000000000001/providers/Microsoft.DBforPostgreSQL/locations/eastus2/operationResults/[uuid 1]?api-version=2026-10-01",
        "retry-after": "1",
        "x-ms-correlation-request-id": "[uuid 2]",
        "x-ms-request-id": "[uuid 1]"
      },
      "status": 202
    }
    "#);
    harness.run_until_idle().await?;
    assert_eq!(
        api.get(&server_path("pg1")).await?.refusal(),
        (404, "ResourceNotFound")
    );
    let operation = api.get(&ApiClient::operation_of(&accepted)?).await?;
    assert_eq!(operation.body["status"], "Succeeded");
    let location = accepted.headers[header::LOCATION]
        .to_str()?
        .replace("https://api.test", "");
    assert!(matches!(api.get(&location).await?.status, 200 | 204));
    assert_eq!(
        api.call(Method::DELETE, &server_path("pg1"), None)
            .await?
            .status,
        204
    );
    Ok(())
}

#[tokio::test]
async fn a_failed_operation_says_why_at_the_top_level() -> Result<()> {
    let (mut harness, api) = empty().await?;
    harness.nodes[0]
        .script
        .insert(JobKind::Provision, failure("DiskFull", false));
    let accepted = api
        .call(Method::PUT, &server_path("pg1"), Some(create_body()))
        .await?;
    harness.run_until_idle().await?;
    let operation = api.get(&ApiClient::operation_of(&accepted)?).await?;
    assert_json_snapshot!(operation.stable(), @r#"
    {
      "body": {
        "endTime": "2026-11-20T08:00:00.000Z",
        "error": {
          "code": "DiskFull",
          "message": "DiskFull happened on the node."
        },
        "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/providers/Microsoft.DBforPostgreSQL/locations/eastus2/azureAsyncOperation/[uuid 1]",
        "name": "[uuid 1]",
        "startTime": "2026-11-20T08:00:00.000Z",
        "status": "Failed"
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "retry-after": "1",
        "x-ms-correlation-request-id": "[uuid 2]",
        "x-ms-request-id": "[uuid 3]"
      },
      "status": 200
    }
    "#);
    assert_eq!(api.get(&server_path("pg1")).await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn the_same_request_fifty_times_makes_one_server_and_one_operation() -> Result<()> {
    // RELIABILITY §4.9 row 25, F62
    let (mut harness, api) = empty().await?;
    let token = api.token(OWNER)?;
    let send = || {
        let request = request(Method::PUT, &server_path("pg1"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                "x-ms-client-request-id",
                "11111111-1111-4111-8111-111111111111",
            )
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
    let taken = api
        .call(Method::PUT, &server_path("pg1"), Some(other))
        .await?;
    assert_eq!(taken.refusal(), (409, "ServerNameAlreadyExists"));
    Ok(())
}
