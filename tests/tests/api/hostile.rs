//! Requests that no client of ours sends: RELIABILITY §4.9 from row 21 on, as far as the API is
//! concerned.

use anyhow::Result;
use axum::body::Body;
use holdfast_tests::api_client::{
    ApiClient, OWNER, create_body, request, server_path, servers_path,
};
use holdfast_tests::harness::SUBSCRIPTION;
use http::{Method, header};
use serde_json::json;

use crate::with_server::Setting;

/// A subscription in which the caller has no rights.
const FOREIGN: &str = "f0e1d2c3-0000-4000-8000-000000000002";

#[tokio::test]
async fn rows_21_and_22_a_body_is_one_plain_json_document() -> Result<()> {
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    let good = create_body().to_string();
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let twice = good.replacen('{', "{\"location\":\"centralus\",", 1);
    let big = format!("{{\"x\":\"{}\"}}", "a".repeat(2 << 20));
    let cases: [(&str, Vec<u8>, &str, u16); 9] = [
        (
            "invalid UTF-8",
            b"{\"location\":\"\xff\"}".to_vec(),
            "application/json",
            400,
        ),
        (
            "a BOM",
            format!("\u{feff}{good}").into_bytes(),
            "application/json",
            400,
        ),
        (
            "trailing garbage",
            format!("{good} x").into_bytes(),
            "application/json",
            400,
        ),
        (
            "a duplicate key",
            twice.into_bytes(),
            "application/json",
            400,
        ),
        ("too deep", deep.into_bytes(), "application/json", 400),
        ("too large", big.into_bytes(), "application/json", 413),
        ("an array", b"[]".to_vec(), "application/json", 400),
        ("nothing", vec![], "application/json", 400),
        ("XML", good.clone().into_bytes(), "text/xml", 415),
    ];
    let token = setting.api.token(OWNER)?;
    let put = |bytes: Vec<u8>, content_type: &str, encoding: Option<&str>| {
        let mut put = request(Method::PUT, &server_path("pg2"))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, content_type);
        if let Some(encoding) = encoding {
            put = put.header(header::CONTENT_ENCODING, encoding);
        }
        put.body(Body::from(bytes))
    };
    for (case, bytes, content_type, status) in cases {
        let answer = setting.api.send(put(bytes, content_type, None)?).await?;
        assert_eq!(answer.status, status, "{case}: {answer:?}");
        assert!(!answer.code().is_empty(), "{case}");
    }
    let packed = put(good.into_bytes(), "application/json", Some("gzip"))?;
    assert_eq!(setting.api.send(packed).await?.status, 415);
    assert_eq!(setting.traces().await?, before);
    Ok(())
}

#[tokio::test]
async fn row_26_an_operation_is_seen_from_its_own_subscription_only() -> Result<()> {
    let mut setting = Setting::new().await?;
    let accepted = setting.put("pg2", create_body()).await?;
    let own = ApiClient::operation_of(&accepted)?;
    setting.harness.run_until_idle().await?;
    assert_eq!(setting.api.get(&own).await?.status, 200);
    let random = own.replace(
        own.split('/')
            .next_back()
            .and_then(|last| last.split('?').next())
            .unwrap_or_default(),
        "99999999-0000-4000-8000-000000000009",
    );
    assert_eq!(setting.api.get(&random).await?.status, 404);
    let foreign = own.replace(&SUBSCRIPTION.to_string(), FOREIGN);
    assert!(matches!(setting.api.get(&foreign).await?.status, 403 | 404));
    Ok(())
}

#[tokio::test]
async fn row_28_an_activity_filter_is_read_and_not_run() -> Result<()> {
    let setting = Setting::new().await?;
    let base = format!(
        "/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Insights/eventtypes/management/values?api-version=2015-04-01"
    );
    for bad in [
        "eventTimestamp%20ge%20'2026-11-20T00:00:00Z'%20and%20caller%20eq%20'a%00b'",
        "eventTimestamp%20ge%20'2026-11-20T00:00:00Z'%20and%20resourceGroupName%20eq%20a%00b",
        "eventTimestamp%20ge%20'x'",
        "eventTimestamp%20ge%20'2026-11-20T00:00:00Z'%20or%201%20eq%201",
        "'%20or%201=1%20--",
        "resourceUri%20eq%20'x'",
    ] {
        let refused = setting.api.get(&format!("{base}&$filter={bad}")).await?;
        assert_eq!(refused.status, 400, "{bad}: {refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_no_store_can_hold_is_refused_and_never_our_mistake() -> Result<()> {
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/rg2");
    let lock = format!("{group}/providers/Microsoft.Authorization/locks/l").replace("rg2", "rg1");
    let nul = "a\u{0}b";
    let mut networked = create_body();
    networked["properties"]["network"] =
        json!({"delegatedSubnetResourceId": nul, "privateDnsZoneArmResourceId": nul});
    let notes = json!({"properties": {"level": "CanNotDelete", "notes": nul}});
    for (path, body) in [
        (
            group.clone(),
            json!({"location": "eastus2", "tags": {"a": nul}}),
        ),
        (
            group.clone(),
            json!({"location": "eastus2", "tags": {nul: "a"}}),
        ),
        (
            group.clone(),
            json!({"location": "eastus2", "tags": {"a": "x\ny"}}),
        ),
        (
            group.clone(),
            json!({"location": "eastus2", "tags": {"a": "x".repeat(257)}}),
        ),
        (lock, notes),
        (server_path("pg2"), networked),
    ] {
        let refused = setting
            .api
            .call(Method::PUT, &path, Some(body.clone()))
            .await?;
        assert_eq!(refused.status, 400, "{body}: {refused:?}");
    }
    assert_eq!(setting.traces().await?, before);
    assert_eq!(setting.api.get(&group).await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn row_35_an_administrator_is_nobody_that_postgres_knows() -> Result<()> {
    let setting = Setting::new().await?;
    let before = setting.traces().await?;
    for login in ["postgres", "pg_x", "azure_superuser", "a'b", "", "root"] {
        let mut body = create_body();
        body["properties"]["administratorLogin"] = login.into();
        assert_eq!(setting.put("pg2", body).await?.status, 400, "{login}");
    }
    for password in [
        "short".to_owned(),
        "x".repeat(1 << 19),
        "nul\u{0}nul\u{0}nul".to_owned(),
    ] {
        let mut body = create_body();
        body["properties"]["administratorLoginPassword"] = password.clone().into();
        let refused = setting.put("pg2", body).await?;
        assert_eq!(refused.status, 400);
        assert!(
            !refused.body.to_string().contains(&password),
            "never echoed"
        );
    }
    assert_eq!(setting.traces().await?, before);
    Ok(())
}

#[tokio::test]
async fn what_the_server_is_cannot_be_written_by_its_user() -> Result<()> {
    // RELIABILITY §4.9 row 23
    let mut setting = Setting::new().await?;
    let mut body = create_body();
    body["id"] = "/subscriptions/x".into();
    body["systemData"] = json!({"createdAt": "1999-01-01T00:00:00Z"});
    body["properties"]["fullyQualifiedDomainName"] = "evil.example".into();
    body["properties"]["state"] = "Ready".into();
    let answer = setting.put("pg2", body).await?;
    if answer.status == 202 {
        setting.harness.run_until_idle().await?;
        let read = setting.api.get(&server_path("pg2")).await?.body;
        assert_eq!(read["id"], server_path("pg2"));
        assert_eq!(
            read["properties"]["fullyQualifiedDomainName"],
            "pg2.postgres.test"
        );
        assert_ne!(read["systemData"]["createdAt"], "1999-01-01T00:00:00Z");
    } else {
        assert_eq!(answer.status, 400);
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_path_and_an_unknown_method_are_said_to_be_so() -> Result<()> {
    // RELIABILITY §4.9 row 43
    let setting = Setting::new().await?;
    let odd = setting
        .api
        .get(&format!("{}/pg1/secrets", servers_path()))
        .await?;
    assert_eq!(odd.status, 404);
    assert!(!odd.code().is_empty());
    let trace = setting
        .api
        .call(Method::TRACE, &server_path("pg1"), None)
        .await?;
    assert!(matches!(trace.status, 404 | 405), "{trace:?}");
    Ok(())
}
