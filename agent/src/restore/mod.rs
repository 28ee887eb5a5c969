//! Brings a server back from the vault, to exactly the state that was asked for.
//!
//! PostgreSQL does the recovery, and never decides when it is over (DESIGN §3.5): [`goal`] is the last
//! record to be replayed, [`plan`] says which WAL exists for it and how it must end, [`wal_server`] hands that WAL out and nothing else,
//! [`recovery`] runs it, [`history`] compares the end with the plan. Around it: [`directory`] (where
//! it happens), [`handover`] (what a restored server must not keep), [`parameters`] and [`tasks`]
//! (what the caller is told). [`unattended`] is for the day on which there is no agent: it lays a directory out
//! that PostgreSQL recovers by itself. `crate::work::restore` puts them in the order of RELIABILITY §5.4.

pub mod directory;
pub mod finished;
pub mod goal;
pub mod handover;
pub mod history;
pub mod parameters;
pub mod patience;
pub mod plan;
pub mod progress;
pub mod recovery;
pub mod sample;
pub mod segment_source;
pub mod tablespace_guard;
pub mod tasks;
pub mod unattended;
pub mod wal_get;
pub mod wal_server;

pub use wal_get::wal_get_main;

#[cfg(test)]
mod compaction_tests;
#[cfg(test)]
mod outage_tests;
#[cfg(test)]
mod round_trip_tests;
#[cfg(test)]
pub(crate) mod test_site;
