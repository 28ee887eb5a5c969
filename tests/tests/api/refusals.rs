//! Wrong requests, and what they leave behind: nothing. RELIABILITY §4.9 rows 9 to 20; rows 1 to 8
//! are in `tokens.rs`, what else concerns the API is in `hostile.rs`.

use anyhow::Result;
use chrono::TimeDelta;
use holdfast_domain::SubscriptionId;
use holdfast_domain::job::Power;
use holdfast_domain::role::{Role, RoleAssignment};
use holdfast_tests::api_client::{READER, STRANGER, create_body, server_path};
use holdfast_tests::harness::{SUBSCRIPTION, caller};
use http::Method;
use insta::assert_json_snapshot;
use serde_json::{Value, json};

use crate::with_server::{Setting, restore_body};

/// A subscription in which the caller has no rights.
const FOREIGN: &str = "f0e1d2c3-0000-4000-8000-000000000002";

#[tokio::test]
async fn row_9_another_subscription_looks_the_same_whether_or_not_a_server_is_there() -> Result<()>
{
    let setting = Setting::new().await?;
    let foreign: SubscriptionId = FOREIGN.parse()?;
    setting
        .harness
        .control_plane
        .ensure_subscription(foreign)
        .await?;
    let mut answers = Vec::new();
    for (subscription, name) in [
        (SUBSCRIPTION.to_string(), "pg1"),
        (SUBSCRIPTION.to_string(), "pg-not-there"),
        (FOREIGN.to_owned(), "pg1"),
        ("99999999-0000-4000-8000-000000000009".to_owned(), "pg1"),
    ] {
        let path = server_path(name).replace(&SUBSCRIPTION.to_string(), &subscription);
        let answer = setting
            .api
            .call_as(STRANGER, Method::GET, &path, None)
            .await?;
        let said = answer
            .body
            .to_string()
            .replace(&subscription, "S")
            .replace(name, "N");
        let mut headers: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
        headers.sort();
        answers.push((answer.status, said, headers));
    }
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:#?}"
    );
    assert_eq!(answers[0].0, 403);
    Ok(())
}

#[tokio::test]
async fn row_10_a_reader_takes_no_backup() -> Result<()> {
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    let path = format!("{}/backups/b1", server_path("pg1"));
    let refused = setting
        .api
        .call_as(READER, Method::PUT, &path, None)
        .await?;
    assert_json_snapshot!(refused.stable(), @r#"
    {
      "body": {
        "error": {
          "code": "AuthorizationFailed",
          "message": "The client 'somebody@test' with object id '0b1ec700-0000-4000-8000-00000000000b' does not have authorization to perform action 'Microsoft.DBforPostgreSQL/flexibleServers/backups/write' over scope '/subscriptions/5ab5c21b-7100-4000-8000-000000000001/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1/backups/b1' or the scope is invalid. If access was recently granted, please refresh your credentials."
        }
      },
      "headers": {
        "cache-control": "no-cache",
        "content-type": "application/json; charset=utf-8",
        "x-ms-correlation-request-id": "[uuid 1]",
        "x-ms-request-id": "[uuid 2]"
      },
      "status": 403
    }
    "#);
    assert_eq!(
        setting
            .api
            .call_as(READER, Method::GET, &server_path("pg1"), None)
            .await?
            .status,
        200
    );
    assert_eq!(setting.traces().await?, before);
    Ok(())
}

#[tokio::test]
async fn row_11_a_restore_needs_rights_on_its_source_too() -> Result<()> {
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    for source in ["pg1", "pg-not-there"] {
        let mut body = restore_body();
        let id = server_path(source).replace(&SUBSCRIPTION.to_string(), FOREIGN);
        body["properties"]["sourceServerResourceId"] = id.into();
        let refused = setting.put("pg2", body).await?;
        assert_eq!(refused.refusal(), (403, "AuthorizationFailed"), "{source}");
    }
    assert_eq!(setting.traces().await?, before);

    // Who may only read the source would read all of it as the administrator of a copy.
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/mine");
    let control = &setting.harness.control_plane;
    control
        .put_resource_group(&caller(), SUBSCRIPTION, "mine", Some("eastus2"), None)
        .await?;
    let give = |role, scope: &str| RoleAssignment {
        principal: READER.to_owned(),
        role,
        scope: scope.to_owned(),
    };
    control.assign_role(&give(Role::Owner, &group)).await?;
    let target = server_path("pg2").replace("/resourceGroups/rg1/", "/resourceGroups/mine/");
    let restore = || {
        let api = &setting.api;
        api.call_as(READER, Method::PUT, &target, Some(restore_body()))
    };
    let refused = restore().await?;
    assert_eq!(refused.refusal(), (403, "AuthorizationFailed"));
    assert!(
        refused.body.to_string().contains("/restore/action"),
        "{refused:?}"
    );
    assert_eq!(setting.traces().await?, before);
    let operator = give(Role::BackupOperator, &server_path("pg1"));
    control.assign_role(&operator).await?;
    let accepted = restore().await?;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    Ok(())
}

#[tokio::test]
async fn row_12_a_source_is_exactly_a_servers_id() -> Result<()> {
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    let id = server_path("pg1");
    for bad in [
        format!(
            "/subscriptions/{SUBSCRIPTION}/../{SUBSCRIPTION}/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1"
        ),
        id.replace("/rg1", "//rg1"),
        id.replace("rg1", "%2e%2e"),
        format!("{id}#"),
        format!("{id}/"),
        format!("{id}/backups/b1"),
        id.replace("flexibleServers", "servers"),
        "pg1".to_owned(),
    ] {
        let mut body = restore_body();
        body["properties"]["sourceServerResourceId"] = bad.clone().into();
        let refused = setting.put("pg2", body).await?;
        assert_eq!(refused.refusal(), (400, "InvalidResourceId"), "{bad}");
    }
    assert_eq!(setting.traces().await?, before);

    // Case is not a mistake.
    let mut body = restore_body();
    let shouted = id.replace(
        "Microsoft.DBforPostgreSQL/flexibleServers",
        "MICROSOFT.dbforpostgresql/FLEXIBLESERVERS",
    );
    body["properties"]["sourceServerResourceId"] = shouted.into();
    assert_eq!(setting.put("pg2", body).await?.status, 202);
    Ok(())
}

#[tokio::test]
async fn row_13_a_servers_name_is_a_name() -> Result<()> {
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    let long = "a".repeat(64);
    for name in [
        "..",
        "a%2f..%2fb",
        "a%00b",
        "A_B",
        "ABC",
        long.as_str(),
        "-xx",
        "xx-",
        "%F0%9F%98%80%F0%9F%98%80%F0%9F%98%80",
        "pg1;touch%20%2Ftmp%2Fp",
        "$(id)",
        "ab",
    ] {
        let refused = setting.put(name, create_body()).await?;
        assert_eq!(refused.refusal(), (400, "InvalidResourceName"), "{name}");
        assert!(!refused.body.to_string().contains('\u{0}'), "{name}");
    }
    // Not a name at all, but a longer path.
    assert!(matches!(
        setting.put("a/../../b", create_body()).await?.status,
        400 | 404
    ));
    assert_eq!(setting.traces().await?, before);
    Ok(())
}

#[tokio::test]
async fn row_14_a_backups_name_is_a_name() -> Result<()> {
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    let long = "b".repeat(300);
    for name in [
        "..%2F..%2Fmanifest",
        ".",
        "..",
        "a..b",
        "a%0D%0Ab",
        "%00",
        long.as_str(),
    ] {
        let path = format!("{}/backups/{name}", server_path("pg1"));
        let refused = setting.api.call(Method::PUT, &path, None).await?;
        assert_eq!(refused.refusal(), (400, "InvalidResourceName"), "{name}");
    }
    assert_eq!(setting.traces().await?, before);
    Ok(())
}

#[tokio::test]
async fn row_15_a_restore_time_is_an_instant() -> Result<()> {
    // FLX-062, XC-004
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    for bad in [
        json!("2026-11-20 10:00"),
        json!("2026-11-20T10:00:00"),
        json!("20261120"),
        json!("2026-02-30T00:00:00Z"),
        json!("2026-11-20T24:00:00Z"),
        json!("2026-11-20T23:59:60Z"),
        json!("2026-11-20T10:00:00+99:00"),
        json!("0000-01-01T00:00:00Z"),
        json!("10000-01-01T00:00:00Z"),
        json!("infinity"),
        json!("now"),
        json!("epoch"),
        json!("'; DROP TABLE server--"),
        json!("2026-11-20T10:00:00Z\n restore_command=x"),
        json!("2".repeat(10_000)),
        json!(1_795_161_600),
        json!(["2026-11-20T10:00:00Z"]),
        json!({}),
        Value::Null,
    ] {
        let shown: String = bad.to_string().chars().take(60).collect();
        let refused = setting.restore("pg2", bad).await?;
        assert_eq!(
            refused.refusal(),
            (400, "InvalidParameterValue"),
            "{shown}: {refused:?}"
        );
        let target = refused.body["error"]["target"].as_str().unwrap_or_default();
        assert!(target.ends_with("pointInTimeUTC"), "{shown}: {target}");
    }
    assert_eq!(setting.traces().await?, before);
    Ok(())
}

#[tokio::test]
async fn row_16_a_time_outside_the_window_is_refused_with_both_bounds() -> Result<()> {
    // FLX-039; DESIGN §3.6
    let mut setting = Setting::new().await?;
    setting.harness.advance(TimeDelta::hours(1)).await?;
    setting.harness.run_until_idle().await?;
    setting.harness.power("pg1", Power::Stopped).await?;
    let view = setting.harness.server("pg1").await?;
    let (earliest, latest) = (
        view.earliest_restore.expect("a backup"),
        view.latest_restore.expect("WAL"),
    );
    setting.harness.advance(TimeDelta::minutes(10)).await?;
    setting.harness.run_until_idle().await?;

    let after = latest + TimeDelta::microseconds(1);
    let refused = setting.restore("pg2", json!(after)).await?;
    assert_json_snapshot!(refused.stable(), @r#"
    {
      "body": {
        "error": {
          "code": "InvalidParameterValue",
          "details": [
            {
              "code": "RestorableWindow",
              "message": "2026-11-20T08:00:00.0000000+00:00",
              "target": "earliestRestoreDate"
            },
            {
              "code": "RestorableWindow",
              "message": "2026-11-20T09:00:00.0000000+00:00",
              "target": "latestRestoreDate"
            }
          ],
          "message": "Invalid value given for parameter pointInTimeUTC. 2026-11-20T09:00:00.0000010+00:00 is outside the restorable window. Give a time from 2026-11-20T08:00:00.0000000+00:00 to 2026-11-20T09:00:00.0000000+00:00.",
          "target": "pointInTimeUTC"
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
    let before = earliest - TimeDelta::microseconds(1_000_001);
    let refused = setting.restore("pg2", json!(before)).await?;
    assert_eq!(refused.refusal(), (400, "InvalidParameterValue"));
    assert_eq!(
        refused.body["error"]["details"].as_array().map(Vec::len),
        Some(2)
    );
    let future = setting.harness.now() + TimeDelta::minutes(6);
    let refused = setting.restore("pg2", json!(future)).await?;
    assert_eq!(refused.refusal(), (400, "InvalidParameterValue"));
    // A client that cuts off fractions means the edge.
    let cut = earliest - TimeDelta::milliseconds(900);
    assert_eq!(setting.restore("pg2", json!(cut)).await?.status, 202);
    Ok(())
}

#[tokio::test]
async fn row_17_retention_is_a_whole_number_of_days_from_7_to_35() -> Result<()> {
    // FLX-008, FLX-009, FLX-131
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    for bad in [
        "6",
        "36",
        "-1",
        "0",
        "7.5",
        "\"7\"",
        "1e2",
        "9223372036854775808",
        "null",
        "[7]",
    ] {
        let days: Value = serde_json::from_str(bad)?;
        let body = json!({"properties": {"backup": {"backupRetentionDays": days}}});
        let patch = setting
            .api
            .call(Method::PATCH, &server_path("pg1"), Some(body))
            .await?;
        assert_eq!(patch.refusal(), (400, "InvalidParameterValue"), "{bad}");
        assert_eq!(
            patch.body["error"]["target"], "properties.backup.backupRetentionDays",
            "{bad}"
        );
        let mut create = create_body();
        create["properties"]["backup"] =
            json!({"backupRetentionDays": serde_json::from_str::<Value>(bad)?});
        let create = setting.put("pg2", create).await?;
        assert_eq!(create.refusal(), (400, "InvalidParameterValue"), "{bad}");
    }
    assert_eq!(setting.traces().await?, before);
    Ok(())
}

#[tokio::test]
async fn row_18_a_restore_names_a_mode_a_source_and_another_server() -> Result<()> {
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    for mode in ["Clone", "pitr", "GeoRestore", "ReviveDropped", "Replica"] {
        let mut body = restore_body();
        body["properties"]["createMode"] = mode.into();
        let refused = setting.put("pg2", body).await?;
        assert_eq!(refused.status, 400, "{mode}: {refused:?}");
    }
    let mut body = restore_body();
    body["properties"]
        .as_object_mut()
        .expect("an object")
        .remove("sourceServerResourceId");
    assert_eq!(setting.put("pg2", body).await?.status, 400);
    let mut body = restore_body();
    body["location"] = "centralus".into();
    let refused = setting.put("pg2", body).await?;
    assert_eq!(refused.refusal(), (400, "InvalidParameterValue"));
    assert_eq!(refused.body["error"]["target"], "location");
    assert_eq!(setting.traces().await?, before);
    Ok(())
}

#[tokio::test]
async fn row_19_a_restore_never_lands_on_a_living_server() -> Result<()> {
    let mut setting = Setting::new().await?;
    setting.harness.create("pg2").await?;
    let before = (
        setting.traces().await?,
        setting.api.get(&server_path("pg2")).await?.body,
    );
    for target in ["pg1", "pg2"] {
        let refused = setting.put(target, restore_body()).await?;
        assert!(matches!(refused.status, 400 | 409), "{target}: {refused:?}");
    }
    let after = (
        setting.traces().await?,
        setting.api.get(&server_path("pg2")).await?.body,
    );
    assert_eq!(after, before);
    Ok(())
}

#[tokio::test]
async fn row_20_an_api_version_is_a_date() -> Result<()> {
    let setting = Setting::new().await?;
    let path = server_path("pg1");
    for (query, code) in [
        ("?x=1", "MissingApiVersionParameter"),
        ("?api-version=latest", "InvalidApiVersionParameter"),
        ("?api-version=2026-13-01", "InvalidApiVersionParameter"),
        (
            "?api-version=2026-10-01&api-version=2025-08-01",
            "InvalidApiVersionParameter",
        ),
    ] {
        let refused = setting.api.get(&format!("{path}{query}")).await?;
        assert_eq!(refused.refusal(), (400, code), "{query}");
    }
    for version in [
        "2024-08-01",
        "2025-08-01",
        "2026-01-01-preview",
        "2026-10-01",
    ] {
        let read = setting
            .api
            .get(&format!("{path}?API-Version={version}"))
            .await?;
        assert_eq!(read.status, 200, "{version}");
    }
    Ok(())
}

#[tokio::test]
async fn a_sku_is_whole_and_a_restore_lowers_no_tier_and_changes_no_login() -> Result<()> {
    // FLX-053; contract §3.3
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    let burstable = json!({"name": "Standard_B1ms", "tier": "Burstable"});
    for (sku, target) in [
        (json!({"tier": "MemoryOptimized"}), "sku.name"),
        (json!({"name": "Standard_E2s_v3"}), "sku.tier"),
    ] {
        let mut create = create_body();
        create["sku"] = sku;
        let refused = setting.put("pg2", create).await?;
        assert_eq!(refused.refusal(), (400, "InvalidParameterValue"));
        assert_eq!(refused.body["error"]["target"], target);
    }
    let patch = json!({"sku": {"tier": "MemoryOptimized"}});
    let refused = setting
        .api
        .call(Method::PATCH, &server_path("pg1"), Some(patch))
        .await?;
    assert_eq!(refused.refusal(), (400, "InvalidParameterValue"));
    assert_eq!(refused.body["error"]["target"], "sku.name");

    let mut lower = restore_body();
    lower["sku"] = burstable;
    let mut renamed = restore_body();
    renamed["properties"]["administratorLogin"] = "somebody".into();
    for (body, target) in [
        (lower, "sku.tier"),
        (renamed, "properties.administratorLogin"),
    ] {
        let refused = setting.put("pg2", body).await?;
        assert_eq!(refused.refusal(), (400, "InvalidParameterValue"));
        assert_eq!(refused.body["error"]["target"], target);
    }
    assert_eq!(setting.traces().await?, before);
    Ok(())
}
