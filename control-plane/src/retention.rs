//! Duty: what has left the retention window is unlinked, and after its grace deleted. What may go is
//! said in `domain::retention`; deleting is [`crate::prune`].

use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::retention::{Held, sweep};
use holdfast_domain::server::Server;
use holdfast_domain::{BackupId, IncarnationId, ServerId, SubscriptionId};

use crate::backup::can_be_spared;
use crate::store::catalogue::Depth;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Result, prune};

impl ControlPlane {
    /// One transaction a server. Answers how many backups and WAL objects were unlinked and how many
    /// prune jobs queued.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn sweep(&self) -> Result<usize> {
        let now = self.clock().now();
        let (to_sweep, to_purge) = {
            let mut conn = self.pool().acquire().await?;
            (
                store::server::to_sweep(&mut conn, now).await?,
                store::server::to_purge(&mut conn, now).await?,
            )
        };
        let mut done = 0;
        for (which, over) in to_sweep
            .into_iter()
            .map(|which| (which, false))
            .chain(to_purge.into_iter().map(|which| (which, true)))
        {
            let (subscription, server) = which;
            let Some((mut unit, server)) = self.hold(subscription, server).await? else {
                continue;
            };
            let Some(incarnation) = server.incarnation else { continue };
            done += if over {
                purge(&mut unit, &server, incarnation).await?
            } else {
                self.sweep_one(&mut unit, &server, incarnation).await?
            };
            done += prune::queue(self, &mut unit, &server, incarnation, over).await?;
            unit.commit().await?;
        }
        Ok(done)
    }

    async fn hold(
        &self,
        subscription: SubscriptionId,
        server: ServerId,
    ) -> Result<Option<(Unit, Server)>> {
        let mut unit = Unit::begin(self).await?;
        let held =
            store::server::by_id(unit.conn(), subscription, server, Hold::UpdateOrSkip).await?;
        Ok(held.map(|server| (unit, server)))
    }

    /// Phase one: unlink. From here on nothing chooses what is let go, and its bytes wait for the grace.
    async fn sweep_one(
        &self,
        unit: &mut Unit,
        server: &Server,
        incarnation: IncarnationId,
    ) -> Result<usize> {
        let now = unit.now();
        let subscription = server.subscription;
        let Some(mut catalogue) =
            store::catalogue::load(unit.conn(), subscription, incarnation, Depth::Whole).await?
        else {
            return Ok(0);
        };
        let held = store::pin::on(unit.conn(), subscription, incarnation).await?;
        let window_start = server.settings.retention.start(server.window_end(now));
        let hidden = store::backup::hidden(unit.conn(), subscription, incarnation).await?;
        let mut expire = spared(&mut catalogue, &hidden, &held);
        let swept = sweep(&catalogue, window_start, &held);
        for (backup, keep) in &swept.keep {
            tracing::debug!(server.id = %server.id, backup.id = %backup, ?keep, "kept");
        }
        expire.extend(&swept.expire);
        let after = now + self.policy().prune_grace;
        let backups = store::backup::expire(unit.conn(), subscription, &expire, after).await?;
        let objects =
            store::wal::expire(unit.conn(), subscription, incarnation, &swept.wal, after).await?;
        if backups + objects > 0 {
            tracing::info!(server.id = %server.id, backups, objects, %window_start, "unlinked");
        }
        Ok(usize::try_from(backups + objects).unwrap_or(usize::MAX))
    }
}

/// Backups that their users deleted and that no instant needs any more; taken out of the catalogue.
fn spared(catalogue: &mut Catalogue, hidden: &[BackupId], held: &[Held]) -> Vec<BackupId> {
    let mut spared = Vec::new();
    for id in hidden {
        if !held.iter().any(|held| held.backup == *id) && can_be_spared(catalogue, *id) {
            catalogue.backups.retain(|backup| backup.id != *id);
            spared.push(*id);
        }
    }
    spared
}

/// A tombstone's time is over: everything may go, at once (FLX-144).
async fn purge(unit: &mut Unit, server: &Server, incarnation: IncarnationId) -> Result<usize> {
    let now = unit.now();
    let subscription = server.subscription;
    if !store::pin::on(unit.conn(), subscription, incarnation).await?.is_empty() {
        return Ok(0);
    }
    let complete =
        store::backup::complete(unit.conn(), &[subscription.0], &[incarnation.0]).await?;
    let ids: Vec<BackupId> = complete.into_iter().map(|(_, backup)| backup.id).collect();
    let backups = store::backup::expire(unit.conn(), subscription, &ids, now).await?;
    store::backup::hasten(unit.conn(), subscription, incarnation, now).await?;
    let objects = store::wal::expire_all(unit.conn(), subscription, incarnation, now).await?;
    Ok(usize::try_from(backups + objects).unwrap_or(usize::MAX))
}
