//! Identifiers. Each is a UUID in a type of its own, so that a node's cannot be passed where a
//! server's belongs. Names never identify anything on a disk or in a store (DESIGN §3.13); these do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new identifier, ordered by creation (UUID version 7).
            #[must_use]
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Uuid {
                id.0
            }
        }
    )+};
}

id! {
    /// The tenant's boundary; the first column of every tenant-scoped key (DESIGN §1).
    SubscriptionId,
    /// One managed PostgreSQL instance, for life.
    ServerId,
    /// One life of a data directory; renewed by every restore, never by a failover.
    IncarnationId,
    /// A machine that runs an agent.
    NodeId,
    /// One start of an agent process: tells two processes with one node id apart.
    BootId,
    /// One physical image of a data directory.
    BackupId,
    /// A place for copies: one failure domain.
    VaultId,
    /// What a user asked for and polls.
    OperationId,
    /// One piece of work for one node.
    JobId,
    /// A hold that a running restore has on what it reads.
    PinId,
    /// A management lock.
    LockId,
    /// One line of the activity log.
    EventId,
}
