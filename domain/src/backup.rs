//! One physical image of a data directory.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::job::ManifestRef;
use crate::refusal::Refusal;
use crate::server::{Server, ServerState, StorageType, Tier};
use crate::{BackupId, Lsn, Timeline};

/// The most on-demand backups a server can have (FLX-109). They count from acceptance.
pub const ON_DEMAND_LIMIT: u32 = 7;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupKind {
    Automatic,
    OnDemand,
}

/// Requested → Running → Complete → Expiring → Gone; Running → Failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupState {
    Requested,
    Running,
    Complete,
    Expiring,
    Gone,
    Failed,
}

/// A complete backup: everything that it needs is durable (DESIGN §3.4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompleteBackup {
    pub id: BackupId,
    pub name: String,
    pub kind: BackupKind,
    pub timeline: Timeline,
    pub start: Lsn,
    pub stop: Lsn,
    pub completed_time: DateTime<Utc>,
    pub manifest: ManifestRef,
    /// Pages were found damaged: it never lets the last clean backup expire.
    pub damaged: bool,
}

/// The name of an automatic backup (contract, fact 7): ticks of a moment one second before its
/// completion. Clients treat it as opaque.
#[must_use]
pub fn automatic_name(completed_time: DateTime<Utc>) -> String {
    format!(
        "backup_{}",
        crate::instant::ticks(completed_time) - 10_000_000
    )
}

/// May an on-demand backup of this name be requested now? `present` is how many on-demand backups
/// the server has, requested and running ones included.
///
/// # Errors
/// FLX-105, FLX-107, FLX-108, FLX-109, FLX-110.
pub fn may_request(
    server: &Server,
    name_taken: bool,
    name: &str,
    present: u32,
) -> Result<(), Refusal> {
    let unsupported = |reason| Refusal::OnDemandBackupNotSupported {
        server: server.name.clone(),
        reason,
    };
    if server.settings.sku.tier == Tier::Burstable {
        return Err(unsupported(
            "its pricing tier is Burstable; scale it to GeneralPurpose or MemoryOptimized",
        ));
    }
    if server.settings.storage.kind == StorageType::PremiumV2 {
        return Err(unsupported("its storage type is PremiumV2_LRS"));
    }
    if server.is_replica {
        return Err(unsupported(
            "it is a read replica; take the backup on its primary",
        ));
    }
    if !matches!(server.state, ServerState::Ready | ServerState::Updating) {
        return Err(Refusal::ServerIsNotReady {
            server: server.name.clone(),
            state: server.state,
            wanted: "Ready",
        });
    }
    if name_taken {
        return Err(Refusal::BackupAlreadyExists {
            server: server.name.clone(),
            backup: name.to_owned(),
        });
    }
    if present >= ON_DEMAND_LIMIT {
        return Err(Refusal::OnDemandBackupLimitReached {
            server: server.name.clone(),
            limit: ON_DEMAND_LIMIT,
        });
    }
    Ok(())
}

/// May a user delete this backup (FLX-104, FLX-106)? A pinned one waits for its restore.
///
/// # Errors
/// [`Refusal::AutomaticBackupCannotBeDeleted`], [`Refusal::BackupInUse`].
pub fn may_delete(
    kind: BackupKind,
    name: &str,
    pinned: bool,
    retention_days: u16,
) -> Result<(), Refusal> {
    match (kind, pinned) {
        (BackupKind::Automatic, _) => Err(Refusal::AutomaticBackupCannotBeDeleted {
            backup: name.to_owned(),
            retention_days,
        }),
        (BackupKind::OnDemand, true) => Err(Refusal::BackupInUse {
            backup: name.to_owned(),
        }),
        (BackupKind::OnDemand, false) => Ok(()),
    }
}
