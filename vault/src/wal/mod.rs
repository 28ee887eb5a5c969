//! The write-ahead log: walking its records, sealing its ranges, finding a target in it.
//!
//! WAL reaches the vault as objects: contiguous byte ranges of one timeline, each with a header that
//! says which commits end in it ([`object`]). The [`walker`] finds those while the bytes stream by, and
//! again when a restore has to turn an instant into a position ([`target`], RELIABILITY §5.5).

pub mod blocks;
pub mod counting;
pub mod history;
pub mod object;
pub mod page;
pub mod record;
pub mod survey;
pub mod target;
pub mod walker;

pub use object::{OpenedWal, SealedWal, WalHeader, WalRange, get_wal, put_wal, seal_wal};
pub use walker::{InvalidWal, Walker};

#[cfg(test)]
pub(crate) mod synthetic;
#[cfg(test)]
mod target_tests;
#[cfg(test)]
mod walker_tests;
