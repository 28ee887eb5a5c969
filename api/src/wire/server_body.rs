//! What clients send to make or change a server, and what of it is a wish.
//!
//! Clients say things that nobody asked them to say (contract, fact 11): empty text, `{}`, null and
//! zero mean "not said". Two members are exempt. `backupRetentionDays` is judged as it was sent,
//! because 0 is a number of days; in a restore it is not looked at, because retention is inherited.
//! `pointInTimeUTC` is absent or an instant: null is a mistake that would restore the wrong state.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use holdfast_domain::instant;
use holdfast_domain::server::{MaintenanceWindow, ServerWish, StorageType, Tier};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use utoipa::ToSchema;

use super::word::{
    CreateMode, EncryptionType, HighAvailabilityMode, IdentityType, ReplicationRole, SkuTier,
    StorageKind, Switch,
};
use crate::arm::body::typed;
use crate::arm::error::{ArmError, Result};

/// The body of PUT and PATCH. Read-only members are ignored. No `Debug`: it holds a password.
#[derive(Default, Deserialize, ToSchema)]
pub struct ServerBody {
    pub location: Option<String>,
    pub sku: Option<SkuBody>,
    /// Replaces the whole map.
    pub tags: Option<BTreeMap<String, String>>,
    pub identity: Option<IdentityBody>,
    #[serde(default)]
    pub properties: ServerBodyProperties,
}

#[derive(Default, Deserialize, ToSchema)]
pub struct SkuBody {
    /// Any `Standard_*`.
    pub name: Option<String>,
    pub tier: Option<SkuTier>,
}

#[derive(Deserialize, ToSchema)]
pub struct IdentityBody {
    #[serde(rename = "type", default)]
    pub kind: Option<IdentityType>,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerBodyProperties {
    pub create_mode: Option<CreateMode>,
    pub source_server_resource_id: Option<String>,
    /// RFC 3339 with an offset. Absent: the latest state.
    #[serde(rename = "pointInTimeUTC", default, deserialize_with = "as_sent")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub point_in_time_utc: Option<Value>,
    pub administrator_login: Option<String>,
    pub administrator_login_password: Option<String>,
    /// PostgreSQL's major version.
    pub version: Option<String>,
    #[serde(default)]
    pub storage: StorageBody,
    #[serde(default)]
    pub backup: BackupSettingsBody,
    #[serde(default)]
    pub network: NetworkBody,
    #[serde(default)]
    pub high_availability: HighAvailabilityBody,
    pub maintenance_window: Option<MaintenanceWindowBody>,
    #[serde(default)]
    pub auth_config: AuthConfigBody,
    #[serde(default)]
    pub data_encryption: DataEncryptionBody,
    pub availability_zone: Option<String>,
    pub replication_role: Option<ReplicationRole>,
    #[serde(default)]
    pub cluster: ClusterBody,
    pub fips_mode: Option<Switch>,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageBody {
    #[serde(rename = "storageSizeGB")]
    pub storage_size_gb: Option<u32>,
    pub auto_grow: Option<Switch>,
    pub tier: Option<String>,
    pub iops: Option<u32>,
    pub throughput: Option<u32>,
    #[serde(rename = "type")]
    pub kind: Option<StorageKind>,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSettingsBody {
    /// 7 to 35.
    #[serde(default, deserialize_with = "whole_number")]
    #[schema(minimum = 7, maximum = 35, nullable = false)]
    pub backup_retention_days: Option<i64>,
    pub geo_redundant_backup: Option<Switch>,
    pub immutable_backup: Option<Switch>,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkBody {
    pub public_network_access: Option<Switch>,
    pub delegated_subnet_resource_id: Option<String>,
    pub private_dns_zone_arm_resource_id: Option<String>,
}

#[derive(Default, Deserialize, ToSchema)]
pub struct HighAvailabilityBody {
    pub mode: Option<HighAvailabilityMode>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceWindowBody {
    #[serde(default)]
    pub custom_window: Option<Switch>,
    #[serde(default)]
    pub day_of_week: u8,
    #[serde(default)]
    pub start_hour: u8,
    #[serde(default)]
    pub start_minute: u8,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthConfigBody {
    pub active_directory_auth: Option<Switch>,
    pub password_auth: Option<Switch>,
}

#[derive(Default, Deserialize, ToSchema)]
pub struct DataEncryptionBody {
    #[serde(rename = "type")]
    pub kind: Option<EncryptionType>,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBody {
    pub cluster_size: Option<u32>,
}

fn as_sent<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Not `Option`'s own reading, for which null is absent.
fn whole_number<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<i64>, D::Error> {
    i64::deserialize(deserializer).map(Some)
}

/// A PUT, read.
pub struct Put {
    pub mode: CreateMode,
    pub wish: ServerWish,
    /// `sourceServerResourceId`, not parsed yet.
    pub source: Option<String>,
    point_in_time: Option<Value>,
}

impl Put {
    /// # Errors
    /// The first member that cannot be what it is, with its JSON path.
    pub fn read(mut body: Value) -> Result<Self> {
        let restoring = body["properties"]["createMode"]
            .as_str()
            .is_some_and(|mode| {
                ["PointInTimeRestore", "GeoRestore", "ReviveDropped"]
                    .iter()
                    .any(|restore| mode.eq_ignore_ascii_case(restore))
            });
        prune(&mut body, restoring);
        let mut body: ServerBody = typed(body)?;
        let properties = &mut body.properties;
        Ok(Self {
            mode: properties.create_mode.unwrap_or(CreateMode::Default),
            source: properties.source_server_resource_id.take(),
            point_in_time: properties.point_in_time_utc.take(),
            wish: wish(body)?,
        })
    }

    /// The instant to restore to; `None` means the latest (FLX-061).
    ///
    /// # Errors
    /// 400 for whatever is not an instant (RELIABILITY §4.9 row 15).
    pub fn restore_time(&self) -> Result<Option<DateTime<Utc>>> {
        self.point_in_time.as_ref().map(restore_time).transpose()
    }
}

fn restore_time(given: &Value) -> Result<DateTime<Utc>> {
    given.as_str().and_then(instant::parse).ok_or_else(|| {
        ArmError::invalid(
            "pointInTimeUTC",
            "Give a time with an offset, such as 2026-11-20T09:30:00Z, or leave it out to restore the latest state.",
        )
    })
}

/// Reads a PATCH.
///
/// # Errors
/// As [`Put::read`]; and what a PATCH cannot do.
pub fn read_patch(mut body: Value) -> Result<ServerWish> {
    prune(&mut body, false);
    let body: ServerBody = typed(body)?;
    if !matches!(
        body.properties.create_mode,
        None | Some(CreateMode::Default | CreateMode::Update)
    ) {
        return Err(ArmError::invalid(
            "properties.createMode",
            "A PATCH changes the server that is there; use Default or Update, or leave it out.",
        ));
    }
    wish(body)
}

/// Takes out what means "not said".
fn prune(body: &mut Value, restoring: bool) {
    let Some(members) = body.as_object_mut() else {
        return;
    };
    if members.get("tags").is_some_and(Value::is_null) {
        members.remove("tags");
    }
    for (key, value) in members.iter_mut() {
        if key != "tags" {
            prune_within(value);
        }
    }
    members.retain(|key, value| key == "tags" || said(value));
    if restoring
        && let Some(backup) = members
            .get_mut("properties")
            .and_then(|properties| properties.get_mut("backup"))
            .and_then(Value::as_object_mut)
    {
        backup.remove("backupRetentionDays");
    }
}

fn prune_within(value: &mut Value) {
    let Some(members) = value.as_object_mut() else {
        return;
    };
    members.values_mut().for_each(prune_within);
    members.retain(|key, value| {
        matches!(key.as_str(), "backupRetentionDays" | "pointInTimeUTC") || said(value)
    });
}

fn said(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Object(members) => !members.is_empty(),
        _ => true,
    }
}

fn wish(body: ServerBody) -> Result<ServerWish> {
    let p = body.properties;
    refuse_what_is_not_offered(body.identity.as_ref(), &p)?;
    check_tags(body.tags.as_ref())?;
    let sku = body.sku.unwrap_or_default();
    let positive = |number: Option<u32>| number.filter(|number| *number > 0);
    if let Some(tier) = &p.storage.tier
        && !(tier.len() <= 3
            && tier.starts_with(['P', 'p'])
            && tier.len() > 1
            && tier[1..].bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(ArmError::invalid(
            "properties.storage.tier",
            "Use a tier from P1 to P80.",
        ));
    }
    Ok(ServerWish {
        location: body.location,
        sku_name: sku.name,
        sku_tier: sku.tier.map(|tier| match tier {
            SkuTier::Burstable => Tier::Burstable,
            SkuTier::GeneralPurpose => Tier::GeneralPurpose,
            SkuTier::MemoryOptimized => Tier::MemoryOptimized,
        }),
        storage_gb: positive(p.storage.storage_size_gb),
        storage_auto_grow: p.storage.auto_grow.map(Switch::is_on),
        storage_kind: p.storage.kind.map(|kind| match kind {
            StorageKind::Premium => StorageType::Premium,
            StorageKind::PremiumV2 => StorageType::PremiumV2,
            StorageKind::Ultra => StorageType::Ultra,
        }),
        storage_tier: p.storage.tier.map(|tier| tier.to_ascii_uppercase()),
        storage_iops: positive(p.storage.iops),
        storage_throughput: positive(p.storage.throughput),
        major: p.version.as_deref().map(major).transpose()?,
        administrator_login: p.administrator_login,
        administrator_password: p.administrator_login_password,
        retention_days: p.backup.backup_retention_days,
        geo: p.backup.geo_redundant_backup.map(Switch::is_on),
        public_network: p.network.public_network_access.map(Switch::is_on),
        delegated_subnet: p.network.delegated_subnet_resource_id,
        private_dns_zone: p.network.private_dns_zone_arm_resource_id,
        zone: p.availability_zone,
        high_availability: p
            .high_availability
            .mode
            .map(|mode| mode != HighAvailabilityMode::Disabled),
        maintenance_window: p.maintenance_window.map(window).transpose()?,
        tags: body.tags,
    })
}

fn major(version: &str) -> Result<u16> {
    Some(version)
        .filter(|version| version.len() == 2 && version.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|version| version.parse().ok())
        .ok_or_else(|| {
            ArmError::invalid(
                "properties.version",
                "Give PostgreSQL's major version, such as \"17\".",
            )
        })
}

fn window(body: MaintenanceWindowBody) -> Result<MaintenanceWindow> {
    if body.day_of_week > 6 || body.start_hour > 23 || body.start_minute > 59 {
        return Err(ArmError::invalid(
            "properties.maintenanceWindow",
            "Give dayOfWeek from 0 to 6, startHour from 0 to 23 and startMinute from 0 to 59.",
        ));
    }
    Ok(MaintenanceWindow {
        custom: body.custom_window.is_some_and(Switch::is_on),
        day_of_week: body.day_of_week,
        start_hour: body.start_hour,
        start_minute: body.start_minute,
    })
}

/// What clients can ask for and Holdfast would not do: said at once, never taken and forgotten.
fn refuse_what_is_not_offered(
    identity: Option<&IdentityBody>,
    p: &ServerBodyProperties,
) -> Result<()> {
    let refuse = |asked: bool, target: &str, message: &str| {
        if asked {
            Err(ArmError::invalid(target, message))
        } else {
            Ok(())
        }
    };
    let on = |switch: Option<Switch>| switch.is_some_and(Switch::is_on);
    refuse(
        identity
            .and_then(|identity| identity.kind)
            .is_some_and(|kind| kind != IdentityType::None),
        "identity.type",
        "Managed identities are not offered; use None.",
    )?;
    refuse(
        on(p.auth_config.active_directory_auth),
        "properties.authConfig.activeDirectoryAuth",
        "Directory authentication to PostgreSQL is not offered; use Disabled.",
    )?;
    refuse(
        p.auth_config.password_auth == Some(Switch::Disabled),
        "properties.authConfig.passwordAuth",
        "Password authentication cannot be switched off; use Enabled.",
    )?;
    refuse(
        p.data_encryption.kind == Some(EncryptionType::AzureKeyVault),
        "properties.dataEncryption.type",
        "Backups are always encrypted with keys that this installation manages; use SystemManaged.",
    )?;
    refuse(
        p.cluster.cluster_size.is_some_and(|size| size > 0),
        "properties.cluster.clusterSize",
        "Elastic clusters are not offered; leave it out.",
    )?;
    refuse(
        matches!(
            p.replication_role,
            Some(ReplicationRole::AsyncReplica | ReplicationRole::GeoAsyncReplica)
        ),
        "properties.replicationRole",
        "Read replicas are not offered; leave it out.",
    )?;
    refuse(
        on(p.backup.immutable_backup),
        "properties.backup.immutableBackup",
        "Immutable backups are not offered; a CanNotDelete lock protects the server and its backups.",
    )?;
    refuse(
        on(p.fips_mode),
        "properties.fipsMode",
        "FIPS mode is not offered; use Disabled.",
    )
}

/// Resource Manager's limits: 50 tags, names of 512 and values of 256 characters, names without case.
///
/// # Errors
/// 400 with the target `tags`.
pub fn check_tags(tags: Option<&BTreeMap<String, String>>) -> Result<()> {
    let Some(tags) = tags else { return Ok(()) };
    let mut names: Vec<String> = tags.keys().map(|name| name.to_lowercase()).collect();
    names.sort_unstable();
    let twice = names.windows(2).any(|pair| pair[0] == pair[1]);
    let control = |text: &String| text.chars().any(char::is_control);
    let fine = tags.len() <= 50
        && !twice
        && tags.iter().all(|(name, value)| {
            (1..=512).contains(&name.chars().count())
                && value.chars().count() <= 256
                && !control(name)
                && !control(value)
        });
    if fine {
        return Ok(());
    }
    Err(ArmError::invalid(
        "tags",
        "Give at most 50 tags with different names of 1 to 512 and values of up to 256 printable characters.",
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SOURCE: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1";

    fn read(body: Value) -> Put {
        Put::read(body).unwrap_or_else(|error| panic!("{}: {}", error.code(), error.message()))
    }

    fn target(body: Value) -> String {
        let error = Put::read(body).map(|_| ()).expect_err("refused");
        assert_eq!(
            (error.status().as_u16(), error.code()),
            (400, "InvalidParameterValue")
        );
        error.target().expect("has a target").to_owned()
    }

    #[test]
    fn the_create_of_each_sdk_is_the_same_wish() {
        // sdk-traces: 3.0.0, 2.0.0, 1.1.0
        let newest = json!({"properties": {"administratorLogin": "hfadmin", "administratorLoginPassword": "***", "version": "15", "storage": {"storageSizeGB": 32}, "backup": {"backupRetentionDays": 7}, "network": {"publicNetworkAccess": "Enabled"}, "highAvailability": {"mode": "Disabled"}, "availabilityZone": "1", "createMode": "Create"}, "location": "eastus", "sku": {"name": "Standard_D2s_v3", "tier": "GeneralPurpose"}, "tags": {"env": "test", "Owner": "A b"}});
        let mut older = newest.clone();
        older["properties"]["highAvailability"]["standbyAvailabilityZone"] = json!("");
        let mut oldest = older.clone();
        oldest["properties"]["backup"]["geoRedundantBackup"] = json!("Disabled");
        oldest["properties"]["network"] = json!({});
        let newest = read(newest);
        assert_eq!(newest.mode, CreateMode::Create);
        assert_eq!(newest.wish.retention_days, Some(7));
        assert_eq!(newest.wish.high_availability, Some(false));
        assert_eq!(newest.wish.tags.as_ref().map(BTreeMap::len), Some(2));
        assert_eq!(read(older).wish, newest.wish);
        let oldest = read(oldest).wish;
        assert_eq!((oldest.geo, oldest.public_network), (Some(false), None));
    }

    #[test]
    fn a_restores_accidents_are_not_wishes() {
        // contract §4.5, DESIGN §3.15, terraform §2
        let put = read(json!({
            "identity": {"type": "None", "userAssignedIdentities": null}, "location": "eastus", "tags": {},
            "properties": {
                "createMode": "PointInTimeRestore", "sourceServerResourceId": SOURCE,
                "pointInTimeUTC": "2026-11-20T10:11:33.289710Z", "availabilityZone": "",
                "backup": {"backupRetentionDays": 7.5, "geoRedundantBackup": "Disabled"},
                "highAvailability": {"mode": "Disabled"}, "network": {}, "administratorLogin": "",
                "authConfig": {"tenantId": ""}, "cluster": {"clusterSize": 0},
                "storage": {"autoGrow": "Disabled", "storageSizeGB": 0, "tier": "P4"}}}));
        assert_eq!(put.mode, CreateMode::PointInTimeRestore);
        assert_eq!(put.source.as_deref(), Some(SOURCE));
        assert_eq!(
            put.restore_time().ok().flatten(),
            instant::parse("2026-11-20T10:11:33.289710Z")
        );
        assert_eq!(
            put.wish,
            ServerWish {
                location: Some("eastus".into()),
                storage_auto_grow: Some(false),
                storage_tier: Some("P4".into()),
                geo: Some(false),
                high_availability: Some(false),
                tags: Some(BTreeMap::new()),
                ..ServerWish::default()
            }
        );
    }

    #[test]
    fn a_patch_that_says_nothing_wishes_nothing() {
        // contract §3.5: what 2.0.0 sends with a tags-only PATCH
        let wish =
            read_patch(json!({"tags": {"only": "this"}, "properties": {"availabilityZone": ""}}))
                .ok();
        let tags = BTreeMap::from([("only".to_owned(), "this".to_owned())]);
        assert_eq!(
            wish,
            Some(ServerWish {
                tags: Some(tags),
                ..ServerWish::default()
            })
        );
        assert_eq!(read_patch(json!({})).ok(), Some(ServerWish::default()));
        assert!(read_patch(json!({"properties": {"createMode": "PointInTimeRestore"}})).is_err());
    }

    #[test]
    fn a_retention_that_is_not_a_whole_number_is_refused_where_it_stands() {
        // RELIABILITY §4.9 row 17
        for days in [
            "7.5",
            "\"7\"",
            "1e2",
            "9223372036854775808",
            "null",
            "\"\"",
            "[7]",
            "{}",
        ] {
            let body: Value = serde_json::from_str(&format!(
                r#"{{"properties":{{"backup":{{"backupRetentionDays":{days}}}}}}}"#
            ))
            .expect("JSON");
            assert_eq!(
                target(body),
                "properties.backup.backupRetentionDays",
                "{days}"
            );
        }
        for days in [0, 6, 36, -1] {
            // The range is the domain's to judge.
            assert_eq!(
                read(json!({"properties": {"backup": {"backupRetentionDays": days}}}))
                    .wish
                    .retention_days,
                Some(days)
            );
        }
    }

    #[test]
    fn a_restore_time_is_an_instant_or_absent() {
        // RELIABILITY §4.9 row 15
        let long = "2".repeat(10_000);
        for time in [
            json!("2026-11-20 10:00"),
            json!("2026-11-20T10:00:00"),
            json!("20261120"),
            json!("2026-02-30T00:00:00Z"),
            json!("2026-11-20T24:00:00Z"),
            json!("2026-11-20T23:59:60Z"),
            json!("2026-11-20T10:00:00+99:00"),
            json!("0000-01-01T00:00:00Z"),
            json!("10000-01-01T00:00:00Z"),
            json!("infinity"),
            json!("now"),
            json!("epoch"),
            json!("'; DROP TABLE--"),
            json!("2026-11-20T10:00:00Z\n restore_command=x"),
            json!(long),
            json!(1),
            json!(null),
            json!([]),
            json!(""),
            json!({}),
        ] {
            let put = read(
                json!({"properties": {"createMode": "PointInTimeRestore", "sourceServerResourceId": SOURCE, "pointInTimeUTC": time}}),
            );
            let error = put.restore_time().expect_err("refused");
            assert_eq!(
                (error.code(), error.target()),
                ("InvalidParameterValue", Some("pointInTimeUTC"))
            );
        }
        let put = read(
            json!({"properties": {"createMode": "pointintimerestore", "sourceServerResourceId": SOURCE}}),
        );
        assert!(matches!(put.restore_time(), Ok(None)));
    }

    #[test]
    fn what_is_not_offered_is_refused_and_not_forgotten() {
        for (body, at) in [
            (
                json!({"identity": {"type": "SystemAssigned"}}),
                "identity.type",
            ),
            (
                json!({"properties": {"dataEncryption": {"type": "AzureKeyVault"}}}),
                "properties.dataEncryption.type",
            ),
            (
                json!({"properties": {"authConfig": {"activeDirectoryAuth": "Enabled"}}}),
                "properties.authConfig.activeDirectoryAuth",
            ),
            (
                json!({"properties": {"cluster": {"clusterSize": 2}}}),
                "properties.cluster.clusterSize",
            ),
            (
                json!({"properties": {"backup": {"immutableBackup": "Enabled"}}}),
                "properties.backup.immutableBackup",
            ),
            (
                json!({"properties": {"createMode": "Sideways"}}),
                "properties.createMode",
            ),
            (
                json!({"properties": {"version": "15.4"}}),
                "properties.version",
            ),
            (
                json!({"properties": {"storage": {"storageSizeGB": -1}}}),
                "properties.storage.storageSizeGB",
            ),
            (json!({"tags": {"a": "1", "A": "2"}}), "tags"),
            (json!({"tags": {"a": 1}}), "tags.a"),
        ] {
            assert_eq!(target(body), at);
        }
    }

    #[test]
    fn a_mistyped_password_is_not_echoed() {
        let error = Put::read(json!({"properties": {"administratorLoginPassword": 887_766}}))
            .map(|_| ())
            .expect_err("refused");
        assert!(!error.message().contains("887766"), "{}", error.message());
    }
}
