//! The JSON of the contract, exactly; the domain never derives it.
//!
//! The newest api-version is the type. What older clients expect differently is asked of
//! [`crate::arm::ApiVersion`] where the type is filled.

pub mod activity;
pub mod backup;
pub mod error;
pub mod list;
pub mod lock;
pub mod name_availability;
pub mod operation;
pub mod provider;
pub mod recovery;
pub mod resource_group;
pub mod server;
pub mod server_body;
pub mod word;

use chrono::{DateTime, Utc};

/// `2026-03-31T21:55:27.9830000Z`, as `systemData` shows times.
#[must_use]
pub fn zulu(at: DateTime<Utc>) -> String {
    format!("{}0Z", at.format("%Y-%m-%dT%H:%M:%S%.6f"))
}

/// `2026-03-31T21:55:27.983Z`, as operations show times (contract §5).
#[must_use]
pub fn zulu_millis(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
