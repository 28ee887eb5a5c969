//! `Microsoft.Authorization/locks` (contract, other-apis §2).

use holdfast_domain::lock::{Lock, LockLevel as Level};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::word::LockLevel;

#[derive(Debug, Deserialize, ToSchema)]
pub struct LockBody {
    pub properties: LockBodyProperties,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct LockBodyProperties {
    pub level: LockLevel,
    /// At most 512 characters.
    #[serde(default)]
    pub notes: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ManagementLock {
    pub properties: LockProperties,
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct LockProperties {
    pub level: LockLevel,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub notes: Option<String>,
}

impl From<LockLevel> for Level {
    fn from(level: LockLevel) -> Self {
        match level {
            LockLevel::CanNotDelete => Self::CanNotDelete,
            LockLevel::ReadOnly => Self::ReadOnly,
        }
    }
}

impl From<Lock> for ManagementLock {
    fn from(lock: Lock) -> Self {
        Self {
            id: format!(
                "{}/providers/Microsoft.Authorization/locks/{}",
                lock.scope.trim_end_matches('/'),
                lock.name
            ),
            properties: LockProperties {
                level: match lock.level {
                    Level::CanNotDelete => LockLevel::CanNotDelete,
                    Level::ReadOnly => LockLevel::ReadOnly,
                },
                notes: lock.notes,
            },
            kind: "Microsoft.Authorization/locks".to_owned(),
            name: lock.name,
        }
    }
}
