//! The receiver of a managed server's WAL (DESIGN §3.3, RELIABILITY §5.3).
//!
//! One [`Streamer`] per incarnation: it takes WAL over the replication protocol, seals it into objects
//! and tells PostgreSQL that a byte is flushed once every store has it, never earlier. It needs neither the
//! control plane nor its database; what it has to say waits in the [`ledger`] until somebody keeps it.
//! A server that does not run is read from its `pg_wal` instead ([`drain_pg_wal`]).
//!
//! Read in this order: [`cutter`] (what becomes an object), `session` (the conversation with PostgreSQL),
//! `streamer` (the loop that holds both together), [`drain`].

pub mod change_map;
mod cutter;
mod drain;
mod error;
mod handle;
mod ledger;
mod memory;
mod observer;
mod origin;
mod pg_wal;
mod put;
mod replication;
mod session;
mod streamer;
mod transactions;

pub use drain::{DrainConfig, ack_drained, drain_pg_wal};
pub use error::Error;
pub use handle::{StreamConfig, StreamHandle, StreamStatus};
pub use replication::SLOT;
pub use streamer::Streamer;

#[cfg(test)]
mod tests;
