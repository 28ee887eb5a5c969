//! What can be done with a vault and its key when nothing else is left (DESIGN §3.14): looking into it,
//! reading it through, and bringing a server back, with the binary that a user would have.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use holdfast_tests::ledger::clock;
use holdfast_tests::site::{Site, binary, until};
use serde_json::{Value, json};
use tokio::process::Command;

/// How `holdfast` ended, and what it said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{}\n{}", self.out, self.err))
    }
}

/// No state directory, no site: only what the arguments name.
async fn holdfast(arguments: &[&[&str]]) -> Result<Said> {
    let output = Command::new(binary()?)
        .args(arguments.concat())
        .env_remove("HOLDFAST_STATE_DIR")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    Ok(Said {
        code: output.status.code().context("ended by a signal")?,
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/v1")
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_tree(&entry.path(), &to)?,
            false => {
                std::fs::copy(entry.path(), to)?;
            }
        }
    }
    Ok(())
}

/// Every file below a directory, by its path from there.
fn files(root: &Path, below: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![root.join(below)];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            match path.is_dir() {
                true => open.push(path),
                false => found.push(text(path.strip_prefix(root)?).to_owned()),
            }
        }
    }
    found.sort();
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_golden_vault_is_shown_with_its_key_and_less_without() -> Result<()> {
    let vault = golden().join("vault").canonicalize()?;
    let key = golden().join("keys/golden-1.key");
    let inspect = ["vault", "inspect", "--vault", text(&vault)];
    let said = holdfast(&[&inspect, &["--key-file", text(&key), "-o", "json"]]).await?;
    ensure!(said.code == 0, "{}", said.err);
    let backup = |id: &str, kind: &str, second: u32, logical: u64, stored: u64| {
        json!({
            "backup": id, "generation": 1, "kind": kind, "postgresql_version": "15.18", "timeline": 1,
            "start_lsn": "0/1FFF9C", "stop_lsn": "0/200000",
            "completed_time": format!("2026-09-21T14:13:2{second}.123456Z"),
            "logical_bytes": logical, "stored_bytes": stored, "whole": true,
        })
    };
    let expected = json!({
        "vault": format!("file://{}/", vault.display()),
        "key_given": true,
        "incarnations": [{
            "incarnation": "01a213c7-1d8a-72ef-888c-233230264456",
            "key_versions": ["golden-1"],
            "locked": null,
            "server": "00000000-0000-0000-0000-000000000000",
            "server_name": "golden",
            "postgresql_version": "15.18",
            "postgresql_major": 15,
            "earliest_restorable": "2026-09-21T14:13:20.123456Z",
            "latest_restorable": "2026-09-21T14:13:22.123456Z",
            "latest_lsn": "0/100000",
            "backups": [
                backup("01a213c7-1dbb-701f-93fd-d440a4110dcf", "full", 0, 122_983, 59_226),
                backup("01a213c7-1e00-7070-bcd3-450a9832d4fc", "differential", 1, 131_175, 9_022),
                backup("01a213c7-1e18-756c-bb2c-177b01483974", "differential", 2, 139_367, 9_080),
            ],
            "wal": [
                {"timeline": 1, "start": "0/200000", "end": "0/300050", "objects": 3, "bytes": 1_806, "holes": []},
                {"timeline": 2, "start": "0/300000", "end": "0/400000", "objects": 1, "bytes": 671, "holes": []},
            ],
            "unnamed": {"objects": 0, "bytes": 0},
            "strangers": {"objects": 0, "bytes": 0},
            "problems": [],
        }],
        "strangers": {"objects": 0, "bytes": 0},
    });
    ensure!(said.json()? == expected, "{}", said.out);

    // Without the key: what keys of objects tell.
    let said = holdfast(&[&inspect, &["-o", "json"]]).await?;
    ensure!(said.code == 0, "{}", said.err);
    let shown = said.json()?;
    ensure!(shown["key_given"] == false);
    let (sealed, open) = (&shown["incarnations"][0], &expected["incarnations"][0]);
    ensure!(sealed["wal"] == open["wal"] && sealed["key_versions"] == open["key_versions"]);
    ensure!(sealed["server_name"].is_null() && sealed["unnamed"].is_null());
    for (sealed, open) in [0, 1, 2].map(|n| (&sealed["backups"][n], &open["backups"][n])) {
        ensure!(sealed["backup"] == open["backup"] && sealed["completed_time"].is_null());
    }
    let said = holdfast(&[&inspect, &["-o", "table"]]).await?;
    ensure!(said.out.contains("No key was given"), "{}", said.out);
    ensure!(
        said.out.contains("log of timeline 2: 0/300000 to 0/400000"),
        "{}",
        said.out
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_ends_with_a_code_and_what_was_asked_wrongly_with_another() -> Result<()> {
    let root = tempfile::tempdir()?;
    let vault = root.path().join("vault");
    copy_tree(&golden().join("vault"), &vault)?;
    let key = golden().join("keys/golden-1.key");
    let verify = |key: PathBuf| {
        let vault = vault.clone();
        async move {
            let place = ["--vault", text(&vault), "--key-file", text(&key)];
            holdfast(&[&["vault", "verify"], &place, &["-o", "json"]]).await
        }
    };
    // Its log begins after its backups do, and nothing else is wrong with it.
    let said = verify(key.clone()).await?;
    ensure!(said.code == 6, "{} {}", said.code, said.err);
    let report = said.json()?;
    let one = &report["incarnations"][0];
    ensure!(
        report["good"] == false && one["objects"] == 14,
        "{report:#}"
    );
    let codes = |report: &Value| -> Vec<String> {
        let findings = report["incarnations"][0]["findings"].as_array();
        let codes = findings.into_iter().flatten();
        codes
            .map(|it| it["code"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    ensure!(codes(&report) == ["WalGap"], "{report:#}");

    let pack = files(&vault, "packs")?.remove(0);
    let good = std::fs::read(vault.join(&pack))?;
    let mut bytes = good.clone();
    bytes[1000] ^= 4;
    std::fs::write(vault.join(&pack), bytes)?;
    let report = verify(key.clone()).await?.json()?;
    ensure!(codes(&report) == ["ObjectDamaged", "WalGap"], "{report:#}");
    let found = &report["incarnations"][0]["findings"][0];
    ensure!(found["key"] == pack.as_str(), "{found:#}");
    ensure!(
        found["backups"].as_array().is_some_and(|by| by.len() == 3),
        "{found:#}"
    );
    std::fs::remove_file(vault.join(&pack))?;
    let report = verify(key.clone()).await?.json()?;
    ensure!(codes(&report)[0] == "ObjectMissing", "{report:#}");
    std::fs::write(vault.join(&pack), good)?;

    // A key of the right form that is not the one.
    let wrong = root.path().join("golden-1.key");
    std::fs::write(&wrong, "ab".repeat(32))?;
    for verb in ["verify", "inspect"] {
        let said = holdfast(&[&[
            "vault",
            verb,
            "--vault",
            text(&vault),
            "--key-file",
            text(&wrong),
        ]])
        .await?;
        ensure!(said.code == 5, "{verb}: {} {}", said.code, said.err);
        ensure!(
            said.err.contains("KeyUnavailable") && said.err.contains("golden-1"),
            "{}",
            said.err
        );
    }
    let into = root.path().join("into");
    let restore = [
        "vault",
        "restore",
        "--vault",
        text(&vault),
        "--into",
        text(&into),
    ];
    let said = holdfast(&[&restore, &["--key-file", text(&wrong)]]).await?;
    ensure!(
        said.code == 5 && !into.exists(),
        "{} {}",
        said.code,
        said.err
    );

    // What was asked is not to be had, or not understood.
    std::fs::write(&wrong, "no key")?;
    let nobody = "01a213c7-1d8a-72ef-888c-000000000000";
    let asked: [(i32, &PathBuf, &[&str]); 6] = [
        (2, &wrong, &[]),
        (2, &key, &["--to", "yesterday"]),
        (2, &key, &["--to", "1999-01-01T00:00:00Z"]),
        (2, &key, &["--incarnation", "pg1"]),
        (3, &key, &["--incarnation", nobody]),
        (3, &key, &["--backup", nobody]),
    ];
    for (code, key, more) in asked {
        let said = holdfast(&[&restore, &["--key-file", text(key)], more]).await?;
        ensure!(said.code == code, "{more:?}: {} {}", said.code, said.err);
        ensure!(!into.exists(), "{more:?}");
    }
    let nowhere = root.path().join("nowhere");
    let said = holdfast(&[&["vault", "inspect", "--vault", text(&nowhere)]]).await?;
    ensure!(
        said.code == 3 && !nowhere.exists(),
        "{} {}",
        said.code,
        said.err
    );
    Ok(())
}

/// A server that `vault restore` laid out, running; ended when dropped.
struct Running {
    report: Value,
}

impl Running {
    /// Starts it with the very command that was printed.
    async fn start(report: Value) -> Result<Self> {
        let part = |name: &str| {
            report[name]
                .as_str()
                .context("a command")
                .map(str::to_owned)
        };
        let line = format!("{} && {}", part("start")?, part("wait")?);
        let started = Command::new("/bin/sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await?;
        let running = Self { report };
        if !started.success() {
            let data = running.text("data_directory")?;
            let log = std::fs::read_to_string(Path::new(data).with_file_name("server.log"))?;
            bail!("{line}: {started}\n{log}");
        }
        // A recovery that ended anywhere else would have started as well.
        let proof = std::fs::read_to_string(running.text("proof_file")?)
            .with_context(|| running.report.to_string())?;
        let last = proof.lines().rfind(|line| !line.is_empty());
        ensure!(last == Some(running.text("proof")?), "{proof}");
        Ok(running)
    }

    fn text(&self, name: &str) -> Result<&str> {
        self.report[name].as_str().with_context(|| name.to_owned())
    }

    async fn sql(&self) -> Result<tokio_postgres::Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(self.text("socket_directory")?)
            .port(u16::try_from(
                self.report["port"].as_u64().context("port")?,
            )?)
            .user("holdfast")
            .dbname("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn stop(&self) -> Result<()> {
        let start = self.text("start")?;
        let line = start.replace(" start", " -m immediate stop");
        std::process::Command::new("/bin/sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("a restored server was not stopped: {error}");
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

/// The one vault of a site that holds something.
fn vault_of(state_dir: &Path) -> Result<PathBuf> {
    let mut open = vec![state_dir.join("vaults")];
    while let Some(dir) = open.pop() {
        if dir.join("backups").is_dir() {
            return Ok(dir);
        }
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    bail!("no vault holds a backup")
}

async fn latest(site: &Site) -> Result<DateTime<Utc>> {
    let points = site.restore_points("pg1").await?;
    let latest = points["latestRestoreDate"]
        .as_str()
        .context("latestRestoreDate")?;
    Ok(latest.parse()?)
}

// DESIGN §3.14; RELIABILITY F58
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_comes_back_after_the_control_plane_burned_down() -> Result<()> {
    let site = Site::start().await?;
    site.create("pg1").await?;
    let sql = site.sql("pg1").await?;
    sql.batch_execute(
        "CREATE TABLE orders AS SELECT n, md5(n::text) AS pad FROM generate_series(1, 20000) AS n",
    )
    .await?;
    site.back_up("pg1", "before").await?;
    sql.batch_execute(
        "INSERT INTO orders SELECT n, md5(n::text) FROM generate_series(20001, 25000) AS n",
    )
    .await?;
    let before = clock(&sql).await?;
    // Objects of its own for what comes after.
    let durable = |instant| {
        let site = &site;
        until(Duration::from_secs(60), move || async move {
            Ok((latest(site).await? > instant).then_some(()))
        })
    };
    durable(before).await?;
    sql.batch_execute("DROP TABLE orders").await?;
    sql.batch_execute("CREATE TABLE afterwards AS SELECT 7 AS n")
        .await?;
    let end = clock(&sql).await?;
    drop(sql);
    durable(end).await?;

    // Everything but the vault and the key goes up in smoke.
    site.kill().await?;
    site.command(&["down"]).await?;
    let root = tempfile::tempdir()?;
    std::fs::set_permissions(
        root.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o711),
    )?;
    let (vault, key) = (
        root.path().join("vault"),
        root.path().join("key from the safe"),
    );
    copy_tree(&vault_of(&site.state_dir())?, &vault)?;
    let kept = std::fs::read_dir(site.state_dir().join("keys"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|it| it == "key"))
        .context("a key-encryption key")?;
    std::fs::copy(kept, &key)?;
    for gone in ["metadata", "nodes", "keys", "vaults"] {
        std::fs::remove_dir_all(site.state_dir().join(gone)).with_context(|| gone.to_owned())?;
    }

    let at_it = [
        "--vault",
        text(&vault),
        "--key-file",
        text(&key),
        "-o",
        "json",
    ];
    let said = holdfast(&[&["vault", "inspect"], &at_it]).await?;
    ensure!(said.code == 0, "{}", said.err);
    let shown = said.json()?;
    let one = &shown["incarnations"][0];
    ensure!(
        one["server_name"] == "pg1" && one["postgresql_major"] == site.major,
        "{shown:#}"
    );
    let backups = one["backups"].as_array().context("backups")?;
    ensure!(
        backups.len() >= 2 && backups[0]["kind"] == "full",
        "{shown:#}"
    );
    ensure!(backups.iter().all(|it| it["whole"] == true), "{shown:#}");
    let stamp = |name: &str| -> Result<DateTime<Utc>> {
        Ok(one[name]
            .as_str()
            .with_context(|| name.to_owned())?
            .parse()?)
    };
    ensure!(stamp("earliest_restorable")? < before && before < stamp("latest_restorable")?);
    ensure!(one["wal"][0]["holes"] == json!([]), "{shown:#}");

    let said = holdfast(&[&["vault", "verify"], &at_it]).await?;
    ensure!(said.code == 0, "{}\n{}", said.out, said.err);

    let to = before.to_rfc3339_opts(SecondsFormat::Micros, true);
    let (first, second) = (root.path().join("first"), root.path().join("second"));
    let port = free_port()?.to_string();
    let restore = async |into: &Path, more: &[&str]| {
        let place = ["--port", &port, "--into", text(into)];
        holdfast(&[&["vault", "restore"], &at_it, &place, more]).await
    };
    let said = restore(&first, &["--to", &to]).await?;
    ensure!(said.code == 0, "{}", said.err);
    let restored: DateTime<Utc> = said.json()?["restored_to"]
        .as_str()
        .context("restored_to")?
        .parse()?;
    ensure!(restored == before, "{}", said.out);
    let running = Running::start(said.json()?).await?;
    let sql = running.sql().await?;
    let row = sql
        .query_one("SELECT count(*), max(n) FROM orders", &[])
        .await?;
    ensure!((row.get::<_, i64>(0), row.get::<_, i32>(1)) == (25_000, 25_000));
    ensure!(sql.query("SELECT n FROM afterwards", &[]).await.is_err());
    // It is a server like any other: it takes writes, and starts again without its WAL files.
    sql.batch_execute("INSERT INTO orders VALUES (0, 'new')")
        .await?;
    drop(sql);
    running.stop()?;
    std::fs::remove_dir_all(running.text("wal_directory")?)?;
    let running = Running::start(running.report.clone()).await?;
    let row = running
        .sql()
        .await?
        .query_one("SELECT count(*) FROM orders", &[])
        .await?;
    ensure!(row.get::<_, i64>(0) == 25_001);
    running.stop()?;

    // The same directory again is refused; the newest state goes to another.
    let said = restore(&first, &[]).await?;
    ensure!(
        said.code == 4 && said.err.contains("RestoreTargetExists"),
        "{}",
        said.err
    );
    let said = restore(&second, &["--to", "latest"]).await?;
    ensure!(said.code == 0, "{}", said.err);
    let newest = Running::start(said.json()?).await?;
    let sql = newest.sql().await?;
    let row = sql.query_one("SELECT n FROM afterwards", &[]).await?;
    ensure!(row.get::<_, i32>(0) == 7);
    ensure!(sql.query("SELECT n FROM orders", &[]).await.is_err());
    drop((sql, newest));
    std::fs::remove_dir_all(&second)?;

    // One backup by itself, with a key that is in a directory, as `up` keeps it.
    let third = root.path().join("third");
    let midway = backups
        .last()
        .and_then(|it| it["backup"].as_str())
        .context("an id")?;
    let said = restore(&third, &["--backup", midway]).await?;
    ensure!(said.code == 0, "{}", said.err);
    let alone = Running::start(said.json()?).await?;
    let row = alone
        .sql()
        .await?
        .query_one("SELECT count(*) FROM orders", &[])
        .await?;
    ensure!(
        row.get::<_, i64>(0) == 20_000,
        "the backup was taken before the other rows"
    );
    drop(alone);

    // A range of the log is lost between the backup and the instant: nothing is restored to less.
    let stop = backups
        .last()
        .and_then(|it| it["stop_lsn"].as_str())
        .context("an LSN")?;
    lose_log_after(&vault, stop)?;
    let said = holdfast(&[&["vault", "verify"], &at_it]).await?;
    let report = said.json()?;
    ensure!(
        said.code == 6 && report["incarnations"][0]["findings"][0]["code"] == "WalGap",
        "{report:#}"
    );
    ensure!(
        report["incarnations"][0]["bad_backups"] == json!([]),
        "{report:#}"
    );
    let fourth = root.path().join("fourth");
    let said = restore(&fourth, &["--to", &to]).await?;
    ensure!(
        said.code == 6 && said.err.contains("WalGap"),
        "{} {}",
        said.code,
        said.err
    );
    ensure!(!fourth.exists());
    Ok(())
}

/// Removes every object that holds bytes between the backup's end and the last object of the log.
fn lose_log_after(vault: &Path, stop: &str) -> Result<()> {
    let stop: holdfast_domain::Lsn = stop.parse()?;
    let mut objects = Vec::new();
    for key in files(vault, "wal")? {
        if let Some((_, _, start, end)) = holdfast_vault::layout::parse_wal(&key) {
            objects.push((start, end, key));
        }
    }
    objects.sort();
    let last = objects.last().context("there is a log")?.0;
    let lost: Vec<_> = objects
        .iter()
        .filter(|(start, _, _)| *start >= stop && *start < last)
        .collect();
    ensure!(
        !lost.is_empty(),
        "nothing lies between {stop} and {last}: {objects:?}"
    );
    for (_, _, key) in lost {
        std::fs::remove_file(vault.join(key))?;
    }
    Ok(())
}
