//! The built-in site's own issuer: whoever may read its key, may have a token of the site's Owner.

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_api::auth::issuer::Mint;
use holdfast_api::auth::{AuthConfig, Issuer};
use holdfast_control_plane::Clock;

use super::identity::Identity;
use crate::state_dir::{StateDir, private_dir};

/// Clients of Azure Resource Manager ask for this one by themselves.
const AUDIENCE: &str = "https://management.azure.com/";
/// The longest life that the API accepts (RELIABILITY §4.1).
const LIFE: TimeDelta = TimeDelta::hours(24);

#[derive(Debug, Clone)]
pub struct Token {
    pub text: String,
    pub expires: DateTime<Utc>,
}

/// Opens the issuer, or makes it.
pub fn open_issuer(state: &StateDir) -> Result<Issuer> {
    let dir = state.issuer_dir();
    private_dir(&dir)?;
    Issuer::load_or_create(&dir.join("key.pem"), &dir.join("jwks.json"))
        .context("the site's token issuer cannot be opened")
}

/// Whose tokens the site believes.
#[must_use]
pub fn accepted(state: &StateDir, identity: &Identity) -> AuthConfig {
    AuthConfig {
        issuer: issuer_name(identity),
        audiences: vec![AUDIENCE.to_owned()],
        tenant: Some(identity.tenant.to_string()),
        jwks_file: state.issuer_dir().join("jwks.json"),
    }
}

/// A fresh token for the site's administrator.
pub fn mint(state: &StateDir, identity: &Identity) -> Result<Token> {
    let administrator = identity.administrator.to_string();
    mint_for(state, identity, &administrator, "administrator")
}

/// A fresh token for somebody whom `roles.toml` names.
pub fn mint_for(
    state: &StateDir,
    identity: &Identity,
    principal: &str,
    name: &str,
) -> Result<Token> {
    let wanted = Mint {
        issuer: issuer_name(identity),
        audience: AUDIENCE.to_owned(),
        tenant: identity.tenant.to_string(),
        principal: principal.to_owned(),
        name: name.to_owned(),
        groups: Vec::new(),
        valid_for: LIFE,
    };
    let now = Clock::wall().now();
    Ok(Token {
        text: open_issuer(state)?.mint(&wanted, now)?,
        expires: now + LIFE,
    })
}

/// A name and no address: nobody fetches anything from there.
fn issuer_name(identity: &Identity) -> String {
    format!("https://holdfast.invalid/{}/", identity.tenant)
}
