//! Restores on real PostgreSQL, compared with a writer's ledger (RELIABILITY §2.1).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_tests::ledger::{Ledger, prefix};
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
    let mut ledger = Ledger::prepare(&sql).await?;
    ledger.write(&sql, 150).await?;
    let backup = site.back_up("pg1", "midway").await?;
    let in_backup = ledger.last()?.sequence;
    ledger.write(&sql, 150).await?;
    // An idle gap: nothing is committed between these two.
    let gap_from = ledger.last()?.acknowledged;
    let points = until(Duration::from_secs(30), || async {
        let points = site.restore_points("pg1").await?;
        let latest: DateTime<Utc> = points["latest"].as_str().context("latest")?.parse()?;
        Ok((latest > gap_from + TimeDelta::seconds(3)).then_some(latest))
    })
    .await?;
    let idle = gap_from + (points - gap_from) / 2;
    ledger.write(&sql, 100).await?;
    let first = ledger.entries.first().context("written")?.sent;
    let end = ledger.last()?;

    let mut instants = between(first, end.acknowledged, 10);
    instants.push(idle);
    compare_all(&site, &ledger, &instants).await?;

    // One microsecond after a commit, by the stamp that PostgreSQL wrote for the row's transaction.
    let just_after = ledger.entries[40].acknowledged + TimeDelta::microseconds(1);
    compare_all(&site, &ledger, &[just_after]).await?;

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
    ensure!(fast == in_backup, "fast restore has {fast} rows, the backup {in_backup}");

    // The source went on all the while, and a copy of a copy is a server like any other.
    ensure!(prefix(&sql).await? == end.sequence);
    site.first_backup("pg1-latest").await?;
    let copy = site.sql("pg1-latest").await?;
    copy.execute("DELETE FROM ledger WHERE seq > 10", &[]).await?;
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
    ensure!((refused.status, refused.code()) == (400, "ServerIsNotReady"), "{refused:?}");

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
    let points = site.restore_points("pg1").await?;
    let age = points["ageSeconds"].as_f64().context("ageSeconds")?;
    #[expect(clippy::disallowed_methods, reason = "how old something is to somebody outside")]
    let shown = Utc::now();
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
    ensure!(
        present >= promised,
        "{present} rows are back, {promised} were older than the age of {age} s\n{operation:#}"
    );
    Ok(())
}
