//! What Terraform's `azurerm` sends, request by request in its order (contract, terraform.md §2): the provider is in no
//! package registry. Its Go client takes only answers that say they are JSON, polls `Azure-AsyncOperation`, and after a
//! 202 of a DELETE reads the resource until it is 404.

use anyhow::{Context, Result};
use chrono::TimeDelta;
use holdfast_tests::api_client::{Answer, ApiClient, server_path};
use holdfast_tests::harness::{GROUP, Harness, SUBSCRIPTION};
use http::{Method, header};
use serde_json::{Value, json};

use crate::with_server::empty;

const VERSION: &str = "api-version=2025-08-01";

/// A plan that runs: one API, one store, and the nodes work between two polls.
struct Run {
    harness: Harness,
    api: ApiClient,
}

impl Run {
    async fn new() -> Result<Self> {
        let (harness, api) = empty().await?;
        Ok(Self { harness, api })
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        let path = if path.contains('?') {
            path.to_owned()
        } else {
            format!("{path}?{VERSION}")
        };
        let answer = self.api.call(method, &path, body).await?;
        if !answer.body.is_null() {
            let kind = answer.headers.get(header::CONTENT_TYPE);
            assert_eq!(
                kind.context("no content type")?,
                "application/json; charset=utf-8",
                "{path}"
            );
        }
        Ok(answer)
    }

    async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, None).await
    }

    /// GET, which has to be 404; PUT; poll; GET.
    async fn make(&mut self, path: &str, body: Option<Value>) -> Result<Value> {
        let before = self.get(path).await?;
        assert_eq!(before.status, 404, "{before:?}");
        let accepted = self.send(Method::PUT, path, body).await?;
        self.finish(&accepted).await?;
        let read = self.get(path).await?;
        assert_eq!(read.status, 200, "{read:?}");
        Ok(read.body)
    }

    async fn finish(&mut self, accepted: &Answer) -> Result<()> {
        assert_eq!(accepted.status, 202, "{accepted:?}");
        assert_eq!(accepted.headers["retry-after"], "1");
        let operation = ApiClient::operation_of(accepted)?;
        // What changes no machine is done when it is accepted.
        let first = self.get(&operation).await?;
        assert_eq!(first.status, 200);
        if first.body["status"] == "InProgress" {
            assert_eq!(first.headers["retry-after"], "1");
        }
        self.harness.run_until_idle().await?;
        let done = self.get(&operation).await?;
        assert_eq!(
            (done.status, &done.body["status"]),
            (200, &json!("Succeeded")),
            "{done:?}"
        );
        Ok(())
    }

    /// DELETE, then the resource itself until it is 404: the operation's address is not asked.
    async fn destroy(&mut self, path: &str) -> Result<()> {
        let accepted = self.send(Method::DELETE, path, None).await?;
        assert_eq!(accepted.status, 202, "{accepted:?}");
        self.harness.run_until_idle().await?;
        assert_eq!(self.get(path).await?.status, 404);
        Ok(())
    }
}

/// Without a `createMode`, as the provider sends it.
fn create() -> Value {
    json!({
        "identity": {"type": "None", "userAssignedIdentities": null},
        "location": "eastus2",
        "properties": {
            "administratorLogin": "hfadmin",
            "administratorLoginPassword": "correct horse battery staple",
            "authConfig": {"activeDirectoryAuth": "Disabled", "passwordAuth": "Enabled"},
            "backup": {"backupRetentionDays": 7, "geoRedundantBackup": "Disabled"},
            "highAvailability": {"mode": "Disabled"},
            "network": {"publicNetworkAccess": "Enabled"},
            "storage": {"autoGrow": "Disabled", "storageSizeGB": 64, "tier": "P6"},
            "version": "15",
        },
        "sku": {"name": "Standard_D2s_v3", "tier": "GeneralPurpose"},
        "tags": {},
    })
}

/// All that the provider says of a restore when the configuration names only its source and its time.
fn restore(at: &str) -> Value {
    json!({
        "identity": {"type": "None", "userAssignedIdentities": null},
        "location": "eastus2",
        "properties": {
            "backup": {"geoRedundantBackup": "Disabled"},
            "createMode": "PointInTimeRestore",
            "highAvailability": {"mode": "Disabled"},
            "network": {"publicNetworkAccess": "Enabled"},
            "pointInTimeUTC": at,
            "sourceServerResourceId": server_path("tf-main"),
            "storage": {"autoGrow": "Disabled", "storageSizeGB": 32, "tier": "P4"},
        },
        "tags": {},
    })
}

#[tokio::test]
async fn a_server_a_backup_and_a_lock_are_applied_changed_and_destroyed() -> Result<()> {
    let mut run = Run::new().await?;
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}");
    let read = run.get(&format!("{group}?api-version=2023-07-01")).await?;
    assert_eq!(read.status, 200, "{read:?}");
    let absent = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/tf?api-version=2023-07-01");
    assert_eq!(
        run.get(&absent).await?.refusal(),
        (404, "ResourceGroupNotFound")
    );
    let made = run
        .send(
            Method::PUT,
            &absent,
            Some(json!({"location": "eastus2", "tags": {}})),
        )
        .await?;
    assert_eq!(made.status, 201, "{made:?}");
    for _ in 0..3 {
        assert_eq!(run.get(&absent).await?.status, 200);
    }

    let server = server_path("tf-main");
    let made = run.make(&server, Some(create())).await?;
    let properties = &made["properties"];
    // What it writes into its state and compares with the configuration at the next plan.
    assert_eq!(properties["storage"]["tier"], "P6");
    assert_eq!(properties["network"]["publicNetworkAccess"], "Enabled");
    assert_eq!(properties["authConfig"]["passwordAuth"], "Enabled");
    assert!(properties["fullyQualifiedDomainName"].is_string());
    // Nobody asked for a zone: shown, every plan would want it away.
    assert_eq!(properties.get("availabilityZone"), None);

    // `maintenance_window` is not part of the create.
    let window = json!({"properties": {"maintenanceWindow":
        {"customWindow": "Enabled", "dayOfWeek": 3, "startHour": 4, "startMinute": 30}}});
    let patched = run.send(Method::PATCH, &server, Some(window)).await?;
    run.finish(&patched).await?;
    let read = run.get(&server).await?.body;
    assert_eq!(
        read["properties"]["maintenanceWindow"],
        json!({"customWindow": "Enabled", "dayOfWeek": 3, "startHour": 4, "startMinute": 30})
    );

    let retention = json!({"properties": {"backup": {"backupRetentionDays": 14, "geoRedundantBackup": "Disabled"}}});
    let patched = run.send(Method::PATCH, &server, Some(retention)).await?;
    run.finish(&patched).await?;
    let read = run.get(&server).await?.body;
    assert_eq!(read["properties"]["backup"]["backupRetentionDays"], 14);

    // A PUT without a body.
    let backup = format!("{server}/backups/tf-backup");
    let made = run.make(&backup, None).await?;
    assert!(made["properties"]["completedTime"].is_string(), "{made}");

    let lock =
        format!("{server}/providers/Microsoft.Authorization/locks/tf-lock?api-version=2020-05-01");
    assert_eq!(run.get(&lock).await?.status, 404);
    let level = json!({"properties": {"level": "CanNotDelete", "notes": "kept"}});
    let made = run.send(Method::PUT, &lock, Some(level)).await?;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(run.get(&lock).await?.status, 200);
    let refused = run.send(Method::DELETE, &server, None).await?;
    assert_eq!(refused.refusal(), (409, "ScopeLocked"));

    let gone = run.send(Method::DELETE, &lock, None).await?;
    assert!(matches!(gone.status, 200 | 204), "{gone:?}");
    assert_eq!(run.get(&lock).await?.status, 404);
    run.destroy(&backup).await?;
    run.destroy(&server).await
}

#[tokio::test]
async fn a_restore_inherits_what_the_provider_only_fills_in() -> Result<()> {
    let mut run = Run::new().await?;
    run.make(&server_path("tf-main"), Some(create())).await?;
    run.harness.advance(TimeDelta::hours(1)).await?;
    run.harness.write("tf-main").await?;
    run.harness.advance(TimeDelta::hours(1)).await?;
    run.harness.run_until_idle().await?;

    // Configurations that took the time from another resource's state have it as Go prints it.
    for (name, at) in [
        ("tf-rfc", "2026-11-20T09:30:00Z"),
        ("tf-go", "2026-11-20 09:30:00 +0000 UTC"),
    ] {
        let made = run.make(&server_path(name), Some(restore(at))).await?;
        assert_eq!(made["properties"]["storage"]["storageSizeGB"], 64, "{made}");
        assert_eq!(made["properties"]["storage"]["tier"], "P6", "{made}");
        assert_eq!(made["properties"]["version"], "15");
        assert_eq!(made["properties"]["administratorLogin"], "hfadmin");
        assert_eq!(made["properties"]["backup"]["backupRetentionDays"], 7);
        assert_eq!(made["sku"]["name"], "Standard_D2s_v3");
        assert_eq!(made["properties"].get("availabilityZone"), None);
    }

    for at in [
        "2026-11-20 09:30:00",
        "2026-11-20 09:30:00 +0100 CET",
        "yesterday",
    ] {
        let refused = run
            .send(Method::PUT, &server_path("tf-wrong"), Some(restore(at)))
            .await?;
        assert_eq!(refused.refusal(), (400, "InvalidParameterValue"), "{at}");
        assert_eq!(refused.body["error"]["target"], "pointInTimeUTC");
        assert_eq!(run.get(&server_path("tf-wrong")).await?.status, 404);
    }
    Ok(())
}

#[tokio::test]
async fn a_later_put_changes_the_server_that_is_there() -> Result<()> {
    let mut run = Run::new().await?;
    let server = server_path("tf-main");
    run.make(&server, Some(create())).await?;
    let servers = run.harness.count("SELECT count(*) FROM server").await?;
    // `Update` is sent when the login is set later.
    for (mode, team) in [(None, "a"), (Some("Update"), "b"), (Some("Default"), "c")] {
        let mut again = create();
        again["tags"] = json!({"team": team});
        again["properties"]
            .as_object_mut()
            .context("no properties")?
            .remove("administratorLoginPassword");
        if let Some(mode) = mode {
            again["properties"]["createMode"] = json!(mode);
        }
        let accepted = run.send(Method::PUT, &server, Some(again)).await?;
        run.finish(&accepted).await?;
        let read = run.get(&server).await?.body;
        assert_eq!(read["tags"], json!({"team": team}));
        assert_eq!(read["properties"].get("createMode"), None);
    }
    assert_eq!(
        run.harness.count("SELECT count(*) FROM server").await?,
        servers
    );
    Ok(())
}
