//! What compaction decides from, and the turn from old manifests to new ones.

use chrono::{DateTime, Utc};
use holdfast_domain::compaction::ObjectUse;
use holdfast_domain::job::{ManifestRef, RewrittenBackup};
use holdfast_domain::{BackupId, IncarnationId, SubscriptionId};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::label::bytes;
use crate::{Error, Result};

/// Whether it is time to look again, and nobody is at work on this life's backups.
pub(crate) async fn may_look(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    looked_before: DateTime<Utc>,
) -> Result<bool> {
    let (may,): (bool,) = sqlx::query_as(
        "select exists (select from incarnation i
                         where i.subscription_id = $1 and i.id = $2
                           and coalesce(i.compaction_looked_at, '-infinity') <= $3)
            and not exists (select from job j
                             where j.subscription_id = $1 and j.incarnation_id = $2
                               and j.kind in ('snapshot', 'compact') and j.state in ('queued', 'leased'))",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(looked_before)
    .fetch_one(conn)
    .await?;
    Ok(may)
}

pub(crate) async fn looked(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "update incarnation set compaction_looked_at = $3 where subscription_id = $1 and id = $2",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// What complete backups need of each object. A page that a backup does not need any more is needed by
/// none after it, so the backup that needs the most of an object needs all of it that lives.
pub(crate) async fn usage(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
) -> Result<Vec<ObjectUse>> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(
        "select o.key, max(o.bytes), max(coalesce(o.living, o.bytes))
           from backup_object o
           join backup b on (b.subscription_id, b.id) = (o.subscription_id, o.backup_id)
          where o.subscription_id = $1 and o.incarnation_id = $2 and b.state = 'complete'
          group by o.key",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(key, bytes, living)| ObjectUse {
            key,
            bytes: bytes.unsigned_abs(),
            living: living.unsigned_abs(),
        })
        .collect())
}

/// Sets aside generations of a backup's manifest, one for each attempt. Answers the first.
pub(crate) async fn reserve(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    backup: BackupId,
    attempts: u32,
) -> Result<u32> {
    let (first,): (i32,) = sqlx::query_as(
        "update backup
            set next_generation = coalesce(next_generation, (manifest ->> 'generation')::integer + 1) + $3
          where subscription_id = $1 and id = $2
      returning next_generation - $3",
    )
    .bind(subscription.0)
    .bind(backup.0)
    .bind(i32::try_from(attempts).unwrap_or(i32::MAX))
    .fetch_one(conn)
    .await?;
    u32::try_from(first)
        .map_err(|_| Error::corrupt(format!("backup {backup} has generation {first}")))
}

/// Whether a complete backup is read by this manifest.
pub(crate) async fn is_current(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    manifest: &ManifestRef,
) -> Result<bool> {
    let (is,): (bool,) = sqlx::query_as(
        "select exists (select from backup
                         where subscription_id = $1 and incarnation_id = $2 and id = $3
                           and state = 'complete' and manifest = $4)",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(manifest.backup.0)
    .bind(Json(manifest))
    .fetch_one(conn)
    .await?;
    Ok(is)
}

/// From here on the backup is read by its new manifest. It must be read by the old one until now.
pub(crate) async fn turn(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    from: &ManifestRef,
    to: &RewrittenBackup,
) -> Result<()> {
    let backup = from.backup.0;
    let done = sqlx::query(
        "update backup set manifest = $5
          where subscription_id = $1 and incarnation_id = $2 and id = $3 and state = 'complete'
            and manifest = $4",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(backup)
    .bind(Json(from))
    .bind(Json(&to.manifest))
    .execute(&mut *conn)
    .await?;
    if done.rows_affected() != 1 {
        return Err(Error::corrupt(format!(
            "backup {} turned to another manifest meanwhile",
            from.backup
        )));
    }
    sqlx::query(
        "delete from backup_object where subscription_id = $1 and backup_id = $2 and key = any($3)",
    )
    .bind(subscription.0)
    .bind(backup)
    .bind(&to.dropped)
    .execute(&mut *conn)
    .await?;
    let sizes = column(to, |object| Some(object.bytes))?;
    let living = column(to, |object| object.living)?;
    let keys: Vec<&str> = to.added.iter().map(|object| object.key.as_str()).collect();
    sqlx::query(
        "insert into backup_object (subscription_id, backup_id, incarnation_id, key, bytes, living)
         select $1, $2, $3, o.* from unnest($4::text[], $5::bigint[], $6::bigint[]) as o
         on conflict (subscription_id, backup_id, key) do nothing",
    )
    .bind(subscription.0)
    .bind(backup)
    .bind(incarnation.0)
    .bind(keys)
    .bind(sizes)
    .bind(living)
    .execute(conn)
    .await?;
    Ok(())
}

fn column(
    to: &RewrittenBackup,
    of: impl Fn(&holdfast_domain::job::ObjectRef) -> Option<u64>,
) -> Result<Vec<Option<i64>>> {
    to.added
        .iter()
        .map(|object| of(object).map(bytes).transpose())
        .collect()
}

/// Compactions wrote so much.
pub(crate) async fn add_rewritten(conn: &mut PgConnection, bytes: u64) -> Result<()> {
    sqlx::query(
        "insert into prune_tally (bytes, rewritten_bytes) values (0, $1)
         on conflict (is_the_one) do update
            set rewritten_bytes = prune_tally.rewritten_bytes + excluded.rewritten_bytes",
    )
    .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
    .execute(conn)
    .await?;
    Ok(())
}
