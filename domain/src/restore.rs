//! (being written)
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::BackupId;

/// What the caller of a restore asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreTarget {
    /// Everything that is durable.
    Latest,
    /// The state at this instant: the longest WAL prefix without a later commit.
    At(DateTime<Utc>),
    /// This backup and nothing after its end (fast restore).
    Backup(BackupId),
}
