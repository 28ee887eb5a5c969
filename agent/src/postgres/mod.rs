//! What a managed server is made of: the programs ([`installation`]), the user they run as
//! ([`service_user`]), one life of a postmaster ([`postmaster`]) and the watch that keeps one alive
//! ([`instance`]), its files ([`configuration`], [`control_file`]) and its SQL ([`connection`],
//! [`administrator`], [`drift`]).
//!
//! No shell anywhere: programs get argument arrays and an environment of our own (DESIGN §3.13).

pub mod administrator;
pub mod configuration;
pub mod connection;
pub mod control_file;
pub mod drift;
pub mod initdb;
pub mod installation;
pub mod instance;
pub mod occupancy;
pub mod postmaster;
pub mod server_log;
pub mod service_user;
pub mod sql;

#[cfg(test)]
pub(crate) mod cluster_fixture;

pub use connection::Connection;
pub use installation::Installation;
pub use instance::{FAILING_AFTER, Instance, InstanceState};
pub use postmaster::{Postmaster, PostmasterSpec, StopMode};
pub use service_user::ServiceUser;

/// The superuser of every managed server. The agent's own, by peer authentication; no tenant is ever
/// a member of it (DESIGN §3.18).
pub const AGENT_ROLE: &str = "holdfast";
/// Becomes the administrator; for whoever runs the agent, by peer on the socket only.
pub const OPERATOR_ROLE: &str = "holdfast_operator";
/// The physical replication slot of every managed server (RELIABILITY §5.3.2).
pub const SLOT: &str = "holdfast";
