//! What backups named before their packs were rewritten. It stays for whoever reads by an older manifest,
//! and goes on its own terms, never because the last backup that named it goes.

use chrono::{DateTime, Utc};
use holdfast_domain::{IncarnationId, JobId, SubscriptionId};
use sqlx::PgConnection;

use crate::Result;

/// Whose rewriting made something superfluous, and since when.
#[derive(Clone, Copy)]
pub(crate) struct By {
    pub subscription: SubscriptionId,
    pub incarnation: IncarnationId,
    pub job: JobId,
    pub at: DateTime<Utc>,
    pub delete_after: DateTime<Utc>,
}

/// Takes note of manifests, and of objects with their sizes as the catalogue knows them.
pub(crate) async fn insert(conn: &mut PgConnection, by: By, keys: &[String]) -> Result<()> {
    sqlx::query(
        "insert into superseded_object
                (subscription_id, incarnation_id, key, bytes, job_id, superseded_at, delete_after)
         select $1, $2, k.key, coalesce(o.bytes, 0), $4, $5, $6
           from (select distinct key from unnest($3::text[]) as given (key)) k
           left join lateral (select max(bytes) as bytes from backup_object
                               where subscription_id = $1 and incarnation_id = $2 and key = k.key) o on true
         on conflict (subscription_id, incarnation_id, key)
         do update set job_id = excluded.job_id, superseded_at = excluded.superseded_at,
                       delete_after = excluded.delete_after",
    )
    .bind(by.subscription.0)
    .bind(by.incarnation.0)
    .bind(keys)
    .bind(by.job.0)
    .bind(by.at)
    .bind(by.delete_after)
    .execute(conn)
    .await?;
    Ok(())
}

/// What may go now, manifests first: its time has come, no backup names it, no restore is under way and
/// no snapshot that may have begun with an older manifest.
pub(crate) async fn to_prune(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    now: DateTime<Utc>,
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select s.key from superseded_object s
          where s.subscription_id = $1 and s.incarnation_id = $2 and s.delete_after <= $3
            and not exists (select from backup_object o
                             where o.subscription_id = $1 and o.incarnation_id = $2 and o.key = s.key)
            and not exists (select from backup b
                             where b.subscription_id = $1 and b.incarnation_id = $2
                               and b.state in ('complete', 'expiring') and b.manifest ->> 'key' = s.key)
            and not exists (select from pin p where p.subscription_id = $1 and p.incarnation_id = $2)
            and not exists (select from job j
                             where j.subscription_id = $1 and j.incarnation_id = $2
                               and j.kind = 'snapshot' and j.state in ('queued', 'leased'))
          order by not starts_with(s.key, 'backups/'), s.key",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(now)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(key,)| key).collect())
}

/// They are gone.
pub(crate) async fn forget(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    keys: &[String],
) -> Result<()> {
    sqlx::query(
        "delete from superseded_object
          where subscription_id = $1 and incarnation_id = $2 and key = any($3)",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(keys)
    .execute(conn)
    .await?;
    Ok(())
}

/// The server's time is over: nothing waits any more.
pub(crate) async fn hasten(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "update superseded_object set delete_after = $3
          where subscription_id = $1 and incarnation_id = $2 and delete_after > $3",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Counts a life's packs and leaf objects anew. Where something was added or deleted, not where it is asked.
pub(crate) async fn recount(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
) -> Result<()> {
    sqlx::query(
        "update incarnation
            set backup_bytes = (
                select coalesce(sum(once.bytes), 0)::bigint
                  from (select max(every.bytes) as bytes
                          from (select key, bytes from backup_object
                                 where subscription_id = $1 and incarnation_id = $2
                                union all
                                select key, bytes from superseded_object
                                 where subscription_id = $1 and incarnation_id = $2) every
                         group by every.key) once)
          where subscription_id = $1 and id = $2",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .execute(conn)
    .await?;
    Ok(())
}
