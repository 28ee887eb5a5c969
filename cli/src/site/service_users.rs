//! Who runs PostgreSQL when `up` is root. Managed servers get a user of their own, so that a tenant who
//! breaks out of SQL meets neither keys nor stores nor the metadata store (DESIGN §3.18); the metadata
//! store is run by `postgres`, which the distribution's package brings.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use holdfast_agent::postgres::ServiceUser;
use nix::unistd::{User, geteuid};

/// Made when missing.
pub const SERVERS: &str = "holdfast";
pub const METADATA: &str = "postgres";

#[derive(Debug, Clone)]
pub struct ServiceUsers {
    pub servers: ServiceUser,
    pub metadata: ServiceUser,
}

/// Finds or makes the users. Started by anybody but root, everything runs as that user.
pub fn resolve() -> Result<ServiceUsers> {
    if geteuid().is_root() && !exists(SERVERS)? {
        make(SERVERS);
    }
    let known: Vec<&str> = match geteuid().is_root() {
        true => [SERVERS, METADATA]
            .into_iter()
            .filter(|name| exists(name).unwrap_or(false))
            .collect(),
        false => vec![SERVERS],
    };
    let (Some(servers), Some(metadata)) = (known.first(), known.last()) else {
        bail!("there is no user that may run PostgreSQL: useradd --system {SERVERS}");
    };
    Ok(ServiceUsers {
        servers: ServiceUser::resolve(servers)?,
        metadata: ServiceUser::resolve(metadata)?,
    })
}

/// The user for PostgreSQL where no site runs: the one of that name, or the one of `up`'s servers, or
/// the distribution's. None is made.
pub fn for_one_server(name: Option<&str>) -> Result<ServiceUser> {
    let known = |name: &&str| exists(name).unwrap_or(false);
    let name = match name {
        Some(name) => name,
        None if !geteuid().is_root() => SERVERS,
        None => [SERVERS, METADATA].into_iter().find(known).context(
            "PostgreSQL refuses to run as root, and there is no user for it; name one with --owner",
        )?,
    };
    Ok(ServiceUser::resolve(name)?)
}

/// Whether root would find a user for PostgreSQL; what `doctor` asks, without making one.
pub fn available() -> Result<bool> {
    Ok(!geteuid().is_root() || exists(SERVERS)? || exists(METADATA)? || useradd().is_some())
}

fn exists(name: &str) -> Result<bool> {
    Ok(User::from_name(name)
        .context("users cannot be looked up")?
        .is_some())
}

fn useradd() -> Option<&'static str> {
    ["/usr/sbin/useradd", "/sbin/useradd"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
}

/// Best effort: without it `postgres` does.
fn make(name: &str) {
    let Some(useradd) = useradd() else { return };
    let made = Command::new(useradd)
        .args([
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir",
            "/nonexistent",
        ])
        .args([
            "--shell",
            "/usr/sbin/nologin",
            "--comment",
            "PostgreSQL servers of Holdfast",
            name,
        ])
        .stdin(Stdio::null())
        .output();
    match made {
        Ok(output) if output.status.success() => tracing::info!(user = name, "made a service user"),
        Ok(output) => tracing::warn!(
            user = name,
            said = %String::from_utf8_lossy(&output.stderr).trim(),
            "useradd failed"
        ),
        Err(error) => tracing::warn!(user = name, %error, "useradd could not be run"),
    }
}
