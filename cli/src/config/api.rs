//! `holdfast serve api`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use holdfast_domain::region::{Region, Site};
use serde::{Deserialize, Serialize};
use url::Url;

use super::database::DatabaseSection;
use super::load::{Problems, collect};
use super::{Check, Collect, scheduler};
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
    /// Where `/metrics` is served besides, in plain HTTP and to everybody who reaches it; it names servers.
    /// Without it only loopback gets it, on `listen`.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddr>,
    /// What clients call it: the beginning of every polling URL.
    pub public_url: Url,
    /// Absent only on a loopback address, behind something that ends TLS on the same machine.
    #[serde(default)]
    pub tls: Option<TlsSection>,
    pub auth: AuthSection,
    /// Servers are called `{name}.{suffix}`.
    #[serde(default)]
    pub domain_suffix: Option<String>,
    /// 32 bytes in base64; seals list positions, so all API processes must have the same.
    #[serde(default)]
    pub seal_key_file: Option<PathBuf>,
}

impl ApiSection {
    pub fn seal_key(&self) -> Result<Option<[u8; 32]>> {
        let Some(file) = &self.seal_key_file else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("the seal key in {} cannot be read", file.display()))?;
        let bytes = BASE64_STANDARD.decode(text.trim()).ok();
        let key = bytes.and_then(|bytes| bytes.try_into().ok());
        Ok(Some(key.with_context(|| {
            format!("{} must hold 32 bytes in base64", file.display())
        })?))
    }
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
        Site {
            regions: self.regions.clone(),
        }
    }
}

impl Check for ApiFile {
    const SECTIONS: &'static [(&'static str, Collect)] = &[
        ("api", collect::<ApiSection>),
        ("database", collect::<DatabaseSection>),
        ("regions", collect::<Vec<Region>>),
        ("telemetry", collect::<telemetry::Settings>),
    ];

    fn check(&self, problems: &mut Problems) {
        self.database.check(problems);
        scheduler::check_regions(&self.regions, problems);
        if self.api.tls.is_none() && !self.api.listen.ip().is_loopback() {
            problems.add("api.tls", "needed on every address that is not loopback");
        }
        if !matches!(self.api.public_url.scheme(), "https" | "http")
            || self.api.public_url.host().is_none()
        {
            problems.add("api.public_url", "it must be an https URL");
        }
        let url = &self.api.public_url;
        if !matches!(url.path(), "" | "/")
            || url.query().is_some()
            || url.fragment().is_some()
            || !url.username().is_empty()
            || url.password().is_some()
        {
            problems.add(
                "api.public_url",
                "polling URLs begin with it: only a name and a port, please",
            );
        }
        self.telemetry.check(problems);
        if self.api.auth.issuer.is_empty() {
            problems.add("api.auth.issuer", "it must not be empty");
        }
        if self.api.auth.audiences.is_empty()
            || self.api.auth.audiences.iter().any(String::is_empty)
        {
            problems.add(
                "api.auth.audiences",
                "at least one is needed, and none may be empty",
            );
        }
    }
}
