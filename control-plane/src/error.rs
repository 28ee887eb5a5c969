//! What can go wrong in a use case, as far as a caller can act on it.

use holdfast_domain::{NodeId, Refusal};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule said no; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The metadata store does not answer now; the same call may work later.
    #[error("the metadata store does not answer")]
    Unavailable(#[source] sqlx::Error),
    /// The metadata store answered with an error that no rule foresaw.
    #[error("the metadata store refused a statement")]
    Database(#[source] sqlx::Error),
    /// The lease is no longer the newest one: stop, change nothing, delete nothing (DESIGN §3.8).
    #[error("the lease is stale")]
    Stale,
    /// No node of this id may speak: never joined, or revoked.
    #[error("node {0} is not known here or was revoked")]
    UnknownNode(NodeId),
    /// A join token that is used, expired, or made for another node.
    #[error("the join token is not valid for this node")]
    JoinRefused,
    /// What a node said cannot be true (RELIABILITY §4.9, absurd values).
    #[error("absurd report: {0}")]
    Absurd(String),
    /// The store holds what no use case writes.
    #[error("the metadata store is inconsistent: {0}")]
    Corrupt(String),
    #[error("the schema cannot be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
}

impl Error {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let passing = match &error {
            E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed | E::Io(_) | E::Tls(_) => true,
            // Connection lost, resources, operator intervention, and what a retry cures
            // (PostgreSQL's manual, appendix A).
            E::Database(db) => db.code().is_some_and(|code| {
                ["08", "53", "57"]
                    .iter()
                    .any(|class| code.starts_with(class))
                    || matches!(&*code, "40001" | "40P01")
            }),
            _ => false,
        };
        if passing {
            Self::Unavailable(error)
        } else {
            Self::Database(error)
        }
    }
}

/// What one item's outcome means for a duty that looks at many: a store that does not answer ends the
/// run, anything else is that item's own trouble and must not keep the others from what is due.
pub(crate) fn one_of_many<T: Default>(
    duty: &'static str,
    item: impl std::fmt::Display,
    outcome: Result<T>,
) -> Result<T> {
    match outcome {
        Ok(done) => Ok(done),
        Err(error @ Error::Unavailable(_)) => Err(error),
        Err(error) => {
            let cause = &error as &dyn std::error::Error;
            tracing::error!(duty.name = duty, duty.item = %item, error = cause, "one of many cannot be dealt with");
            Ok(T::default())
        }
    }
}

/// The name of the constraint that an insert or update violated.
pub(crate) fn violated(error: &sqlx::Error) -> Option<&str> {
    match error {
        sqlx::Error::Database(db) => db.constraint(),
        _ => None,
    }
}
