//! Everything that can go wrong with a vault, in the terms a caller acts on: wait and try again,
//! take the other copy, find the key, or give up with a named reason (PROMISES XC, RELIABILITY §0.9).
//!
//! `Clone`, because one failure ends several workers and each of them has to say why.

use std::io;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_domain::{Lsn, Timeline};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store did not answer, or not usefully, for as long as the retry budget lasted.
    #[error("the object store is not available: {what}")]
    StoreUnavailable { what: String },
    /// Bytes are there and they are not the ones that were written.
    #[error("object {key} is corrupt: {what}")]
    Corrupted { key: String, what: String },
    /// No key-encryption key of this version is at hand, or it is not the one that wrapped.
    #[error("the key-encryption key of version {version:?} is not available")]
    KeyUnavailable { version: String },
    #[error("object {key} does not exist")]
    NotFound { key: String },
    /// Objects are written once; this one exists with another content (RELIABILITY §0.5).
    #[error("object {key} exists with another content")]
    Conflict { key: String },
    /// A store that answers a second create of one key with success cannot hold backups.
    #[error("the store overwrites objects that exist, use one that honours create-if-absent")]
    StoreOverwrites,
    #[error("no space is left: {what}")]
    InsufficientStorage { what: String },
    /// What somebody asked for is not acceptable: a path that leaves its directory, a store URL
    /// that cannot be read, a directory that is not empty.
    #[error("{what}")]
    Refused { what: String },
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: Arc<io::Error>,
    },
    /// WAL that no store holds and that what is asked for may need.
    #[error("the write-ahead log of {timeline:?} has a gap from {start} to {end}")]
    WalGap {
        timeline: Timeline,
        start: Lsn,
        end: Lsn,
    },
    /// The state asked for ends before the backup it would be built on is consistent.
    #[error("the backup contains a commit of {stamp}, later than what is asked for")]
    TargetBeforeBackup { stamp: DateTime<Utc> },
    /// The work was given up before it ended.
    #[error("the work was stopped")]
    Stopped,
}

impl Error {
    /// `what` says what could not be done, without a path of this machine.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        if is_out_of_space(&source) {
            return Self::InsufficientStorage { what: what.into() };
        }
        Self::Io {
            what: what.into(),
            source: Arc::new(source),
        }
    }

    pub fn corrupted(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Corrupted {
            key: key.into(),
            what: what.into(),
        }
    }

    pub fn refused(what: impl Into<String>) -> Self {
        Self::Refused { what: what.into() }
    }

    /// The stable code that reaches the user in an operation's error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::StoreUnavailable { .. } => "ObjectStoreUnavailable",
            Self::Corrupted { .. } | Self::NotFound { .. } => "BackupCorrupted",
            Self::KeyUnavailable { .. } => "KeyUnavailable",
            Self::Conflict { key } if key.starts_with("wal/") => "WalConflict",
            Self::Conflict { .. } => "BackupConflict",
            Self::StoreOverwrites => "ObjectStoreOverwrites",
            Self::InsufficientStorage { .. } => "InsufficientStorage",
            Self::Refused { .. } => "InvalidBackupContent",
            Self::Io { .. } => "NodeIoError",
            Self::WalGap { .. } => "WalGap",
            Self::TargetBeforeBackup { .. } => "InvalidParameterValue",
            Self::Stopped => "OperationPreempted",
        }
    }

    /// Worth another attempt, or final. A missing or corrupt object does not come back by asking
    /// again; a full disk may be made larger, a key file may be mounted late.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::StoreUnavailable { .. }
            | Self::InsufficientStorage { .. }
            | Self::Io { .. }
            | Self::Stopped => true,
            Self::Corrupted { .. }
            | Self::KeyUnavailable { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::StoreOverwrites
            | Self::WalGap { .. }
            | Self::TargetBeforeBackup { .. }
            | Self::Refused { .. } => false,
        }
    }

    /// Another copy of the same object may still be good.
    #[must_use]
    pub fn another_copy_may_help(&self) -> bool {
        matches!(
            self,
            Self::StoreUnavailable { .. } | Self::Corrupted { .. } | Self::NotFound { .. }
        )
    }
}

/// Whether the volume or the quota is full.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
