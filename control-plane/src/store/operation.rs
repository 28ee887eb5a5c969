//! Operations and what they still need to know.

use chrono::{DateTime, Utc};
use holdfast_domain::activity::Caller;
use holdfast_domain::job::{Power, Progress};
use holdfast_domain::operation::{Failure, Operation, OperationState};
use holdfast_domain::restore::RestoreTarget;
use holdfast_domain::{BackupId, IncarnationId, OperationId, ServerId, SubscriptionId};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::Hold;
use super::gauge::DURATION_BOUNDS_S;
use super::label::{from_label, label};
use crate::error::violated;
use crate::{Error, Result};

/// An operation with what only its own steps see.
#[derive(Clone)]
pub(crate) struct Record {
    pub operation: Operation,
    pub group: String,
    /// For its activity events.
    pub action: String,
    /// Forgotten when it ends.
    pub input: Option<Input>,
    pub caller: Caller,
}

/// What later steps need. No `Debug`: it can hold a password.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Input {
    Create {
        administrator_password: Option<String>,
    },
    Restore {
        source_subscription: SubscriptionId,
        source: ServerId,
        incarnation: IncarnationId,
        target: RestoreTarget,
        administrator_password: Option<String>,
    },
    Power {
        to: Power,
    },
}

#[derive(sqlx::FromRow)]
struct Row {
    subscription_id: Uuid,
    id: Uuid,
    kind: String,
    state: String,
    server_id: Uuid,
    backup_id: Option<Uuid>,
    resource_id: String,
    group_name: String,
    action: String,
    region: String,
    input: Option<Json<Input>>,
    caller: Json<Caller>,
    failure: Option<Json<Failure>>,
    progress: Option<Json<Progress>>,
    result: Option<serde_json::Value>,
    created_at: DateTime<Utc>,
    deadline: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
}

const SELECT: &str = "
    select subscription_id, id, kind::text as kind, state::text as state, server_id, backup_id, resource_id,
           group_name, action, region, input, caller, failure, progress, result, created_at, deadline, ended_at
      from operation";

impl TryFrom<Row> for Record {
    type Error = Error;
    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            operation: Operation {
                id: OperationId(row.id),
                subscription: SubscriptionId(row.subscription_id),
                kind: from_label(row.kind)?,
                state: from_label(row.state)?,
                server: ServerId(row.server_id),
                backup: row.backup_id.map(BackupId),
                resource_id: row.resource_id,
                region: row.region,
                failure: row.failure.map(|failure| failure.0),
                progress: row.progress.map(|progress| progress.0),
                result: row.result,
                created_at: row.created_at,
                deadline: row.deadline,
                ended_at: row.ended_at,
            },
            group: row.group_name,
            action: row.action,
            input: row.input.map(|input| input.0),
            caller: row.caller.0,
        })
    }
}

/// `false`: another operation on the same server, or the same backup, is under way.
pub(crate) async fn insert(conn: &mut PgConnection, record: &Record) -> Result<bool> {
    let operation = &record.operation;
    let done = sqlx::query(
        "insert into operation (subscription_id, id, kind, state, server_id, backup_id, resource_id, group_name,
                                action, region, input, caller, created_at, deadline)
         values ($1, $2, $3::operation_kind, $4::operation_state, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(operation.subscription.0)
    .bind(operation.id.0)
    .bind(label(operation.kind))
    .bind(label(operation.state))
    .bind(operation.server.0)
    .bind(operation.backup.map(|id| id.0))
    .bind(&operation.resource_id)
    .bind(&record.group)
    .bind(&record.action)
    .bind(&operation.region)
    .bind(record.input.as_ref().map(Json))
    .bind(Json(&record.caller))
    .bind(operation.created_at)
    .bind(operation.deadline)
    .execute(conn)
    .await;
    match done {
        Ok(_) => Ok(true),
        Err(error)
            if matches!(
                violated(&error),
                Some("operation_one_exclusive_per_server" | "operation_one_per_backup")
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn get(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: OperationId,
    hold: Hold,
) -> Result<Option<Record>> {
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT} where subscription_id = $1 and id = $2{}",
        hold.sql()
    )))
    .bind(subscription.0)
    .bind(id.0)
    .fetch_optional(conn)
    .await?;
    row.map(Record::try_from).transpose()
}

/// Operations that have not ended, oldest first, with their servers.
pub(crate) async fn open(
    conn: &mut PgConnection,
) -> Result<Vec<(SubscriptionId, OperationId, ServerId)>> {
    let rows: Vec<(Uuid, Uuid, Uuid)> = sqlx::query_as(
        "select subscription_id, id, server_id from operation
          where state in ('accepted', 'running', 'canceling') order by created_at",
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(s, id, server)| (SubscriptionId(s), OperationId(id), ServerId(server)))
        .collect())
}

/// Whether a server operation is under way: what excludes others (DESIGN §2).
pub(crate) async fn exclusive_open(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    server: ServerId,
) -> Result<bool> {
    let (open,): (bool,) = sqlx::query_as(
        "select exists (select from operation
                         where subscription_id = $1 and server_id = $2 and backup_id is null
                           and state in ('accepted', 'running', 'canceling'))",
    )
    .bind(subscription.0)
    .bind(server.0)
    .fetch_one(conn)
    .await?;
    Ok(open)
}

/// Accepted → Running, when its first job is given to a node.
pub(crate) async fn running(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: OperationId,
) -> Result<()> {
    sqlx::query(
        "update operation set state = 'running' where subscription_id = $1 and id = $2 and state = 'accepted'",
    )
    .bind(subscription.0)
    .bind(id.0)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn set_progress(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: OperationId,
    progress: &Progress,
) -> Result<()> {
    // What is shown never goes back: a second attempt begins anew, its operation does not.
    sqlx::query(
        "update operation
            set progress = jsonb_set($3, '{percent}',
                    to_jsonb(greatest(($3 ->> 'percent')::float8, (progress ->> 'percent')::float8)))
          where subscription_id = $1 and id = $2 and ended_at is null",
    )
    .bind(subscription.0)
    .bind(id.0)
    .bind(Json(progress))
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn set_result(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: OperationId,
    result: &serde_json::Value,
) -> Result<()> {
    sqlx::query("update operation set result = $3 where subscription_id = $1 and id = $2 and ended_at is null")
        .bind(subscription.0)
        .bind(id.0)
        .bind(result)
        .execute(conn)
        .await?;
    Ok(())
}

/// The end; `false`: it had ended before.
pub(crate) async fn end(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: OperationId,
    state: OperationState,
    failure: Option<&Failure>,
    now: DateTime<Utc>,
) -> Result<bool> {
    let done = sqlx::query(
        "update operation set state = $3::operation_state, failure = $4, ended_at = $5, input = null
          where subscription_id = $1 and id = $2 and ended_at is null",
    )
    .bind(subscription.0)
    .bind(id.0)
    .bind(label(state))
    .bind(failure.map(Json))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Drops operations that ended before, with their jobs; and jobs without an operation as old.
pub(crate) async fn forget(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    // Not before what it left behind was looked for: its row is all that tells where.
    let jobs = sqlx::query(
        "delete from job j
          where ended_at < $1
            and not (kind = 'snapshot' and reclaimed_at is null and attempts > 0
                     and (state <> 'done' or attempts > 1)
                     and exists (select from server s
                                  where s.subscription_id = j.subscription_id and s.id = j.server_id
                                    and s.purged_at is null))",
    )
    .bind(before)
    .execute(&mut *conn)
    .await?;
    // Their durations stay in the tally, or the histogram of `/metrics` would shrink.
    let operations: i64 = sqlx::query_scalar(
        "with gone as (
              delete from operation o
               where ended_at < $1
                 and not exists (select from job j
                                  where j.subscription_id = o.subscription_id and j.operation_id = o.id)
              returning kind, state, extract(epoch from ended_at - created_at)::float8 as seconds),
         kept as (
              insert into operation_tally (kind, state, at_most_s, operations, seconds)
              select kind, state, bound.at_most_s, count(*), sum(gone.seconds)
                from gone
                join lateral (select coalesce(min(le), 'Infinity') as at_most_s
                                from unnest($2::float8[]) as le where le >= gone.seconds) bound on true
               group by kind, state, bound.at_most_s
              on conflict (kind, state, at_most_s) do update
                 set operations = operation_tally.operations + excluded.operations,
                     seconds = operation_tally.seconds + excluded.seconds)
         select count(*) from gone",
    )
    .bind(before)
    .bind(DURATION_BOUNDS_S)
    .fetch_one(conn)
    .await?;
    Ok(jobs.rows_affected() + operations.unsigned_abs())
}
