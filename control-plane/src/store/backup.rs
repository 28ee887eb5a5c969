//! Backups and the objects that they name.

use chrono::{DateTime, Utc};
use holdfast_domain::backup::{BackupKind, BackupState, CompleteBackup};
use holdfast_domain::job::{ManifestRef, SnapshotOutcome};
use holdfast_domain::operation::Failure;
use holdfast_domain::{BackupId, IncarnationId, ServerId, SubscriptionId, VaultId};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::label::{bytes, from_label, label, lsn, number, position, timeline};
use crate::{Error, Result};

/// The failure code of an automatic backup that made way for a stop; it is no failure to learn from.
pub(crate) const CANCELED: &str = "BackupCanceled";

/// A backup in any state.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Backup {
    pub subscription: SubscriptionId,
    pub id: BackupId,
    pub server: ServerId,
    pub incarnation: IncarnationId,
    pub kind: BackupKind,
    pub state: BackupState,
    pub name: Option<String>,
    pub complete: Option<CompleteBackup>,
    pub logical_bytes: u64,
    pub stored_bytes: u64,
    pub delete_after: Option<DateTime<Utc>>,
}

#[derive(sqlx::FromRow)]
struct Row {
    subscription_id: Uuid,
    id: Uuid,
    server_id: Uuid,
    incarnation_id: Uuid,
    kind: String,
    state: String,
    name: Option<String>,
    timeline: Option<i32>,
    start_lsn: Option<i64>,
    stop_lsn: Option<i64>,
    completed_time: Option<DateTime<Utc>>,
    manifest: Option<Json<ManifestRef>>,
    logical_bytes: Option<i64>,
    stored_bytes: Option<i64>,
    damaged: Option<bool>,
    delete_after: Option<DateTime<Utc>>,
}

const SELECT: &str = "
    select b.subscription_id, b.id, b.server_id, b.incarnation_id, b.kind::text as kind, b.state::text as state,
           b.name, b.timeline, b.start_lsn, b.stop_lsn, b.completed_time, b.manifest, b.logical_bytes,
           b.stored_bytes, b.damaged, b.delete_after
      from backup b";

impl TryFrom<Row> for Backup {
    type Error = Error;
    fn try_from(row: Row) -> Result<Self> {
        let kind = from_label(row.kind)?;
        let complete = match (
            &row.name,
            row.timeline,
            row.start_lsn,
            row.stop_lsn,
            row.completed_time,
            row.manifest,
        ) {
            (
                Some(name),
                Some(on),
                Some(start),
                Some(stop),
                Some(completed_time),
                Some(manifest),
            ) => Some(CompleteBackup {
                id: BackupId(row.id),
                name: name.clone(),
                kind,
                timeline: timeline(on),
                start: lsn(start),
                stop: lsn(stop),
                completed_time,
                manifest: manifest.0,
                damaged: row.damaged.unwrap_or(false),
            }),
            _ => None,
        };
        Ok(Self {
            subscription: SubscriptionId(row.subscription_id),
            id: BackupId(row.id),
            server: ServerId(row.server_id),
            incarnation: IncarnationId(row.incarnation_id),
            kind,
            state: from_label(row.state)?,
            name: row.name,
            complete,
            logical_bytes: row.logical_bytes.unwrap_or(0).unsigned_abs(),
            stored_bytes: row.stored_bytes.unwrap_or(0).unsigned_abs(),
            delete_after: row.delete_after,
        })
    }
}

/// Complete backups, hidden ones included: what a catalogue consists of.
pub(crate) async fn complete(
    conn: &mut PgConnection,
    subscriptions: &[Uuid],
    incarnations: &[Uuid],
) -> Result<Vec<(IncarnationId, CompleteBackup)>> {
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT}
           join unnest($1::uuid[], $2::uuid[]) as asked (subscription_id, id)
             on (b.subscription_id, b.incarnation_id) = (asked.subscription_id, asked.id)
          where b.state = 'complete' order by b.completed_time, b.id"
    )))
    .bind(subscriptions)
    .bind(incarnations)
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let backup = Backup::try_from(row)?;
            let complete = backup
                .complete
                .ok_or_else(|| Error::corrupt(format!("backup {} is half complete", backup.id)))?;
            Ok((backup.incarnation, complete))
        })
        .collect()
}

/// What users see: complete and not deleted, oldest first.
pub(crate) async fn visible(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    server: ServerId,
) -> Result<Vec<Backup>> {
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT} where b.subscription_id = $1 and b.server_id = $2 and b.state = 'complete' and b.hidden_at is null
          order by b.completed_time, b.id"
    )))
    .bind(subscription.0)
    .bind(server.0)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Backup::try_from).collect()
}

/// The backup that has this name now: open or complete, not deleted.
pub(crate) async fn named(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    server: ServerId,
    name: &str,
) -> Result<Option<Backup>> {
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT} where b.subscription_id = $1 and b.server_id = $2 and b.name_key = lower($3)
            and b.state in ('requested', 'running', 'complete') and b.hidden_at is null"
    )))
    .bind(subscription.0)
    .bind(server.0)
    .bind(name)
    .fetch_optional(conn)
    .await?;
    row.map(Backup::try_from).transpose()
}

pub(crate) async fn by_id(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: BackupId,
) -> Result<Option<Backup>> {
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT} where b.subscription_id = $1 and b.id = $2"
    )))
    .bind(subscription.0)
    .bind(id.0)
    .fetch_optional(conn)
    .await?;
    row.map(Backup::try_from).transpose()
}

/// On-demand backups that count against the limit: open and complete ones (FLX-109).
pub(crate) async fn count_on_demand(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    server: ServerId,
) -> Result<u32> {
    let (count,): (i64,) = sqlx::query_as(
        "select count(*) from backup
          where subscription_id = $1 and server_id = $2 and kind = 'on-demand'
            and state in ('requested', 'running', 'complete') and hidden_at is null",
    )
    .bind(subscription.0)
    .bind(server.0)
    .fetch_one(conn)
    .await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Open backups of a server.
pub(crate) async fn open(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    server: ServerId,
) -> Result<Vec<Backup>> {
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT} where b.subscription_id = $1 and b.server_id = $2 and b.state in ('requested', 'running')
          order by b.requested_at, b.id"
    )))
    .bind(subscription.0)
    .bind(server.0)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Backup::try_from).collect()
}

/// Asks for a backup. A violated `backup_one_open_automatic` means that another scheduler was first.
pub(crate) async fn insert(
    conn: &mut PgConnection,
    backup: &Backup,
    slot: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let done = sqlx::query(
        "insert into backup (subscription_id, id, server_id, incarnation_id, kind, state, name, name_key, slot, requested_at)
         values ($1, $2, $3, $4, $5::backup_kind, 'requested', $6, lower($6), $7, $8)
         on conflict do nothing",
    )
    .bind(backup.subscription.0)
    .bind(backup.id.0)
    .bind(backup.server.0)
    .bind(backup.incarnation.0)
    .bind(label(backup.kind))
    .bind(&backup.name)
    .bind(slot)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Its first attempt was given to a node.
pub(crate) async fn running(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: BackupId,
) -> Result<()> {
    sqlx::query(
        "update backup set state = 'running' where subscription_id = $1 and id = $2 and state = 'requested'",
    )
    .bind(subscription.0)
    .bind(id.0)
    .execute(conn)
    .await?;
    Ok(())
}

/// Everything that it needs is durable: from here on it can be chosen (DESIGN §3.4).
pub(crate) async fn completed(
    conn: &mut PgConnection,
    backup: &Backup,
    name: &str,
    made: &SnapshotOutcome,
    vaults: &[VaultId],
    now: DateTime<Utc>,
) -> Result<()> {
    let done = sqlx::query(
        "update backup
            set state = 'complete', name = $3, name_key = lower($3), timeline = $4, start_lsn = $5,
                stop_lsn = $6, completed_time = $7, manifest = $8, logical_bytes = $9, stored_bytes = $10,
                damaged = $11
          where subscription_id = $1 and id = $2 and state in ('requested', 'running')",
    )
    .bind(backup.subscription.0)
    .bind(backup.id.0)
    .bind(name)
    .bind(number(made.timeline)?)
    .bind(position(made.start_lsn)?)
    .bind(position(made.stop_lsn)?)
    .bind(made.completed_time)
    .bind(Json(&made.manifest))
    .bind(bytes(made.logical_bytes)?)
    .bind(bytes(made.stored_bytes)?)
    .bind(!made.corrupt_pages.is_empty())
    .execute(&mut *conn)
    .await?;
    if done.rows_affected() != 1 {
        return Err(Error::corrupt(format!("backup {} is not open", backup.id)));
    }
    let sizes = made
        .objects
        .iter()
        .map(|object| bytes(object.bytes))
        .collect::<Result<Vec<_>>>()?;
    let living = made
        .objects
        .iter()
        .map(|object| {
            object
                .living
                .map(|living| bytes(living.min(object.bytes)))
                .transpose()
        })
        .collect::<Result<Vec<_>>>()?;
    sqlx::query(
        "insert into backup_object (subscription_id, backup_id, incarnation_id, key, bytes, living)
         select $1, $2, $3, o.* from unnest($4::text[], $5::bigint[], $6::bigint[]) as o
         on conflict do nothing",
    )
    .bind(backup.subscription.0)
    .bind(backup.id.0)
    .bind(backup.incarnation.0)
    .bind(
        made.objects
            .iter()
            .map(|object| object.key.as_str())
            .collect::<Vec<_>>(),
    )
    .bind(sizes)
    .bind(living)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "insert into copy (subscription_id, backup_id, vault_id, state, present_at)
         select $1, $2, v, 'present', $4 from unnest($3::uuid[]) as v
         on conflict (subscription_id, backup_id, vault_id) do update set state = 'present', present_at = excluded.present_at",
    )
    .bind(backup.subscription.0)
    .bind(backup.id.0)
    .bind(vaults.iter().map(|vault| vault.0).collect::<Vec<_>>())
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn failed(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: BackupId,
    failure: &Failure,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "update backup set state = 'failed', failed_at = $3, failure = $4
          where subscription_id = $1 and id = $2 and state in ('requested', 'running')",
    )
    .bind(subscription.0)
    .bind(id.0)
    .bind(now)
    .bind(Json(failure))
    .execute(conn)
    .await?;
    Ok(())
}

/// Unlinks complete backups: nothing chooses them any more, their bytes go after the grace.
pub(crate) async fn expire(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    ids: &[BackupId],
    delete_after: DateTime<Utc>,
) -> Result<u64> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let done = sqlx::query(
        "update backup set state = 'expiring', delete_after = $3
          where subscription_id = $1 and id = any($2) and state = 'complete'",
    )
    .bind(subscription.0)
    .bind(&ids)
    .bind(delete_after)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "update copy set state = 'expiring'
          where subscription_id = $1 and backup_id = any($2) and state = 'present'",
    )
    .bind(subscription.0)
    .bind(&ids)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Its user deleted it, but the window still needs it: shown and counted no more.
pub(crate) async fn hide(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: BackupId,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "update backup set hidden_at = $3 where subscription_id = $1 and id = $2 and state = 'complete'",
    )
    .bind(subscription.0)
    .bind(id.0)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Complete backups that their users deleted.
pub(crate) async fn hidden(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
) -> Result<Vec<BackupId>> {
    let rows: Vec<(Uuid,)> = sqlx::query_as(
        "select id from backup
          where subscription_id = $1 and incarnation_id = $2 and state = 'complete' and hidden_at is not null
          order by completed_time",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(id,)| BackupId(id)).collect())
}

/// Unlinked backups whose grace is over and that nobody reads: no pin, no snapshot built on them.
pub(crate) async fn to_prune(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    now: DateTime<Utc>,
) -> Result<Vec<Backup>> {
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT}
          where b.subscription_id = $1 and b.incarnation_id = $2 and b.state = 'expiring' and b.delete_after <= $3
            and not exists (select from pin p
                             where p.subscription_id = b.subscription_id and p.backup_id = b.id)
            and not exists (select from job j
                             where j.subscription_id = b.subscription_id and j.incarnation_id = b.incarnation_id
                               and j.state in ('queued', 'leased') and j.base_backup_id = b.id)
          order by b.completed_time, b.id"
    )))
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(now)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Backup::try_from).collect()
}

/// Objects that these backups name and no other that is not gone. What was superseded goes on its own terms.
pub(crate) async fn exclusive_objects(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    ids: &[BackupId],
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select distinct mine.key
           from backup_object mine
          where mine.subscription_id = $1 and mine.backup_id = any($3)
            and not exists (select from backup_object other
                             where other.subscription_id = $1 and other.incarnation_id = $2
                               and other.key = mine.key and other.backup_id <> all($3))
            and not exists (select from superseded_object s
                             where s.subscription_id = $1 and s.incarnation_id = $2 and s.key = mine.key)
          order by mine.key",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(key,)| key).collect())
}

/// Its bytes are gone, and with them its references.
pub(crate) async fn gone(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    ids: &[BackupId],
    now: DateTime<Utc>,
) -> Result<()> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    for sql in [
        "delete from backup_object where subscription_id = $1 and backup_id = any($2)",
        "update copy set state = 'gone' where subscription_id = $1 and backup_id = any($2)",
    ] {
        sqlx::query(sql)
            .bind(subscription.0)
            .bind(&ids)
            .execute(&mut *conn)
            .await?;
    }
    sqlx::query(
        "update backup set state = 'gone', gone_at = $3, delete_after = null
          where subscription_id = $1 and id = any($2) and state = 'expiring'",
    )
    .bind(subscription.0)
    .bind(&ids)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn name_of(conn: &mut PgConnection, id: BackupId) -> Result<Option<String>> {
    let row: Option<(Option<String>,)> = sqlx::query_as("select name from backup where id = $1")
        .bind(id.0)
        .fetch_optional(conn)
        .await?;
    Ok(row.and_then(|(name,)| name))
}

/// What is unlinked already need not wait out its grace: its server's time is over.
pub(crate) async fn hasten(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "update backup set delete_after = least(delete_after, $3)
          where subscription_id = $1 and incarnation_id = $2 and state = 'expiring' and delete_after > $3",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Unlinked backups whose manifests are among these keys.
pub(crate) async fn with_manifest_in(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    keys: &[String],
) -> Result<Vec<BackupId>> {
    let rows: Vec<(Uuid,)> = sqlx::query_as(
        "select id from backup
          where subscription_id = $1 and incarnation_id = $2 and state = 'expiring' and manifest ->> 'key' = any($3)",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(keys)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(id,)| BackupId(id)).collect())
}

/// Whether anything of this life still has bytes in a store.
pub(crate) async fn any_left(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
) -> Result<bool> {
    let (left,): (bool,) = sqlx::query_as(
        "select exists (select from backup where subscription_id = $1 and incarnation_id = $2
                           and state in ('requested', 'running', 'complete', 'expiring'))
             or exists (select from wal_object where subscription_id = $1 and incarnation_id = $2)
             or exists (select from superseded_object where subscription_id = $1 and incarnation_id = $2)",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .fetch_one(conn)
    .await?;
    Ok(left)
}

/// Those of the keys that nothing in the catalogue of this life names: no backup whose bytes are not
/// gone, no manifest in use, no WAL, and nothing that was superseded and waits for its time.
pub(crate) async fn unnamed(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    keys: &[String],
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select k.key from unnest($3::text[]) as k (key)
          where not exists (select from backup_object o
                             where o.subscription_id = $1 and o.incarnation_id = $2 and o.key = k.key)
            and not exists (select from backup b
                             where b.subscription_id = $1 and b.incarnation_id = $2
                               and b.state in ('complete', 'expiring') and b.manifest ->> 'key' = k.key)
            and not exists (select from wal_object w
                             where w.subscription_id = $1 and w.incarnation_id = $2 and w.key = k.key)
            and not exists (select from superseded_object s
                             where s.subscription_id = $1 and s.incarnation_id = $2 and s.key = k.key)",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(keys)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(key,)| key).collect())
}

/// Drops tombstones of backups that are gone or were never made, with their copies.
pub(crate) async fn forget(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    // One statement, so that no copy is ever without its backup.
    let done = sqlx::query(
        "with old as (
             select b.subscription_id, b.id from backup b
              where coalesce(b.gone_at, b.failed_at) < $1
                and not exists (select from operation o
                                 where o.subscription_id = b.subscription_id and o.backup_id = b.id)
                and not exists (select from pin p
                                 where p.subscription_id = b.subscription_id and p.backup_id = b.id)),
         copies as (
             delete from copy c using old
              where (c.subscription_id, c.backup_id) = (old.subscription_id, old.id))
         delete from backup b using old where (b.subscription_id, b.id) = (old.subscription_id, old.id)",
    )
    .bind(before)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
