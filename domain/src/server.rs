//! A managed PostgreSQL server: what it is, what may be asked for, what may change.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::redundancy::Redundancy;
use crate::retention::RetentionWindow;
use crate::{IncarnationId, NodeId, ServerId, SubscriptionId};

mod wish;

pub use wish::{ServerWish, create, default_storage_tier, patch, restored};

/// DESIGN §2. `Dropped` is a tombstone; `Failed` a server that was never made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    Provisioning,
    Ready,
    Updating,
    Stopping,
    Stopped,
    Starting,
    Dropping,
    Dropped,
    Failed,
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// From the lowest to the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tier {
    Burstable,
    GeneralPurpose,
    MemoryOptimized,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sku {
    /// Any `Standard_*` (DESIGN §3.15).
    pub name: String,
    pub tier: Tier,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageType {
    #[serde(rename = "Premium_LRS")]
    Premium,
    #[serde(rename = "PremiumV2_LRS")]
    PremiumV2,
    #[serde(rename = "UltraSSD_LRS")]
    Ultra,
}

/// Recorded and returned; percentages are of the file system that really holds the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    pub size_gb: u32,
    pub auto_grow: bool,
    pub kind: StorageType,
    pub tier: Option<String>,
    pub iops: Option<u32>,
    pub throughput: Option<u32>,
}

/// Public access with (later) firewall rules, or a delegated subnet. Never changed by a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub public: bool,
    pub delegated_subnet: Option<String>,
    pub private_dns_zone: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceWindow {
    pub custom: bool,
    pub day_of_week: u8,
    pub start_hour: u8,
    pub start_minute: u8,
}

/// What the caller decides about a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSettings {
    pub sku: Sku,
    pub storage: Storage,
    /// PostgreSQL's major version.
    pub major: u16,
    pub administrator_login: String,
    pub retention: RetentionWindow,
    pub redundancy: Redundancy,
    pub network: Network,
    /// The zone the caller asked for; `None` when none was (Terraform wants it back as asked).
    pub zone: Option<String>,
    pub maintenance_window: MaintenanceWindow,
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    pub id: ServerId,
    pub subscription: SubscriptionId,
    /// The resource group's name as it was first written.
    pub group: String,
    pub name: String,
    /// Canonical name of its region.
    pub region: String,
    pub state: ServerState,
    pub settings: ServerSettings,
    pub is_replica: bool,
    pub node: Option<NodeId>,
    /// Where it really is.
    pub placed_zone: Option<String>,
    pub port: Option<u16>,
    pub minor_version: Option<String>,
    /// Its present life; `None` until provisioned.
    pub incarnation: Option<IncarnationId>,
    pub created_at: DateTime<Utc>,
    /// A stopped server's window stands still here (FLX-146).
    pub stopped_at: Option<DateTime<Utc>>,
    pub dropped_at: Option<DateTime<Utc>>,
    /// How long a dropped server's backups are kept (DESIGN §3.15).
    pub restorable_until: Option<DateTime<Utc>>,
}

impl Server {
    /// The instant at which its retention window ends: now, or the moment at which it was stopped or,
    /// running until then, dropped. A stopped one that is dropped keeps what it had (FLX-146).
    #[must_use]
    pub fn window_end(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        self.stopped_at.or(self.dropped_at).unwrap_or(now)
    }
}
