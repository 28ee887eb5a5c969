//! What nodes join with. A node's certificate lives for a day; one that was off or asleep for longer
//! joins again by itself, so its token file holds a good token for as long as a scheduler runs. A token
//! works once, for one node (RELIABILITY §4.3).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use chrono::TimeDelta;
use holdfast_control_plane::ControlPlane;

use crate::state_dir;

/// An installation is started by hand, part after part.
const LIFE: TimeDelta = TimeDelta::hours(1);
/// Much oftener than tokens die: a machine that was asleep does not notice how long.
const AGAIN_AFTER: Duration = Duration::from_secs(10 * 60);

/// A node that may join, and where it finds its token.
#[derive(Debug, Clone)]
pub struct Joiner {
    pub name: String,
    pub region: String,
    pub zone: Option<String>,
    pub file: PathBuf,
}

/// Gives every node a fresh token. A node that has a certificate does not look at it.
pub async fn issue(control_plane: &ControlPlane, joiners: &[Joiner]) -> Result<()> {
    for joiner in joiners {
        let zone = joiner.zone.as_deref();
        let token = control_plane
            .issue_join_token(&joiner.name, &joiner.region, zone, LIFE)
            .await?;
        state_dir::replace(&joiner.file, format!("{token}\n").as_bytes(), 0o600)?;
    }
    Ok(())
}

/// Issues them again and again, until it is dropped.
pub async fn keep_issuing(control_plane: ControlPlane, joiners: Vec<Joiner>) {
    loop {
        tokio::time::sleep(AGAIN_AFTER).await;
        if let Err(error) = issue(&control_plane, &joiners).await {
            tracing::warn!(%error, "no fresh join tokens for a moment");
        }
    }
}
