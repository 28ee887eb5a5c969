//! Which operation answered which request.

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::{OperationId, SubscriptionId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// Reserves the answer to a request. `None`: it is ours; `Some`: another request like it was first.
///
/// Waits for a concurrent twin's transaction: fifty identical requests make one operation.
pub(crate) async fn reserve(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    request: &[u8],
    operation: OperationId,
    named: bool,
    now: DateTime<Utc>,
    valid_for: TimeDelta,
) -> Result<Option<OperationId>> {
    loop {
        let ours = sqlx::query(
            "insert into idempotency (subscription_id, request_hash, operation_id, named, created_at)
             values ($1, $2, $3, $4, $5) on conflict do nothing",
        )
        .bind(subscription.0)
        .bind(request)
        .bind(operation.0)
        .bind(named)
        .bind(now)
        .execute(&mut *conn)
        .await?;
        if ours.rows_affected() == 1 {
            return Ok(None);
        }
        // A statement of its own, because only a new snapshot sees what the twin has committed.
        let first: Option<(Uuid, bool)> = sqlx::query_as(
            "select i.operation_id,
                    i.created_at > $3 and o.id is not null and (i.named or o.ended_at is null)
               from idempotency i
               left join operation o on (o.subscription_id, o.id) = (i.subscription_id, i.operation_id)
              where i.subscription_id = $1 and i.request_hash = $2",
        )
        .bind(subscription.0)
        .bind(request)
        .bind(now - valid_for)
        .fetch_optional(&mut *conn)
        .await?;
        let stale = match first {
            Some((first, true)) => return Ok(Some(OperationId(first))),
            Some((stale, false)) => stale,
            None => continue,
        };
        // An answer that is no longer given is taken over, by one twin only: the other waits here,
        // finds another operation in the row, and looks again.
        let taken = sqlx::query(
            "update idempotency set operation_id = $3, named = $4, created_at = $5
              where subscription_id = $1 and request_hash = $2 and operation_id = $6",
        )
        .bind(subscription.0)
        .bind(request)
        .bind(operation.0)
        .bind(named)
        .bind(now)
        .bind(stale)
        .execute(&mut *conn)
        .await?;
        if taken.rows_affected() == 1 {
            return Ok(None);
        }
    }
}

/// Drops answers that are no longer given.
pub(crate) async fn forget(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    let done = sqlx::query("delete from idempotency where created_at <= $1")
        .bind(before)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}
