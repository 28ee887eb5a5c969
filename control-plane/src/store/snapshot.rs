//! What deciding about an automatic backup rests on: one query for all servers, or for one.

use chrono::{DateTime, Utc};
use holdfast_domain::schedule::SnapshotFacts;
use holdfast_domain::{IncarnationId, ServerId, SubscriptionId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::backup::CANCELED;
use super::label::lsn;
use crate::Result;
use crate::snapshot::Candidate;

#[derive(sqlx::FromRow)]
struct Row {
    subscription_id: Uuid,
    server_id: Uuid,
    incarnation_id: Uuid,
    ready_at: DateTime<Utc>,
    last_counting: Option<i64>,
    last_slot: Option<DateTime<Utc>>,
    last_start: Option<i64>,
    last_failure: Option<DateTime<Utc>>,
    failures: i64,
    gap: bool,
}

/// Facts of every running server that has no automatic backup under way.
pub(crate) async fn facts(
    conn: &mut PgConnection,
    only: Option<(SubscriptionId, ServerId)>,
    now: DateTime<Utc>,
) -> Result<Vec<Candidate>> {
    let rows: Vec<Row> = sqlx::query_as(
        "select s.subscription_id, s.id as server_id, i.id as incarnation_id, i.ready_at, i.last_counting,
                automatic.last_slot, newest.start_lsn as last_start, failed.last_failure, failed.failures,
                exists (select from wal_gap g
                         where g.subscription_id = i.subscription_id and g.incarnation_id = i.id
                           and g.range_end > newest.stop_lsn) as gap
           from server s
           join incarnation i on (i.subscription_id, i.id) = (s.subscription_id, s.incarnation_id)
           left join lateral (
                select b.start_lsn, b.stop_lsn from backup b
                 where b.subscription_id = i.subscription_id and b.incarnation_id = i.id and b.state = 'complete'
                 order by b.stop_lsn desc limit 1) newest on true
          cross join lateral (
                select max(b.slot) as last_slot, max(b.requested_at) as last_success from backup b
                 where b.subscription_id = i.subscription_id and b.incarnation_id = i.id
                   and b.kind = 'automatic' and b.completed_time is not null) automatic
          cross join lateral (
                select max(b.failed_at) as last_failure, count(*) as failures from backup b
                 where b.subscription_id = i.subscription_id and b.incarnation_id = i.id
                   and b.kind = 'automatic' and b.state = 'failed' and b.failure ->> 'code' <> $4
                   and b.failed_at > coalesce(automatic.last_success, '-infinity')) failed
          where s.state = 'ready' and i.ready_at is not null
            and ($1::uuid is null or (s.subscription_id, s.id) = ($1, $2))
            and not exists (select from backup b
                             where b.subscription_id = i.subscription_id and b.incarnation_id = i.id
                               and b.kind = 'automatic' and b.state in ('requested', 'running'))
          order by i.ready_at, s.id
          limit case when $3 then 1 end",
    )
    .bind(only.map(|(subscription, _)| subscription.0))
    .bind(only.map(|(_, server)| server.0))
    .bind(only.is_some())
    .bind(CANCELED)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Candidate {
            subscription: SubscriptionId(row.subscription_id),
            incarnation: IncarnationId(row.incarnation_id),
            facts: SnapshotFacts {
                server: ServerId(row.server_id),
                since: row.ready_at,
                now,
                last_slot: row.last_slot,
                last_start: row.last_start.map(lsn),
                last_counting: row.last_counting.map(lsn),
                last_failure: row
                    .last_failure
                    .map(|at| (at, u32::try_from(row.failures).unwrap_or(u32::MAX))),
                gap: row.gap,
            },
        })
        .collect())
}
