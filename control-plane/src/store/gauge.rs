//! Sums for monitoring. Each is one statement over what is alive, never one a server.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use holdfast_domain::{ServerId, SubscriptionId};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::wal::CAUGHT_UP_AT;
use crate::Result;

pub(crate) struct Counts {
    pub operations: u64,
    pub jobs: Vec<(String, u64)>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ServerFacts {
    pub last_success: Option<DateTime<Utc>>,
    pub last_failure: Option<DateTime<Utc>>,
    pub backup_bytes: u64,
    pub wal_bytes: u64,
    pub has_problem: bool,
    pub archived_until: Option<DateTime<Utc>>,
}

/// Seconds; what operations take lies between a moment and a day.
pub(crate) const DURATION_BOUNDS_S: &[f64] = &[
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 14_400.0,
];

/// Ended operations of one kind and end.
pub(crate) struct DurationRow {
    pub kind: String,
    pub state: String,
    /// Infinity: longer than all bounds.
    pub at_most_s: f64,
    pub operations: u64,
    pub seconds: f64,
}

/// Every operation that ever ended, the forgotten ones from their tally.
pub(crate) async fn durations(conn: &mut PgConnection) -> Result<Vec<DurationRow>> {
    let rows: Vec<(String, String, f64, i64, f64)> = sqlx::query_as(
        "select kind::text, state::text, at_most_s, sum(operations)::bigint, sum(seconds)::float8
           from (select kind, state, at_most_s, operations, seconds from operation_tally
                 union all
                 select o.kind, o.state, bound.at_most_s, 1, o.seconds
                   from (select kind, state, extract(epoch from ended_at - created_at)::float8 as seconds
                           from operation where ended_at is not null) o
                   join lateral (select coalesce(min(le), 'Infinity') as at_most_s
                                   from unnest($1::float8[]) as le where le >= o.seconds) bound on true) every
          group by kind, state, at_most_s order by 1, 2, 3",
    )
    .bind(DURATION_BOUNDS_S)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(
            |(kind, state, at_most_s, operations, seconds)| DurationRow {
                kind,
                state,
                at_most_s,
                operations: operations.unsigned_abs(),
                seconds,
            },
        )
        .collect())
}

/// A prune job freed so much.
pub(crate) async fn add_pruned(conn: &mut PgConnection, bytes: u64) -> Result<()> {
    sqlx::query(
        "insert into prune_tally (bytes) values ($1)
         on conflict (is_the_one) do update set bytes = prune_tally.bytes + excluded.bytes",
    )
    .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
    .execute(conn)
    .await?;
    Ok(())
}

/// Bytes that prune jobs freed, and bytes that compactions wrote.
pub(crate) async fn tidied(conn: &mut PgConnection) -> Result<(u64, u64)> {
    let bytes: Option<(i64, i64)> =
        sqlx::query_as("select bytes, rewritten_bytes from prune_tally")
            .fetch_optional(conn)
            .await?;
    let (pruned, rewritten) = bytes.unwrap_or_default();
    Ok((pruned.unsigned_abs(), rewritten.unsigned_abs()))
}

pub(crate) async fn subscriptions(conn: &mut PgConnection) -> Result<Vec<SubscriptionId>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "select distinct subscription_id from server where state not in ('dropped', 'failed') order by 1",
    )
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(SubscriptionId).collect())
}

pub(crate) async fn counts(conn: &mut PgConnection) -> Result<Counts> {
    let operations: i64 = sqlx::query_scalar(
        "select count(*) from operation where state in ('accepted', 'running', 'canceling')",
    )
    .fetch_one(&mut *conn)
    .await?;
    let jobs: Vec<(String, i64)> = sqlx::query_as(
        "select state::text, count(*) from job where state in ('queued', 'leased') group by state order by state",
    )
    .fetch_all(conn)
    .await?;
    Ok(Counts {
        operations: operations.unsigned_abs(),
        jobs: jobs
            .into_iter()
            .map(|(state, count)| (state, count.unsigned_abs()))
            .collect(),
    })
}

pub(crate) async fn server_facts(
    conn: &mut PgConnection,
) -> Result<HashMap<ServerId, ServerFacts>> {
    type Row = (
        Uuid,
        Option<DateTime<Utc>>,
        Option<DateTime<Utc>>,
        i64,
        i64,
        Option<DateTime<Utc>>,
        bool,
    );
    // Sums of bigint are numeric; what is stored fits a bigint.
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "select s.id,
                b.last_success,
                b.last_failure,
                coalesce(i.backup_bytes, 0),
                coalesce(w.bytes, 0)::bigint,
                {CAUGHT_UP_AT},
                i.problem is not null
           from server s
           left join incarnation i on i.subscription_id = s.subscription_id and i.id = s.incarnation_id
           left join lateral (
                select max(completed_time) as last_success,
                       max(failed_at)      as last_failure
                  from backup
                 where subscription_id = s.subscription_id and server_id = s.id) b on true
           left join lateral (
                select sum(o.stored_bytes) as bytes
                  from incarnation life
                  join wal_object o on o.subscription_id = life.subscription_id and o.incarnation_id = life.id
                 where life.subscription_id = s.subscription_id and life.server_id = s.id) w on true
          where s.state not in ('dropped', 'failed')"
    )))
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(
            |(
                id,
                last_success,
                last_failure,
                backup_bytes,
                wal_bytes,
                archived_until,
                has_problem,
            )| {
                let facts = ServerFacts {
                    last_success,
                    last_failure,
                    backup_bytes: backup_bytes.unsigned_abs(),
                    wal_bytes: wal_bytes.unsigned_abs(),
                    archived_until,
                    has_problem,
                };
                (ServerId(id), facts)
            },
        )
        .collect())
}
