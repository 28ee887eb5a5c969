//! What a user asked for and polls.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::job::Progress;
use crate::{BackupId, OperationId, ServerId, SubscriptionId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    CreateServer,
    RestoreServer,
    UpdateServer,
    DeleteServer,
    StartServer,
    StopServer,
    RestartServer,
    CreateBackup,
    DeleteBackup,
}

impl OperationKind {
    pub const ALL: [OperationKind; 9] = [
        Self::CreateServer,
        Self::RestoreServer,
        Self::UpdateServer,
        Self::DeleteServer,
        Self::StartServer,
        Self::StopServer,
        Self::RestartServer,
        Self::CreateBackup,
        Self::DeleteBackup,
    ];

    /// A server operation excludes other server operations on its server; a child operation only
    /// those on the same child (DESIGN §2, "what excludes what").
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        !matches!(self, Self::CreateBackup | Self::DeleteBackup)
    }

    /// How long it may take before it fails by itself (RELIABILITY §0.9).
    #[must_use]
    pub fn time_limit(self) -> TimeDelta {
        match self {
            Self::CreateServer | Self::UpdateServer => TimeDelta::minutes(30),
            Self::StartServer | Self::StopServer | Self::RestartServer => TimeDelta::hours(1),
            Self::DeleteServer | Self::DeleteBackup => TimeDelta::hours(2),
            Self::CreateBackup | Self::RestoreServer => TimeDelta::hours(48),
        }
    }
}

/// Accepted → Running → Succeeded / Failed; Accepted, Running → Canceling → Canceled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    Accepted,
    Running,
    Canceling,
    Succeeded,
    Failed,
    Canceled,
}

impl OperationState {
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}

/// Why an operation failed, in words for whoever asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub code: String,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub id: OperationId,
    pub subscription: SubscriptionId,
    pub kind: OperationKind,
    pub state: OperationState,
    pub server: ServerId,
    pub backup: Option<BackupId>,
    /// The id of what it acts on, in the caller's case.
    pub resource_id: String,
    /// Canonical region name: the operation's URL carries it.
    pub region: String,
    pub failure: Option<Failure>,
    pub progress: Option<Progress>,
    /// What it brought about beyond the resource itself, as the operation's body shows it
    /// (`restoredTo`, post-restore tasks, parameter differences).
    pub result: Option<serde_json::Value>,
    pub created_at: DateTime<Utc>,
    pub deadline: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
}

/// Operations stay readable for this long after they ended (DESIGN preamble).
pub const KEPT_FOR: TimeDelta = TimeDelta::days(30);
