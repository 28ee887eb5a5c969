//! What breaks while it works: objects that are gone or changed, processes that die.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::ledger::{Ledger, prefix};
use holdfast_tests::site::{Site, until};

/// All WAL objects of the site, oldest first. Tests may look into a store; the product's API never
/// gives out what is in it (FLX-011).
fn wal_objects(site: &Site) -> Result<Vec<PathBuf>> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                walk(&path, found)?;
            } else if path.components().any(|part| part.as_os_str() == "wal")
                && path.extension().is_none()
            {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(&site.state_dir().join("vaults"), &mut found)?;
    found.sort_by_key(|path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    });
    Ok(found)
}

/// A server with a backup and a stretch of WAL after it that no second backup spans.
async fn with_wal(site: &Site) -> Result<(Ledger, Vec<PathBuf>)> {
    site.create("pg1").await?;
    let before = wal_objects(site)?;
    let sql = site.sql("pg1").await?;
    let mut ledger = Ledger::prepare(&sql).await?;
    ledger.write(&sql, 60).await?;
    // Latest flushes; all that the ledger needs is in the store afterwards.
    site.restore("pg1", "pg1-whole", None).await?;
    ensure!(prefix(&site.sql("pg1-whole").await?).await? == 60);
    let after: Vec<PathBuf> = wal_objects(site)?
        .into_iter()
        .filter(|path| !before.contains(path))
        .collect();
    ensure!(!after.is_empty(), "no WAL object was written");
    Ok((ledger, after))
}

async fn is_hidden(site: &Site, name: &str) -> Result<()> {
    let answer = site.get(&site.server_path(name)).await?;
    ensure!(
        answer.status == 404,
        "a half-made server is shown: {answer:?}"
    );
    Ok(())
}

// F35, F36, F37: never a short success
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_is_changed_or_gone_fails_the_restore_by_name() -> Result<()> {
    let site = Site::start().await?;
    let (ledger, objects) = with_wal(&site).await?;
    let at = ledger.last()?.acknowledged;

    let kept: Vec<(PathBuf, Vec<u8>)> = objects
        .iter()
        .filter_map(|path| Some((path.clone(), std::fs::read(path).ok()?)))
        .collect();
    for (path, bytes) in &kept {
        let mut flipped = bytes.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        std::fs::write(path, flipped)?;
    }
    let at_text = at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    let accepted = site
        .ask_restore("pg1", "pg1-flipped", Some(&at_text))
        .await?;
    let operation = site.finish(&accepted).await?;
    ensure!(operation["status"] == "Failed", "{operation:#}");
    ensure!(
        operation["error"]["code"] == "BackupCorrupted",
        "{operation:#}"
    );
    is_hidden(&site, "pg1-flipped").await?;

    for (path, _) in &kept {
        std::fs::remove_file(path)?;
    }
    let accepted = site
        .ask_restore("pg1", "pg1-missing", Some(&at_text))
        .await?;
    let operation = site.finish(&accepted).await?;
    ensure!(operation["status"] == "Failed", "{operation:#}");
    ensure!(operation["error"]["code"] == "WalGap", "{operation:#}");
    is_hidden(&site, "pg1-missing").await?;

    // Nothing else was hurt: with the objects back the same restore succeeds.
    for (path, bytes) in &kept {
        std::fs::write(path, bytes)?;
    }
    site.restore("pg1", "pg1-again", Some(at)).await?;
    ledger.compare(&site.sql("pg1-again").await?, at).await?;
    Ok(())
}

// XC-007; F08, F11, F16: the whole process dies in the middle of each kind of work
#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_everything_comes_back_and_every_operation_ends() -> Result<()> {
    let mut site = Site::start().await?;
    site.create("pg1").await?;
    let sql = site.sql("pg1").await?;
    let mut ledger = Ledger::prepare(&sql).await?;
    ledger.write(&sql, 50).await?;
    sql.batch_execute(
        "CREATE TABLE bulk AS SELECT i, md5(i::text) || md5((i * 7)::text) AS t FROM generate_series(1, 1500000) i",
    )
    .await?;
    drop(sql);

    // During a backup.
    let path = format!("{}/backups/killed", site.server_path("pg1"));
    let accepted = site.call("PUT", &path, None).await?;
    ensure!(accepted.status == 202, "{accepted:?}");
    let id = operation_id(&accepted)?;
    started(&site, &id).await?;
    site.kill().await?;
    site.up().await?;
    let operation = ended(&site, &id).await?;
    ensure!(operation["status"] == "Succeeded", "{operation:#}");
    ensure!(site.get(&path).await?.status == 200);

    // During a restore.
    let accepted = site.ask_restore("pg1", "pg1-killed", None).await?;
    let id = operation_id(&accepted)?;
    started(&site, &id).await?;
    site.kill().await?;
    site.up().await?;
    let operation = ended(&site, &id).await?;
    ensure!(operation["status"] == "Succeeded", "{operation:#}");
    ensure!(prefix(&site.sql("pg1-killed").await?).await? == 50);

    // A postmaster: it is started again, with everything that was committed.
    let directory = site.data_dir("pg1").await?;
    let pid_file = std::fs::read_to_string(directory.join("postmaster.pid"))?;
    let pid: i32 = pid_file.lines().next().context("a pid")?.trim().parse()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)?;
    let rows = until(Duration::from_secs(60), || async {
        let Ok(sql) = site.sql("pg1").await else {
            return Ok(None);
        };
        Ok(prefix(&sql).await.ok())
    })
    .await?;
    ensure!(rows == 50, "{rows}");
    Ok(())
}

fn operation_id(accepted: &holdfast_tests::site::Answer) -> Result<String> {
    let url = accepted.headers["azure-asyncoperation"].to_str()?;
    let path = url.split('?').next().context("a path")?;
    Ok(path.rsplit('/').next().context("an id")?.to_owned())
}

async fn operation(site: &Site, id: &str) -> Result<serde_json::Value> {
    let path = format!(
        "/subscriptions/{}/providers/Microsoft.DBforPostgreSQL/locations/eastus2/azureAsyncOperation/{id}",
        site.subscription
    );
    let answer = site.get(&path).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(answer.body)
}

/// Until a job of the operation shows progress. One that has ended already cannot be broken any more.
async fn started(site: &Site, id: &str) -> Result<()> {
    until(Duration::from_secs(60), || async {
        let operation = operation(site, id).await?;
        ensure!(
            operation["status"] == "InProgress",
            "it is over: {operation:#}"
        );
        Ok(operation["properties"]["phase"].is_string().then_some(()))
    })
    .await
}

async fn ended(site: &Site, id: &str) -> Result<serde_json::Value> {
    until(Duration::from_secs(240), || async {
        let operation = operation(site, id).await?;
        Ok((operation["status"] != "InProgress").then_some(operation))
    })
    .await
}
