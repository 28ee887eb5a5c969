//! What an agent is told when it starts: a TOML file, unknown keys refused, secrets in files of
//! their own (issue 2 §1). `holdfast up` fills the same structure for its built-in site.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, Result};
use crate::limits::Limits;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The node's name; its join token is bound to it.
    pub name: String,
    pub region: String,
    #[serde(default)]
    pub zone: Option<String>,
    /// `https://…` of the scheduler's agent port.
    pub gateway: Url,
    /// The only authority whose certificate the gateway may show, PEM.
    pub ca_file: PathBuf,
    /// Needed once, until the node has a certificate.
    #[serde(default)]
    pub join_token_file: Option<PathBuf>,
    /// Everything the node keeps: data directories, its certificate, its cache of assignments.
    pub state_dir: PathBuf,
    /// For sockets; short, because a socket's path has at most 107 bytes. Default: below `/run` or
    /// the temporary directory, named after a hash of the state directory.
    #[serde(default)]
    pub run_dir: Option<PathBuf>,
    /// `bin` directories looked at before `/usr/lib/postgresql/*/bin` and `HOLDFAST_PG_BIN`.
    #[serde(default)]
    pub pg_bin: Vec<PathBuf>,
    /// First and last port that servers of this node may have.
    pub port_range: (u16, u16),
    /// What clients on this node's network call it.
    #[serde(default = "default_host")]
    pub host: String,
    /// Key-encryption keys, one file `{version}.key` each. The last version in order wraps new keys.
    pub key_dir: PathBuf,
    /// Who runs PostgreSQL when the agent is root.
    #[serde(default = "default_service_user")]
    pub service_user: String,
    /// The `holdfast` executable as the service user reaches it: PostgreSQL's `restore_command`.
    pub executable: PathBuf,
    /// How many jobs may run side by side.
    #[serde(default = "default_max_jobs")]
    pub max_jobs: u32,
    /// Whether backups freeze the files of servers where the file system can, and the newest frozen copy of each server is
    /// kept for a restore on this node (ADR 19). It costs what the server overwrites until its next backup.
    #[serde(default = "default_frozen_copies")]
    pub frozen_copies: bool,
    #[serde(default)]
    pub limits: Limits,
}

fn default_host() -> String {
    "127.0.0.1".to_owned()
}

fn default_service_user() -> String {
    "postgres".to_owned()
}

fn default_max_jobs() -> u32 {
    8
}

fn default_frozen_copies() -> bool {
    true
}

impl AgentConfig {
    /// What can be checked without touching the machine; the rest shows when it is used.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Configuration(what));
        if self.name.is_empty() || self.region.is_empty() {
            return wrong("name and region must not be empty".into());
        }
        if self.gateway.scheme() != "https" {
            return wrong(format!(
                "gateway must be an https URL, not {}",
                self.gateway.scheme()
            ));
        }
        let (first, last) = self.port_range;
        if first < 1024 || last < first {
            return wrong(format!(
                "port_range {first}–{last} is not a range above 1023"
            ));
        }
        if self.max_jobs == 0 {
            return wrong("max_jobs must be at least 1".into());
        }
        for (what, path) in [
            ("state_dir", &self.state_dir),
            ("executable", &self.executable),
        ] {
            if !path.is_absolute() {
                return wrong(format!("{what} must be an absolute path"));
            }
            // It is written into PostgreSQL's configuration and into socket paths.
            if path
                .to_str()
                .is_none_or(|text| text.chars().any(char::is_control))
            {
                return wrong(format!("{what} must be plain text"));
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn servers_dir(&self) -> PathBuf {
        self.state_dir.join("servers")
    }
}

/// The first of `path`'s parents that `can_enter` refuses: what to tell a person whose service user
/// cannot reach the state directory (DESIGN §6).
#[must_use]
pub fn first_closed_parent(path: &Path, can_enter: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut parents: Vec<&Path> = path.ancestors().collect();
    parents.reverse();
    parents
        .into_iter()
        .find(|parent| !can_enter(parent))
        .map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{
        "name": "n1", "region": "eastus2", "gateway": "https://127.0.0.1:7443",
        "ca_file": "ca.pem", "state_dir": "/var/lib/holdfast", "port_range": [5500, 5599],
        "key_dir": "/etc/holdfast/keys", "executable": "/usr/bin/holdfast"
    }"#;

    #[test]
    fn a_minimal_configuration_is_enough() {
        let config: AgentConfig = serde_json::from_str(MINIMAL).expect("the text above");
        config.check().expect("nothing wrong with it");
        assert_eq!(config.service_user, "postgres");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let text = MINIMAL.replacen("\"name\"", "\"nmae\": 1, \"name\"", 1);
        assert!(serde_json::from_str::<AgentConfig>(&text).is_err());
    }

    #[test]
    fn a_gateway_without_tls_is_refused() {
        let text = MINIMAL.replace("https://", "http://");
        let config: AgentConfig = serde_json::from_str(&text).expect("the text above");
        assert!(config.check().is_err());
    }

    #[test]
    fn the_first_closed_parent_is_the_outermost() {
        let closed = [Path::new("/root"), Path::new("/root/a/b")];
        assert_eq!(
            first_closed_parent(Path::new("/root/a/b/c"), |p| !closed.contains(&p)),
            Some(PathBuf::from("/root"))
        );
    }
}
