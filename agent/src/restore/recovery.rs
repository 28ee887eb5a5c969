//! Runs PostgreSQL's recovery under a plan, in a place nobody else can reach.
//!
//! The configuration is ours alone (RELIABILITY §5.4.5): one numeric timeline, one target, promote at
//! the end, and a `restore_command` that knows the difference between "not in the plan" and "cannot
//! be had". Recovery is over when the server takes connections and says that it is; whether it is
//! *right* is asked of the history file afterwards ([`super::history`]).

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_domain::Lsn;
use holdfast_domain::job::RestoreSource;
use holdfast_vault::backup::ManifestMeta;

use super::history::{HISTORY_LIMIT, RecoveryEnd};
use super::plan::Plan;
use super::progress::RestoreProgress;
use super::wal_server::WalServer;
use crate::error::{Error, Result};
use crate::postgres::configuration::{self, ServerConfiguration, quote};
use crate::postgres::{Postmaster, ServiceUser, connection, server_log};
use crate::snapshot::control_file::{CONTROL_FILE, ControlFile};

/// How often the log and the asked-for segment are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a connection is tried when the log has not said that it would work.
const TRIES_BETWEEN: u32 = 25;
/// PostgreSQL decodes this far ahead of what it has replayed (`wal_decode_buffer_size`, doubled).
const READ_AHEAD: u64 = 1 << 20;

/// More prepared transactions than this were never allowed on a managed server.
const PREPARED_TRANSACTIONS: u32 = 1000;

/// Settings of a recovery that do not depend on the plan.
const SETTINGS: [(&str, &str); 23] = [
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("wal_level", "replica"),
    ("archive_mode", "off"),
    // Smaller parameters than the source's would otherwise abort the recovery (measured).
    ("hot_standby", "off"),
    ("recovery_target_action", "promote"),
    ("recovery_target_inclusive", "on"),
    ("max_connections", "20"),
    ("max_wal_senders", "0"),
    ("max_logical_replication_workers", "0"),
    ("autovacuum", "off"),
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("ssl", "off"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("max_wal_size", "4GB"),
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
    ("lc_messages", "C"),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
];

/// What a recovery's configuration says.
pub struct RecoveryConfiguration<'a> {
    pub production: &'a ServerConfiguration,
    pub plan: &'a Plan,
    /// `holdfast`, by its absolute path: PostgreSQL runs it as another user.
    pub executable: &'a Path,
    pub wal_socket: &'a Path,
    /// What the source allowed, when that is known.
    pub max_prepared_transactions: Option<u32>,
}

impl RecoveryConfiguration<'_> {
    /// Replaces every configuration file that the backup brought and asks for archive recovery.
    pub fn write(&self, data_dir: &Path, user: &ServiceUser) -> Result<()> {
        configuration::write(data_dir, self.production, user)?;
        configuration::replace(&data_dir.join("postgresql.conf"), &self.text()?, user)?;
        // The agent on its socket and nobody else, until hand-over.
        let hba = format!(
            "local all {} peer map=holdfast\n",
            crate::postgres::AGENT_ROLE
        );
        configuration::replace(&data_dir.join("pg_hba.conf"), &hba, user)?;
        remove(&data_dir.join("standby.signal"))?;
        configuration::replace(&data_dir.join("recovery.signal"), "", user)
    }

    fn text(&self) -> Result<String> {
        let mut text = String::from("# A recovery under way. Replaced when it is done.\n");
        let mut line = |name: &str, value: &str| -> Result<()> {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} = {}", quote(value)?);
            Ok(())
        };
        for (name, value) in SETTINGS {
            line(name, value)?;
        }
        let major = self.production.major;
        if major >= 15 {
            line("log_startup_progress_interval", "1s")?;
        }
        if major >= 17 {
            // A tenant's event trigger must not run with the agent's rights.
            line("event_triggers", "off")?;
        }
        let prepared = prepared_transactions(self.max_prepared_transactions);
        line("max_prepared_transactions", &prepared.to_string())?;
        line(
            "unix_socket_directories",
            path_text(&self.production.socket_dir)?,
        )?;
        line("port", &self.production.port.to_string())?;
        line(
            "recovery_target_timeline",
            &self.plan.timeline().0.to_string(),
        )?;
        line("recovery_target_lsn", &self.plan.goal.target.to_string())?;
        line(
            "restore_command",
            &restore_command(self.executable, self.wal_socket)?,
        )?;
        Ok(text)
    }
}

/// PostgreSQL hands this to a shell, the one place where none can be avoided: both paths are single
/// words in it whatever they contain, and `%` is only ever PostgreSQL's.
fn restore_command(executable: &Path, socket: &Path) -> Result<String> {
    Ok(format!(
        "{} agent wal-get --plan {} \"%f\" \"%p\"",
        word(executable)?,
        word(socket)?
    ))
}

/// At least as many as the source allowed, or recovery of what was prepared there aborts.
pub(super) fn prepared_transactions(of_source: Option<u32>) -> u32 {
    of_source.unwrap_or(0).clamp(PREPARED_TRANSACTIONS, 262_143)
}

/// A path as one word of a shell, in a place where PostgreSQL replaces `%f` and `%p`.
pub(super) fn word(path: &Path) -> Result<String> {
    Ok(format!(
        "'{}'",
        path_text(path)?.replace('\'', r"'\''").replace('%', "%%")
    ))
}

pub(super) fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or(Error::Unquotable {
        what: "a path of the node",
    })
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// The catalogue and the manifest have to tell of the same backup.
pub fn agree(source: &RestoreSource, meta: &ManifestMeta) -> Result<()> {
    let same = meta.start_lsn == source.backup_start
        && meta.stop_lsn == source.backup_stop
        && meta.timeline == source.backup_timeline
        && meta.wal_segment_bytes == source.wal_segment_bytes;
    match same {
        true => Ok(()),
        false => Err(corrupted(
            "the manifest in the store describes another backup than the catalogue",
        )),
    }
}

/// The control file that a backup brought, if it is one and the backup's.
pub fn control_file(bytes: &[u8], meta: &ManifestMeta) -> Result<ControlFile> {
    ControlFile::parse(bytes.to_vec())
        .ok()
        .filter(|control| control.system_identifier() == meta.system_identifier)
        .ok_or_else(|| corrupted("the control file in the backup is damaged"))
}

fn corrupted(message: &str) -> Error {
    Error::Failed {
        code: "BackupCorrupted",
        message: message.into(),
        retryable: false,
    }
}

/// The label says where recovery begins; the control file comes last and cannot start a cluster
/// without it. Tablespaces need no map: their links were made where they will stay.
pub fn place_labels(
    data_dir: &Path,
    backup_label: &[u8],
    control: ControlFile,
    user: &ServiceUser,
) -> Result<()> {
    let put = |name: &str, bytes: &[u8]| {
        let path = data_dir.join(name);
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(bytes))
            .map_err(Error::file("write", &path))?;
        user.chown(&path)
    };
    put("backup_label", backup_label)?;
    put(CONTROL_FILE, control.with_impossible_checkpoint().bytes())
}

/// Waits until the recovery has ended and the server was promoted. A recovery that aborts is an
/// error: the one the WAL server met, when that is why.
pub async fn replay(
    postmaster: &Postmaster,
    plan: &Plan,
    server: &WalServer,
    progress: &RestoreProgress<'_>,
) -> Result<()> {
    let mut log = LogTail::new(postmaster.spec().log_file.clone());
    let mut look = tokio::time::interval(LOOK_EVERY);
    let asked = server.asked();
    let mut logged = Lsn::ZERO;
    let mut looks = 0_u32;
    loop {
        tokio::select! {
            status = postmaster.wait() => return Err(aborted(postmaster, server, &status.to_string())),
            _ = look.tick() => {}
        }
        looks = looks.wrapping_add(1);
        let said = log.read_on();
        logged = said.replayed.unwrap_or(logged).max(logged);
        let requested = asked.borrow().map_or(Lsn::ZERO, |number| {
            Lsn(plan.segments[number].start.0.saturating_sub(READ_AHEAD))
        });
        let replayed = logged.max(requested).min(plan.end.switch);
        progress.replayed(
            replayed.bytes_since(plan.begin),
            plan.committed_up_to(replayed),
        );
        if (said.ready || looks.is_multiple_of(TRIES_BETWEEN)) && is_promoted(postmaster).await {
            return Ok(());
        }
    }
}

async fn is_promoted(postmaster: &Postmaster) -> bool {
    let spec = postmaster.spec();
    let Ok(session) = connection::connect(&spec.socket_dir, spec.port).await else {
        return false;
    };
    matches!(
        session
            .query_one("SELECT pg_is_in_recovery()", &[])
            .await
            .and_then(|row| row.try_get(0)),
        Ok(false)
    )
}

fn aborted(postmaster: &Postmaster, server: &WalServer, status: &str) -> Error {
    if let Some(failure) = server.take_failure() {
        return failure;
    }
    let said = server_log::tail(&postmaster.spec().log_file, 20);
    tracing::error!(status, %said, "PostgreSQL ended during recovery");
    Error::Failed {
        code: "RecoveryFailed",
        message:
            "PostgreSQL could not recover the state that was asked for; the log is kept on the node"
                .into(),
        retryable: false,
    }
}

/// Compares what PostgreSQL wrote about the end with the plan (RELIABILITY §5.4.7).
pub fn verify_end(data_dir: &Path, plan: &Plan) -> Result<RecoveryEnd> {
    let path = data_dir
        .join("pg_wal")
        .join(plan.new_timeline().history_file_name());
    let mut text = String::new();
    let read = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .and_then(|file| file.take(HISTORY_LIMIT).read_to_string(&mut text));
    if let Err(error) = read {
        tracing::error!(path = %path.display(), %error, "the new timeline's history cannot be read");
        text.clear();
    }
    match plan.end.compare(&text) {
        Ok(()) => Ok(plan.end.clone()),
        Err(mismatch) => Err(Error::Failed {
            code: "RestoreTargetMissed",
            message: format!("{mismatch}; the restored directory is not used"),
            retryable: false,
        }),
    }
}

/// The server's log, read as it grows.
struct LogTail {
    path: PathBuf,
    at: u64,
    unfinished: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    /// From `redo in progress, …, current LSN: X`.
    replayed: Option<Lsn>,
    ready: bool,
}

impl LogTail {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            at: 0,
            unfinished: String::new(),
        }
    }

    /// What was written since the last look. A log that cannot be read says nothing.
    fn read_on(&mut self) -> Said {
        let mut said = Said::default();
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.take(256 << 10).read_to_end(&mut bytes)
        });
        if read.is_err() {
            return said;
        }
        self.at += bytes.len() as u64;
        self.unfinished.push_str(&String::from_utf8_lossy(&bytes));
        let Some(end) = self.unfinished.rfind('\n') else {
            // A line without an end is nothing PostgreSQL writes here.
            self.unfinished.truncate(0);
            return said;
        };
        for line in self.unfinished[..end].lines() {
            said.take(line);
        }
        self.unfinished.drain(..=end);
        said
    }
}

impl Said {
    fn take(&mut self, line: &str) {
        if let Some((_, lsn)) = line.split_once("current LSN: ") {
            let lsn = lsn
                .split(|c: char| !(c.is_ascii_hexdigit() || c == '/'))
                .next()
                .unwrap_or_default();
            self.replayed = lsn.parse().ok().max(self.replayed);
        }
        self.ready |= line.ends_with("database system is ready to accept connections");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restore_command_is_two_words_whatever_the_paths_hold() {
        let command = restore_command(
            Path::new("/o'pt/h f/100%/holdfast"),
            Path::new("/run/$(x)/7.wal"),
        )
        .expect("text");
        assert_eq!(
            command,
            r#"'/o'\''pt/h f/100%%/holdfast' agent wal-get --plan '/run/$(x)/7.wal' "%f" "%p""#
        );
    }

    #[test]
    fn the_log_tells_how_far_redo_is_and_when_it_is_over() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("server.log");
        let mut log = LogTail::new(path.clone());
        assert_eq!(log.read_on(), Said::default(), "no log yet");
        std::fs::write(
            &path,
            "x LOG:  redo in progress, elapsed time: 1.00 s, current LSN: 0/5000028\nhalf",
        )
        .expect("written");
        assert_eq!(
            log.read_on(),
            Said {
                replayed: Some(Lsn(0x0500_0028)),
                ready: false
            }
        );
        let mut more = File::options().append(true).open(&path).expect("open");
        std::io::Write::write_all(
            &mut more,
            b" a line\nx LOG:  database system is ready to accept connections\n",
        )
        .expect("written");
        assert_eq!(
            log.read_on(),
            Said {
                replayed: None,
                ready: true
            }
        );
    }
}
