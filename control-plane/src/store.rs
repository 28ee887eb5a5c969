//! How things are kept: one file a noun, SQL as SQL.
//!
//! Functions take the connection of the caller's transaction and the time, so that use cases compose
//! them. "Not there" is `Ok(None)`. Rows are locked in one order – server, job, backup, operation,
//! end of the activity chain – so that use cases do not wait for each other in a circle.

pub(crate) mod activity;
pub(crate) mod backup;
pub(crate) mod catalogue;
pub(crate) mod compaction;
pub(crate) mod gauge;
pub(crate) mod idempotency;
pub(crate) mod incarnation;
pub(crate) mod job;
pub(crate) mod label;
pub(crate) mod lock;
pub(crate) mod node;
pub(crate) mod operation;
pub(crate) mod pin;
pub(crate) mod resource_group;
pub(crate) mod server;
pub(crate) mod snapshot;
pub(crate) mod superseded;
pub(crate) mod wal;

/// What happens to the row that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Read only.
    None,
    /// Nobody may change it until the end of the transaction.
    Share,
    /// This transaction is going to change it.
    Update,
    /// As `Update`, but as good as absent when somebody else has it.
    UpdateOrSkip,
}

impl Hold {
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Share => " for share",
            Self::Update => " for no key update",
            Self::UpdateOrSkip => " for no key update skip locked",
        }
    }
}
