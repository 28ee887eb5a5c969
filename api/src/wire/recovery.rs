//! `Holdfast.Recovery/restorePoints`: how far back, how fresh, and what a restore would use.
//!
//! Ours, in a namespace of ours, so that official clients never meet members that they do not know.
//! A dry run: it reserves nothing.

use holdfast_control_plane::restore::RestorePreview;
use holdfast_domain::instant;
use holdfast_domain::redundancy::Redundancy;
use holdfast_domain::restore::RestoreTarget;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub struct RestorePoints {
    pub id: String,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub properties: RestorePointsProperties,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestorePointsProperties {
    /// Where copies are demanded: `Local`, `Zone` or `Geo`.
    pub redundancy: String,
    pub earliest_restore_date: String,
    pub latest_restore_date: String,
    /// How old the newest restorable instant is: what would be lost now.
    pub recovery_point_age_seconds: f64,
    pub target: RestoreAim,
    pub backup: UsedBackup,
    pub wal: UsedWal,
    /// Write-ahead log that is lost for good; instants in it cannot be restored.
    pub gaps: Vec<Gap>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreAim {
    /// `Latest`, `Time`, or `Backup` (a fast restore).
    pub kind: String,
    #[serde(rename = "pointInTimeUTC", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub point_in_time_utc: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsedBackup {
    pub name: String,
    pub completed_time: String,
    /// Bytes that are written to the new server.
    pub logical_bytes: u64,
    pub stored_bytes: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct UsedWal {
    /// Bytes that recovery reads at most.
    pub bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub to: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Gap {
    pub timeline: String,
    pub from: String,
    pub to: String,
}

impl RestorePoints {
    #[must_use]
    pub fn new(server_id: &str, redundancy: Redundancy, preview: RestorePreview) -> Self {
        let completed = instant::wire(preview.backup_completed);
        let (kind, point_in_time_utc) = match preview.target {
            RestoreTarget::Latest | RestoreTarget::LatestUntil(_) => ("Latest", None),
            RestoreTarget::At(at) => ("Time", Some(instant::wire(at))),
            RestoreTarget::Backup(_) => ("Backup", Some(completed.clone())),
        };
        Self {
            id: format!("{server_id}/providers/Holdfast.Recovery/restorePoints"),
            name: "restorePoints".to_owned(),
            kind: "Holdfast.Recovery/restorePoints".to_owned(),
            properties: RestorePointsProperties {
                redundancy: format!("{redundancy:?}"),
                earliest_restore_date: instant::wire(preview.bounds.earliest),
                latest_restore_date: instant::wire(preview.bounds.latest),
                recovery_point_age_seconds: preview.age_seconds,
                target: RestoreAim {
                    kind: kind.to_owned(),
                    point_in_time_utc,
                },
                backup: UsedBackup {
                    name: preview.backup_name,
                    completed_time: completed,
                    logical_bytes: preview.backup_logical_bytes,
                    stored_bytes: preview.backup_stored_bytes,
                },
                wal: UsedWal {
                    bytes: preview.wal_bytes,
                    from: preview.wal_from.map(instant::wire),
                    to: preview.wal_to.map(instant::wire),
                },
                gaps: preview
                    .gaps
                    .into_iter()
                    .map(|gap| Gap {
                        timeline: gap.timeline.to_string(),
                        from: gap.start.to_string(),
                        to: gap.end.to_string(),
                    })
                    .collect(),
            },
        }
    }
}
