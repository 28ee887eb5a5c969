//! Configuration files of the parts that run apart (issue 2 §1): TOML, unknown keys refused,
//! `HOLDFAST__SECTION__KEY` in the environment wins (text, numbers, lists as TOML writes them), secrets are in files of their own.
//!
//! What a file is for is what it has: `[api]`, `[scheduler]` or `[agent]`. Loading collects everything
//! that is wrong, each with the path of its key, instead of stopping at the first.

mod api;
mod database;
mod limits;
mod load;
mod roles;
mod scheduler;

use std::path::Path;

use holdfast_agent::AgentConfig;
use serde::{Deserialize, Serialize};

pub use self::api::{ApiFile, ApiSection, AuthSection, TlsSection};
pub use self::database::DatabaseSection;
pub use self::limits::LimitsFile;
use self::load::{Overrides, collect};
pub use self::load::{Problem, Problems};
pub use self::roles::{RoleSection, RolesFile};
pub use self::scheduler::{
    CertificateFor, NodeSection, SchedulerFile, SchedulerSection, SubscriptionSection, VaultSection,
};
use crate::telemetry;

/// A configuration, for one of the three.
#[derive(Debug, Clone)]
pub enum Config {
    Api(Box<ApiFile>),
    Scheduler(Box<SchedulerFile>),
    Agent(Box<AgentFile>),
}

impl Config {
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Api(_) => "api",
            Self::Scheduler(_) => "scheduler",
            Self::Agent(_) => "agent",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentFile {
    pub agent: AgentConfig,
    #[serde(default)]
    pub telemetry: telemetry::Settings,
}

/// Loads a file with this process's environment.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Config, Problems> {
    load::load(path, None)
}

/// Loads a file with an environment of the caller's: tests must not change their own.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_with(path: &Path, environment: &[(&str, &str)]) -> Result<Config, Problems> {
    let environment = environment
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()));
    load::load(path, Some(environment.collect()))
}

type Collect = fn(&mut serde_json::Value, &str, &Overrides, &mut Problems);

/// What can be checked without touching anything but the configuration itself.
trait Check {
    /// Its sections, each with what collects the mistakes in it.
    const SECTIONS: &'static [(&'static str, Collect)];

    fn check(&self, problems: &mut Problems);
}

impl Check for AgentFile {
    const SECTIONS: &'static [(&'static str, Collect)] = &[
        ("agent", collect::<AgentConfig>),
        ("telemetry", collect::<telemetry::Settings>),
    ];

    fn check(&self, problems: &mut Problems) {
        if let Err(error) = self.agent.check() {
            problems.add("agent", error);
        }
        self.telemetry.check(problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_compose_set_up_is_a_good_one() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let mut kinds = Vec::new();
        for entry in std::fs::read_dir(deploy).expect("the folder is there") {
            let path = entry.expect("listed").path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                match load_with(&path, &[]) {
                    Ok(config) => kinds.push(config.kind()),
                    Err(problems) => panic!("{}: {problems}", path.display()),
                }
            }
        }
        kinds.sort_unstable();
        assert_eq!(kinds, ["agent", "agent", "api", "scheduler"]);
    }
}
