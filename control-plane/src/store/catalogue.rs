//! The backups and WAL of incarnations, as the domain looks at them. Four queries, however many
//! incarnations are asked for and however much WAL they have.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::job::WalGap;
use holdfast_domain::wal::{ClockAnomaly, Stamps, TimelineStart, WalObject};
use holdfast_domain::{IncarnationId, Lsn, SubscriptionId};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::backup;
use super::label::{lsn, position, timeline};
use super::wal::CAUGHT_UP_AT;
use crate::Result;

/// How much WAL is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// All: for choosing and sweeping.
    Whole,
    /// What follows the newest backup: enough for the bounds of the window.
    Newest,
}

#[derive(sqlx::FromRow)]
struct HeadRow {
    id: Uuid,
    server_name: String,
    wal_segment_bytes: i64,
    head: i32,
    durable: i64,
    caught_up_at: Option<DateTime<Utc>>,
}

#[derive(sqlx::FromRow)]
struct TimelineRow {
    incarnation_id: Uuid,
    timeline: i32,
    parent: Option<i32>,
    switch: i64,
    history_key: Option<String>,
}

#[derive(sqlx::FromRow)]
struct GapRow {
    incarnation_id: Uuid,
    timeline: i32,
    range_start: i64,
    range_end: i64,
}

#[derive(sqlx::FromRow)]
struct WalRow {
    incarnation_id: Uuid,
    key: String,
    timeline: i32,
    range_start: i64,
    range_end: i64,
    plaintext_hash: String,
    stored_bytes: i64,
    stamps: Option<Json<Stamps>>,
    last_counting: Option<i64>,
    clock_anomaly: Option<Json<ClockAnomaly>>,
}

/// `None` as long as the incarnation is not ready.
pub(crate) async fn load(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: IncarnationId,
    depth: Depth,
) -> Result<Option<Catalogue>> {
    Ok(load_many(conn, &[(subscription, id)], depth)
        .await?
        .remove(&id))
}

pub(crate) async fn load_many(
    conn: &mut PgConnection,
    which: &[(SubscriptionId, IncarnationId)],
    depth: Depth,
) -> Result<HashMap<IncarnationId, Catalogue>> {
    let subscriptions: Vec<Uuid> = which
        .iter()
        .map(|(subscription, _)| subscription.0)
        .collect();
    let ids: Vec<Uuid> = which.iter().map(|(_, id)| id.0).collect();
    let heads: Vec<HeadRow> = sqlx::query_as(AssertSqlSafe(format!(
        "select i.id, s.name as server_name, i.wal_segment_bytes, i.head, i.durable, {CAUGHT_UP_AT} as caught_up_at
           from unnest($1::uuid[], $2::uuid[]) as asked (subscription_id, id)
           join incarnation i on (i.subscription_id, i.id) = (asked.subscription_id, asked.id)
           join server s on (s.subscription_id, s.id) = (i.subscription_id, i.server_id)
          where i.ready_at is not null"
    )))
    .bind(&subscriptions)
    .bind(&ids)
    .fetch_all(&mut *conn)
    .await?;
    let mut catalogues: HashMap<IncarnationId, Catalogue> = heads
        .into_iter()
        .map(|row| {
            let catalogue = Catalogue {
                server_name: row.server_name,
                incarnation: IncarnationId(row.id),
                wal_segment_bytes: row.wal_segment_bytes.unsigned_abs(),
                backups: Vec::new(),
                wal: Vec::new(),
                timelines: Vec::new(),
                head: timeline(row.head),
                durable: lsn(row.durable),
                caught_up_at: row.caught_up_at,
                gaps: Vec::new(),
            };
            (catalogue.incarnation, catalogue)
        })
        .collect();
    for (incarnation, backup) in backup::complete(&mut *conn, &subscriptions, &ids).await? {
        if let Some(catalogue) = catalogues.get_mut(&incarnation) {
            catalogue.backups.push(backup);
        }
    }
    load_timelines(&mut *conn, &subscriptions, &ids, &mut catalogues).await?;
    load_wal(conn, which, depth, &mut catalogues).await?;
    Ok(catalogues)
}

async fn load_timelines(
    conn: &mut PgConnection,
    subscriptions: &[Uuid],
    ids: &[Uuid],
    catalogues: &mut HashMap<IncarnationId, Catalogue>,
) -> Result<()> {
    let timelines: Vec<TimelineRow> = sqlx::query_as(
        "select t.incarnation_id, t.timeline, t.parent, t.switch, t.history_key
           from unnest($1::uuid[], $2::uuid[]) as asked (subscription_id, id)
           join timeline_start t on (t.subscription_id, t.incarnation_id) = (asked.subscription_id, asked.id)
          order by t.timeline",
    )
    .bind(subscriptions)
    .bind(ids)
    .fetch_all(&mut *conn)
    .await?;
    for row in timelines {
        if let Some(catalogue) = catalogues.get_mut(&IncarnationId(row.incarnation_id)) {
            catalogue.timelines.push(TimelineStart {
                timeline: timeline(row.timeline),
                parent: row.parent.map(timeline),
                switch: lsn(row.switch),
                history_key: row.history_key,
            });
        }
    }
    let gaps: Vec<GapRow> = sqlx::query_as(
        "select g.incarnation_id, g.timeline, g.range_start, g.range_end
           from unnest($1::uuid[], $2::uuid[]) as asked (subscription_id, id)
           join wal_gap g on (g.subscription_id, g.incarnation_id) = (asked.subscription_id, asked.id)
          order by g.range_start",
    )
    .bind(subscriptions)
    .bind(ids)
    .fetch_all(conn)
    .await?;
    for row in gaps {
        if let Some(catalogue) = catalogues.get_mut(&IncarnationId(row.incarnation_id)) {
            catalogue.gaps.push(WalGap {
                timeline: timeline(row.timeline),
                start: lsn(row.range_start),
                end: lsn(row.range_end),
            });
        }
    }
    Ok(())
}

async fn load_wal(
    conn: &mut PgConnection,
    which: &[(SubscriptionId, IncarnationId)],
    depth: Depth,
    catalogues: &mut HashMap<IncarnationId, Catalogue>,
) -> Result<()> {
    let from = |id: &IncarnationId| match (depth, catalogues.get(id)) {
        (Depth::Newest, Some(catalogue)) => {
            let lineage = catalogue.lineage(catalogue.head);
            catalogue
                .backups_on(&lineage)
                .first()
                .map_or(Lsn::ZERO, |newest| {
                    newest.start.segment_start(catalogue.wal_segment_bytes)
                })
        }
        _ => Lsn::ZERO,
    };
    let starts = which
        .iter()
        .map(|(_, id)| position(from(id)))
        .collect::<Result<Vec<i64>>>()?;
    let rows: Vec<WalRow> = sqlx::query_as(
        "select w.incarnation_id, w.key, w.timeline, w.range_start, w.range_end, w.plaintext_hash,
                w.stored_bytes, w.stamps, w.last_counting, w.clock_anomaly
           from unnest($1::uuid[], $2::uuid[], $3::bigint[]) as asked (subscription_id, id, position)
           join wal_object w on (w.subscription_id, w.incarnation_id) = (asked.subscription_id, asked.id)
                            and w.state = 'durable' and w.range_end > asked.position
          order by w.timeline, w.range_start, w.range_end",
    )
    .bind(which.iter().map(|(subscription, _)| subscription.0).collect::<Vec<_>>())
    .bind(which.iter().map(|(_, id)| id.0).collect::<Vec<_>>())
    .bind(starts)
    .fetch_all(conn)
    .await?;
    for row in rows {
        if let Some(catalogue) = catalogues.get_mut(&IncarnationId(row.incarnation_id)) {
            catalogue.wal.push(WalObject {
                timeline: timeline(row.timeline),
                start: lsn(row.range_start),
                end: lsn(row.range_end),
                key: row.key,
                plaintext_hash: row.plaintext_hash,
                stored_bytes: row.stored_bytes.unsigned_abs(),
                stamps: row.stamps.map(|stamps| stamps.0),
                last_counting: row.last_counting.map(lsn),
                clock_anomaly: row.clock_anomaly.map(|anomaly| anomaly.0),
            });
        }
    }
    Ok(())
}
