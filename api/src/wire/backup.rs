//! A backup as clients see it: no size, no status; listed only once complete (contract §4.1).

use holdfast_domain::backup::BackupKind;
use holdfast_domain::instant;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct Backup {
    pub properties: BackupProperties,
    pub id: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupProperties {
    /// `Full` or `Customer On-Demand`.
    pub backup_type: String,
    /// `Automatic` or `Customer Initiated`.
    pub source: String,
    pub completed_time: String,
}

impl Backup {
    #[must_use]
    pub fn new(
        server_id: &str,
        name: &str,
        kind: BackupKind,
        completed_time: chrono::DateTime<chrono::Utc>,
    ) -> Self {
        let (backup_type, source) = match kind {
            BackupKind::Automatic => ("Full", "Automatic"),
            BackupKind::OnDemand => ("Customer On-Demand", "Customer Initiated"),
        };
        Self {
            properties: BackupProperties {
                backup_type: backup_type.to_owned(),
                source: source.to_owned(),
                completed_time: instant::wire(completed_time),
            },
            id: format!("{server_id}/backups/{name}"),
            name: name.to_owned(),
            kind: "Microsoft.DBforPostgreSQL/flexibleServers/backups".to_owned(),
        }
    }
}
