//! The backup repository: how a data directory and WAL become sealed objects in an object store,
//! and come back. Readable without any database: a vault and its key-encryption key are enough
//! (DESIGN §3.14). The bytes are described in `docs/VAULT-FORMAT.md`.
//!
//! Read in this order: [`store`] (bytes, durably), [`key`] and [`seal`] (nobody else reads or changes
//! them), [`layout`] (what lies where), [`backup`] (a data directory) and [`wal`] (the log),
//! [`courtesy`] and [`pace`] (what a job may take of its machine).

pub mod backup;
pub mod courtesy;
pub mod error;
pub mod key;
pub mod layout;
pub mod pace;
pub mod prune;
pub mod rescan;
pub mod seal;
pub mod store;
pub mod verify;
pub mod wal;

pub use courtesy::Courtesy;
pub use error::{Error, Result};
pub use key::{DataKey, KeyRing};
pub use pace::Pace;
pub use store::{Store, get_anywhere, put_everywhere};
