//! What is wrong with an object, in words that do not change: scripts look for the codes.

use std::collections::BTreeSet;

use holdfast_domain::BackupId;

use crate::Error;
use crate::key::DataKey;
use crate::seal::Header;

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Damage {
    /// Something names it and it is not there.
    Missing,
    /// It is there, and its bytes are not those that were written.
    Damaged,
    /// It is whole, as far as its header goes, and belongs elsewhere: another server's data key, another
    /// attempt, another class of object.
    Foreign,
    /// The store does not give it out.
    Unreadable,
    /// Write-ahead log between two objects that no object holds.
    WalGap,
}

impl Damage {
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "ObjectMissing",
            Self::Damaged => "ObjectDamaged",
            Self::Foreign => "ObjectForeign",
            Self::Unreadable => "ObjectUnreadable",
            Self::WalGap => "WalGap",
        }
    }
}

/// One object, or one hole, that stands in a restore's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub damage: Damage,
    /// The object's key; of a hole, the prefix of its timeline.
    pub key: String,
    pub what: String,
    /// Backups that need it.
    pub backups: BTreeSet<BackupId>,
}

impl Finding {
    pub(crate) fn new(damage: Damage, key: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            damage,
            key: key.into(),
            what: what.into(),
            backups: BTreeSet::new(),
        }
    }

    /// `first`: the beginning of the object, as far as it could be read.
    pub(crate) fn of(key: &str, error: &Error, first: &[u8], data_key: &DataKey) -> Self {
        let what = match error {
            Error::Corrupted { what, .. } => what.clone(),
            Error::NotFound { .. } => "it is not there".to_owned(),
            other => other.to_string(),
        };
        Self::new(judge(error, first, data_key), key, what)
    }
}

/// What an error says of an object that begins with these bytes. An object in another's place is told
/// by its header; one whose own seal does not open there is as good as damaged.
#[must_use]
pub fn judge(error: &Error, first: &[u8], data_key: &DataKey) -> Damage {
    match error {
        Error::NotFound { .. } => Damage::Missing,
        Error::Corrupted { .. } | Error::Refused { .. } | Error::Conflict { .. } => {
            match Header::decode(first, "") {
                Ok(header) if header.key_id != data_key.id() => Damage::Foreign,
                _ => Damage::Damaged,
            }
        }
        Error::WalGap { .. } => Damage::WalGap,
        _ => Damage::Unreadable,
    }
}
