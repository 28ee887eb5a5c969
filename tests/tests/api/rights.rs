//! What the roles between Owner and Reader may do, asked over HTTP (RELIABILITY §4.2).

use anyhow::Result;
use holdfast_domain::role::{Role, RoleAssignment};
use holdfast_tests::api_client::{READER, STRANGER, create_body, server_path};
use holdfast_tests::harness::{GROUP, SUBSCRIPTION};
use http::Method;
use serde_json::{Value, json};

use crate::with_server::{Setting, restore_body};

impl Setting {
    /// Gives the stranger a role on the tests' group.
    async fn give(&self, role: Role) -> Result<()> {
        let assignment = RoleAssignment {
            principal: STRANGER.to_owned(),
            role,
            scope: format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"),
        };
        Ok(self.harness.control_plane.assign_role(&assignment).await?)
    }

    async fn stranger(&self, method: Method, path: &str, body: Option<Value>) -> Result<u16> {
        let answer = self.api.call_as(STRANGER, method, path, body).await?;
        if answer.status == 403 {
            assert_eq!(answer.code(), "AuthorizationFailed");
        }
        Ok(answer.status)
    }
}

#[tokio::test]
async fn a_backup_operator_takes_backups_and_changes_nothing_else() -> Result<()> {
    // FLX-138
    let mut setting = Setting::new().await?;
    let server = server_path("pg1");
    let backup = format!("{server}/backups/b1");
    assert_eq!(setting.stranger(Method::PUT, &backup, None).await?, 403);
    setting.give(Role::BackupOperator).await?;
    assert_eq!(setting.stranger(Method::PUT, &backup, None).await?, 202);
    setting.harness.run_until_idle().await?;
    let points = format!("{server}/providers/Holdfast.Recovery/restorePoints");
    for readable in [&server, &backup, &points] {
        let status = setting.stranger(Method::GET, readable, None).await?;
        assert_eq!(status, 200, "{readable}");
    }
    let before = setting.traces().await?;
    let tags = Some(json!({"tags": {}}));
    for (method, path, body) in [
        (Method::DELETE, backup, None),
        (Method::DELETE, server.clone(), None),
        (Method::PATCH, server.clone(), tags),
        (Method::POST, format!("{server}/stop"), None),
        (Method::PUT, server_path("pg2"), Some(create_body())),
        (Method::PUT, server_path("pg2"), Some(restore_body())),
    ] {
        let case = format!("{method} {path}");
        assert_eq!(setting.stranger(method, &path, body).await?, 403, "{case}");
    }
    assert_eq!(setting.traces().await?, before);
    Ok(())
}

#[tokio::test]
async fn a_contributor_does_everything_but_locks() -> Result<()> {
    let mut setting = Setting::new().await?;
    setting.give(Role::Contributor).await?;
    let server = server_path("pg1");
    let locks = "providers/Microsoft.Authorization/locks";
    let lock = format!("{server}/{locks}/keep");
    let level = json!({"properties": {"level": "CanNotDelete"}});
    for (method, body) in [(Method::PUT, Some(level)), (Method::DELETE, None)] {
        let case = method.to_string();
        assert_eq!(setting.stranger(method, &lock, body).await?, 403, "{case}");
    }
    let all = format!("{server}/{locks}");
    assert_eq!(setting.stranger(Method::GET, &all, None).await?, 200);
    let restored = setting
        .stranger(Method::PUT, &server_path("pg2"), Some(restore_body()))
        .await?;
    assert_eq!(restored, 202);
    setting.harness.run_until_idle().await?;
    assert_eq!(setting.stranger(Method::DELETE, &server, None).await?, 202);
    // Not above the scope of the role.
    let other = server.replace(&format!("/{GROUP}/"), "/rg2/");
    assert_eq!(setting.stranger(Method::GET, &other, None).await?, 403);
    Ok(())
}

#[tokio::test]
async fn where_a_server_is_reached_is_told_to_its_readers() -> Result<()> {
    let setting = Setting::new().await?;
    let path = format!(
        "{}/providers/Holdfast.Recovery/connection",
        server_path("pg1")
    );
    let told = setting
        .api
        .call_as(READER, Method::GET, &path, None)
        .await?;
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(told.body["id"], path);
    let properties = &told.body["properties"];
    assert_eq!(properties["fullyQualifiedDomainName"], "pg1.postgres.test");
    assert_eq!(properties["state"], "Ready");
    assert!(properties["port"].as_u64().is_some_and(|port| port > 0));
    assert!(properties["administratorLogin"].is_string());
    assert!(!told.body.to_string().to_lowercase().contains("password"));
    assert_eq!(setting.stranger(Method::GET, &path, None).await?, 403);
    Ok(())
}

#[tokio::test]
async fn a_read_only_lock_stops_every_change() -> Result<()> {
    // FLX-073; contract, other-apis §2
    let setting = Setting::new().await?;
    let server = server_path("pg1");
    let lock = format!("{server}/providers/Microsoft.Authorization/locks/still");
    let body = json!({"properties": {"level": "ReadOnly"}});
    let made = setting.api.call(Method::PUT, &lock, Some(body)).await?;
    assert_eq!(made.status, 201, "{made:?}");
    let before = setting.traces().await?;
    let changes = || {
        [
            (
                Method::PATCH,
                server.clone(),
                Some(json!({"tags": {"a": "b"}})),
            ),
            (Method::PUT, format!("{server}/backups/b1"), None),
            (Method::POST, format!("{server}/stop"), None),
            (Method::DELETE, server.clone(), None),
        ]
    };
    for (method, path, body) in changes() {
        let case = format!("{method} {path}");
        let refused = setting.api.call(method, &path, body).await?;
        assert_eq!(refused.refusal(), (409, "ScopeLocked"), "{case}");
    }
    assert_eq!(setting.traces().await?, before);
    assert_eq!(setting.api.get(&server).await?.status, 200);
    // What is restored from it is another resource.
    let restored = setting.put("pg2", restore_body()).await?;
    assert_eq!(restored.status, 202, "{restored:?}");
    Ok(())
}
