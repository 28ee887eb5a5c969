//! `holdfast serve api`.

use std::net::SocketAddr;
use std::path::PathBuf;

use holdfast_domain::region::{Region, Site};
use serde::{Deserialize, Serialize};
use url::Url;

use super::database::DatabaseSection;
use super::load::Problems;
use super::{Check, scheduler};
use crate::telemetry;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiFile {
    pub api: ApiSection,
    pub database: DatabaseSection,
    /// The regions of the installation; the same in every file.
    #[serde(default = "scheduler::built_in_regions")]
    pub regions: Vec<Region>,
    #[serde(default)]
    pub telemetry: telemetry::Settings,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiSection {
    pub listen: SocketAddr,
    /// What clients call it: the beginning of every polling URL.
    pub public_url: Url,
    /// Absent only on a loopback address, behind something that ends TLS on the same machine.
    #[serde(default)]
    pub tls: Option<TlsSection>,
    pub auth: AuthSection,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// Whose tokens are believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSection {
    /// The issuer's public keys; read again when it changes.
    pub jwks_file: PathBuf,
    /// `iss`, exactly.
    pub issuer: String,
    /// Any of these as `aud`.
    pub audiences: Vec<String>,
    /// `tid`, exactly, when there is one only.
    #[serde(default)]
    pub tenant: Option<String>,
}

impl ApiFile {
    #[must_use]
    pub fn site(&self) -> Site {
        Site { regions: self.regions.clone() }
    }
}

impl Check for ApiFile {
    fn check(&self, problems: &mut Problems) {
        self.database.check(problems);
        scheduler::check_regions(&self.regions, problems);
        if self.api.tls.is_none() && !self.api.listen.ip().is_loopback() {
            problems.add("api.tls", "needed on every address that is not loopback");
        }
        if !matches!(self.api.public_url.scheme(), "https" | "http") || self.api.public_url.host().is_none() {
            problems.add("api.public_url", "it must be an https URL");
        }
        if self.api.auth.issuer.is_empty() {
            problems.add("api.auth.issuer", "it must not be empty");
        }
        if self.api.auth.audiences.is_empty() || self.api.auth.audiences.iter().any(String::is_empty) {
            problems.add("api.auth.audiences", "at least one is needed, and none may be empty");
        }
    }
}
