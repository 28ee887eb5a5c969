//! What a caller wishes of a server, and what of it can be granted: at creation, by a restore, later.

use std::collections::BTreeMap;

use super::{MaintenanceWindow, Network, ServerSettings, Sku, Storage, StorageType, Tier};
use crate::name;
use crate::redundancy::Redundancy;
use crate::refusal::Refusal;
use crate::region::{Region, Site};
use crate::retention::RetentionWindow;

/// A PUT's or PATCH's wishes, parsed and not yet judged. `None`: not said. Empty text, zero and
/// `{}` were turned into `None` at the edge (contract, fact 11).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerWish {
    pub location: Option<String>,
    pub sku_name: Option<String>,
    pub sku_tier: Option<Tier>,
    pub storage_gb: Option<u32>,
    pub storage_auto_grow: Option<bool>,
    pub storage_kind: Option<StorageType>,
    pub storage_tier: Option<String>,
    pub storage_iops: Option<u32>,
    pub storage_throughput: Option<u32>,
    pub major: Option<u16>,
    pub administrator_login: Option<String>,
    pub administrator_password: Option<String>,
    /// As sent: judged here so that 7.5 and "7" are refused at the edge and 36 by the rule.
    pub retention_days: Option<i64>,
    pub geo: Option<bool>,
    pub public_network: Option<bool>,
    pub delegated_subnet: Option<String>,
    pub private_dns_zone: Option<String>,
    pub zone: Option<String>,
    pub high_availability: Option<bool>,
    pub maintenance_window: Option<MaintenanceWindow>,
    /// Replaces the whole map.
    pub tags: Option<BTreeMap<String, String>>,
}

/// The storage tier Azure's clients expect for a size (contract, terraform §2: P4 for 32 GB).
#[must_use]
pub fn default_storage_tier(size_gb: u32) -> &'static str {
    match size_gb {
        0..=32 => "P4",
        33..=64 => "P6",
        65..=128 => "P10",
        129..=256 => "P15",
        257..=512 => "P20",
        513..=1024 => "P30",
        1025..=2048 => "P40",
        2049..=4096 => "P50",
        4097..=8192 => "P60",
        8193..=16384 => "P70",
        _ => "P80",
    }
}

/// Judges a plain create. `majors` are those that some node of the region can run.
///
/// # Errors
/// The first wish that cannot be granted, with its JSON path.
pub fn create(
    wish: &ServerWish,
    region: &Region,
    majors: &[u16],
) -> Result<ServerSettings, Refusal> {
    let login = wish.administrator_login.as_deref().ok_or_else(|| {
        Refusal::invalid(
            "properties.administratorLogin",
            "Give the administrator's login.",
        )
    })?;
    let login = name::new_administrator_login(login)?;
    let password = wish.administrator_password.as_deref().ok_or_else(|| {
        Refusal::invalid(
            "properties.administratorLoginPassword",
            "Give the administrator's password.",
        )
    })?;
    name::check_administrator_password(password)?;
    let major = match wish.major {
        Some(major) if majors.contains(&major) => major,
        Some(major) => {
            return Err(Refusal::invalid(
                "properties.version",
                format!(
                    "PostgreSQL {major} is not offered in {}. Available: {}.",
                    region.name,
                    list(majors)
                ),
            ));
        }
        None => *majors.iter().max().ok_or_else(|| Refusal::NoCapacity {
            location: region.name.clone(),
            zone: None,
            major: 0,
        })?,
    };
    if wish.geo == Some(true) && region.pair().is_none() {
        return Err(Refusal::invalid(
            "properties.backup.geoRedundantBackup",
            format!(
                "Region {} has no paired region, so geo-redundant backup is not available there. Use read replicas for disaster recovery in any region.",
                region.name
            ),
        ));
    }
    if wish.high_availability == Some(true) {
        return Err(Refusal::invalid(
            "properties.highAvailability.mode",
            "High availability is not offered; use Disabled.",
        ));
    }
    let size_gb = wish.storage_gb.unwrap_or(32);
    Ok(ServerSettings {
        sku: sku(wish)?.unwrap_or(Sku {
            name: "Standard_D2s_v3".to_owned(),
            tier: Tier::GeneralPurpose,
        }),
        storage: Storage {
            size_gb: storage_size(size_gb)?,
            auto_grow: wish.storage_auto_grow.unwrap_or(false),
            kind: wish.storage_kind.unwrap_or(StorageType::Premium),
            tier: wish
                .storage_tier
                .clone()
                .or_else(|| Some(default_storage_tier(size_gb).to_owned())),
            iops: wish.storage_iops,
            throughput: wish.storage_throughput,
        },
        major,
        administrator_login: login,
        retention: RetentionWindow::new(wish.retention_days.unwrap_or(7))?,
        redundancy: Redundancy::decide(wish.geo == Some(true), region),
        network: network(wish),
        zone: zone(wish, region)?,
        maintenance_window: wish
            .maintenance_window
            .clone()
            .unwrap_or(MaintenanceWindow {
                custom: false,
                day_of_week: 0,
                start_hour: 0,
                start_minute: 0,
            }),
        tags: wish.tags.clone().unwrap_or_default(),
    })
}

/// What a restored server is like: the source's tier, compute, storage, version, retention,
/// redundancy and login, except where a restore may differ (FLX-051…053, FLX-086…088, FLX-099;
/// DESIGN §3.15). Absent, empty, zero, and storage not larger than the source's mean inherit.
///
/// # Errors
/// The first wish that a restore cannot grant.
pub fn restored(
    wish: &ServerWish,
    source: &ServerSettings,
    source_region: &str,
    site: &Site,
) -> Result<ServerSettings, Refusal> {
    let region = site
        .region(source_region)
        .ok_or_else(|| Refusal::LocationNotAvailable {
            location: source_region.to_owned(),
            available: site
                .regions
                .iter()
                .map(|region| region.name.clone())
                .collect(),
        })?;
    if let Some(location) = &wish.location
        && crate::region::canonical(location) != source_region
    {
        return Err(Refusal::invalid(
            "location",
            format!(
                "A point-in-time restore creates the new server in the source's region {source_region}; '{location}' was given."
            ),
        ));
    }
    if let Some(major) = wish.major
        && major != source.major
    {
        return Err(Refusal::invalid(
            "properties.version",
            format!("A restore keeps the source's version {}.", source.major),
        ));
    }
    if wish.high_availability == Some(true) {
        return Err(Refusal::invalid(
            "properties.highAvailability.mode",
            "High availability is not configured by a restore; use Disabled and enable it afterwards.",
        ));
    }
    let asked_public = match (wish.public_network, &wish.delegated_subnet) {
        (_, Some(_)) => Some(false),
        (public, None) => public,
    };
    if asked_public.is_some_and(|public| public != source.network.public) {
        let (from, to) = if source.network.public {
            ("public", "private")
        } else {
            ("private", "public")
        };
        return Err(Refusal::invalid(
            "properties.network",
            format!("A server with {from} access cannot be restored to {to} access."),
        ));
    }
    if wish.geo == Some(true) && source.redundancy != Redundancy::Geo {
        return Err(Refusal::invalid(
            "properties.backup.geoRedundantBackup",
            "The source is not geo-redundant and redundancy is inherited by a restore; use Disabled.",
        ));
    }
    if let Some(password) = &wish.administrator_password {
        name::check_administrator_password(password)?;
    }
    if let Some(login) = &wish.administrator_login
        && *login != source.administrator_login
    {
        return Err(Refusal::invalid(
            "properties.administratorLogin",
            format!(
                "A restore keeps the source's login '{}'; leave it out.",
                source.administrator_login
            ),
        ));
    }
    let mut settings = source.clone();
    if let Some(sku) = sku(wish)? {
        if sku.tier < source.sku.tier {
            return Err(Refusal::invalid(
                "sku.tier",
                format!(
                    "A restore goes to the source's tier {:?} or a higher one.",
                    source.sku.tier
                ),
            ));
        }
        settings.sku = sku;
    }
    if let Some(size_gb) = wish
        .storage_gb
        .filter(|size| *size > source.storage.size_gb)
    {
        settings.storage.size_gb = storage_size(size_gb)?;
        settings.storage.tier = Some(default_storage_tier(size_gb).to_owned());
    }
    if let Some(kind) = wish.storage_kind {
        settings.storage.kind = kind;
    }
    if wish.geo == Some(false) && source.redundancy == Redundancy::Geo {
        settings.redundancy = Redundancy::decide(false, region);
    }
    if !source.network.public {
        settings.network.delegated_subnet = wish
            .delegated_subnet
            .clone()
            .or_else(|| source.network.delegated_subnet.clone());
        settings.network.private_dns_zone = wish
            .private_dns_zone
            .clone()
            .or_else(|| source.network.private_dns_zone.clone());
    }
    settings.zone = zone(wish, region)?;
    settings.maintenance_window = MaintenanceWindow {
        custom: false,
        day_of_week: 0,
        start_hour: 0,
        start_minute: 0,
    };
    settings.tags = wish.tags.clone().unwrap_or_default();
    Ok(settings)
}

/// Judges a PATCH (or a PUT on an existing server): retention, tags, storage growth, sku and the
/// maintenance window change; what was decided at creation does not (FLX-035, FLX-036, FLX-037).
///
/// `client_defaults_geo`: the api-version's client says `geoRedundantBackup: "Disabled"` unasked,
/// so that "Disabled" means nothing (contract §3.5).
///
/// # Errors
/// [`Refusal::CreateOnly`] or the first value out of range.
pub fn patch(
    wish: &ServerWish,
    current: &ServerSettings,
    client_defaults_geo: bool,
) -> Result<ServerSettings, Refusal> {
    let create_only = |target: &str, current: String| Refusal::CreateOnly {
        target: target.to_owned(),
        current,
    };
    let geo_now = current.redundancy == Redundancy::Geo;
    match wish.geo {
        Some(geo) if geo != geo_now && (geo || !client_defaults_geo) => {
            let current = if geo_now { "Enabled" } else { "Disabled" };
            return Err(create_only(
                "properties.backup.geoRedundantBackup",
                current.to_owned(),
            ));
        }
        _ => {}
    }
    if let Some(login) = &wish.administrator_login
        && *login != current.administrator_login
    {
        return Err(create_only(
            "properties.administratorLogin",
            current.administrator_login.clone(),
        ));
    }
    if let Some(major) = wish.major
        && major != current.major
    {
        return Err(create_only("properties.version", current.major.to_string()));
    }
    if let Some(zone) = &wish.zone
        && Some(zone) != current.zone.as_ref()
    {
        return Err(create_only(
            "properties.availabilityZone",
            current.zone.clone().unwrap_or_default(),
        ));
    }
    if wish
        .public_network
        .is_some_and(|public| public != current.network.public)
        || (wish.delegated_subnet.is_some()
            && wish.delegated_subnet != current.network.delegated_subnet)
    {
        let current = if current.network.public {
            "public access"
        } else {
            "private access"
        };
        return Err(create_only("properties.network", current.to_owned()));
    }
    if wish.high_availability == Some(true) {
        return Err(Refusal::invalid(
            "properties.highAvailability.mode",
            "High availability is not offered; use Disabled.",
        ));
    }
    let mut settings = current.clone();
    if let Some(days) = wish.retention_days {
        settings.retention = RetentionWindow::new(days)?;
    }
    if let Some(size_gb) = wish.storage_gb {
        if size_gb < current.storage.size_gb {
            return Err(Refusal::invalid(
                "properties.storage.storageSizeGB",
                format!(
                    "Storage can only grow; the server has {} GB.",
                    current.storage.size_gb
                ),
            ));
        }
        settings.storage.size_gb = storage_size(size_gb)?;
    }
    if let Some(kind) = wish.storage_kind
        && kind != current.storage.kind
    {
        return Err(create_only(
            "properties.storage.type",
            format!("{:?}", current.storage.kind),
        ));
    }
    if let Some(auto_grow) = wish.storage_auto_grow {
        settings.storage.auto_grow = auto_grow;
    }
    if let Some(tier) = &wish.storage_tier {
        settings.storage.tier = Some(tier.clone());
    }
    settings.storage.iops = wish.storage_iops.or(settings.storage.iops);
    settings.storage.throughput = wish.storage_throughput.or(settings.storage.throughput);
    if let Some(name) = &wish.sku_name {
        let tier = wish.sku_tier.unwrap_or(current.sku.tier);
        settings.sku = sku(&ServerWish {
            sku_name: Some(name.clone()),
            sku_tier: Some(tier),
            ..ServerWish::default()
        })?
        .unwrap_or(settings.sku);
    } else if wish.sku_tier.is_some_and(|tier| tier != current.sku.tier) {
        return Err(Refusal::invalid(
            "sku.name",
            "Give the sku's name with the new tier, such as Standard_D2s_v3.",
        ));
    }
    if let Some(window) = &wish.maintenance_window {
        settings.maintenance_window = window.clone();
    }
    if let Some(tags) = &wish.tags {
        settings.tags = tags.clone();
    }
    if let Some(password) = &wish.administrator_password {
        name::check_administrator_password(password)?;
    }
    Ok(settings)
}

fn sku(wish: &ServerWish) -> Result<Option<Sku>, Refusal> {
    let (name, tier) = match (&wish.sku_name, wish.sku_tier) {
        (None, None) => return Ok(None),
        (Some(name), Some(tier)) => (name, tier),
        (Some(_), None) => {
            return Err(Refusal::invalid(
                "sku.tier",
                "Give the tier: Burstable, GeneralPurpose or MemoryOptimized.",
            ));
        }
        (None, Some(_)) => {
            return Err(Refusal::invalid(
                "sku.name",
                "Give the sku's name, such as Standard_D2s_v3.",
            ));
        }
    };
    let fine = name.len() <= 64
        && name.to_ascii_lowercase().starts_with("standard_")
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !fine {
        return Err(Refusal::invalid(
            "sku.name",
            "Use a name that begins with Standard_, such as Standard_D2s_v3.",
        ));
    }
    Ok(Some(Sku {
        name: name.clone(),
        tier,
    }))
}

fn storage_size(size_gb: u32) -> Result<u32, Refusal> {
    (32..=65_536)
        .contains(&size_gb)
        .then_some(size_gb)
        .ok_or_else(|| {
            Refusal::invalid(
                "properties.storage.storageSizeGB",
                "Give a size from 32 to 65536 GB.",
            )
        })
}

fn network(wish: &ServerWish) -> Network {
    Network {
        public: wish.delegated_subnet.is_none() && wish.public_network.unwrap_or(true),
        delegated_subnet: wish.delegated_subnet.clone(),
        private_dns_zone: wish.private_dns_zone.clone(),
    }
}

/// FLX-052: any zone that the region has.
fn zone(wish: &ServerWish, region: &Region) -> Result<Option<String>, Refusal> {
    match &wish.zone {
        None => Ok(None),
        Some(zone) if region.zones.contains(zone) => Ok(Some(zone.clone())),
        Some(zone) => Err(Refusal::invalid(
            "properties.availabilityZone",
            if region.zones.is_empty() {
                format!(
                    "Region {} has no availability zones; leave it out.",
                    region.name
                )
            } else {
                format!(
                    "Region {} has the zones {}; '{zone}' was given.",
                    region.name,
                    region.zones.join(", ")
                )
            },
        )),
    }
}

fn list(majors: &[u16]) -> String {
    if majors.is_empty() {
        return "none".to_owned();
    }
    majors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> ServerWish {
        ServerWish {
            administrator_login: Some("hfadmin".into()),
            administrator_password: Some("Secret-123".into()),
            ..ServerWish::default()
        }
    }

    fn made(wish: &ServerWish, region: &str) -> Result<ServerSettings, Refusal> {
        create(
            wish,
            Site::built_in().region(region).expect("built in"),
            &[15],
        )
    }

    #[test]
    fn a_server_in_a_zonal_region_is_zone_redundant_and_keeps_seven_days() {
        // FLX-007, FLX-022, FLX-026
        let zonal = made(&wish(), "eastus2").expect("fine");
        assert_eq!(
            (zonal.redundancy, zonal.retention.days()),
            (Redundancy::Zone, 7)
        );
        let plain = made(&wish(), "northcentralus").expect("fine");
        assert_eq!(plain.redundancy, Redundancy::Local);
    }

    #[test]
    fn geo_redundancy_cannot_be_patched() {
        // FLX-035
        let current = made(&wish(), "eastus2").expect("fine");
        let asked = ServerWish {
            geo: Some(true),
            ..ServerWish::default()
        };
        assert!(matches!(
            patch(&asked, &current, false),
            Err(Refusal::CreateOnly { .. })
        ));
    }

    #[test]
    fn an_old_clients_unasked_disabled_is_no_wish() {
        let geo = made(
            &ServerWish {
                geo: Some(true),
                ..wish()
            },
            "eastus2",
        )
        .expect("fine");
        let asked = ServerWish {
            geo: Some(false),
            retention_days: Some(14),
            ..ServerWish::default()
        };
        assert!(patch(&asked, &geo, false).is_err());
        assert_eq!(
            patch(&asked, &geo, true).expect("fine").retention.days(),
            14
        );
    }

    #[test]
    fn a_restore_inherits_what_the_caller_leaves_out_or_makes_smaller() {
        // FLX-053
        let site = Site::built_in();
        let source = made(
            &ServerWish {
                storage_gb: Some(128),
                retention_days: Some(21),
                ..wish()
            },
            "eastus2",
        )
        .expect("fine");
        let asked = ServerWish {
            storage_gb: Some(32),
            retention_days: Some(7),
            ..ServerWish::default()
        };
        let settings = restored(&asked, &source, "eastus2", &site).expect("fine");
        assert_eq!(
            (settings.storage.size_gb, settings.retention.days()),
            (128, 21)
        );
        assert_eq!(settings.administrator_login, "hfadmin");
    }

    #[test]
    fn a_restore_lowers_no_tier_and_changes_no_login() {
        // contract §3.3
        let site = Site::built_in();
        let source = made(&wish(), "eastus2").expect("fine");
        let tier = |name: &str, tier| ServerWish {
            sku_name: Some(name.into()),
            sku_tier: Some(tier),
            ..ServerWish::default()
        };
        let target = |asked: &ServerWish| match restored(asked, &source, "eastus2", &site) {
            Err(Refusal::InvalidParameterValue { target, .. }) => target,
            other => format!("{other:?}"),
        };
        assert_eq!(target(&tier("Standard_B1ms", Tier::Burstable)), "sku.tier");
        let login = |login: &str| ServerWish {
            administrator_login: Some(login.into()),
            ..ServerWish::default()
        };
        assert_eq!(target(&login("other")), "properties.administratorLogin");
        assert!(restored(&login("hfadmin"), &source, "eastus2", &site).is_ok());
        let higher = restored(
            &tier("Standard_E2s_v3", Tier::MemoryOptimized),
            &source,
            "eastus2",
            &site,
        );
        assert_eq!(higher.expect("fine").sku.tier, Tier::MemoryOptimized);
    }

    #[test]
    fn a_tier_is_changed_together_with_its_sku() {
        let current = made(&wish(), "eastus2").expect("fine");
        let tier = |tier| ServerWish {
            sku_tier: Some(tier),
            ..ServerWish::default()
        };
        assert!(patch(&tier(Tier::MemoryOptimized), &current, false).is_err());
        assert!(patch(&tier(Tier::GeneralPurpose), &current, false).is_ok());
    }

    #[test]
    fn a_restore_crosses_neither_regions_nor_network_kinds() {
        // FLX-051, FLX-086, FLX-088
        let site = Site::built_in();
        let source = made(&wish(), "eastus2").expect("fine");
        for asked in [
            ServerWish {
                location: Some("centralus".into()),
                ..ServerWish::default()
            },
            ServerWish {
                public_network: Some(false),
                ..ServerWish::default()
            },
            ServerWish {
                delegated_subnet: Some("/s".into()),
                ..ServerWish::default()
            },
            ServerWish {
                high_availability: Some(true),
                ..ServerWish::default()
            },
            ServerWish {
                zone: Some("9".into()),
                ..ServerWish::default()
            },
        ] {
            assert!(
                restored(&asked, &source, "eastus2", &site).is_err(),
                "{asked:?}"
            );
        }
    }
}
