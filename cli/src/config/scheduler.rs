//! `holdfast serve scheduler`, and what an installation consists of: regions, stores, nodes,
//! subscriptions, roles. The scheduler writes those into the metadata store when it starts. Taking a line
//! out of the file takes nothing away, except for roles: who is no longer named may no longer.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use holdfast_domain::region::{Region, Site, canonical};
use holdfast_domain::{SubscriptionId, VaultId};
use serde::{Deserialize, Serialize};
use url::Url;

use super::database::DatabaseSection;
use super::load::{Problems, collect};
use super::roles::{RoleSection, check_roles};
use super::{Check, Collect};
use crate::join_tokens::Joiner;
use crate::telemetry;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerFile {
    pub scheduler: SchedulerSection,
    pub database: DatabaseSection,
    #[serde(default = "built_in_regions")]
    pub regions: Vec<Region>,
    /// Stores, in each zone the one to write to first before the others.
    #[serde(default)]
    pub vaults: Vec<VaultSection>,
    /// Nodes that may join.
    #[serde(default)]
    pub nodes: Vec<NodeSection>,
    /// Made when they are not there.
    #[serde(default)]
    pub subscriptions: Vec<SubscriptionSection>,
    /// Who may do what.
    #[serde(default)]
    pub roles: Vec<RoleSection>,
    #[serde(default)]
    pub telemetry: telemetry::Settings,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerSection {
    /// Where agents call.
    pub listen: SocketAddr,
    /// Names and addresses under which agents reach it; they stand in its certificate.
    pub names: Vec<String>,
    /// The installation's certificate authority; made when it is not there. The same for all schedulers.
    pub authority_dir: PathBuf,
    /// Gets the authority's certificate, for agents and clients to trust.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Certificates for other servers of the installation, written at each start.
    #[serde(default)]
    pub certificates: Vec<CertificateFor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFor {
    pub names: Vec<String>,
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultSection {
    pub id: VaultId,
    pub region: String,
    #[serde(default)]
    pub zone: Option<String>,
    /// `file:///…`, `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`.
    pub url: Url,
    /// 1 for a directory or a disk, 3 for an S3-class store.
    pub own_copies: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    pub name: String,
    pub region: String,
    #[serde(default)]
    pub zone: Option<String>,
    /// Holds a good token to join with while a scheduler runs; the agent's `join_token_file`.
    pub join_token_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubscriptionSection {
    pub id: SubscriptionId,
    /// Made in the first region when it is not there.
    #[serde(default)]
    pub resource_groups: Vec<String>,
}

impl SchedulerFile {
    pub(crate) fn joiners(&self) -> Vec<Joiner> {
        let joiner = |node: &NodeSection| Joiner {
            name: node.name.clone(),
            region: node.region.clone(),
            zone: node.zone.clone(),
            file: node.join_token_file.clone(),
        };
        self.nodes.iter().map(joiner).collect()
    }

    #[must_use]
    pub fn site(&self) -> Site {
        Site {
            regions: self.regions.clone(),
        }
    }
}

pub(super) fn built_in_regions() -> Vec<Region> {
    Site::built_in().regions
}

pub(super) fn check_regions(regions: &[Region], problems: &mut Problems) {
    if regions.is_empty() {
        problems.add("regions", "at least one is needed");
    }
    let mut names = BTreeSet::new();
    for (nth, region) in regions.iter().enumerate() {
        if region.name.is_empty() || region.name != canonical(&region.name) {
            problems.add(
                &format!("regions.{nth}.name"),
                "lower-case and without spaces, please: eastus2",
            );
        }
        if !names.insert(&region.name) {
            problems.add(&format!("regions.{nth}.name"), "it is there twice");
        }
    }
}

fn check_place(
    key: &str,
    regions: &[Region],
    region: &str,
    zone: Option<&String>,
    problems: &mut Problems,
) {
    match regions.iter().find(|known| known.name == region) {
        None => problems.add(
            &format!("{key}.region"),
            format!("there is no region {region}"),
        ),
        Some(known) => match zone {
            Some(zone) if !known.zones.contains(zone) => {
                problems.add(
                    &format!("{key}.zone"),
                    format!("{region} has no zone {zone}"),
                );
            }
            None if !known.zones.is_empty() => {
                problems.add(
                    &format!("{key}.zone"),
                    format!("{region} has zones: name one"),
                );
            }
            _ => {}
        },
    }
}

impl Check for SchedulerFile {
    const SECTIONS: &'static [(&'static str, Collect)] = &[
        ("scheduler", collect::<SchedulerSection>),
        ("database", collect::<DatabaseSection>),
        ("regions", collect::<Vec<Region>>),
        ("vaults", collect::<Vec<VaultSection>>),
        ("nodes", collect::<Vec<NodeSection>>),
        ("subscriptions", collect::<Vec<SubscriptionSection>>),
        ("roles", collect::<Vec<RoleSection>>),
        ("telemetry", collect::<telemetry::Settings>),
    ];

    fn check(&self, problems: &mut Problems) {
        self.database.check(problems);
        self.telemetry.check(problems);
        check_regions(&self.regions, problems);
        check_roles(&self.roles, problems);
        if self.scheduler.names.is_empty() {
            problems.add("scheduler.names", "agents need a name to verify");
        }
        for (nth, vault) in self.vaults.iter().enumerate() {
            let key = format!("vaults.{nth}");
            check_place(
                &key,
                &self.regions,
                &vault.region,
                vault.zone.as_ref(),
                problems,
            );
            if !matches!(vault.url.scheme(), "file" | "s3" | "az" | "gs") {
                problems.add(
                    &format!("{key}.url"),
                    "file, s3, az and gs are the kinds of stores",
                );
            }
            if vault.own_copies == 0 {
                problems.add(
                    &format!("{key}.own_copies"),
                    "a store keeps at least one copy",
                );
            }
            if self.vaults[..nth].iter().any(|other| other.id == vault.id) {
                problems.add(&format!("{key}.id"), "it is there twice");
            }
        }
        for (nth, node) in self.nodes.iter().enumerate() {
            let key = format!("nodes.{nth}");
            check_place(
                &key,
                &self.regions,
                &node.region,
                node.zone.as_ref(),
                problems,
            );
            if self.nodes[..nth]
                .iter()
                .any(|other| other.name == node.name)
            {
                problems.add(&format!("{key}.name"), "it is there twice");
            }
        }
    }
}
