//! Sums for monitoring. Each is one statement over what is alive, never one a server.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use holdfast_domain::{ServerId, SubscriptionId};
use sqlx::PgConnection;
use uuid::Uuid;

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
        bool,
    );
    let rows: Vec<Row> = sqlx::query_as(
        // Sums of bigint are numeric; what is stored fits a bigint.
        "select s.id,
                b.last_success,
                b.last_failure,
                coalesce(b.bytes, 0)::bigint,
                coalesce(w.bytes, 0)::bigint,
                i.problem is not null
           from server s
           left join incarnation i on i.subscription_id = s.subscription_id and i.id = s.incarnation_id
           left join lateral (
                select max(completed_time) as last_success,
                       max(failed_at)      as last_failure,
                       sum(stored_bytes) filter (where state in ('complete', 'expiring')) as bytes
                  from backup
                 where subscription_id = s.subscription_id and server_id = s.id) b on true
           left join lateral (
                select sum(o.stored_bytes) as bytes
                  from incarnation i
                  join wal_object o on o.subscription_id = i.subscription_id and o.incarnation_id = i.id
                 where i.subscription_id = s.subscription_id and i.server_id = s.id) w on true
          where s.state not in ('dropped', 'failed')",
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(
            |(id, last_success, last_failure, backup_bytes, wal_bytes, has_problem)| {
                let facts = ServerFacts {
                    last_success,
                    last_failure,
                    backup_bytes: backup_bytes.unsigned_abs(),
                    wal_bytes: wal_bytes.unsigned_abs(),
                    has_problem,
                };
                (ServerId(id), facts)
            },
        )
        .collect())
}
