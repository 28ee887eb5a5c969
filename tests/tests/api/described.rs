//! The API against its own description: schemathesis makes up requests from `openapi/arm.json`, fitting ones and broken
//! ones, and compares the answers with what is promised there.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use chrono::TimeDelta;
use holdfast_tests::api_client::{ApiClient, OWNER, server_path};
use holdfast_tests::clients;
use holdfast_tests::harness::{GROUP, SUBSCRIPTION, caller};
use holdfast_tests::metadata::workspace;
use http::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::with_server::Setting;

/// Requests of each kind for each operation; HOLDFAST_FUZZ_EXAMPLES is for a longer search.
const EXAMPLES: &str = "12";
/// A failure can be run again; another number, in HOLDFAST_FUZZ_SEED, finds other ones.
const SEED: &str = "4";
/// Of the usual number of examples this takes a sixth.
const WITHIN: Duration = Duration::from_secs(170);
/// Not among them: that everything odd is refused (members that nobody knows are ignored, clients send such),
/// and that a deleted resource is gone at once (a deletion is an operation).
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth";

/// Values that mean something here, and some that do not, for `tests/clients/schemathesis/hooks.py`.
fn known(operation: &str, now: chrono::DateTime<chrono::Utc>) -> Value {
    json!({
        "subscription": [SUBSCRIPTION.to_string(), "00000000-0000-4000-8000-000000000000"],
        "group": [GROUP, "RG1", "nowhere"],
        "server": ["pg1", "PG1", "pg2", "pg3"],
        "backup": ["by-hand", "second", "never"],
        "lock": ["keep", "never"],
        "location": ["eastus2", "East US 2", "northcentralus", "nowhere"],
        "operation": [operation, "00000000-0000-4000-8000-000000000000"],
        "api-version": ["2026-10-01", "2024-08-01", "2026-01-01-preview"],
        "$filter": [
            "eventTimestamp ge '2026-11-01T00:00:00Z'",
            "eventTimestamp ge 2026-11-01T00:00:00 and resourceGroupName eq 'rg1'",
            "resourceGroupName eq 'rg1'",
        ],
        "$select": ["status,eventTimestamp", "nothing"],
        "sourceServerResourceId": [server_path("pg1"), server_path("never")],
        "pointInTimeUTC": [now, "2022-08-23 07:14:24 +0000 UTC", "yesterday"],
        "administratorLogin": ["hfadmin", "root"],
        "administratorLoginPassword": ["correct horse battery staple", "short"],
        "version": ["15", "9"],
        "storageSizeGB": [32, 64, 33],
        "level": ["CanNotDelete", "ReadOnly", "NotSpecified"],
    })
}

/// Nodes work, time passes, and what every other request needs is made again when it was taken away:
/// `pg1` unlocked.
async fn live(setting: &mut Setting) -> Result<()> {
    loop {
        setting.harness.advance(TimeDelta::seconds(1)).await?;
        let control = &setting.harness.control_plane;
        let scope = format!("/subscriptions/{SUBSCRIPTION}");
        for lock in control.list_locks(SUBSCRIPTION, &scope, false).await? {
            let (scope, name) = (&lock.scope, &lock.name);
            control
                .delete_lock(&caller(), SUBSCRIPTION, scope, name)
                .await?;
        }
        setting.harness.run_until_idle().await?;
        if setting.api.get(&server_path("pg1")).await?.status == 404 {
            let body = holdfast_tests::api_client::create_body();
            let answer = setting.put("pg1", body).await?;
            ensure!(answer.status < 500, "{answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_the_description_is_answered_as_it_says() -> Result<()> {
    let mut setting = Setting::new().await?;
    let made = setting
        .api
        .call(
            Method::PUT,
            &format!("{}/backups/by-hand", server_path("pg1")),
            None,
        )
        .await?;
    setting.harness.run_until_idle().await?;
    let operation = ApiClient::operation_of(&made)?;
    let operation = operation
        .split(['/', '?'])
        .rfind(|part| uuid::Uuid::try_parse(part).is_ok());
    let known = known(operation.unwrap_or_default(), setting.harness.now());

    let asked = |name, usual: &str| std::env::var(name).unwrap_or_else(|_| usual.to_owned());
    let examples = asked("HOLDFAST_FUZZ_EXAMPLES", EXAMPLES);
    let seed = asked("HOLDFAST_FUZZ_SEED", SEED);
    let within = match examples == EXAMPLES {
        true => WITHIN,
        false => WITHIN * 20,
    };
    let (address, _server) = setting.api.listen().await?;
    let folder = tempfile::tempdir()?;
    let (out, report) = (
        folder.path().join("out"),
        std::fs::File::create(folder.path().join("out"))?,
    );
    let mut fuzzer = Command::new(clients::program("schemathesis", "schemathesis")?);
    fuzzer
        .arg("run")
        .arg(workspace().canonicalize()?.join("openapi/arm.json"))
        .args(["--url", &format!("http://{address}")])
        .args([
            "--header",
            &format!("Authorization: Bearer {}", setting.api.token(OWNER)?),
        ])
        .args(["--phases", "coverage,fuzzing,stateful", "--checks", CHECKS])
        .args(["--max-examples", &examples, "--seed", &seed])
        .args(["--continue-on-failure", "--generation-database", "none"])
        .args(["--suppress-health-check", "all", "--warnings", "off"])
        .args(["--no-color", "--output-truncate", "false"])
        .env("HOLDFAST_KNOWN", known.to_string())
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env(
            "PYTHONPATH",
            clients::folder().canonicalize()?.join("schemathesis"),
        )
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // It keeps a folder of its own where it is run.
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(report.try_clone()?)
        .stderr(report)
        .kill_on_drop(true);
    let mut running = fuzzer.spawn()?;
    let ended = tokio::select! {
        ended = running.wait() => Some(ended?),
        broken = live(&mut setting) => bail!("the control plane behind it stumbled: {broken:?}"),
        () = tokio::time::sleep(within) => None,
    };
    let said = std::fs::read_to_string(out)?;
    println!("{said}");
    ensure!(
        ended.is_some_and(|status| status.success()),
        "{ended:?} (none: not within {within:?}); see above"
    );
    Ok(())
}
