//! What the API says of backups and restores: whole responses.

use anyhow::Result;
use chrono::TimeDelta;
use holdfast_tests::api_client::{ApiClient, OWNER, STRANGER, request, server_path};
use http::{Method, header};
use insta::assert_json_snapshot;
use serde_json::json;

use crate::with_server::created;

#[tokio::test]
async fn a_backup_is_requested_listed_read_and_deleted() -> Result<()> {
    // FLX-101, FLX-104, FLX-105
    let (mut harness, api) = created().await?;
    let backups = format!("{}/backups", server_path("pg1"));
    let accepted = api
        .call(Method::PUT, &format!("{backups}/b1"), None)
        .await?;
    assert_json_snapshot!(accepted.stable(), @r#"
    {
      "body": {
        "operation": "SnapshotManagementOperation",
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
    // Listed when complete, not before.
    assert_eq!(api.get(&format!("{backups}/b1")).await?.status, 404);
    harness.advance(TimeDelta::seconds(90)).await?;
    harness.run_until_idle().await?;
    assert_json_snapshot!(api.get(&backups).await?.stable(), @r#"
    {
      "body": {
        "value": [
          {
            "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1/backups/backup_639307583990000000",
            "name": "backup_639307583990000000",
            "properties": {
              "backupType": "Full",
              "completedTime": "2026-11-20T08:00:00.0000000+00:00",
              "source": "Automatic"
            },
            "type": "Microsoft.DBforPostgreSQL/flexibleServers/backups"
          },
          {
            "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1/backups/b1",
            "name": "b1",
            "properties": {
              "backupType": "Customer On-Demand",
              "completedTime": "2026-11-20T08:01:30.0000000+00:00",
              "source": "Customer Initiated"
            },
            "type": "Microsoft.DBforPostgreSQL/flexibleServers/backups"
          }
        ]
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

    let again = api
        .call(Method::PUT, &format!("{backups}/b1"), None)
        .await?;
    assert_eq!(again.refusal(), (409, "BackupAlreadyExists"));
    let deleted = api
        .call(Method::DELETE, &format!("{backups}/b1"), None)
        .await?;
    assert_eq!(deleted.status, 202, "{deleted:?}");
    harness.run_until_idle().await?;
    assert_eq!(api.get(&format!("{backups}/b1")).await?.status, 404);
    assert_eq!(
        api.call(Method::DELETE, &format!("{backups}/b1"), None)
            .await?
            .status,
        204
    );
    Ok(())
}

#[tokio::test]
async fn a_restore_makes_a_server_like_its_source() -> Result<()> {
    // FLX-051, FLX-053, FLX-093, FLX-094
    let (mut harness, api) = created().await?;
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
    let accepted = api
        .call(Method::PUT, &server_path("pg2"), Some(body))
        .await?;
    assert_eq!(
        accepted.body["operation"],
        "RestoreSnapshotManagementOperation"
    );
    harness.run_until_idle().await?;
    let operation = api.get(&ApiClient::operation_of(&accepted)?).await?;
    assert_json_snapshot!(operation.stable(), @r#"
    {
      "body": {
        "endTime": "2026-11-20T10:00:00.000Z",
        "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/providers/Microsoft.DBforPostgreSQL/locations/eastus2/azureAsyncOperation/[uuid 1]",
        "name": "[uuid 1]",
        "percentComplete": 100.0,
        "properties": {
          "backupName": "backup_639307583990000000",
          "bytesRestored": 33554432,
          "parameterDifferences": {
            "work_mem": "64MB"
          },
          "postRestoreTasks": [
            "Check the firewall rules."
          ],
          "restoredTo": "2026-11-20T09:30:00Z",
          "sourceServerName": "pg1",
          "walBytesReplayed": 16777216
        },
        "startTime": "2026-11-20T10:00:00.000Z",
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
    let mut source = api.get(&server_path("pg1")).await?.body;
    let restored = api.get(&server_path("pg2")).await?.body;
    for field in ["version", "administratorLogin", "storage", "network"] {
        assert_eq!(
            restored["properties"][field], source["properties"][field],
            "{field}"
        );
    }
    assert_eq!(restored["sku"], source["sku"].take());
    assert!(
        restored["properties"]
            .get("sourceServerResourceId")
            .is_none()
    );
    Ok(())
}

#[tokio::test]
async fn restore_points_say_what_a_restore_would_use_and_reserve_nothing() -> Result<()> {
    let (mut harness, api) = created().await?;
    harness.advance(TimeDelta::hours(1)).await?;
    harness.write("pg1").await?;
    harness.run_until_idle().await?;
    let path = format!(
        "{}/providers/Holdfast.Recovery/restorePoints?api-version=2026-11-01&pointInTimeUTC=2026-11-20T08:30:00Z",
        server_path("pg1")
    );
    assert_json_snapshot!(api.get(&path).await?.stable(), @r#"
    {
      "body": {
        "id": "/subscriptions/5ab5c21b-7100-4000-8000-000000000001/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1/providers/Holdfast.Recovery/restorePoints",
        "name": "restorePoints",
        "properties": {
          "backup": {
            "completedTime": "2026-11-20T08:00:00.0000000+00:00",
            "logicalBytes": 33554432,
            "name": "backup_639307583990000000",
            "storedBytes": 2097152
          },
          "earliestRestoreDate": "2026-11-20T08:00:00.0000000+00:00",
          "gaps": [],
          "latestRestoreDate": "2026-11-20T09:00:00.0000000+00:00",
          "recoveryPointAgeSeconds": 0.0,
          "redundancy": "Zone",
          "target": {
            "kind": "Time",
            "pointInTimeUTC": "2026-11-20T08:30:00.0000000+00:00"
          },
          "wal": {
            "bytes": 16777216,
            "from": "2026-11-20T09:00:00.0000000+00:00",
            "to": "2026-11-20T09:00:00.0000000+00:00"
          }
        },
        "type": "Holdfast.Recovery/restorePoints"
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
    assert_eq!(harness.count("SELECT count(*) FROM pin").await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_backup_is_exported_by_nobody_and_pg_dump_is_named() -> Result<()> {
    // FLX-012, FLX-133
    let (mut harness, api) = created().await?;
    let backup = format!("{}/backups/b1", server_path("pg1"));
    api.call(Method::PUT, &backup, None).await?;
    harness.run_until_idle().await?;
    for (method, below) in [
        (Method::POST, "export"),
        (Method::GET, "download/base.tar"),
        (Method::PUT, "copies/c1"),
    ] {
        let refused = api.call(method, &format!("{backup}/{below}"), None).await?;
        assert_eq!(
            refused.refusal(),
            (403, "BackupExportNotSupported"),
            "{below}"
        );
        assert!(refused.body.to_string().contains("pg_dump"), "{below}");
    }
    let stranger = api
        .call_as(STRANGER, Method::POST, &format!("{backup}/export"), None)
        .await?;
    assert_eq!(stranger.refusal(), (403, "AuthorizationFailed"));
    Ok(())
}

#[tokio::test]
async fn a_repeated_request_for_a_backup_is_the_same_one_only_by_its_id() -> Result<()> {
    // DESIGN §2, "what excludes what"
    let (_harness, api) = created().await?;
    let token = api.token(OWNER)?;
    let put = |name: &str, id: Option<&str>| {
        let mut put = request(
            Method::PUT,
            &format!("{}/backups/{name}", server_path("pg1")),
        )
        .header(header::AUTHORIZATION, format!("Bearer {token}"));
        if let Some(id) = id {
            put = put.header("x-ms-client-request-id", id);
        }
        let request = put.body(axum::body::Body::empty());
        let api = &api;
        async move { api.send(request?).await }
    };
    assert_eq!(put("b1", None).await?.status, 202);
    let again = put("b1", None).await?;
    assert_eq!(again.refusal(), (409, "BackupAlreadyExists"));

    let id = Some("11111111-1111-4111-8111-111111111111");
    let first = put("b2", id).await?;
    let second = put("b2", id).await?;
    assert_eq!(
        ApiClient::operation_of(&first)?,
        ApiClient::operation_of(&second)?
    );
    Ok(())
}
