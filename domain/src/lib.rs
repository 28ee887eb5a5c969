//! What Holdfast's things are and what follows from them.
//!
//! Plain functions over plain values: no I/O, no async, no SQL, no HTTP, and no clock – time is an
//! argument (DESIGN §3.11). Every other crate imports this one; it imports none of them.
//!
//! Read in this order: [`server`], [`backup`], [`wal`], [`catalogue`] (what exists), [`restore`] and
//! [`retention`] (what the catalogue allows and what may go), [`operation`], [`job`] and [`plan`]
//! (what is under way and what comes next), [`refusal`] (every way of saying no).

pub mod activity;
pub mod backup;
pub mod catalogue;
pub mod compaction;
#[cfg(test)]
mod history;
pub mod id;
pub mod instant;
pub mod job;
pub mod leavings;
pub mod lock;
pub mod lsn;
pub mod name;
pub mod node;
pub mod operation;
pub mod plan;
pub mod redundancy;
pub mod refusal;
pub mod region;
pub mod resource_id;
pub mod restore;
pub mod retention;
pub mod role;
pub mod schedule;
pub mod server;
pub mod wal;

pub use id::*;
pub use lsn::{Lsn, Timeline};
pub use refusal::Refusal;
