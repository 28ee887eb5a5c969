//! Between the domain's values and the store's: enum labels and WAL positions.

use holdfast_domain::{Lsn, Timeline};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The label of a state or kind: the enum types of the schema have serde's names.
pub(crate) fn label<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(label)) => label,
        // Only enums without fields are given to this.
        _ => String::new(),
    }
}

pub(crate) fn from_label<T: DeserializeOwned>(label: String) -> Result<T> {
    serde_json::from_value(serde_json::Value::String(label))
        .map_err(|error| Error::corrupt(format!("unknown label: {error}")))
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(|error| Error::corrupt(format!("not JSON: {error}")))
}

/// A WAL position as PostgreSQL's bigint. The upper half of the range is out of any server's reach.
pub(crate) fn position(lsn: Lsn) -> Result<i64> {
    i64::try_from(lsn.0).map_err(|_| Error::Absurd(format!("WAL position {lsn}")))
}

pub(crate) fn lsn(position: i64) -> Lsn {
    Lsn(position.unsigned_abs())
}

pub(crate) fn number(timeline: Timeline) -> Result<i32> {
    match i32::try_from(timeline.0) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Error::Absurd(format!("timeline {timeline}"))),
    }
}

pub(crate) fn timeline(number: i32) -> Timeline {
    Timeline(number.unsigned_abs())
}

pub(crate) fn bytes(count: u64) -> Result<i64> {
    i64::try_from(count).map_err(|_| Error::Absurd(format!("{count} bytes")))
}
