//! `holdfast vault restore`: chooses with the code that the control plane chooses with, lays a directory out
//! with the code that the agent restores with, and says what to start.

use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::{Result, anyhow};
use chrono::{DateTime, Utc};
use holdfast_agent::Clock;
use holdfast_agent::error::chain;
use holdfast_agent::postgres::installation::{self, Installation};
use holdfast_agent::postgres::{AGENT_ROLE, ServiceUser};
use holdfast_agent::restore::unattended::{LaidOut, Unattended};
use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::instant::{parse, wire};
use holdfast_domain::refusal::Refusal;
use holdfast_domain::restore::{Bounds, Chosen, RestoreTarget, choose, interpret};
use holdfast_domain::{BackupId, IncarnationId, Lsn, Timeline};
use holdfast_vault::rescan::scan::timelines;
use holdfast_vault::wal::survey::list_wal;
use serde::Serialize;

use super::{Opened, Vault, bytes, failed, json, key_ring, wants_table};
use crate::command::VaultRestore;
use crate::exit::Failure;
use crate::output::say;
use crate::site::service_users;
use crate::status::quoted;

/// The names of these members do not change.
#[derive(Debug, Serialize)]
struct Report {
    incarnation: IncarnationId,
    server_name: String,
    backup: BackupId,
    data_directory: String,
    wal_directory: String,
    socket_directory: String,
    port: u16,
    postgresql_major: u16,
    /// Null when no binaries of that major are on this machine.
    binaries: Option<String>,
    /// The state will contain everything committed up to here.
    restored_to: DateTime<Utc>,
    /// The last record that recovery replays, and the first byte after it.
    target_lsn: Lsn,
    end_lsn: Lsn,
    /// The timeline on which the server goes on.
    timeline: Timeline,
    data_bytes: u64,
    wal_files: usize,
    /// Pages that were damaged in the source when the backup was taken.
    corrupt_pages: Vec<String>,
    /// Shell commands, in order.
    start: String,
    /// Returns when recovery is over: `start` does as soon as it has begun.
    wait: String,
    connect: String,
    /// A file whose last line says how recovery ended, and what that line has to be.
    proof_file: String,
    proof: String,
}

pub async fn run(asked: &VaultRestore) -> Result<()> {
    let to = wish(asked.to.as_deref())?;
    let ring = key_ring(&asked.key_file)?;
    let user = service_users::for_one_server(asked.owner.as_deref())?;
    let vault = Vault::open(&asked.vault).await?;
    let incarnation = vault.choose(asked.incarnation)?;
    let opened = vault
        .incarnation(incarnation, &ring)
        .await
        .map_err(failed)?;
    let catalogue = catalogue(&vault, &opened, asked.backup).await?;
    let chosen = plan(&catalogue, asked.backup, to, Clock::system().now())?;

    let server = opened
        .scan
        .backup(chosen.backup.id)
        .map(|found| found.meta.server)
        .ok_or_else(|| anyhow!("a backup was chosen that is not there"))?;
    let source = chosen.source(&catalogue, server, Vec::new(), opened.wrapped_key.clone());
    let restore = Unattended {
        stores: std::slice::from_ref(&vault.store),
        data_key: &opened.data_key,
        source: &source,
        target: chosen.target,
        into: &asked.into,
        user: &user,
        port: asked.port,
    };
    let watched = std::io::stderr().is_terminal();
    let tenths = std::sync::atomic::AtomicU64::new(0);
    let progress = move |done: u64, total: u64| {
        let tenth = done * 10 / total.max(1);
        if watched && tenths.fetch_max(tenth, std::sync::atomic::Ordering::Relaxed) < tenth {
            eprintln!("{} of {} restored", bytes(done), bytes(total));
        }
    };
    let laid = restore.lay_out(progress).await.map_err(not_laid_out)?;
    let found = installation::discover(&[]).await;
    let report = report(
        &catalogue,
        &chosen,
        &laid,
        &user,
        asked.port,
        found.get(&laid.major),
    );
    match wants_table(asked.output) {
        true => print(&report),
        false => say(json(&report)?),
    }
    Ok(())
}

/// `None`: not said.
fn wish(to: Option<&str>) -> Result<Option<Wish>> {
    match to {
        None => Ok(None),
        Some("latest") => Ok(Some(Wish::Latest)),
        Some(text) => parse(text)
            .map(|at| Some(Wish::At(at)))
            .ok_or_else(|| {
                Failure::Usage(format!(
                    "--to {text:?} is neither `latest` nor an instant with an offset, such as 2026-11-20T10:00:00Z"
                ))
                .into()
            }),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Latest,
    At(DateTime<Utc>),
}

/// What can be chosen from; one backup alone when that was named.
async fn catalogue(vault: &Vault, opened: &Opened, only: Option<BackupId>) -> Result<Catalogue> {
    let no_backup = |said: String| -> anyhow::Error { Failure::NotFound(said).into() };
    if let Some(backup) = only {
        let found = opened.scan.backup(backup).ok_or_else(|| {
            no_backup(format!(
                "BackupNotFound: there is no backup {backup} that opens"
            ))
        })?;
        if let Some(first) = found.missing.first() {
            let said = format!(
                "ObjectMissing: backup {backup} needs {first}, which is not there as it was written"
            );
            return Err(Failure::Damaged(said).into());
        }
    }
    let read = timelines(
        &vault.store,
        &opened.data_key,
        opened.incarnation,
        &opened.listing,
    )
    .await
    .map_err(failed)?;
    for (timeline, error) in &read.unread {
        eprintln!(
            "holdfast: the history of timeline {timeline} does not read and is left out: {error}"
        );
    }
    let from = opened
        .scan
        .backups
        .iter()
        .filter(|found| only.is_none_or(|only| only == found.named.backup))
        .map(|found| (found.meta.timeline, found.wal_begin()))
        .min();
    let wal = list_wal(&vault.store, &opened.data_key, opened.incarnation, from)
        .await
        .map_err(failed)?;
    let mut catalogue = opened
        .scan
        .catalogue(opened.incarnation, wal, read.starts)
        .ok_or_else(|| no_backup("NoBackup: no backup of it is whole".to_owned()))?;
    if let Some(only) = only {
        catalogue.backups.retain(|backup| backup.id == only);
    }
    Ok(catalogue)
}

/// The rules of the API (DESIGN §3.6), without a window: everything that is there counts.
fn plan(
    catalogue: &Catalogue,
    backup: Option<BackupId>,
    to: Option<Wish>,
    now: DateTime<Utc>,
) -> Result<Chosen> {
    let target = match (backup, to) {
        (Some(backup), None) => RestoreTarget::Backup(backup),
        (_, None | Some(Wish::Latest)) => RestoreTarget::Latest,
        (_, Some(Wish::At(at))) => {
            let bounds = catalogue
                .first_restorable()
                .zip(catalogue.latest_restorable())
                .map(|(earliest, latest)| Bounds { earliest, latest });
            interpret(Some(at), now, bounds, catalogue).map_err(refused)?
        }
    };
    choose(catalogue, target).map_err(refused)
}

fn refused(refusal: Refusal) -> anyhow::Error {
    match refusal {
        Refusal::RestoreTimeOutOfRange {
            earliest: Some(earliest),
            latest: Some(latest),
            ..
        } => Failure::Usage(format!(
            "RestoreTimeOutOfRange: give an instant from {} to {}, or latest",
            wire(earliest),
            wire(latest)
        ))
        .into(),
        Refusal::WalGap { .. } => Failure::Damaged(format!("WalGap: {refusal}")).into(),
        Refusal::ClockAnomaly { .. } => Failure::Usage(format!("ClockAnomaly: {refusal}")).into(),
        Refusal::NoBackupYet { .. } => Failure::NotFound(
            "NoBackup: no backup lies on the way to the newest timeline; name one with --backup"
                .to_owned(),
        )
        .into(),
        other => anyhow!(other),
    }
}

fn not_laid_out(error: holdfast_agent::Error) -> anyhow::Error {
    let said = format!("{}: {}", error.code(), chain(&error));
    match error.code() {
        "RestoreTargetExists" => Failure::Conflict(said).into(),
        "RestoreTargetUnreachable" => Failure::NotAllowed(said).into(),
        "BackupCorrupted" | "WalGap" => Failure::Damaged(said).into(),
        _ => anyhow!(said),
    }
}

fn report(
    catalogue: &Catalogue,
    chosen: &Chosen,
    laid: &LaidOut,
    user: &ServiceUser,
    port: u16,
    installation: Option<&Installation>,
) -> Report {
    let path = |path: &Path| path.display().to_string();
    let next = Timeline(laid.timeline.0 + 1);
    let history = laid.data_dir.join("pg_wal").join(next.history_file_name());
    let pg_ctl = match installation {
        Some(found) => quoted(&path(&found.program("pg_ctl"))),
        None => "pg_ctl".to_owned(),
    };
    let run_as = match user.ids() {
        Some(_) => format!("runuser -u {} -- ", quoted(user.name())),
        None => String::new(),
    };
    Report {
        incarnation: catalogue.incarnation,
        server_name: catalogue.server_name.clone(),
        backup: chosen.backup.id,
        data_directory: path(&laid.data_dir),
        wal_directory: path(&laid.wal_dir),
        socket_directory: path(&laid.socket_dir),
        port,
        postgresql_major: laid.major,
        binaries: installation.map(|found| path(&found.bin_dir)),
        restored_to: laid.restored_to,
        target_lsn: laid.target,
        end_lsn: laid.end,
        timeline: next,
        data_bytes: laid.data_bytes,
        wal_files: laid.wal_files,
        corrupt_pages: laid.corrupt_pages.clone(),
        start: format!(
            "{run_as}{pg_ctl} -D {} -l {} -w -t 86400 start",
            quoted(&path(&laid.data_dir)),
            quoted(&path(&laid.log_file))
        ),
        wait: format!(
            "while {run_as}{pg_ctl} -D {} status >/dev/null && ! {} -q -h {} -p {port}; do sleep 1; done",
            quoted(&path(&laid.data_dir)),
            installation.map_or_else(
                || "pg_isready".to_owned(),
                |found| quoted(&path(&found.program("pg_isready")))
            ),
            quoted(&path(&laid.socket_dir))
        ),
        connect: format!(
            "psql -h {} -p {port} -U {AGENT_ROLE} postgres",
            quoted(&path(&laid.socket_dir))
        ),
        proof_file: path(&history),
        proof: format!(
            "{}\t{}\tafter LSN {}",
            laid.timeline.0, laid.end, laid.target
        ),
    }
}

fn print(report: &Report) {
    say(format!(
        "Server {} as of {} lies in {}: {} of data, {} files of write-ahead log.",
        report.server_name,
        wire(report.restored_to),
        report.data_directory,
        bytes(report.data_bytes),
        report.wal_files
    ));
    match &report.binaries {
        Some(_) => say("\nStart it, and wait until it has recovered to exactly that state:"),
        None => say(format!(
            "\nPostgreSQL {major} is not on this machine: install its server binaries (apt-get install \
             postgresql-{major}). Then start it:",
            major = report.postgresql_major
        )),
    }
    say(format!(
        "\n  {}\n  {}\n  {}",
        report.start, report.wait, report.connect
    ));
    say(format!(
        "\nIt is right when the last line of {} says `{}`.\nAfter that {} can go. Subscriptions of logical \
         replication stay disabled by max_logical_replication_workers = 0 until you have looked at them.",
        report.proof_file,
        report.proof.replace('\t', " "),
        report.wal_directory
    ));
    if !report.corrupt_pages.is_empty() {
        say(format!(
            "\nPages that were damaged in the source already: {}",
            report.corrupt_pages.join(", ")
        ));
    }
}
