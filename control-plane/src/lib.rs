//! The truth, kept in PostgreSQL, and what may be done with it: one use case, one transaction.
//!
//! A use case loads, asks the domain, writes, records the event and commits; whoever called it hears
//! the answer after the commit, never before (DESIGN §3.16). This is the only crate with SQL of the
//! metadata store. Nothing here waits for a node: agents pull jobs ([`job`]), and the *duties*
//! (`advance_operations`, `schedule_snapshots`, `sweep`, …) look at the whole state, decide, write
//! and return how much they did – anywhere, twice, or half.
//!
//! Read [`server`] for the shape of a use case, [`advance`] for how operations move, [`job`] for
//! what a node may say, [`store`] for how things are kept.

pub mod activity;
mod advance;
mod apply;
pub mod backup;
pub mod clock;
mod compaction;
mod compose;
mod control_plane;
mod deadline;
pub mod error;
mod forget;
pub mod gauge;
pub mod hints;
mod idempotency;
pub mod job;
pub mod lock;
pub mod node;
pub mod operation;
pub mod page;
mod placement;
pub mod policy;
mod prune;
mod rescue;
pub mod resource_group;
pub mod restore;
mod retention;
pub mod role;
pub mod server;
mod settle;
mod snapshot;
mod store;
#[cfg(test)]
mod story;
mod subscription;
mod transaction;

pub use clock::Clock;
pub use control_plane::ControlPlane;
pub use error::{Error, Result};
pub use hints::Hints;
pub use idempotency::Idempotency;
pub use operation::Accepted;
pub use page::{Page, PageRequest};
pub use policy::Policy;
pub use server::{PutMode, ServerRef, ServerView};

pub use sqlx::PgPool;
