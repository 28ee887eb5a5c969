//! One physical backup of a running server: what is read, in which order, and what is believed.
//!
//! [`session`] tells PostgreSQL that a backup begins and ends, [`walk`] says which files belong to
//! it, [`reading`] which of their pages are read, [`copy`] feeds them to the vault, [`page`] and [`control_file`] judge what was read, and
//! [`wal`] proves that the log from start to stop is durable. `crate::work::snapshot` puts them in
//! the order of RELIABILITY §5.2.

pub mod control_file;
pub mod copy;
pub mod page;
pub mod reading;
pub mod session;
mod summaries;
pub mod wal;
pub mod walk;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod equality_tests;
