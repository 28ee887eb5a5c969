//! WAL objects, timelines and holes: the streams' news come in here, a statement per kind.

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::job::{SnapshotOutcome, WalGap, WalReport};
use holdfast_domain::wal::{TimelineStart, WalObject};
use holdfast_domain::{BootId, IncarnationId, NodeId, SubscriptionId};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::label::{bytes, number, position};
use crate::{Error, Result};

/// Takes a report in. Any number of times: what is known already changes nothing.
pub(crate) async fn take_in(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    report: &WalReport,
    now: DateTime<Utc>,
    grace: TimeDelta,
) -> Result<()> {
    let id = report.incarnation;
    insert_objects(conn, subscription, id, &report.objects).await?;
    insert_timelines(conn, subscription, id, &report.timelines).await?;
    if !report.superseded.is_empty() {
        sqlx::query(
            "update wal_object set state = 'superseded', delete_after = $4
              where subscription_id = $1 and incarnation_id = $2 and key = any($3) and state = 'durable'",
        )
        .bind(subscription.0)
        .bind(id.0)
        .bind(&report.superseded)
        .bind(now + grace)
        .execute(&mut *conn)
        .await?;
    }
    if let Some(gap) = report.gap {
        insert_gap(conn, subscription, id, gap, now).await?;
    }
    // A late report of an older timeline moves nothing back.
    sqlx::query(
        "update incarnation
            set durable = case when $3 > head then $4 when $3 = head then greatest(durable, $4) else durable end,
                head = greatest(head, $3),
                caught_up_at = greatest(caught_up_at, $5),
                last_counting = greatest(last_counting, $6),
                held_bytes = $7
          where subscription_id = $1 and id = $2",
    )
    .bind(subscription.0)
    .bind(id.0)
    .bind(number(report.timeline)?)
    .bind(position(report.durable)?)
    .bind(report.caught_up_at)
    .bind(report.last_counting.map(position).transpose()?)
    .bind(bytes(report.held_bytes)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// How far an incarnation is caught up, in a statement in which `i` is the incarnation: its own word, or
/// that of its node for all idle ones together (ADR 16).
pub(crate) const CAUGHT_UP_AT: &str = "
    greatest(i.caught_up_at, (select n.idle_until from node n where n.id = i.idle_node and n.boot_id = i.idle_boot))";

/// What a server was caught up to stays when its idleness ends.
pub(crate) async fn end_idleness(
    conn: &mut PgConnection,
    node: NodeId,
    boot: BootId,
    which: &[IncarnationId],
) -> Result<()> {
    let ids: Vec<Uuid> = which.iter().map(|id| id.0).collect();
    sqlx::query(AssertSqlSafe(format!(
        "update incarnation i set caught_up_at = {CAUGHT_UP_AT}, idle_node = null, idle_boot = null
          where i.idle_node = $1 and i.idle_boot = $2 and i.id = any($3)"
    )))
    .bind(node.0)
    .bind(boot.0)
    .bind(ids)
    .execute(conn)
    .await?;
    Ok(())
}

/// The same for all that other processes than this one said of the node's servers: they speak no more. The node
/// is held first, as [`idle_until`] does.
pub(crate) async fn end_earlier_idleness(
    conn: &mut PgConnection,
    node: NodeId,
    boot: BootId,
) -> Result<()> {
    sqlx::query("select from node where id = $1 for no key update")
        .bind(node.0)
        .execute(&mut *conn)
        .await?;
    sqlx::query(AssertSqlSafe(format!(
        "update incarnation i set caught_up_at = {CAUGHT_UP_AT}, idle_node = null, idle_boot = null
          where i.idle_node = $1 and i.idle_boot <> $2"
    )))
    .bind(node.0)
    .bind(boot.0)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn begin_idleness(
    conn: &mut PgConnection,
    node: NodeId,
    boot: BootId,
    which: &[IncarnationId],
) -> Result<()> {
    let ids: Vec<Uuid> = which.iter().map(|id| id.0).collect();
    sqlx::query(
        "update incarnation i set idle_node = $2, idle_boot = $3
           from server s
          where i.id = any($1)
            and (s.subscription_id, s.id) = (i.subscription_id, i.server_id)
            and s.incarnation_id = i.id and s.node_id = $2",
    )
    .bind(ids)
    .bind(node.0)
    .bind(boot.0)
    .execute(conn)
    .await?;
    Ok(())
}

/// Never goes back: a call whose answer was lost comes again.
pub(crate) async fn idle_until(
    conn: &mut PgConnection,
    node: NodeId,
    boot: BootId,
    until: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "update node set idle_until = greatest(idle_until, $3) where id = $1 and boot_id = $2",
    )
    .bind(node.0)
    .bind(boot.0)
    .bind(until)
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes in what a complete backup needs, so that it is restorable in the moment in which it is shown,
/// also when the stream's report is still on its way.
pub(crate) async fn of_backup(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    made: &SnapshotOutcome,
) -> Result<()> {
    insert_objects(conn, subscription, incarnation, &made.wal).await?;
    let Some(end) = made.wal.iter().map(|object| object.end).max() else {
        return Ok(());
    };
    sqlx::query(
        "update incarnation set durable = greatest(durable, $4)
          where subscription_id = $1 and id = $2 and head = $3",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(number(made.timeline)?)
    .bind(position(end)?)
    .execute(conn)
    .await?;
    Ok(())
}

async fn insert_objects(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    objects: &[WalObject],
) -> Result<()> {
    if objects.is_empty() {
        return Ok(());
    }
    let id = incarnation.to_string();
    if let Some(foreign) = objects.iter().find(|object| !object.key.contains(&id)) {
        return Err(Error::Absurd(format!(
            "object {:?} outside its incarnation",
            foreign.key
        )));
    }
    let column =
        |f: fn(&WalObject) -> Result<i64>| objects.iter().map(f).collect::<Result<Vec<_>>>();
    let timelines: Vec<i32> = objects
        .iter()
        .map(|object| number(object.timeline))
        .collect::<Result<_>>()?;
    let keys: Vec<&str> = objects.iter().map(|object| object.key.as_str()).collect();
    let hashes: Vec<&str> = objects
        .iter()
        .map(|object| object.plaintext_hash.as_str())
        .collect();
    let counting: Vec<Option<i64>> = objects
        .iter()
        .map(|object| object.last_counting.map(position).transpose())
        .collect::<Result<_>>()?;
    let stamps: Vec<Option<Json<_>>> = objects
        .iter()
        .map(|object| object.stamps.map(Json))
        .collect();
    let anomalies: Vec<Option<Json<_>>> = objects
        .iter()
        .map(|object| object.clock_anomaly.map(Json))
        .collect();
    sqlx::query(
        "insert into wal_object (subscription_id, incarnation_id, key, timeline, range_start, range_end,
                                 plaintext_hash, stored_bytes, stamps, last_counting, clock_anomaly)
         select $1, $2, o.* from unnest($3::text[], $4::int[], $5::bigint[], $6::bigint[], $7::text[],
                                        $8::bigint[], $9::jsonb[], $10::bigint[], $11::jsonb[]) as o
         on conflict do nothing",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(&keys)
    .bind(timelines)
    .bind(column(|object| position(object.start))?)
    .bind(column(|object| position(object.end))?)
    .bind(&hashes)
    .bind(column(|object| bytes(object.stored_bytes))?)
    .bind(stamps)
    .bind(counting)
    .bind(anomalies)
    .execute(&mut *conn)
    .await?;
    // Write-once: the same key with other bytes is somebody else's history (RELIABILITY §0.5).
    let conflict: Option<(String,)> = sqlx::query_as(
        "select w.key from wal_object w
           join unnest($3::text[], $4::text[]) as o (key, hash) on w.key = o.key
          where w.subscription_id = $1 and w.incarnation_id = $2 and w.plaintext_hash <> o.hash limit 1",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(&keys)
    .bind(&hashes)
    .fetch_optional(conn)
    .await?;
    match conflict {
        None => Ok(()),
        Some((key,)) => Err(Error::Absurd(format!(
            "object {key:?} with other bytes than before"
        ))),
    }
}

pub(crate) async fn insert_timelines(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    timelines: &[TimelineStart],
) -> Result<()> {
    for start in timelines {
        sqlx::query(
            "insert into timeline_start (subscription_id, incarnation_id, timeline, parent, switch, history_key)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (subscription_id, incarnation_id, timeline)
             do update set history_key = coalesce(timeline_start.history_key, excluded.history_key)",
        )
        .bind(subscription.0)
        .bind(incarnation.0)
        .bind(number(start.timeline)?)
        .bind(start.parent.map(number).transpose()?)
        .bind(position(start.switch)?)
        .bind(&start.history_key)
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

async fn insert_gap(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    gap: WalGap,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "insert into wal_gap (subscription_id, incarnation_id, timeline, range_start, range_end, seen_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (subscription_id, incarnation_id, timeline, range_start)
         do update set range_end = greatest(wal_gap.range_end, excluded.range_end)",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(number(gap.timeline)?)
    .bind(position(gap.start)?)
    .bind(position(gap.end)?)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Unlinks objects: nothing chooses them any more, their bytes go after the grace.
pub(crate) async fn expire(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    keys: &[String],
    delete_after: DateTime<Utc>,
) -> Result<u64> {
    let done = sqlx::query(
        "update wal_object set state = 'expiring', delete_after = $4
          where subscription_id = $1 and incarnation_id = $2 and key = any($3) and state = 'durable'",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(keys)
    .bind(delete_after)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Unlinked objects whose grace is over, oldest first.
pub(crate) async fn to_prune(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select key from wal_object
          where subscription_id = $1 and incarnation_id = $2 and state <> 'durable' and delete_after <= $3
          order by timeline, range_start limit $4",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(now)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(key,)| key).collect())
}

/// Those of the keys that name unlinked objects whose grace is over.
pub(crate) async fn unlinked(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    keys: &[String],
    now: DateTime<Utc>,
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select key from wal_object
          where subscription_id = $1 and incarnation_id = $2 and key = any($3)
            and state <> 'durable' and delete_after <= $4",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(keys)
    .bind(now)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(key,)| key).collect())
}

/// Forgets objects whose bytes are gone.
pub(crate) async fn forget(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    keys: &[String],
) -> Result<()> {
    sqlx::query(
        "delete from wal_object
          where subscription_id = $1 and incarnation_id = $2 and key = any($3) and state <> 'durable'",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(keys)
    .execute(conn)
    .await?;
    Ok(())
}

/// The server's time is over: all of its WAL may go.
pub(crate) async fn expire_all(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    now: DateTime<Utc>,
) -> Result<u64> {
    let done = sqlx::query(
        "update wal_object set state = 'expiring', delete_after = $3
          where subscription_id = $1 and incarnation_id = $2 and (state = 'durable' or delete_after > $3)",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Keys of the history files; they stay as long as anything of their incarnation does.
pub(crate) async fn history_keys(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "select history_key from timeline_start
          where subscription_id = $1 and incarnation_id = $2 and history_key is not null order by timeline",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(key,)| key).collect())
}
