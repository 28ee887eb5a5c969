//! `checkNameAvailability` (contract §4.3): always 200; the answer is in the body.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
pub struct NameQuestion {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct NameAnswer {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "nameAvailable")]
    pub available: bool,
    /// `Invalid` or `AlreadyExists`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
    pub message: String,
}
