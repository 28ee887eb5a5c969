//! A server as clients see it: members and order of the recorded answers (contract §3.4).
//!
//! `createMode`, `pointInTimeUTC`, the source and the password are never returned (contract, fact 5).

use std::collections::BTreeMap;

use holdfast_control_plane::ServerView;
use holdfast_domain::instant;
use holdfast_domain::redundancy::Redundancy;
use holdfast_domain::region::Site;
use holdfast_domain::resource_id::{PROVIDER, SERVERS, group_scope};
use holdfast_domain::server::{self, ServerState, StorageType, Tier};
use serde::Serialize;
use utoipa::ToSchema;

use super::word::{EncryptionType, HighAvailabilityMode, ReplicationRole, SkuTier, State, Switch};
use super::zulu;
use crate::arm::ApiVersion;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    pub sku: Sku,
    pub system_data: SystemData,
    pub properties: ServerProperties,
    /// Display name of the region.
    pub location: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    pub id: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Sku {
    pub name: String,
    pub tier: SkuTier,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SystemData {
    pub created_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerProperties {
    pub data_encryption: DataEncryption,
    pub replica: Replica,
    pub storage: Storage,
    pub network: Network,
    /// Always empty.
    pub private_endpoint_connections: Vec<String>,
    pub auth_config: AuthConfig,
    pub fully_qualified_domain_name: String,
    pub version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub minor_version: Option<String>,
    pub administrator_login: String,
    pub state: State,
    /// As asked for; absent when it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub availability_zone: Option<String>,
    pub backup: BackupSettings,
    pub high_availability: HighAvailability,
    pub maintenance_window: MaintenanceWindow,
    pub replication_role: ReplicationRole,
    pub replica_capacity: u8,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DataEncryption {
    #[serde(rename = "type")]
    pub kind: EncryptionType,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Replica {
    pub role: ReplicationRole,
    pub capacity: u8,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Empty for `Premium_LRS`, as the service has it.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub iops: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub throughput: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tier: Option<String>,
    #[serde(rename = "storageSizeGB")]
    pub storage_size_gb: u32,
    pub auto_grow: Switch,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub public_network_access: Switch,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub delegated_subnet_resource_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub private_dns_zone_arm_resource_id: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthConfig {
    pub active_directory_auth: Switch,
    pub password_auth: Switch,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSettings {
    pub backup_retention_days: u16,
    pub geo_redundant_backup: Switch,
    /// Absent until the first backup is complete (contract, fact 6).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub earliest_restore_date: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct HighAvailability {
    pub mode: HighAvailabilityMode,
    /// Always `NotEnabled`.
    pub state: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceWindow {
    pub custom_window: Switch,
    pub day_of_week: u8,
    pub start_hour: u8,
    pub start_minute: u8,
}

/// What is the same for every server of an installation.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    pub site: &'a Site,
    pub domain_suffix: &'a str,
    pub version: &'a ApiVersion,
}

/// The id of a server in the case in which it was made.
#[must_use]
pub fn id(server: &server::Server) -> String {
    format!(
        "{}/providers/{PROVIDER}/{SERVERS}/{}",
        group_scope(server.subscription, &server.group),
        server.name
    )
}

impl Server {
    #[must_use]
    pub fn new(view: ServerView, around: Surroundings<'_>) -> Self {
        let id = id(&view.server);
        let state = state(view.server.state, around.version);
        let server::Server {
            name,
            region,
            settings,
            minor_version,
            created_at,
            ..
        } = view.server;
        let location = around
            .site
            .region(&region)
            .map_or(region, |region| region.display_name.clone());
        Self {
            sku: Sku {
                name: settings.sku.name,
                tier: match settings.sku.tier {
                    Tier::Burstable => SkuTier::Burstable,
                    Tier::GeneralPurpose => SkuTier::GeneralPurpose,
                    Tier::MemoryOptimized => SkuTier::MemoryOptimized,
                },
            },
            system_data: SystemData {
                created_at: zulu(created_at),
            },
            properties: ServerProperties {
                data_encryption: DataEncryption {
                    kind: EncryptionType::SystemManaged,
                },
                replica: Replica {
                    role: ReplicationRole::Primary,
                    capacity: 0,
                },
                storage: Storage {
                    kind: match settings.storage.kind {
                        StorageType::Premium => "",
                        StorageType::PremiumV2 => "PremiumV2_LRS",
                        StorageType::Ultra => "UltraSSD_LRS",
                    }
                    .to_owned(),
                    iops: settings.storage.iops,
                    throughput: settings.storage.throughput,
                    tier: settings.storage.tier,
                    storage_size_gb: settings.storage.size_gb,
                    auto_grow: Switch::of(settings.storage.auto_grow),
                },
                network: Network {
                    public_network_access: Switch::of(settings.network.public),
                    delegated_subnet_resource_id: settings.network.delegated_subnet,
                    private_dns_zone_arm_resource_id: settings.network.private_dns_zone,
                },
                private_endpoint_connections: Vec::new(),
                auth_config: AuthConfig {
                    active_directory_auth: Switch::Disabled,
                    password_auth: Switch::Enabled,
                },
                fully_qualified_domain_name: format!("{name}.{}", around.domain_suffix),
                version: settings.major.to_string(),
                minor_version,
                administrator_login: settings.administrator_login,
                state,
                availability_zone: settings.zone,
                backup: BackupSettings {
                    backup_retention_days: settings.retention.days(),
                    geo_redundant_backup: Switch::of(settings.redundancy == Redundancy::Geo),
                    earliest_restore_date: view.earliest_restore.map(instant::wire),
                },
                high_availability: HighAvailability {
                    mode: HighAvailabilityMode::Disabled,
                    state: "NotEnabled".to_owned(),
                },
                maintenance_window: MaintenanceWindow {
                    custom_window: Switch::of(settings.maintenance_window.custom),
                    day_of_week: settings.maintenance_window.day_of_week,
                    start_hour: settings.maintenance_window.start_hour,
                    start_minute: settings.maintenance_window.start_minute,
                },
                replication_role: ReplicationRole::Primary,
                replica_capacity: 0,
            },
            location,
            tags: settings.tags,
            id,
            name,
            kind: format!("{PROVIDER}/{SERVERS}"),
        }
    }
}

/// Tombstones and servers that were never made are not shown; should one get here all the same, it
/// is nothing that a client may use.
fn state(state: ServerState, version: &ApiVersion) -> State {
    match state {
        ServerState::Provisioning if version.knows_provisioning() => State::Provisioning,
        ServerState::Provisioning | ServerState::Updating => State::Updating,
        ServerState::Ready => State::Ready,
        ServerState::Stopping => State::Stopping,
        ServerState::Stopped => State::Stopped,
        ServerState::Starting => State::Starting,
        ServerState::Dropping | ServerState::Dropped => State::Dropping,
        ServerState::Failed => State::Disabled,
    }
}

/// How a client reaches a server (`Holdfast.Recovery/connection`).
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    pub id: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub properties: ConnectionProperties,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionProperties {
    pub host: String,
    pub port: u16,
    /// On the server's node itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub socket_directory: Option<String>,
    pub fully_qualified_domain_name: String,
    pub administrator_login: String,
    pub database: String,
    pub state: State,
    /// What its node says is wrong with it; absent while all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub problem: Option<String>,
}

impl Connection {
    #[must_use]
    pub fn new(
        view: holdfast_control_plane::server::ConnectionView,
        around: Surroundings<'_>,
    ) -> Self {
        Self {
            id: format!(
                "{}/providers/Holdfast.Recovery/connection",
                id(&view.server)
            ),
            name: "connection".to_owned(),
            kind: "Holdfast.Recovery/connection".to_owned(),
            properties: ConnectionProperties {
                host: view.host,
                port: view.port,
                socket_directory: view.socket_dir.map(|dir| dir.display().to_string()),
                fully_qualified_domain_name: format!(
                    "{}.{}",
                    view.server.name, around.domain_suffix
                ),
                administrator_login: view.administrator_login,
                database: "postgres".to_owned(),
                state: state(view.server.state, around.version),
                problem: view.problem,
            },
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use holdfast_domain::retention::RetentionWindow;
    use holdfast_domain::{ServerId, SubscriptionId};
    use serde_json::json;

    use super::*;

    pub(crate) fn view() -> ServerView {
        ServerView {
            server: server::Server {
                id: ServerId::new(),
                subscription: "11111111-2222-3333-4444-555555555555"
                    .parse::<SubscriptionId>()
                    .expect("valid"),
                group: "RG1".into(),
                name: "pg1".into(),
                region: "eastus2".into(),
                state: ServerState::Provisioning,
                settings: server::ServerSettings {
                    sku: server::Sku {
                        name: "Standard_D2s_v3".into(),
                        tier: Tier::GeneralPurpose,
                    },
                    storage: server::Storage {
                        size_gb: 32,
                        auto_grow: false,
                        kind: StorageType::Premium,
                        tier: Some("P4".into()),
                        iops: None,
                        throughput: None,
                    },
                    major: 15,
                    administrator_login: "hfadmin".into(),
                    retention: RetentionWindow::new(7).expect("in range"),
                    redundancy: Redundancy::Zone,
                    network: server::Network {
                        public: true,
                        delegated_subnet: None,
                        private_dns_zone: None,
                    },
                    zone: None,
                    maintenance_window: server::MaintenanceWindow {
                        custom: false,
                        day_of_week: 0,
                        start_hour: 0,
                        start_minute: 0,
                    },
                    tags: BTreeMap::new(),
                },
                is_replica: false,
                node: None,
                placed_zone: Some("2".into()),
                port: None,
                minor_version: None,
                incarnation: None,
                created_at: "2026-11-20T10:00:00.123456Z".parse().expect("valid"),
                stopped_at: None,
                dropped_at: None,
                restorable_until: None,
            },
            earliest_restore: None,
            latest_restore: None,
            host: None,
            socket_dir: None,
        }
    }

    fn shown(view: ServerView, version: &str) -> serde_json::Value {
        let version = ApiVersion::parse(version).expect("valid");
        let around = Surroundings {
            site: &Site::built_in(),
            domain_suffix: "pg.example",
            version: &version,
        };
        serde_json::to_value(Server::new(view, around)).expect("JSON")
    }

    #[test]
    fn a_server_looks_as_recorded() {
        // contract §3.4; the zone is shown only when it was asked for (terraform §2)
        assert_eq!(
            shown(view(), "2026-10-01"),
            json!({
                "sku": {"name": "Standard_D2s_v3", "tier": "GeneralPurpose"},
                "systemData": {"createdAt": "2026-11-20T10:00:00.1234560Z"},
                "properties": {
                    "dataEncryption": {"type": "SystemManaged"},
                    "replica": {"role": "Primary", "capacity": 0},
                    "storage": {"type": "", "tier": "P4", "storageSizeGB": 32, "autoGrow": "Disabled"},
                    "network": {"publicNetworkAccess": "Enabled"},
                    "privateEndpointConnections": [],
                    "authConfig": {"activeDirectoryAuth": "Disabled", "passwordAuth": "Enabled"},
                    "fullyQualifiedDomainName": "pg1.pg.example",
                    "version": "15",
                    "administratorLogin": "hfadmin",
                    "state": "Provisioning",
                    "backup": {"backupRetentionDays": 7, "geoRedundantBackup": "Disabled"},
                    "highAvailability": {"mode": "Disabled", "state": "NotEnabled"},
                    "maintenanceWindow": {"customWindow": "Disabled", "dayOfWeek": 0, "startHour": 0, "startMinute": 0},
                    "replicationRole": "Primary",
                    "replicaCapacity": 0
                },
                "location": "East US 2",
                "id": "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/RG1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1",
                "name": "pg1",
                "type": "Microsoft.DBforPostgreSQL/flexibleServers"
            })
        );
    }

    #[test]
    fn what_a_version_does_not_know_is_said_in_its_words() {
        assert_eq!(
            shown(view(), "2024-08-01")["properties"]["state"],
            "Updating"
        );
        let mut backed_up = view();
        backed_up.earliest_restore = instant::parse("2026-11-20T10:05:00.5Z");
        backed_up.server.settings.zone = Some("1".into());
        let shown = shown(backed_up, "2026-10-01");
        assert_eq!(
            shown["properties"]["backup"]["earliestRestoreDate"],
            "2026-11-20T10:05:00.5000000+00:00"
        );
        assert_eq!(shown["properties"]["availabilityZone"], "1");
    }
}
