//! Regions, zones, and which region keeps whose geo copies.

use serde::{Deserialize, Serialize};

/// The 16 directed pairs of the product (CDB-012…CDB-028), by canonical name. Two have no way back:
/// Canada Central → Canada East and West US → East US.
const PAIRS: [(&str, &str); 16] = [
    ("canadacentral", "canadaeast"),
    ("centralus", "eastus2"),
    ("eastasia", "southeastasia"),
    ("eastus2", "centralus"),
    ("japaneast", "japanwest"),
    ("japanwest", "japaneast"),
    ("northcentralus", "southcentralus"),
    ("northeurope", "westeurope"),
    ("southcentralus", "northcentralus"),
    ("southeastasia", "eastasia"),
    ("switzerlandnorth", "switzerlandwest"),
    ("switzerlandwest", "switzerlandnorth"),
    ("westcentralus", "westus2"),
    ("westeurope", "northeurope"),
    ("westus", "eastus"),
    ("westus2", "westcentralus"),
];

/// The built-in pair of a region. A site's own regions bring theirs (DESIGN §2, GeoPair).
#[must_use]
pub fn built_in_pair(region: &str) -> Option<&'static str> {
    PAIRS
        .iter()
        .find(|(from, _)| *from == region)
        .map(|(_, to)| *to)
}

/// `East US 2` and `eastus2` are one region: spaces go, case is folded.
#[must_use]
pub fn canonical(location: &str) -> String {
    location
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// A place that servers can be in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Canonical: `eastus2`.
    pub name: String,
    /// For people: `East US 2`.
    pub display_name: String,
    /// Empty when the region has no availability zones.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Where geo copies of servers here go; overrides the built-in pair.
    #[serde(default)]
    pub pair: Option<String>,
}

impl Region {
    /// The region's geo pair, if it has one (FLX-034).
    #[must_use]
    pub fn pair(&self) -> Option<&str> {
        self.pair.as_deref().or_else(|| built_in_pair(&self.name))
    }
}

/// All regions of an installation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    pub regions: Vec<Region>,
}

impl Site {
    /// Finds a region by canonical or display name.
    #[must_use]
    pub fn region(&self, location: &str) -> Option<&Region> {
        let name = canonical(location);
        self.regions.iter().find(|region| region.name == name)
    }

    /// The site that `holdfast up` makes (DESIGN §6): two zonal regions and two without zones, each
    /// paired with its like.
    #[must_use]
    pub fn built_in() -> Self {
        let region = |name: &str, display_name: &str, zones: &[&str]| Region {
            name: name.to_owned(),
            display_name: display_name.to_owned(),
            zones: zones.iter().map(|&zone| zone.to_owned()).collect(),
            pair: None,
        };
        Self {
            regions: vec![
                region("eastus2", "East US 2", &["1", "2", "3"]),
                region("centralus", "Central US", &["1", "2", "3"]),
                region("northcentralus", "North Central US", &[]),
                region("southcentralus", "South Central US", &[]),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_sixteen_regions_have_a_pair_and_two_of_them_are_one_way() {
        // CDB-026, CDB-028
        let one_way: Vec<_> = PAIRS
            .iter()
            .filter(|(from, to)| built_in_pair(to) != Some(from))
            .map(|(from, _)| *from)
            .collect();
        assert_eq!(one_way, ["canadacentral", "westus"]);
        assert_eq!(built_in_pair("eastus"), None);
    }

    #[test]
    fn a_region_is_found_under_both_its_names() {
        let site = Site::built_in();
        for name in ["eastus2", "East US 2", "EASTUS2"] {
            assert_eq!(site.region(name).map(|r| r.name.as_str()), Some("eastus2"));
        }
        assert!(site.region("westus").is_none());
    }
}
