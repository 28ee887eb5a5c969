//! Words of the wire: spelled one way by us, read without case (contract, fact 12).

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// An enum of words that reads any case and writes its own.
macro_rules! words {
    ($($(#[$meta:meta])* $name:ident { $($variant:ident = $text:literal),+ $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
        pub enum $name {
            $(#[serde(rename = $text)] $variant,)+
        }

        impl $name {
            pub const WORDS: &[&str] = &[$($text),+];
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let given = String::deserialize(deserializer)?;
                $(if given.eq_ignore_ascii_case($text) { return Ok(Self::$variant); })+
                let shown: String = given.chars().take(40).flat_map(char::escape_default).collect();
                Err(serde::de::Error::custom(format_args!(
                    "'{shown}' is not one of {}", Self::WORDS.join(", ")
                )))
            }
        }
    )+};
}

words! {
    /// A switch.
    Switch { Enabled = "Enabled", Disabled = "Disabled" }
    /// How a PUT comes to its server (contract §3.3).
    CreateMode {
        Default = "Default",
        Create = "Create",
        Update = "Update",
        PointInTimeRestore = "PointInTimeRestore",
        GeoRestore = "GeoRestore",
        ReviveDropped = "ReviveDropped",
        Replica = "Replica",
    }
    /// Pricing tier.
    SkuTier {
        Burstable = "Burstable",
        GeneralPurpose = "GeneralPurpose",
        MemoryOptimized = "MemoryOptimized",
    }
    /// Storage type.
    StorageKind {
        Premium = "Premium_LRS",
        PremiumV2 = "PremiumV2_LRS",
        Ultra = "UltraSSD_LRS",
    }
    /// High availability.
    HighAvailabilityMode {
        Disabled = "Disabled",
        ZoneRedundant = "ZoneRedundant",
        SameZone = "SameZone",
    }
    /// Identity of the server.
    IdentityType {
        None = "None",
        UserAssigned = "UserAssigned",
        SystemAssigned = "SystemAssigned",
        Both = "SystemAssigned,UserAssigned",
    }
    /// Who encrypts.
    EncryptionType { SystemManaged = "SystemManaged", AzureKeyVault = "AzureKeyVault" }
    /// Role in replication.
    ReplicationRole {
        None = "None",
        Primary = "Primary",
        AsyncReplica = "AsyncReplica",
        GeoAsyncReplica = "GeoAsyncReplica",
    }
    /// A server's state as clients know it.
    State {
        Ready = "Ready",
        Dropping = "Dropping",
        Disabled = "Disabled",
        Starting = "Starting",
        Stopping = "Stopping",
        Stopped = "Stopped",
        Updating = "Updating",
        Provisioning = "Provisioning",
    }
    /// Level of a management lock.
    LockLevel { CanNotDelete = "CanNotDelete", ReadOnly = "ReadOnly" }
}

impl Switch {
    #[must_use]
    pub fn of(on: bool) -> Self {
        if on { Self::Enabled } else { Self::Disabled }
    }

    #[must_use]
    pub fn is_on(self) -> bool {
        self == Self::Enabled
    }
}
