//! `holdfast status`: what runs, where, and a fresh token; for scripts as JSON.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use holdfast_domain::region::Site;
use serde::Serialize;

use crate::command::Output;
use crate::output::say;
use crate::run_record::RunRecord;
use crate::site::{identity::Identity, token};
use crate::state_dir::StateDir;
use crate::up::require_running;

/// The newest api-version, for the commands to paste.
pub const API_VERSION: &str = "2026-10-01";

#[derive(Debug, Serialize)]
struct Status {
    url: String,
    token: String,
    token_expires: DateTime<Utc>,
    tenant: String,
    subscription: String,
    resource_group: String,
    ca_file: String,
    regions: Vec<StatusRegion>,
    state_dir: String,
    pid: i32,
}

#[derive(Debug, Serialize)]
struct StatusRegion {
    name: String,
    display_name: String,
    zones: Vec<String>,
    pair: Option<String>,
}

pub async fn run(state: &StateDir, output: Option<Output>) -> Result<()> {
    let record = require_running(state)?;
    let status = status(state, &record)?;
    let table = output.map_or(std::io::stdout().is_terminal(), |output| {
        output == Output::Table
    });
    if !table {
        say(serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    let regions: Vec<&str> = status
        .regions
        .iter()
        .map(|region| region.name.as_str())
        .collect();
    for (name, value) in [
        ("url", status.url.as_str()),
        ("token", &status.token),
        ("token expires", &status.token_expires.to_rfc3339()),
        ("tenant", &status.tenant),
        ("subscription", &status.subscription),
        ("resource group", &status.resource_group),
        ("CA certificate", &status.ca_file),
        ("regions", &regions.join(", ")),
        ("state directory", &status.state_dir),
        ("process", &status.pid.to_string()),
    ] {
        say(format!("{name:<16} {value}"));
    }
    Ok(())
}

/// The running site's identity.
pub fn identity(state: &StateDir) -> Result<Identity> {
    Identity::load(state)?.context("the site has no identity")
}

fn status(state: &StateDir, record: &RunRecord) -> Result<Status> {
    let identity = identity(state)?;
    let token = token::mint(state, &identity)?;
    let regions = Site::built_in()
        .regions
        .into_iter()
        .map(|region| StatusRegion {
            pair: region.pair().map(str::to_owned),
            name: region.name,
            display_name: region.display_name,
            zones: region.zones,
        });
    Ok(Status {
        url: record.url.clone(),
        token: token.text,
        token_expires: token.expires,
        tenant: identity.tenant.to_string(),
        subscription: identity.subscription.to_string(),
        resource_group: identity.resource_group,
        ca_file: state.ca_file().display().to_string(),
        regions: regions.collect(),
        state_dir: state.path().display().to_string(),
        pid: record.pid,
    })
}

/// What a person reads after `up`: where it is, and three commands that work as they stand.
pub fn print_welcome(state: &StateDir, record: &RunRecord) -> Result<()> {
    let status = status(state, record)?;
    let servers = format!(
        "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.DBforPostgreSQL/flexibleServers",
        status.subscription, status.resource_group
    );
    // Whoever pastes it has neither our PATH nor our environment.
    let executable = std::env::current_exe().unwrap_or_else(|_| state.executable());
    let executable = quoted(&executable.display().to_string());
    let at_state = format!(" --state-dir {}", quoted(&status.state_dir));
    say(format!(
        "Holdfast is up.\n\n  \
         URL    {url}\n  \
         CA     {ca}\n  \
         token  {token}\n\n\
         Try:\n\n\
         export HF_URL={url} HF_CA={quoted_ca} HF_TOKEN={token}\n\
         curl --noproxy '*' --cacert \"$HF_CA\" -H \"Authorization: Bearer $HF_TOKEN\" -H 'Content-Type: application/json' \\\n  \
           -X PUT \"$HF_URL{servers}/pg1?api-version={API_VERSION}\" \\\n  \
           -d '{{\"location\":\"eastus2\",\"sku\":{{\"name\":\"Standard_D2s_v3\",\"tier\":\"GeneralPurpose\"}},\"properties\":{{\"administratorLogin\":\"pgadmin\",\"administratorLoginPassword\":\"Change-Me-1\",\"storage\":{{\"storageSizeGB\":32}}}}}}'\n\
         curl --noproxy '*' --cacert \"$HF_CA\" -H \"Authorization: Bearer $HF_TOKEN\" \"$HF_URL{servers}/pg1/backups?api-version={API_VERSION}\"\n\
         psql \"$({executable} server connection-string pg1{at_state})\"\n\n\
         The token is good for a day; `{executable} status{at_state}` makes a fresh one.",
        url = status.url,
        ca = status.ca_file,
        quoted_ca = quoted(&status.ca_file),
        token = status.token,
    ));
    Ok(())
}

/// For a shell: as it is when nothing in it means anything, else in single quotes.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_pasted_is_quoted_when_it_must_be() {
        assert_eq!(quoted("/var/lib/holdfast"), "/var/lib/holdfast");
        assert_eq!(quoted("/my site's"), r"'/my site'\''s'");
    }
}
