//! The built-in site's places: a node and three stores per zone, and the same for a region without
//! zones (DESIGN §5, §6).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use holdfast_agent::{AgentConfig, Limits};
use holdfast_domain::redundancy::Vault;
use holdfast_domain::region::Site;
use url::Url;

use crate::site::identity::{Identity, Ports};
use crate::state_dir::{StateDir, private_dir};

/// Directories per zone. The first is written to until copies exist.
const VAULTS_PER_ZONE: u16 = 3;
pub const KEY_VERSION: &str = "1";

/// One place that a server can be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub region: String,
    pub zone: Option<String>,
}

impl Place {
    /// `eastus2-1`, `northcentralus`.
    #[must_use]
    pub fn node_name(&self) -> String {
        match &self.zone {
            Some(zone) => format!("{}-{zone}", self.region),
            None => self.region.clone(),
        }
    }
}

#[must_use]
pub fn places(site: &Site) -> Vec<Place> {
    let mut places = Vec::new();
    for region in &site.regions {
        let place = |zone: Option<&String>| Place {
            region: region.name.clone(),
            zone: zone.cloned(),
        };
        if region.zones.is_empty() {
            places.push(place(None));
        }
        places.extend(region.zones.iter().map(|zone| place(Some(zone))));
    }
    places
}

/// The stores of a place, with their directories made.
pub fn vaults(state: &StateDir, identity: &Identity, place: &Place) -> Result<Vec<Vault>> {
    (1..=VAULTS_PER_ZONE)
        .map(|ordinal| {
            let zone = place.zone.as_deref().unwrap_or("regional");
            let name = format!("{}/{zone}/{ordinal}", place.region);
            let dir = state.vaults_dir().join(&name);
            private_dir(&dir)?;
            let url = Url::from_directory_path(&dir)
                .ok()
                .context("a state directory is absolute")?;
            Ok(Vault {
                id: identity.vault_id(&name),
                region: place.region.clone(),
                zone: place.zone.clone(),
                url: url.to_string(),
                own_copies: 1,
                ordinal,
            })
        })
        .collect()
}

/// What every agent of the site is told alike.
#[derive(Debug)]
pub struct AgentSetting<'a> {
    pub state: &'a StateDir,
    pub run_dir: &'a Path,
    pub gateway: &'a Url,
    pub executable: &'a Path,
    pub service_user: &'a str,
    pub ports: &'a Ports,
    pub limits: &'a Limits,
}

impl AgentSetting<'_> {
    #[must_use]
    pub fn node_dir(&self, place: &Place) -> PathBuf {
        self.state.nodes_dir().join(place.node_name())
    }

    #[must_use]
    pub fn join_token_file(&self, place: &Place) -> PathBuf {
        self.node_dir(place).join("join-token")
    }

    #[must_use]
    pub fn config(&self, nth: u16, place: &Place) -> AgentConfig {
        let name = place.node_name();
        AgentConfig {
            region: place.region.clone(),
            zone: place.zone.clone(),
            gateway: self.gateway.clone(),
            ca_file: self.state.ca_file(),
            join_token_file: Some(self.join_token_file(place)),
            state_dir: self.node_dir(place),
            run_dir: Some(self.run_dir.join(&name)),
            pg_bin: Vec::new(),
            port_range: self.ports.of_node(nth),
            host: "127.0.0.1".to_owned(),
            key_dir: self.state.keys_dir(),
            service_user: self.service_user.to_owned(),
            executable: self.executable.to_owned(),
            max_jobs: 4,
            frozen_copies: true,
            limits: self.limits.clone(),
            name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_site_has_eight_nodes() {
        let names: Vec<_> = places(&Site::built_in())
            .iter()
            .map(Place::node_name)
            .collect();
        assert_eq!(
            names,
            [
                "eastus2-1",
                "eastus2-2",
                "eastus2-3",
                "centralus-1",
                "centralus-2",
                "centralus-3",
                "northcentralus",
                "southcentralus"
            ]
        );
    }
}
