//! `[database]`: the metadata PostgreSQL of an installation, which its operator runs as they run their
//! others (DESIGN §1).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};

use super::load::Problems;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseSection {
    /// A name, an address, or the directory of a Unix socket.
    pub host: String,
    #[serde(default = "default_port")]
    pub port: u16,
    #[serde(default = "default_name")]
    pub name: String,
    #[serde(default = "default_name")]
    pub user: String,
    /// Absent: peer, trust or certificate authentication.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    #[serde(default)]
    pub tls: DatabaseTls,
    /// The authority that signed the database's certificate, PEM.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    #[serde(default = "default_connections")]
    pub max_connections: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatabaseTls {
    Disable,
    #[default]
    Prefer,
    Require,
    VerifyFull,
}

fn default_port() -> u16 {
    5432
}

fn default_name() -> String {
    "holdfast".to_owned()
}

fn default_connections() -> u32 {
    20
}

impl DatabaseSection {
    pub(super) fn check(&self, problems: &mut Problems) {
        if self.host.is_empty() {
            problems.add("database.host", "it must not be empty");
        }
        if self.max_connections < 4 {
            problems.add("database.max_connections", "at least 4 are needed");
        }
        if self.tls == DatabaseTls::VerifyFull && self.ca_file.is_none() {
            problems.add(
                "database.ca_file",
                "verify-full needs the authority to verify against",
            );
        }
    }

    /// A pool; nothing is connected yet.
    pub fn pool(&self) -> Result<PgPool> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(self.port)
            .username(&self.user)
            .database(&self.name)
            .application_name("holdfast")
            .ssl_mode(match self.tls {
                DatabaseTls::Disable => PgSslMode::Disable,
                DatabaseTls::Prefer => PgSslMode::Prefer,
                DatabaseTls::Require => PgSslMode::Require,
                DatabaseTls::VerifyFull => PgSslMode::VerifyFull,
            });
        options = match self.host.starts_with('/') {
            true => options.socket(&self.host),
            false => options.host(&self.host),
        };
        if let Some(file) = &self.ca_file {
            options = options.ssl_root_cert(file);
        }
        if let Some(file) = &self.password_file {
            let password = std::fs::read_to_string(file).with_context(|| {
                format!(
                    "the database's password in {} cannot be read",
                    file.display()
                )
            })?;
            options = options.password(password.trim_end_matches(['\r', '\n']));
        }
        Ok(PgPoolOptions::new()
            .max_connections(self.max_connections)
            .acquire_timeout(Duration::from_secs(10))
            .connect_lazy_with(options))
    }
}
