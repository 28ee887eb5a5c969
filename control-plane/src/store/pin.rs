//! What running restores hold.

use chrono::{DateTime, Utc};
use holdfast_domain::operation::Operation;
use holdfast_domain::retention::Held;
use holdfast_domain::{BackupId, IncarnationId, PinId, SubscriptionId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// Places a pin on a backup and all WAL after it; once per holder and backup.
pub(crate) async fn place(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    backup: BackupId,
    holder: &Operation,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "insert into pin (subscription_id, id, incarnation_id, backup_id, holder_subscription_id, holder_operation_id, created_at)
         select $1, $2, $3, $4, $5, $6, $7
          where not exists (select from pin
                             where subscription_id = $1 and backup_id = $4
                               and holder_subscription_id = $5 and holder_operation_id = $6)",
    )
    .bind(subscription.0)
    .bind(PinId::new().0)
    .bind(incarnation.0)
    .bind(backup.0)
    .bind(holder.subscription.0)
    .bind(holder.id.0)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// The holder has ended.
pub(crate) async fn release(conn: &mut PgConnection, holder: &Operation) -> Result<()> {
    sqlx::query("delete from pin where holder_subscription_id = $1 and holder_operation_id = $2")
        .bind(holder.subscription.0)
        .bind(holder.id.0)
        .execute(conn)
        .await?;
    Ok(())
}

pub(crate) async fn on(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
) -> Result<Vec<Held>> {
    let rows: Vec<(Uuid,)> = sqlx::query_as(
        "select distinct backup_id from pin where subscription_id = $1 and incarnation_id = $2",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(id,)| Held {
            backup: BackupId(id),
        })
        .collect())
}
