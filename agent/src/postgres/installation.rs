//! Which PostgreSQL majors this node can run (issue 2 §4): `pg_bin` of the configuration, then the
//! directories in `HOLDFAST_PG_BIN` (separated by colons), then `/usr/lib/postgresql/*/bin`. Of one
//! major the newest minor wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::error::{Error, Result};

const DISTRIBUTION: &str = "/usr/lib/postgresql";
/// What the agent calls; a directory that lacks one of them is no installation.
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_controldata"];
/// Majors that the code is right for (issue 2 §4).
const MAJORS: std::ops::RangeInclusive<u16> = 13..=18;

/// The programs of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    pub major: u16,
    /// `15.18`.
    pub minor: String,
    pub bin_dir: PathBuf,
}

impl Installation {
    /// The absolute path of one of PostgreSQL's programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    fn minor_number(&self) -> u32 {
        self.minor
            .split_once('.')
            .and_then(|(_, minor)| minor.parse().ok())
            .unwrap_or(0)
    }
}

/// All majors found, each with its newest minor.
pub async fn discover(configured: &[PathBuf]) -> BTreeMap<u16, Installation> {
    let mut found: BTreeMap<u16, Installation> = BTreeMap::new();
    for bin_dir in candidates(configured, std::env::var_os("HOLDFAST_PG_BIN")) {
        let Some(installation) = look_at(&bin_dir).await else {
            continue;
        };
        match found.get(&installation.major) {
            Some(other) if other.minor_number() >= installation.minor_number() => {}
            _ => {
                found.insert(installation.major, installation);
            }
        }
    }
    found
}

/// The installation of one major, or the error that names it.
pub fn of(found: &BTreeMap<u16, Installation>, major: u16) -> Result<Installation> {
    found
        .get(&major)
        .cloned()
        .ok_or(Error::NoSuchMajor { major })
}

fn candidates(configured: &[PathBuf], environment: Option<std::ffi::OsString>) -> Vec<PathBuf> {
    let mut dirs = configured.to_vec();
    if let Some(list) = environment {
        dirs.extend(std::env::split_paths(&list).filter(|dir| !dir.as_os_str().is_empty()));
    }
    if let Ok(entries) = std::fs::read_dir(DISTRIBUTION) {
        let mut packaged: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path().join("bin"))
            .collect();
        packaged.sort();
        dirs.extend(packaged);
    }
    dirs
}

async fn look_at(bin_dir: &Path) -> Option<Installation> {
    let bin_dir = bin_dir.canonicalize().ok()?;
    if PROGRAMS.iter().any(|name| !bin_dir.join(name).is_file()) {
        return None;
    }
    let output = Command::new(bin_dir.join("postgres"))
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let text = match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Ok(output) => {
            tracing::warn!(path = %bin_dir.display(), status = %output.status, "postgres --version failed");
            return None;
        }
        Err(error) => {
            tracing::warn!(path = %bin_dir.display(), %error, "postgres --version could not be run");
            return None;
        }
    };
    let (major, minor) = parse_version(&text)?;
    MAJORS.contains(&major).then_some(Installation {
        major,
        minor,
        bin_dir,
    })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` → 15, `15.18`. Betas are no releases.
fn parse_version(text: &str) -> Option<(u16, String)> {
    let version = text
        .split_once("(PostgreSQL) ")?
        .1
        .split_whitespace()
        .next()?;
    let (major, minor) = version.split_once('.')?;
    minor.parse::<u32>().ok()?;
    Some((major.parse().ok()?, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_with_or_without_a_distributions_suffix() {
        for (text, expected) in [
            (
                "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n",
                Some((15, "15.18")),
            ),
            ("postgres (PostgreSQL) 18.4\n", Some((18, "18.4"))),
            ("postgres (PostgreSQL) 19beta1\n", None),
            ("postgres 15", None),
        ] {
            let expected = expected.map(|(major, minor)| (major, minor.to_owned()));
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }

    #[test]
    fn the_environment_comes_before_the_distribution() {
        let dirs = candidates(&["/first".into()], Some("/second:/third:".into()));
        assert_eq!(
            dirs[..3],
            ["/first", "/second", "/third"].map(PathBuf::from)
        );
    }

    #[tokio::test]
    async fn the_majors_of_this_machine_are_found() {
        let found = discover(&[]).await;
        let fifteen = of(&found, 15).expect("PostgreSQL 15 is installed here");
        assert!(fifteen.minor.starts_with("15."));
        assert!(matches!(
            of(&found, 9),
            Err(Error::NoSuchMajor { major: 9 })
        ));
    }
}
