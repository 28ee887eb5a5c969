//! The files that make a data directory ours: `postgresql.conf`, `pg_hba.conf`, `pg_ident.conf`, and
//! an empty `postgresql.auto.conf`.
//!
//! They are written before every start. What a restored directory brings is hostile and is replaced,
//! never read as configuration (RELIABILITY §4.5). Settings and reasons: RELIABILITY §5.1, DESIGN §6.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{AGENT_ROLE, OPERATOR_ROLE, ServiceUser};
use crate::error::{Error, Result};

/// What differs from server to server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfiguration {
    pub major: u16,
    pub port: u16,
    pub socket_dir: PathBuf,
    /// Shown in the process list: the incarnation, never a name that a user chose.
    pub cluster_name: String,
    /// Whose connections on the socket are the agent's.
    pub agent_os_user: String,
}

/// A setting that backup and restore rest on: how it is written, and how `pg_settings` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnedSetting {
    pub name: &'static str,
    pub written: &'static str,
    pub shown: &'static str,
    pub since_major: u16,
}

/// RELIABILITY §5.1. Looked at every cycle by [`super::drift`].
pub const OWNED: [OwnedSetting; 13] = [
    owned("wal_level", "replica", "replica", 13),
    owned("archive_mode", "off", "off", 13),
    // WAL is never dropped to save disk: the server stops before the history breaks.
    owned("max_slot_wal_keep_size", "-1", "-1", 13),
    // 18 would drop the slot of a stream that cannot reach its store.
    owned("idle_replication_slot_timeout", "0", "0", 18),
    // What changed while no agent watched (ADR 15).
    owned("summarize_wal", "on", "on", 17),
    owned("wal_sender_timeout", "60s", "60000", 13),
    owned("full_page_writes", "on", "on", 13),
    owned("fsync", "on", "on", 13),
    // A commit waits for its own disk only; the stream is asynchronous by design.
    owned("synchronous_standby_names", "", "", 13),
    // Prints how far recovery is, also with hot_standby=off.
    owned("log_startup_progress_interval", "10s", "10000", 15),
    owned("password_encryption", "scram-sha-256", "scram-sha-256", 13),
    owned("shared_preload_libraries", "", "", 13),
    owned("ignore_checksum_failure", "off", "off", 13),
];

const fn owned(
    name: &'static str,
    written: &'static str,
    shown: &'static str,
    since_major: u16,
) -> OwnedSetting {
    OwnedSetting {
        name,
        written,
        shown,
        since_major,
    }
}

/// The owned settings that this major knows.
pub fn owned_settings(major: u16) -> impl Iterator<Item = &'static OwnedSetting> {
    OWNED
        .iter()
        .filter(move |setting| setting.since_major <= major)
}

/// The rest of what every server gets.
const DEFAULTS: [(&str, &str); 21] = [
    ("listen_addresses", "127.0.0.1"),
    // Tenants come by the socket too; who they are is asked by scram (DESIGN §6).
    ("unix_socket_permissions", "0777"),
    ("max_connections", "100"),
    // Backups, the stream and the drift check must get in when a tenant has used up the rest.
    ("superuser_reserved_connections", "10"),
    ("shared_buffers", "128MB"),
    ("dynamic_shared_memory_type", "posix"),
    ("max_wal_size", "1GB"),
    ("min_wal_size", "80MB"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("hot_standby", "on"),
    ("ssl", "off"),
    ("restart_after_crash", "on"),
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
    ("datestyle", "iso, mdy"),
    ("lc_messages", "C"),
    ("default_text_search_config", "pg_catalog.english"),
];

/// The same for newer majors only.
const NEWER_DEFAULTS: [(u16, &str, &str); 1] = [
    // One call instead of one per file: a server with many tables is back after a crash in seconds.
    (14, "recovery_init_sync_method", "syncfs"),
];

/// Writes all four files, each whole and under its final name only when it is complete.
pub fn write(
    data_dir: &Path,
    configuration: &ServerConfiguration,
    user: &ServiceUser,
) -> Result<()> {
    for (name, text) in files(configuration)? {
        replace(&data_dir.join(name), &text, user)?;
    }
    Ok(())
}

/// The files whose content is not ours (any more). Reading them is cheap; it is done every cycle.
pub fn differing(
    data_dir: &Path,
    configuration: &ServerConfiguration,
) -> Result<Vec<&'static str>> {
    let mut names = Vec::new();
    for (name, text) in files(configuration)? {
        let path = data_dir.join(name);
        let found = std::fs::read(&path).map_err(Error::file("read", path))?;
        if found != text.as_bytes() {
            names.push(name);
        }
    }
    Ok(names)
}

fn files(configuration: &ServerConfiguration) -> Result<[(&'static str, String); 4]> {
    Ok([
        ("postgresql.conf", postgresql_conf(configuration)?),
        ("pg_hba.conf", pg_hba_conf()),
        (
            "pg_ident.conf",
            pg_ident_conf(&configuration.agent_os_user)?,
        ),
        (
            "postgresql.auto.conf",
            "# Not used: Holdfast sets parameters.\n".to_owned(),
        ),
    ])
}

fn postgresql_conf(configuration: &ServerConfiguration) -> Result<String> {
    let mut text = String::from("# Written by Holdfast before every start; changes are undone.\n");
    let mut line = |name: &str, value: &str| -> Result<()> {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} = {}", quote(value)?);
        Ok(())
    };
    for setting in owned_settings(configuration.major) {
        line(setting.name, setting.written)?;
    }
    for (name, value) in DEFAULTS {
        line(name, value)?;
    }
    for (since, name, value) in NEWER_DEFAULTS {
        if configuration.major >= since {
            line(name, value)?;
        }
    }
    let socket_dir = configuration.socket_dir.to_str().ok_or(Error::Unquotable {
        what: "the socket directory",
    })?;
    // In a list of directories a comma or a quote would end the name.
    if socket_dir.contains([',', '"', ' ']) {
        return Err(Error::Unquotable {
            what: "the socket directory",
        });
    }
    line("unix_socket_directories", socket_dir)?;
    line("port", &configuration.port.to_string())?;
    line("cluster_name", &configuration.cluster_name)?;
    Ok(text)
}

/// The agent and the machine's operator by peer on the socket and by nothing else; tenants by scram
/// on the socket and loopback.
/// `all` as a database does not match replication, so nobody but the agent streams.
fn pg_hba_conf() -> String {
    format!(
        "# Written by Holdfast; changes are undone.\n\
         local all         {AGENT_ROLE} peer map=holdfast\n\
         local replication {AGENT_ROLE} peer map=holdfast\n\
         host  all         {AGENT_ROLE} all reject\n\
         local all         {OPERATOR_ROLE} peer map=holdfast\n\
         host  all         {OPERATOR_ROLE} all reject\n\
         local all         all                 scram-sha-256\n\
         host  all         all    127.0.0.1/32 scram-sha-256\n\
         host  all         all    ::1/128      scram-sha-256\n"
    )
}

fn pg_ident_conf(agent_os_user: &str) -> Result<String> {
    let user = mapped_user(agent_os_user)?;
    Ok(format!(
        "# Written by Holdfast; changes are undone.\n\
         holdfast {user} {AGENT_ROLE}\n\
         holdfast {user} {OPERATOR_ROLE}\n"
    ))
}

/// A user of the machine as `pg_ident.conf` wants it, in quotes.
pub(crate) fn mapped_user(name: &str) -> Result<String> {
    // A leading slash would be a regular expression.
    if name.is_empty() || name.starts_with('/') || name.chars().any(|c| c.is_control() || c == '"')
    {
        return Err(Error::Unquotable {
            what: "the name of a user of this machine",
        });
    }
    Ok(format!("\"{name}\""))
}

/// A value for `postgresql.conf`, quotes included. PostgreSQL reads backslashes as escapes inside
/// quotes and has no way to write a line break, so control characters are refused.
pub fn quote(value: &str) -> Result<String> {
    if value.chars().any(char::is_control) {
        return Err(Error::Unquotable {
            what: "a setting's value",
        });
    }
    Ok(format!(
        "'{}'",
        value.replace('\\', "\\\\").replace('\'', "''")
    ))
}

/// Writes beside, syncs, renames. The new file never follows a link that somebody left there.
pub fn replace(path: &Path, text: &str, user: &ServiceUser) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".holdfast");
    let beside = PathBuf::from(beside);
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::file("remove", beside)(error));
        }
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(Error::file("create", &beside))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::file("write", &beside))?;
    user.chown(&beside)?;
    std::fs::rename(&beside, path).map_err(Error::file("put in place", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration() -> ServerConfiguration {
        ServerConfiguration {
            major: 15,
            port: 5511,
            socket_dir: "/run/holdfast-1/5511".into(),
            cluster_name: "0199".into(),
            agent_os_user: "root".into(),
        }
    }

    #[test]
    fn a_quoted_value_cannot_end_its_line_or_its_quotes() {
        assert_eq!(quote("it's").expect("quotable"), "'it''s'");
        assert_eq!(quote("a\\'b").expect("quotable"), "'a\\\\''b'");
        for hostile in ["a\nfsync = off", "a\rb", "a\0b", "a\u{7f}b", "a\u{85}b"] {
            assert!(quote(hostile).is_err(), "{hostile:?}");
        }
    }

    #[test]
    fn settings_of_newer_majors_are_not_written_for_older_ones() {
        let text = |major| {
            postgresql_conf(&ServerConfiguration {
                major,
                ..configuration()
            })
            .expect("written")
        };
        assert!(!text(14).contains("log_startup_progress_interval"));
        assert!(text(15).contains("log_startup_progress_interval = '10s'"));
        assert!(text(18).contains("idle_replication_slot_timeout = '0'"));
        assert!(!text(17).contains("idle_replication_slot_timeout"));
        assert!(text(13).contains("archive_mode = 'off'"));
    }

    #[test]
    fn a_user_name_that_would_be_a_pattern_is_refused() {
        assert!(pg_ident_conf("/^.*$").is_err());
        assert!(pg_ident_conf("a\" b").is_err());
        assert!(pg_ident_conf("root").is_ok());
    }

    #[test]
    fn a_changed_file_is_noticed_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let user = ServiceUser::resolve("postgres").expect("this machine has the user");
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").expect("written");
        for name in ["pg_hba.conf", "pg_hba.conf.holdfast"] {
            std::os::unix::fs::symlink(&victim, dir.path().join(name)).expect("linked");
        }
        write(dir.path(), &configuration(), &user).expect("written");
        assert_eq!(std::fs::read_to_string(&victim).expect("there"), "precious");
        assert!(
            differing(dir.path(), &configuration())
                .expect("read")
                .is_empty()
        );
        std::fs::write(dir.path().join("pg_hba.conf"), "local all all trust\n").expect("written");
        assert_eq!(
            differing(dir.path(), &configuration()).expect("read"),
            ["pg_hba.conf"]
        );
    }
}
