//! `GET /providers/Microsoft.DBforPostgreSQL/operations`: what roles can be made of (contract §4.6).

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProviderOperation {
    pub name: String,
    pub display: ProviderOperationDisplay,
    pub is_data_action: bool,
    pub origin: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ProviderOperationDisplay {
    pub provider: String,
    pub resource: String,
    pub operation: String,
    pub description: String,
}
