//! A restore that PostgreSQL finishes alone, for the day on which there is no control plane, no metadata
//! store and no agent: the data directory, beside it every WAL file of the plan, and a configuration with
//! which the first start recovers to exactly the record that was planned.
//!
//! Nobody watches that recovery, so the plan is made true beforehand: every planned file is on the disk,
//! opened and hashed, before PostgreSQL is told about any of them. The target is an LSN, as always; a
//! recovery that does not reach it ends with an error and not with less (RELIABILITY §0.2).

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_domain::job::RestoreSource;
use holdfast_domain::restore::RestoreTarget;
use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::backup::{Manifest, RestoreInto, TablespaceRoot, restore_to};
use holdfast_vault::key::DataKey;
use holdfast_vault::store::Store;

use super::directory::require_space;
use super::goal::Goal;
use super::parameters;
use super::plan::Plan;
use super::recovery::{self, path_text, prepared_transactions, word};
use super::segment_source::SegmentSource;
use crate::config::first_closed_parent;
use crate::error::{Error, Result};
use crate::postgres::configuration::{mapped_user, quote, replace};
use crate::postgres::service_user::create_passage;
use crate::postgres::{AGENT_ROLE, ServiceUser};

/// A socket's path has at most 107 bytes, `/.s.PGSQL.65535.lock` among them.
const LONGEST_SOCKET_DIR: usize = 85;
const ELSEWHERE: &str = "/tmp";

/// What the server runs with until somebody changes it. Recovery needs some of it (see `recovery.rs`), and
/// the rest keeps a copy from doing anything by itself.
const SETTINGS: [(&str, &str); 20] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_permissions", "0700"),
    ("wal_level", "replica"),
    ("archive_mode", "off"),
    ("hot_standby", "off"),
    ("recovery_target_inclusive", "on"),
    ("recovery_target_action", "promote"),
    ("max_connections", "100"),
    ("shared_buffers", "128MB"),
    ("max_wal_size", "4GB"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("password_encryption", "scram-sha-256"),
    // A copy's subscriptions would take the changes that are meant for the source (RELIABILITY §5.4.8).
    ("max_logical_replication_workers", "0"),
    ("shared_preload_libraries", ""),
    ("ssl", "off"),
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
    ("lc_messages", "C"),
    ("timezone", "UTC"),
];

/// What is restored, and where to.
pub struct Unattended<'a> {
    pub stores: &'a [Store],
    pub data_key: &'a DataKey,
    pub source: &'a RestoreSource,
    pub target: RestoreTarget,
    /// Does not exist, or is an empty directory.
    pub into: &'a Path,
    pub user: &'a ServiceUser,
    pub port: u16,
}

/// What lies there afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaidOut {
    pub data_dir: PathBuf,
    pub wal_dir: PathBuf,
    pub log_file: PathBuf,
    pub socket_dir: PathBuf,
    pub major: u16,
    /// The state contains everything committed up to here.
    pub restored_to: DateTime<Utc>,
    /// The last record that is replayed, and the first byte after it.
    pub target: Lsn,
    pub end: Lsn,
    /// The timeline that is recovered; the server goes on on the next one.
    pub timeline: Timeline,
    pub data_bytes: u64,
    pub wal_files: usize,
    /// Pages that were damaged in the source already.
    pub corrupt_pages: Vec<String>,
}

impl Unattended<'_> {
    /// Lays everything out. `progress` gets bytes of the data directory done and in all. What was begun
    /// is removed when it fails.
    pub async fn lay_out(&self, progress: impl Fn(u64, u64) + Send + Sync) -> Result<LaidOut> {
        let manifest = Manifest::load(
            self.stores,
            self.data_key,
            self.source.incarnation,
            &self.source.manifest,
        )
        .await?;
        recovery::agree(self.source, &manifest.meta)?;
        let goal = Goal::find(self.source, self.target, self.stores, self.data_key).await?;
        let plan = Arc::new(Plan::build(self.source, goal)?);
        let place = Place::prepare(self.into, self.user)?;
        let filled = self.fill(&place, &manifest, &plan, progress).await;
        if filled.is_err() {
            place.clear().await;
        }
        filled
    }

    async fn fill(
        &self,
        place: &Place,
        manifest: &Manifest,
        plan: &Arc<Plan>,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<LaidOut> {
        let meta = &manifest.meta;
        let wal_bytes = plan.segments.len() as u64 * plan.segment_bytes;
        require_space(
            &place.root,
            manifest.logical_bytes.saturating_add(wal_bytes),
        )?;
        let major = major_of(&meta.pg_version)?;
        place.make(self.user)?;

        let (data, tablespaces) = (place.data(), place.tablespaces());
        let into = RestoreInto {
            dir: &data,
            tablespaces: Some(TablespaceRoot {
                write_below: &tablespaces,
                link_to: Path::new("../../tablespaces"),
            }),
            owner: self.user.ids(),
        };
        let every_file = |_: &str| true;
        let restored = restore_to(
            into,
            manifest,
            self.stores,
            self.data_key,
            every_file,
            progress,
        )
        .await?;
        let control = recovery::control_file(&restored.pg_control, meta)?;
        self.bring_wal(place, plan).await?;

        let socket_dir = place.socket_dir();
        self.configure(place, plan, major, &socket_dir)?;
        recovery::place_labels(&data, &meta.backup_label, control, self.user)?;
        place.sync()?;
        Ok(LaidOut {
            wal_dir: place.wal(),
            log_file: place.log(),
            socket_dir,
            major,
            restored_to: plan.goal.restored_to(self.target, meta.completed_time),
            target: plan.goal.target,
            end: plan.goal.end,
            timeline: plan.timeline(),
            data_bytes: restored.bytes,
            wal_files: plan.segments.len(),
            corrupt_pages: meta.corrupt_pages.clone(),
            data_dir: data,
        })
    }

    /// Every file of the plan, a few at a time: PostgreSQL finds nothing else there.
    async fn bring_wal(&self, place: &Place, plan: &Arc<Plan>) -> Result<()> {
        let source = SegmentSource::new(
            Arc::clone(plan),
            self.stores.to_vec(),
            self.data_key.clone(),
            place.wal(),
        );
        for number in 0..plan.segments.len() {
            let (made, ()) = tokio::join!(source.obtain(number), source.prefetch(number + 1));
            let path = made?.path;
            set_mode(&path, 0o600)?;
            self.user.chown(&path)?;
        }
        for timeline in &plan.histories {
            let text = source.history(*timeline).await?;
            let text = std::str::from_utf8(&text).map_err(|_| Error::Failed {
                code: "BackupCorrupted",
                message: format!("the history of timeline {timeline} is not text"),
                retryable: false,
            })?;
            replace(
                &place.wal().join(timeline.history_file_name()),
                text,
                self.user,
            )?;
        }
        Ok(())
    }

    /// Replaces every configuration file that the backup brought and asks for archive recovery.
    fn configure(&self, place: &Place, plan: &Plan, major: u16, socket_dir: &Path) -> Result<()> {
        let data = place.data();
        let of_source = parameters::of_directory(&data).map_err(Error::file("read", &data))?;
        let prepared = of_source
            .get("max_prepared_transactions")
            .and_then(|value| value.parse().ok());
        let mut text = String::from(
            "# Written by `holdfast vault restore`. The first start recovers; when it has, everything here is\n\
             # yours to change, and the directory with the WAL files can go.\n",
        );
        let mut line = |name: &str, value: &str| -> Result<()> {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} = {}", quote(value)?);
            Ok(())
        };
        for (name, value) in SETTINGS {
            line(name, value)?;
        }
        if major >= 17 {
            // A tenant's login trigger must not run with the rights of whoever looks at this copy first.
            line("event_triggers", "off")?;
        }
        line(
            "max_prepared_transactions",
            &prepared_transactions(prepared).to_string(),
        )?;
        line("port", &self.port.to_string())?;
        line("unix_socket_directories", path_text(socket_dir)?)?;
        line("cluster_name", &self.source.incarnation.to_string())?;
        line("recovery_target_timeline", &plan.timeline().0.to_string())?;
        line("recovery_target_lsn", &plan.goal.target.to_string())?;
        line("restore_command", &restore_command(&place.wal())?)?;

        replace(&data.join("postgresql.conf"), &text, self.user)?;
        replace(
            &data.join("postgresql.auto.conf"),
            "# What the source had set is not taken over.\n",
            self.user,
        )?;
        replace(&data.join("pg_hba.conf"), &pg_hba_conf(), self.user)?;
        replace(
            &data.join("pg_ident.conf"),
            &pg_ident_conf(self.user)?,
            self.user,
        )?;
        remove(&data.join("standby.signal"))?;
        replace(&data.join("recovery.signal"), "", self.user)
    }
}

/// The directory that was asked for, and what goes into it.
struct Place {
    root: PathBuf,
}

impl Place {
    /// Refuses what is not an empty directory, and one that PostgreSQL's user could not reach.
    fn prepare(into: &Path, user: &ServiceUser) -> Result<Self> {
        let root = std::path::absolute(into).map_err(Error::file("find", into))?;
        // Both are written into PostgreSQL's configuration.
        quote(path_text(&root)?)?;
        let parent = root.parent().unwrap_or(Path::new("/"));
        let can_enter = |dir: &Path| !dir.exists() || user.can_enter(dir);
        if let Some(closed) = first_closed_parent(parent, can_enter) {
            return Err(Error::Failed {
                code: "RestoreTargetUnreachable",
                message: format!(
                    "the user {}, which would run PostgreSQL, cannot pass through {}; choose another directory, \
                     or chmod o+x it",
                    user.name(),
                    closed.display()
                ),
                retryable: false,
            });
        }
        match std::fs::read_dir(&root) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(exists(&root, "is not empty"));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(exists(&root, "is not a directory"));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                create_passage(parent)?;
                std::fs::DirBuilder::new()
                    .mode(0o700)
                    .create(&root)
                    .map_err(Error::file("create the directory", &root))?;
            }
            Err(error) => return Err(Error::file("list", &root)(error)),
        }
        if user.ids().is_some() {
            set_mode(&root, 0o700)?;
            user.chown(&root)?;
        }
        Ok(Self { root })
    }

    fn make(&self, user: &ServiceUser) -> Result<()> {
        for dir in [self.data(), self.wal(), self.tablespaces()] {
            user.create_dir(&dir)?;
        }
        // Never one that is everybody's.
        if self.socket_dir() == self.own_socket_dir() {
            user.create_dir(&self.own_socket_dir())?;
        }
        replace(&self.log(), "", user)
    }

    fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    fn wal(&self) -> PathBuf {
        self.root.join("wal")
    }

    fn tablespaces(&self) -> PathBuf {
        self.root.join("tablespaces")
    }

    fn log(&self) -> PathBuf {
        self.root.join("server.log")
    }

    /// Beside the data, where nobody else can enter, unless its path is too long or has what a list of
    /// directories cannot hold.
    fn socket_dir(&self) -> PathBuf {
        let own = self.own_socket_dir();
        let text = own.as_os_str().to_string_lossy();
        match text.len() > LONGEST_SOCKET_DIR || text.contains([',', '"', ' ', '\'', '\\', '@']) {
            true => PathBuf::from(ELSEWHERE),
            false => own,
        }
    }

    fn own_socket_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    fn sync(&self) -> Result<()> {
        let root = File::open(&self.root).map_err(Error::file("open", &self.root))?;
        nix::unistd::syncfs(&root)
            .map_err(|errno| Error::file("make durable", &self.root)(errno.into()))
    }

    /// Takes back what a failed restore has made; the directory itself stays.
    async fn clear(&self) {
        for dir in [
            self.data(),
            self.wal(),
            self.tablespaces(),
            self.own_socket_dir(),
        ] {
            let _ = tokio::fs::remove_dir_all(dir).await;
        }
        let _ = tokio::fs::remove_file(self.log()).await;
    }
}

fn exists(root: &Path, how: &str) -> Error {
    Error::Failed {
        code: "RestoreTargetExists",
        message: format!(
            "{} {how}; give an empty directory, or one that does not exist",
            root.display()
        ),
        retryable: false,
    }
}

/// What is not in the directory is not in the plan: then nothing is said, so that the log stays readable.
fn restore_command(wal_dir: &Path) -> Result<String> {
    let dir = word(wal_dir)?;
    Ok(format!("test -f {dir}/\"%f\" && cp {dir}/\"%f\" \"%p\""))
}

/// Whoever holds the files is the superuser on the socket; everybody else needs a password of the
/// restored state.
fn pg_hba_conf() -> String {
    format!(
        "# Written by `holdfast vault restore`.\n\
         local all {AGENT_ROLE} peer map=restored\n\
         host  all {AGENT_ROLE} all reject\n\
         local all all scram-sha-256\n\
         host  all all 127.0.0.1/32 scram-sha-256\n\
         host  all all ::1/128 scram-sha-256\n"
    )
}

fn pg_ident_conf(user: &ServiceUser) -> Result<String> {
    let mut text = String::from("# Written by `holdfast vault restore`.\n");
    for name in [user.name(), user.agent_name()] {
        let _ = writeln!(text, "restored {} {AGENT_ROLE}", mapped_user(name)?);
    }
    Ok(text)
}

/// `15` of `15.18`.
fn major_of(pg_version: &str) -> Result<u16> {
    pg_version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .ok_or_else(|| Error::Failed {
            code: "BackupCorrupted",
            message: format!("the backup says that it is of PostgreSQL {pg_version:?}"),
            retryable: false,
        })
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(Error::file("set the mode of", path))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restore_command_copies_whatever_the_path_holds() {
        let root = tempfile::tempdir().expect("a directory");
        let wal = root.path().join("o'dd $(x) 100% dir");
        std::fs::create_dir(&wal).expect("made");
        std::fs::write(wal.join("000000010000000000000001"), "log").expect("written");
        let command = restore_command(&wal).expect("text");
        let run = |file: &str| {
            // As PostgreSQL replaces.
            let to = root.path().join("to");
            let line = command
                .replace("%f", file)
                .replace("%p", &to.display().to_string())
                .replace("%%", "%");
            let ran = std::process::Command::new("/bin/sh")
                .arg("-c")
                .arg(line)
                .output()
                .expect("a shell");
            (
                ran.status.code(),
                ran.stderr,
                std::fs::read_to_string(&to).ok(),
            )
        };
        let missing = run("00000002.history");
        assert_eq!(missing, (Some(1), Vec::new(), None));
        let there = run("000000010000000000000001");
        assert_eq!(there, (Some(0), Vec::new(), Some("log".to_owned())));
    }

    #[test]
    fn nothing_but_an_empty_directory_is_taken() {
        let root = tempfile::tempdir().expect("a directory");
        set_mode(root.path(), 0o711).expect("ours");
        let user = ServiceUser::resolve("postgres").expect("this machine has the user");
        let code = |into: &Path| {
            Place::prepare(into, &user)
                .map_err(|error| error.code())
                .err()
        };
        assert_eq!(code(&root.path().join("new/one")), None, "it is made");
        assert_eq!(code(&root.path().join("new/one")), None, "it is empty");
        assert_eq!(code(root.path()), Some("RestoreTargetExists"));
        let file = root.path().join("file");
        std::fs::write(&file, "").expect("written");
        assert_eq!(code(&file), Some("RestoreTargetExists"));
        if user.ids().is_some() {
            let closed = root.path().join("closed");
            std::fs::create_dir(&closed).expect("made");
            set_mode(&closed, 0o700).expect("ours");
            assert_eq!(code(&closed.join("in")), Some("RestoreTargetUnreachable"));
        }
    }
}
