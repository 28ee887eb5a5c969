//! Restores on real PostgreSQL, compared with a writer's ledger (RELIABILITY §2.1).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_tests::ledger::{Ledger, clock, prefix};
use holdfast_tests::site::{Site, until};

/// Repeatable "random" instants: a failure can be run again.
fn between(from: DateTime<Utc>, to: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
    let span = (to - from).num_microseconds().unwrap_or(1).max(1);
    let mut state: i64 = 0x2545_F491;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            from + TimeDelta::microseconds(state.rem_euclid(span))
        })
        .collect()
}

/// Restores `pg1` to each instant, two at a time, and compares each copy with the ledger.
async fn compare_all(site: &Site, ledger: &Ledger, instants: &[DateTime<Utc>]) -> Result<()> {
    for (pair, instants) in instants.chunks(2).enumerate() {
        let restores = instants.iter().enumerate().map(|(index, at)| async move {
            let name = format!("pg1-at-{pair}-{index}");
            let operation = site.restore("pg1", &name, Some(*at)).await?;
            ensure!(
                operation["properties"]["restoredTo"].is_string(),
                "no restoredTo: {operation:#}"
            );
            ledger.compare(&site.sql(&name).await?, *at).await?;
            let gone = site.call("DELETE", &site.server_path(&name), None).await?;
            site.succeed(gone).await
        });
        futures::future::try_join_all(restores).await?;
    }
    Ok(())
}

// FLX-001, FLX-002, FLX-006, FLX-055, FLX-057, FLX-058, FLX-060, FLX-061, FLX-062, FLX-064, FLX-065,
// FLX-101, FLX-102; F41, F42
#[tokio::test(flavor = "multi_thread")]
async fn every_instant_of_the_window_comes_back_as_it_was() -> Result<()> {
    let site = Site::start().await?;
    site.create("pg1").await?;
    let sql = site.sql("pg1").await?;
    let uri = site
        .command(&["server", "connection-string", "pg1"])
        .await?;
    let superuser = as_superuser(&uri).await?;
    superuser
        .batch_execute("SET timezone = 'UTC'; CREATE EXTENSION pg_walinspect")
        .await?;
    let mut ledger = Ledger::prepare(&sql).await?;
    let from = log_position(&superuser).await?;
    ledger.write(&sql, 150).await?;
    let stamp = commit_stamp(&superuser, 41, &from).await?;
    let backup = site.back_up("pg1", "midway").await?;
    let in_backup = ledger.last()?.sequence;
    ledger.write(&sql, 150).await?;
    // An idle gap: nothing is committed between these two.
    let gap_from = ledger.last()?.acknowledged;
    let points = until(Duration::from_secs(30), || async {
        let points = site.restore_points("pg1").await?;
        let latest: DateTime<Utc> = points["latestRestoreDate"]
            .as_str()
            .context("latestRestoreDate")?
            .parse()?;
        Ok((latest > gap_from + TimeDelta::seconds(3)).then_some(latest))
    })
    .await?;
    let idle = gap_from + (points - gap_from) / 2;
    ledger.write(&sql, 100).await?;
    let end = ledger.last()?;

    // Ten while it wrote, and one while nothing happened.
    let mut instants = vec![idle];
    for (rows, count) in [(0..150, 4), (150..300, 3), (300..400, 3)] {
        let stretch = &ledger.entries[rows];
        let (first, last) = (stretch.first(), stretch.last());
        let (first, last) = (first.context("written")?, last.context("written")?);
        instants.extend(between(first.sent, last.acknowledged, count));
    }
    compare_all(&site, &ledger, &instants).await?;

    // One microsecond to either side of a commit, by the stamp that PostgreSQL wrote for it.
    let micro = TimeDelta::microseconds(1);
    for (name, at, rows) in [
        ("pg1-just-before", stamp - micro, 40),
        ("pg1-just-after", stamp + micro, 41),
    ] {
        site.restore("pg1", name, Some(at)).await?;
        let present = prefix(&site.sql(name).await?).await?;
        ensure!(
            present == rows,
            "{name}: {present} rows at {at}, the commit of row 41 is stamped {stamp}"
        );
        let gone = site.call("DELETE", &site.server_path(name), None).await?;
        site.succeed(gone).await?;
    }

    // Latest: the last acknowledged commit is there.
    site.restore("pg1", "pg1-latest", None).await?;
    ensure!(prefix(&site.sql("pg1-latest").await?).await? == end.sequence);

    // Fast: the listed backup's own state, nothing of what came after.
    let completed = backup["properties"]["completedTime"]
        .as_str()
        .context("completedTime")?;
    let accepted = site.ask_restore("pg1", "pg1-fast", Some(completed)).await?;
    site.succeed(accepted).await?;
    let fast = prefix(&site.sql("pg1-fast").await?).await?;
    ensure!(
        fast == in_backup,
        "fast restore has {fast} rows, the backup {in_backup}"
    );

    // The source went on all the while, and a copy of a copy is a server like any other.
    ensure!(prefix(&sql).await? == end.sequence);
    site.first_backup("pg1-latest").await?;
    let copy = site.sql("pg1-latest").await?;
    copy.execute("DELETE FROM ledger WHERE seq > 10", &[])
        .await?;
    site.restore("pg1-latest", "pg1-third", None).await?;
    ensure!(prefix(&site.sql("pg1-third").await?).await? == 10);
    Ok(())
}

// FLX-038, FLX-145; RELIABILITY §5.3.6
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_servers_last_commit_is_in_its_latest_restore() -> Result<()> {
    let site = Site::start().await?;
    site.create("pg1").await?;
    let sql = site.sql("pg1").await?;
    let mut ledger = Ledger::prepare(&sql).await?;
    ledger.write(&sql, 40).await?;
    drop(sql);
    site.power("pg1", "stop").await?;
    let state = site.get(&site.server_path("pg1")).await?.body["properties"]["state"].clone();
    ensure!(state == "Stopped", "{state}");

    site.restore("pg1", "pg1-copy", None).await?;
    ensure!(prefix(&site.sql("pg1-copy").await?).await? == 40);

    // On-demand backups need it running, and say so.
    let path = format!("{}/backups/later", site.server_path("pg1"));
    let refused = site.call("PUT", &path, None).await?;
    ensure!(
        (refused.status, refused.code()) == (400, "ServerIsNotReady"),
        "{refused:?}"
    );

    site.power("pg1", "start").await?;
    ensure!(prefix(&site.sql("pg1").await?).await? == 40);
    Ok(())
}

// FLX-019; the age of the recovery point is a promise
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_data_directory_costs_no_more_than_the_age_shown_before() -> Result<()> {
    let site = Site::start().await?;
    site.create("pg1").await?;
    let sql = site.sql("pg1").await?;
    let mut ledger = Ledger::prepare(&sql).await?;
    ledger.write(&sql, 200).await?;
    // The promise is worth something once it covers what was written so far.
    let written = ledger.last()?.acknowledged;
    let (age, shown) = until(Duration::from_secs(30), || async {
        let points = site.restore_points("pg1").await?;
        let shown = clock(&sql).await?;
        let latest: DateTime<Utc> = points["latestRestoreDate"]
            .as_str()
            .context("latestRestoreDate")?
            .parse()?;
        let age = points["recoveryPointAgeSeconds"]
            .as_f64()
            .context("recoveryPointAgeSeconds")?;
        Ok((latest >= written).then_some((age, shown)))
    })
    .await?;
    ledger.write(&sql, 100).await?;

    let directory = site.data_dir("pg1").await?;
    let pid_file = std::fs::read_to_string(directory.join("postmaster.pid"))?;
    let pid: i32 = pid_file.lines().next().context("a pid")?.trim().parse()?;
    std::fs::remove_dir_all(&directory)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)?;

    let operation = site.restore("pg1", "pg1-saved", None).await?;
    let present = prefix(&site.sql("pg1-saved").await?).await?;
    let oldest_promised = shown - TimeDelta::milliseconds((age * 1000.0) as i64);
    let promised = ledger
        .entries
        .iter()
        .filter(|entry| entry.acknowledged <= oldest_promised)
        .count() as i64;
    ensure!(promised >= 200, "only {promised} rows were promised");
    ensure!(
        present >= promised,
        "{present} rows are back, {promised} were older than the age of {age} s\n{operation:#}"
    );
    Ok(())
}

async fn log_position(superuser: &tokio_postgres::Client) -> Result<String> {
    let row = superuser
        .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
        .await?;
    Ok(row.get(0))
}

/// The stamp in the commit record of the transaction that wrote a row, read from the log itself.
async fn commit_stamp(
    superuser: &tokio_postgres::Client,
    sequence: i64,
    from: &str,
) -> Result<DateTime<Utc>> {
    let row = superuser
        .query_one(
            "SELECT description
               FROM public.ledger,
                    pg_get_wal_records_info($2::text::pg_lsn, pg_current_wal_flush_lsn()) AS record
              WHERE seq = $1 AND record.xid = ledger.xmin
                AND resource_manager = 'Transaction' AND record_type LIKE 'COMMIT%'",
            &[&sequence, &from],
        )
        .await?;
    let text: String = row.get(0);
    // `2026-11-20 12:00:00.000001+00`, then what else the record carries.
    let mut words = text.split_whitespace();
    let (date, time) = (words.next(), words.next());
    let stamp = format!(
        "{} {}",
        date.context("a date")?,
        time.context("a time of day")?
            .trim_end_matches([';', ','])
            .trim_end_matches("+00")
    );
    Ok(
        chrono::NaiveDateTime::parse_from_str(&stamp, "%Y-%m-%d %H:%M:%S%.f")
            .with_context(|| text.clone())?
            .and_utc(),
    )
}

/// The same server, as the agent's own role: a test may do what no tenant can.
async fn as_superuser(uri: &str) -> Result<tokio_postgres::Client> {
    let mut config: tokio_postgres::Config = uri.trim().parse()?;
    config.user("holdfast");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

// FLX-094; DESIGN §3.17; RELIABILITY §5.4.5
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_neither_trips_over_raised_parameters_nor_follows_a_subscription() -> Result<()> {
    let site = Site::start().await?;
    site.create("pg1").await?;
    let sql = site.sql("pg1").await?;
    let mut ledger = Ledger::prepare(&sql).await?;
    ledger.write(&sql, 20).await?;
    let uri = site
        .command(&["server", "connection-string", "pg1"])
        .await?;
    let superuser = as_superuser(&uri).await?;
    superuser
        .batch_execute(
            "CREATE SUBSCRIPTION follow CONNECTION 'host=127.0.0.1 port=1 dbname=postgres' PUBLICATION p
                 WITH (connect = false, slot_name = 'follow')",
        )
        .await?;
    superuser
        .batch_execute("ALTER SUBSCRIPTION follow ENABLE")
        .await?;
    drop((sql, superuser));

    // A stretch of its life in which it really ran with more connections than a copy will get: the
    // WAL says so, and recovery with smaller ones aborts unless nobody is let in meanwhile.
    let directory = site.data_dir("pg1").await?;
    site.power("pg1", "stop").await?;
    with_more_connections(&directory, &uri, &mut ledger).await?;
    site.power("pg1", "start").await?;
    let sql = site.sql("pg1").await?;
    ledger.write(&sql, 20).await?;

    let operation = site.restore("pg1", "pg1-copy", None).await?;
    ensure!(prefix(&site.sql("pg1-copy").await?).await? == 60);
    let uri = site
        .command(&["server", "connection-string", "pg1-copy"])
        .await?;
    let row = as_superuser(&uri)
        .await?
        .query_one(
            "SELECT subenabled, current_setting('max_connections') FROM pg_subscription",
            &[],
        )
        .await?;
    let (enabled, connections): (bool, String) = (row.get(0), row.get(1));
    ensure!(
        !enabled,
        "the copy's subscription would pull rows newer than the target"
    );
    ensure!(connections == "100", "{connections}");
    let tasks = operation["properties"]["postRestoreTasks"].to_string();
    ensure!(
        tasks.contains("follow"),
        "the subscription is not listed: {operation:#}"
    );
    Ok(())
}

/// Runs the stopped server by hand with `max_connections = 200`, writes, and stops it again.
async fn with_more_connections(
    directory: &std::path::Path,
    uri: &str,
    ledger: &mut Ledger,
) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;

    let owner = std::fs::metadata(directory)?;
    let major = std::fs::read_to_string(directory.join("PG_VERSION"))?;
    let mut postmaster =
        tokio::process::Command::new(format!("/usr/lib/postgresql/{}/bin/postgres", major.trim()))
            .arg("-D")
            .arg(directory)
            .args(["-c", "max_connections=200", "-c", "listen_addresses="])
            .current_dir(directory)
            .uid(owner.uid())
            .gid(owner.gid())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
    let sql = until(Duration::from_secs(30), || async {
        Ok(as_superuser(uri).await.ok())
    })
    .await?;
    let row = sql
        .query_one("SELECT current_setting('max_connections')", &[])
        .await?;
    ensure!(row.get::<_, String>(0) == "200");
    ledger.write(&sql, 20).await?;
    drop(sql);
    let pid = i32::try_from(postmaster.id().context("running")?)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGINT)?;
    ensure!(postmaster.wait().await?.success());
    Ok(())
}
