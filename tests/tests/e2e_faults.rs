//! What breaks while it works: objects that are gone or changed, processes that die.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use holdfast_tests::ledger::{Ledger, clock, prefix};
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

/// A server with a backup, a ledger, and the WAL objects of its life that came after the backup and that no
/// wider one covers.
async fn with_wal(site: &Site) -> Result<(Ledger, Vec<PathBuf>)> {
    site.create("pg1").await?;
    let before = wal_objects(site)?;
    let life = before
        .first()
        .and_then(|path| path.parent())
        .context("the first backup brought WAL")?;
    let sql = site.sql("pg1").await?;
    let mut ledger = Ledger::prepare(&sql).await?;
    for _ in 0..4 {
        ledger.write(&sql, 15).await?;
        durable(site, &ledger).await?;
    }
    let ranges: Vec<(PathBuf, String, String)> = wal_objects(site)?
        .into_iter()
        .filter(|path| path.starts_with(life) && !before.contains(path))
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.to_owned();
            let (start, end) = name.split_once('-')?;
            Some((path, start.to_owned(), end.to_owned()))
        })
        .collect();
    let alone = |path: &Path, start: &str, end: &str| {
        !ranges
            .iter()
            .any(|(other, from, to)| other != path && from.as_str() <= start && to.as_str() >= end)
    };
    let objects: Vec<PathBuf> = ranges
        .iter()
        .filter(|(path, start, end)| alone(path, start, end))
        .map(|(path, ..)| path.clone())
        .collect();
    ensure!(
        objects.len() >= 3,
        "not in the middle of anything: {objects:?}"
    );
    Ok((ledger, objects))
}

/// Until everything in the ledger can be restored.
async fn durable(site: &Site, ledger: &Ledger) -> Result<()> {
    let written = ledger.last()?.acknowledged;
    until(Duration::from_secs(60), || async {
        let points = site.restore_points("pg1").await?;
        let latest: DateTime<Utc> = points["latestRestoreDate"]
            .as_str()
            .context("latestRestoreDate")?
            .parse()?;
        Ok((latest >= written).then_some(()))
    })
    .await
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

    // One object in the middle of what the restore needs; all others are as they were.
    let victim = &objects[objects.len() / 2];
    let whole = std::fs::read(victim)?;
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(victim, flipped)?;
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

    std::fs::remove_file(victim)?;
    let accepted = site
        .ask_restore("pg1", "pg1-missing", Some(&at_text))
        .await?;
    let operation = site.finish(&accepted).await?;
    ensure!(operation["status"] == "Failed", "{operation:#}");
    ensure!(operation["error"]["code"] == "WalGap", "{operation:#}");
    is_hidden(&site, "pg1-missing").await?;

    // Nothing else was hurt: with the object back the same restore succeeds.
    std::fs::write(victim, whole)?;
    site.restore("pg1", "pg1-again", Some(at)).await?;
    ledger.compare(&site.sql("pg1-again").await?, at).await?;
    Ok(())
}

// F34: a store that does not answer is waited for
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_waits_for_a_store_that_is_away_for_twenty_seconds() -> Result<()> {
    let site = Site::start().await?;
    let (ledger, objects) = with_wal(&site).await?;
    let at = ledger.last()?.acknowledged;
    // The whole store: `wal/{incarnation}/{timeline}/{object}` lies four levels below it.
    let store = objects[0].ancestors().nth(4).context("a store")?.to_owned();
    let away = store.with_extension("away");
    std::fs::rename(&store, &away)?;
    // Not merely absent: whatever is asked of it fails.
    std::fs::write(&store, "")?;
    let at_text = at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    let accepted = site.ask_restore("pg1", "pg1-late", Some(&at_text)).await?;
    let id = operation_id(&accepted)?;
    let outage = tokio::time::Instant::now() + Duration::from_secs(20);
    while tokio::time::Instant::now() < outage {
        let operation = operation(&site, &id).await?;
        ensure!(operation["status"] == "InProgress", "{operation:#}");
        ensure!(
            !is_ready(&site, "pg1-late").await?,
            "nothing can be ready yet"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    std::fs::remove_file(&store)?;
    std::fs::rename(&away, &store)?;
    site.succeed(accepted).await?;
    ledger.compare(&site.sql("pg1-late").await?, at).await?;
    ensure!(prefix(&site.sql("pg1-late").await?).await? == ledger.last()?.sequence);
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
    bulk(&sql, "bulk").await?;

    // During a backup.
    let path = format!("{}/backups/killed", site.server_path("pg1"));
    let accepted = site.call("PUT", &path, None).await?;
    ensure!(accepted.status == 202, "{accepted:?}");
    let id = operation_id(&accepted)?;
    let killed = kill_in_the_middle(&site, &id, &sql).await?;
    site.up().await?;
    let operation = ended(&site, &id, None).await?;
    ensure!(operation["status"] == "Succeeded", "{operation:#}");
    ensure!(
        end_time(&operation)? > killed,
        "it was over before: {operation:#}"
    );
    ensure!(site.get(&path).await?.status == 200);

    // During a restore.
    let sql = site.sql("pg1").await?;
    let accepted = site.ask_restore("pg1", "pg1-killed", None).await?;
    let id = operation_id(&accepted)?;
    let killed = kill_in_the_middle(&site, &id, &sql).await?;
    site.up().await?;
    let operation = ended(&site, &id, Some("pg1-killed")).await?;
    ensure!(operation["status"] == "Succeeded", "{operation:#}");
    ensure!(
        end_time(&operation)? > killed,
        "it was over before: {operation:#}"
    );
    ensure!(prefix(&site.sql("pg1-killed").await?).await? == 50);
    Ok(())
}

// XC-007; F09, F17: one PostgreSQL dies in the middle
#[tokio::test(flavor = "multi_thread")]
async fn a_postmaster_that_dies_ends_no_promise() -> Result<()> {
    let site = Site::start().await?;
    site.create("pg1").await?;
    let sql = site.sql("pg1").await?;
    let mut ledger = Ledger::prepare(&sql).await?;
    ledger.write(&sql, 50).await?;
    bulk(&sql, "bulk").await?;

    // The source's during a backup: its session is gone, so this attempt is over, and a next one follows.
    let path = format!("{}/backups/killed", site.server_path("pg1"));
    let accepted = site.call("PUT", &path, None).await?;
    let id = operation_id(&accepted)?;
    let directory = site.data_dir("pg1").await?;
    started(&site, &id).await?;
    let operation_before = operation(&site, &id).await?;
    ensure!(
        operation_before["status"] == "InProgress",
        "{operation_before:#}"
    );
    let pid_file = std::fs::read_to_string(directory.join("postmaster.pid"))?;
    kill(pid_file.lines().next().context("a pid")?.trim().parse()?)?;
    let operation_after = ended(&site, &id, None).await?;
    ensure!(
        operation_after["status"] == "Succeeded",
        "{operation_after:#}"
    );
    ensure!(site.get(&path).await?.status == 200);

    // It was started again, with everything that was committed.
    let sql = until(Duration::from_secs(60), || async {
        let Ok(sql) = site.sql("pg1").await else {
            return Ok(None);
        };
        Ok(prefix(&sql).await.is_ok().then_some(sql))
    })
    .await?;
    ensure!(prefix(&sql).await? == 50);

    // The copy's in the middle of its recovery: a named failure or the whole state, never less.
    bulk(&sql, "after_the_backup").await?;
    ledger.write(&sql, 10).await?;
    let accepted = site.ask_restore("pg1", "pg1-recovering", None).await?;
    let id = operation_id(&accepted)?;
    let pid = recovering(&site).await?;
    ensure!(!is_ready(&site, "pg1-recovering").await?);
    kill(pid)?;
    let operation = ended(&site, &id, Some("pg1-recovering")).await?;
    if operation["status"] == "Succeeded" {
        ensure!(prefix(&site.sql("pg1-recovering").await?).await? == 60);
    } else {
        ensure!(
            operation["error"]["code"] == "RecoveryFailed",
            "{operation:#}"
        );
        is_hidden(&site, "pg1-recovering").await?;
        site.restore("pg1", "pg1-again", None).await?;
        ensure!(prefix(&site.sql("pg1-again").await?).await? == 60);
    }
    Ok(())
}

/// Enough that copying it takes seconds: 250 MB that hardly compress.
async fn bulk(sql: &tokio_postgres::Client, table: &str) -> Result<()> {
    let random = ["gen_random_uuid()"; 10].join(", ");
    sql.batch_execute(&format!(
        "CREATE TABLE {table} AS SELECT i, concat({random}) AS t FROM generate_series(1, 600000) i"
    ))
    .await?;
    Ok(())
}

/// `kill -9` of everything but PostgreSQL while the operation runs; the instant after it.
async fn kill_in_the_middle(
    site: &Site,
    id: &str,
    sql: &tokio_postgres::Client,
) -> Result<DateTime<Utc>> {
    started(site, id).await?;
    let operation = operation(site, id).await?;
    ensure!(
        operation["status"] == "InProgress",
        "too late: {operation:#}"
    );
    site.kill().await?;
    // The managed server outlives the process, and all of this machine have one clock.
    clock(sql).await
}

fn end_time(operation: &serde_json::Value) -> Result<DateTime<Utc>> {
    Ok(operation["endTime"].as_str().context("endTime")?.parse()?)
}

fn kill(pid: i32) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(pid);
    Ok(nix::sys::signal::kill(
        pid,
        nix::sys::signal::Signal::SIGKILL,
    )?)
}

/// The postmaster that works in a directory which has no final name yet.
async fn recovering(site: &Site) -> Result<i32> {
    let state = site.state_dir();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while tokio::time::Instant::now() < deadline {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Ok(cwd) = std::fs::read_link(entry.path().join("cwd")) else {
                continue;
            };
            let file = cwd.join("postmaster.pid");
            let is_postmaster = || {
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                text.lines().next() == Some(&format!("{pid}"))
            };
            if cwd.starts_with(&state)
                && cwd.to_string_lossy().contains(".building/")
                && is_postmaster()
            {
                return Ok(pid);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("no recovery began")
}

/// Whether the list of servers shows it as Ready.
async fn is_ready(site: &Site, name: &str) -> Result<bool> {
    let path = site.server_path("");
    let listed = site.get(path.trim_end_matches('/')).await?;
    ensure!(listed.status == 200, "{listed:?}");
    let servers = listed.body["value"].as_array().context("a list")?.clone();
    Ok(servers
        .iter()
        .any(|server| server["name"] == name && server["properties"]["state"] == "Ready"))
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

/// The end of an operation. What it makes is not shown as Ready a moment earlier.
async fn ended(site: &Site, id: &str, makes: Option<&str>) -> Result<serde_json::Value> {
    until(Duration::from_secs(240), || async {
        let ready = match makes {
            Some(name) => is_ready(site, name).await?,
            None => false,
        };
        let operation = operation(site, id).await?;
        ensure!(
            !ready || operation["status"] == "Succeeded",
            "a half-made server is Ready: {operation:#}"
        );
        Ok((operation["status"] != "InProgress").then_some(operation))
    })
    .await
}
