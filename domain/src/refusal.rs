//! Every way in which the domain says no.
//!
//! One variant a rule, with the facts of the case. The text of [`std::fmt::Display`] is what the
//! caller reads: it says what to change, and it never lies about the cause. Status, code and target
//! of each are chosen in one table in `api/src/arm/error.rs`.

use chrono::{DateTime, Utc};

use crate::instant::wire;
use crate::server::ServerState;

/// A rule said no; nothing was changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// A name breaks its rule.
    #[error("The {what} name '{}' is not valid: {rule}", shown(name))]
    InvalidResourceName {
        what: &'static str,
        name: String,
        rule: &'static str,
    },
    /// A resource id breaks its form.
    #[error("'{}' is not a valid resource id: {reason}", shown(given))]
    InvalidResourceId { given: String, reason: &'static str },
    /// A value outside its range or set. `target` is the JSON path.
    #[error("Invalid value given for parameter {target}. {message}")]
    InvalidParameterValue { target: String, message: String },
    /// A value that is decided when the server is created.
    #[error(
        "'{target}' can only be set when the server is created. Leave it out or give the current value '{current}'."
    )]
    CreateOnly { target: String, current: String },

    /// The instant is not in the restorable window (DESIGN §3.6).
    #[error("Invalid value given for parameter pointInTimeUTC. {}", window(*.asked, *.earliest, *.latest))]
    RestoreTimeOutOfRange {
        asked: Option<DateTime<Utc>>,
        earliest: Option<DateTime<Utc>>,
        latest: Option<DateTime<Utc>>,
    },
    /// The server's clock ran backwards around this instant, so it names two states.
    #[error("Invalid value given for parameter pointInTimeUTC. The clock of server '{server}' ran backwards around {}: give {} or earlier, or {} or later.", wire(*.asked), wire(*.before), wire(*.after))]
    ClockAnomaly {
        server: String,
        asked: DateTime<Utc>,
        before: DateTime<Utc>,
        after: DateTime<Utc>,
    },
    /// WAL between the backup and the instant is lost for good.
    #[error("Server '{server}' cannot be restored to {}: write-ahead log is missing after {}. Choose an instant up to then, or after the next backup.", wire(*.asked), wire(*.before))]
    WalGap {
        server: String,
        asked: DateTime<Utc>,
        before: DateTime<Utc>,
    },
    #[error(
        "Server '{server}' has no backup yet. Its first one is taken right after it is created; try again when earliestRestoreDate is shown."
    )]
    NoBackupYet { server: String },

    #[error("Specified server name '{name}' is already used. Choose another name.")]
    ServerNameAlreadyExists { name: String },
    #[error(
        "Cannot complete operation while server '{server}' is busy processing another operation. Try again later."
    )]
    ServerIsBusy { server: String },
    #[error("The operation needs server '{server}' to be {wanted}; its current state is {state}.")]
    ServerIsNotReady {
        server: String,
        state: ServerState,
        wanted: &'static str,
    },
    #[error("The resource is in location '{current}' and cannot be given location '{asked}'.")]
    InvalidResourceLocation { current: String, asked: String },
    #[error(
        "The resource group is in location '{current}' and cannot be given location '{asked}'."
    )]
    InvalidResourceGroupLocation { current: String, asked: String },
    #[error("Location '{location}' is not available. The available locations are: {}.", .available.join(", "))]
    LocationNotAvailable {
        location: String,
        available: Vec<String>,
    },
    #[error("No node in location '{location}'{} can take a server of PostgreSQL {major} now. Add a node there that has these binaries, or choose another zone or version.", .zone.as_ref().map(|zone| format!(" zone {zone}")).unwrap_or_default())]
    NoCapacity {
        location: String,
        zone: Option<String>,
        major: u16,
    },

    #[error("Subscription '{0}' was not found.")]
    SubscriptionNotFound(String),
    #[error("Resource group '{0}' could not be found.")]
    ResourceGroupNotFound(String),
    #[error("The Resource '{kind}/{name}' under resource group '{group}' was not found.")]
    ResourceNotFound {
        kind: &'static str,
        name: String,
        group: String,
    },
    #[error("The operation '{0}' was not found. Operations are kept for 30 days.")]
    OperationNotFound(String),

    #[error(
        "A backup named '{backup}' exists already on server '{server}'. Choose another name or delete it first."
    )]
    BackupAlreadyExists { server: String, backup: String },
    #[error(
        "Server '{server}' has {limit} on-demand backups, which is the most it can have. Delete one first."
    )]
    OnDemandBackupLimitReached { server: String, limit: u32 },
    #[error("On-demand backups are not supported on server '{server}': {reason}.")]
    OnDemandBackupNotSupported {
        server: String,
        reason: &'static str,
    },
    #[error(
        "Backup '{backup}' was taken automatically and cannot be deleted; it goes when it leaves the retention window of {retention_days} days."
    )]
    AutomaticBackupCannotBeDeleted { backup: String, retention_days: u16 },
    #[error("Backup '{backup}' is being read by a running restore. Try again when that has ended.")]
    BackupInUse { backup: String },

    /// A management lock stands in the way (FLX-073).
    #[error("The scope '{target}' cannot perform {verb} operation because following scope(s) are locked: '{}'. Please remove the lock and try again.", .locked.join(","))]
    ScopeLocked {
        target: String,
        verb: &'static str,
        locked: Vec<String>,
    },
    /// What the product does not offer, with the way out.
    #[error("{0}")]
    NotSupported(String),
}

impl Refusal {
    /// A value that is not allowed at this JSON path.
    pub fn invalid(target: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidParameterValue {
            target: target.into(),
            message: message.into(),
        }
    }
}

/// Caller's text in a message: cut short, control characters made visible.
fn shown(text: &str) -> String {
    text.chars()
        .take(80)
        .flat_map(|c| c.escape_default())
        .collect()
}

fn window(
    asked: Option<DateTime<Utc>>,
    earliest: Option<DateTime<Utc>>,
    latest: Option<DateTime<Utc>>,
) -> String {
    let asked = asked.map_or_else(|| "The time".to_owned(), wire);
    match (earliest, latest) {
        (Some(earliest), Some(latest)) => format!(
            "{asked} is outside the restorable window. Give a time from {} to {}.",
            wire(earliest),
            wire(latest)
        ),
        _ => format!("{asked} cannot be restored: there is no restorable window yet."),
    }
}
