//! Which parameters a source had set, read from the configuration files that its backup carried.
//!
//! The files are a stranger's: they are parsed for what they say and never obeyed. No `include` is
//! followed, nothing is expanded, sizes are bounded (DESIGN §3.17). What differs from the new server
//! is reported to the caller, not applied (FLX-094).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tokio_postgres::{Client, Row};

use crate::error::{Error, Result};

/// More than any configuration file that PostgreSQL or a person writes.
const FILE_LIMIT: u64 = 1 << 20;
const VALUE_LIMIT: usize = 1024;
const COUNT_LIMIT: usize = 1000;

/// Settings that belong to the one server or machine, or that may hold a secret. They differ by
/// nature, and telling somebody to bring them over would be wrong advice.
const OF_ONE_SERVER: [&str; 24] = [
    "archive_cleanup_command",
    "archive_command",
    "archive_library",
    "archive_mode",
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "hot_standby",
    "ident_file",
    "include",
    "include_dir",
    "include_if_exists",
    "krb_server_keyfile",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_end_command",
    "restore_command",
    "ssl_passphrase_command",
    "unix_socket_directories",
    "unix_socket_group",
];

/// Name (lower case) → value as written.
pub type Parameters = BTreeMap<String, String>;

/// What `postgresql.conf` and then `postgresql.auto.conf` of this directory set. A missing file
/// sets nothing.
pub fn of_directory(data_dir: &Path) -> io::Result<Parameters> {
    let mut all = Parameters::new();
    for file in ["postgresql.conf", "postgresql.auto.conf"] {
        if let Some(text) = read_bounded(&data_dir.join(file))? {
            all.extend(parse(&text));
        }
    }
    Ok(all)
}

fn read_bounded(path: &Path) -> io::Result<Option<String>> {
    let file = match File::options()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// PostgreSQL's syntax: `name [=] value`, comments from `#`, values bare or in single quotes.
#[must_use]
pub fn parse(text: &str) -> Parameters {
    let mut found = Parameters::new();
    for line in text.lines().take(20_000) {
        if let Some((name, value)) = assignment(line.trim())
            && (found.len() < COUNT_LIMIT || found.contains_key(&name))
        {
            found.insert(name, value);
        }
    }
    found
}

fn assignment(line: &str) -> Option<(String, String)> {
    let name_end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(name_end);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || name.len() > 127 {
        return None;
    }
    let spaced = rest.starts_with(|c: char| c.is_ascii_whitespace());
    let rest = rest.trim_start();
    let (rest, separated) = match rest.strip_prefix('=') {
        Some(rest) => (rest.trim_start(), true),
        None => (rest, spaced),
    };
    if !separated {
        return None;
    }
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted)?,
        None => rest
            .split(|c: char| c.is_ascii_whitespace() || c == '#')
            .next()?
            .to_owned(),
    };
    let value: String = value.chars().filter(|c| !c.is_control()).collect();
    let given = rest.starts_with('\'') || !value.is_empty();
    (given && value.len() <= VALUE_LIMIT).then(|| (name.to_ascii_lowercase(), value))
}

/// The text after an opening quote up to the closing one; `''` and backslash escapes are one character.
fn unquote(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\'' if characters.peek() == Some(&'\'') => {
                characters.next();
                value.push('\'');
            }
            '\'' => return Some(value),
            '\\' => value.push(match characters.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

/// How a running server has one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// As `SHOW` prints it: `128MB`.
    pub shown: String,
    /// As `pg_settings` keeps it: `16384`.
    pub raw: String,
    /// What `raw` counts in: `8kB`, `ms`, or nothing.
    pub unit: Option<String>,
}

/// Every parameter of a running server.
pub async fn of_server(session: &Client) -> Result<BTreeMap<String, Current>> {
    let rows = session
        .query(
            "SELECT name, coalesce(current_setting(name, true), ''), coalesce(setting, ''), unit FROM pg_settings",
            &[],
        )
        .await
        .map_err(Error::postgres("read the new server's parameters"))?;
    let current = |row: &Row| Current {
        shown: row.get(1),
        raw: row.get(2),
        unit: row.get(3),
    };
    Ok(rows.iter().map(|row| (row.get(0), current(row))).collect())
}

/// What the source had set and the new server has not, name → source value (FLX-094).
#[must_use]
pub fn differences(source: &Parameters, current: &BTreeMap<String, Current>) -> Parameters {
    source
        .iter()
        .filter(|(name, _)| {
            !OF_ONE_SERVER.contains(&name.as_str())
                && !name.starts_with("recovery_target")
                && !name.starts_with("ssl_")
                // Ours on every server; a tenant cannot set them.
                && !name.starts_with("holdfast.")
        })
        .filter(|(name, value)| match current.get(*name) {
            Some(current) => !current.equals(value),
            // Not a parameter of this version, unless an extension's.
            None => name.contains('.'),
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

impl Current {
    fn equals(&self, written: &str) -> bool {
        let same = |other: &str| written.eq_ignore_ascii_case(other);
        if same(&self.shown) || same(&self.raw) {
            return true;
        }
        if let (Some(written), Some(current)) = (boolean(written), boolean(&self.raw)) {
            return written == current;
        }
        match (
            amount(written, self.unit.as_deref()),
            amount(&self.raw, self.unit.as_deref()),
        ) {
            (Some(written), Some(current)) => (written - current).abs() < 0.5,
            _ => false,
        }
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// A number with a unit, in bytes or microseconds; a bare number counts in `default`.
fn amount(text: &str, default: Option<&str>) -> Option<f64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+')))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim();
    let factor = if unit.is_empty() {
        default.map_or(Some(1.0), unit_factor)?
    } else {
        unit_factor(unit)?
    };
    Some(number * factor)
}

fn unit_factor(unit: &str) -> Option<f64> {
    const KIB: f64 = 1024.0;
    Some(match unit {
        "B" => 1.0,
        "kB" => KIB,
        "8kB" => 8.0 * KIB,
        "MB" => KIB * KIB,
        "16MB" => 16.0 * KIB * KIB,
        "GB" => KIB * KIB * KIB,
        "TB" => KIB * KIB * KIB * KIB,
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "min" => 60e6,
        "h" => 3600e6,
        "d" => 86_400e6,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current(shown: &str, raw: &str, unit: Option<&str>) -> Current {
        Current {
            shown: shown.into(),
            raw: raw.into(),
            unit: unit.map(str::to_owned),
        }
    }

    #[test]
    fn postgres_syntax_is_understood() {
        let text = "max_connections = 200 # more\nwork_mem '64MB'\n  Search_Path = '''a'', b'\n\
                    #shared_buffers = 1GB\nlog_line_prefix='%m\\t[%p] '\nname_without_value\nx=''\n";
        let found = parse(text);
        assert_eq!(found["max_connections"], "200");
        assert_eq!(found["work_mem"], "64MB");
        assert_eq!(found["search_path"], "'a', b");
        assert_eq!(
            found["log_line_prefix"], "%m[%p] ",
            "control characters are dropped"
        );
        assert_eq!(found["x"], "");
        assert_eq!(found.len(), 5);
    }

    #[test]
    fn a_hostile_file_is_only_text() {
        let long = format!("a = '{}'", "x".repeat(5000));
        for line in [
            "a = 'unclosed",
            "= 5",
            "'quoted' = 5",
            "../etc = 1",
            "a\u{0}b = 1",
            &long,
            "🦀 = 1",
        ] {
            assert_eq!(parse(line), Parameters::new(), "{line:.30}");
        }
        let many: String = (0..5000).map(|n| format!("p{n} = 1\n")).collect();
        assert_eq!(parse(&many).len(), COUNT_LIMIT);
        assert_eq!(
            parse("include '/etc/passwd'")["include"],
            "/etc/passwd",
            "a name like any other"
        );
    }

    // FLX-094
    #[test]
    fn only_what_really_differs_is_reported() {
        let source = parse(
            "max_connections=200\nshared_buffers=128MB\nstatement_timeout='1min'\nfsync=yes\nport=5433\n\
             primary_conninfo='password=secret'\nrestore_command='x'\nmy.extension='on'\nnot_of_this_version=1\n\
             include='/etc/passwd'\n",
        );
        let now = BTreeMap::from([
            ("max_connections".into(), current("100", "100", None)),
            (
                "shared_buffers".into(),
                current("128MB", "16384", Some("8kB")),
            ),
            (
                "statement_timeout".into(),
                current("1min", "60000", Some("ms")),
            ),
            ("fsync".into(), current("on", "on", None)),
            ("port".into(), current("5440", "5440", None)),
        ]);
        let expected = Parameters::from([
            ("max_connections".into(), "200".into()),
            ("my.extension".into(), "on".into()),
        ]);
        assert_eq!(differences(&source, &now), expected);
    }

    #[test]
    fn the_same_amount_in_another_unit_is_no_difference() {
        let sixty = current("1min", "60000", Some("ms"));
        for same in ["60s", "60000", "1min", "60000ms", "1MIN"] {
            assert!(sixty.equals(same), "{same}");
        }
        assert!(!sixty.equals("61s"));
        assert!(current("128MB", "16384", Some("8kB")).equals("131072kB"));
        assert!(!current("128MB", "16384", Some("8kB")).equals("16GB"));
    }
}
