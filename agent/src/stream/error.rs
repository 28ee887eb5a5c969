//! What can go wrong between PostgreSQL's WAL and the stores.

use std::io;

use holdfast_domain::Lsn;
use holdfast_vault::wal::InvalidWal;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The replication connection could not be made or broke.
    #[error("could not {what} on the replication connection")]
    Connection {
        what: &'static str,
        #[source]
        source: io::Error,
    },

    /// PostgreSQL refused a replication command.
    #[error("PostgreSQL refused {what}: {message} ({code})")]
    Refused {
        what: &'static str,
        /// SQLSTATE.
        code: String,
        message: String,
    },

    /// Something arrived that the protocol has no place for.
    #[error("the replication protocol was not followed: {0}")]
    Protocol(String),

    #[error("could not {what} on the managed server")]
    Sql {
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },

    #[error(transparent)]
    Vault(#[from] holdfast_vault::Error),

    /// A file of a stopped server's `pg_wal`.
    #[error("could not {what} in pg_wal")]
    PgWal {
        what: &'static str,
        #[source]
        source: io::Error,
    },

    #[error("the control file of the data directory could not be read")]
    ControlFile(#[from] crate::snapshot::control_file::ReadError),

    #[error(transparent)]
    Wal(#[from] InvalidWal),

    /// The socket leads to another cluster than the one this stream belongs to.
    #[error("the server has system identifier {found}, this stream belongs to {expected}")]
    OtherCluster { expected: u64, found: u64 },

    /// The vault has WAL that the server does not: a copied or rewound data directory.
    #[error("the store has WAL up to {durable}, the server only up to {server}")]
    Behind { durable: Lsn, server: Lsn },

    #[error("the write-ahead log of this server is not being streamed")]
    Closed,
}

impl Error {
    /// The stable code that reaches a user.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Vault(error) => error.code(),
            Self::OtherCluster { .. } | Self::Behind { .. } => "WalConflict",
            Self::Connection { .. }
            | Self::Refused { .. }
            | Self::Protocol(_)
            | Self::Sql { .. }
            | Self::Closed => "StreamUnavailable",
            Self::PgWal { .. } | Self::ControlFile(_) | Self::Wal(_) => "NodeIoError",
        }
    }

    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Vault(error) => error.is_retryable(),
            Self::OtherCluster { .. } | Self::Behind { .. } => false,
            _ => true,
        }
    }

    /// The message with its causes, for the log and for [`super::StreamStatus::problem`].
    #[must_use]
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl From<Error> for crate::error::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Vault(error) => Self::Vault(error),
            other => Self::Stream {
                code: other.code(),
                retryable: other.is_retryable(),
                message: other.chain(),
            },
        }
    }
}
