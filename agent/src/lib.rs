//! A machine that runs PostgreSQL: leases jobs from the scheduler, does them, reports.
//!
//! Read in this order: [`config`] and [`runtime`] (what a process is told and what it starts),
//! [`client`] and [`lease`] (how work arrives and when it must stop), [`node`] (the servers of this
//! machine), [`work`] (one file per job), [`postgres`] (one file per thing that a server is made of),
//! [`stream`] (WAL becomes durable), [`snapshot`] and [`restore`] (the two long jobs), [`frozen`] (what makes both short
//! where the file system can).
//!
//! The agent speaks SQL to managed servers only. It keeps them, and their streams, running without
//! the control plane for as long as its cached keys and credentials last (RELIABILITY §5.3.8).

pub mod assignments;
pub mod busy;
pub mod client;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod equipment;
pub mod error;
pub mod fence;
pub mod frozen;
pub mod heartbeat;
pub mod job;
pub mod lease;
pub mod limits;
pub mod node;
pub mod postgres;
pub mod reserve;
pub mod restore;
pub mod runtime;
pub mod server;
pub mod snapshot;
pub mod stream;
pub mod trace;
pub mod wal_news;
pub mod work;

#[cfg(test)]
pub(crate) mod gateway_fixture;
#[cfg(test)]
mod lease_tests;
#[cfg(test)]
pub(crate) mod node_fixture;

pub use clock::Clock;
pub use config::AgentConfig;
pub use error::{Error, Result};
pub use job::JobContext;
pub use limits::Limits;
pub use node::Node;
pub use runtime::Agent;
pub use server::ServerHandle;
