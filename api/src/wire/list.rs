//! `{"value":[…],"nextLink"?}`: `value` is an array even when empty (contract, other-apis §0).

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    pub value: Vec<T>,
    /// Absolute; absent on the last page.
    #[serde(rename = "nextLink", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_link: Option<String>,
}

impl<T> List<T> {
    #[must_use]
    pub fn whole(value: Vec<T>) -> Self {
        Self {
            value,
            next_link: None,
        }
    }
}
