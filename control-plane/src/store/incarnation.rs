//! The lives of data directories.

use chrono::{DateTime, Utc};
use holdfast_domain::job::WrappedKey;
use holdfast_domain::{IncarnationId, NodeId, ServerId, SubscriptionId, Timeline, VaultId};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::label::{bytes, number};
use crate::{Error, Result};

/// What does not move once an incarnation is ready.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Incarnation {
    pub subscription: SubscriptionId,
    pub id: IncarnationId,
    pub server: ServerId,
    pub vaults: Vec<VaultId>,
    pub ready_at: Option<DateTime<Utc>>,
    pub wrapped_key: Option<WrappedKey>,
}

#[derive(sqlx::FromRow)]
struct Row {
    subscription_id: Uuid,
    id: Uuid,
    server_id: Uuid,
    vault_ids: Vec<Uuid>,
    ready_at: Option<DateTime<Utc>>,
    wrapped_key: Option<Json<WrappedKey>>,
}

impl From<Row> for Incarnation {
    fn from(row: Row) -> Self {
        Self {
            subscription: SubscriptionId(row.subscription_id),
            id: IncarnationId(row.id),
            server: ServerId(row.server_id),
            vaults: row.vault_ids.into_iter().map(VaultId).collect(),
            ready_at: row.ready_at,
            wrapped_key: row.wrapped_key.map(|key| key.0),
        }
    }
}

pub(crate) async fn insert(
    conn: &mut PgConnection,
    incarnation: &Incarnation,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "insert into incarnation (subscription_id, id, server_id, vault_ids, created_at)
         values ($1, $2, $3, $4, $5)",
    )
    .bind(incarnation.subscription.0)
    .bind(incarnation.id.0)
    .bind(incarnation.server.0)
    .bind(incarnation.vaults.iter().map(|id| id.0).collect::<Vec<_>>())
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// What the server's own node says is wrong with it; writes only what changed.
pub(crate) async fn observe(
    conn: &mut PgConnection,
    node: NodeId,
    id: IncarnationId,
    problem: Option<&str>,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "update incarnation i
            set problem = $3, problem_since = case when $3 is not null then $4 end
           from server s
          where i.id = $2 and s.subscription_id = i.subscription_id and s.incarnation_id = i.id
            and s.node_id = $1 and i.problem is distinct from $3",
    )
    .bind(node.0)
    .bind(id.0)
    .bind(problem)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// What is wrong, as it was last observed.
pub(crate) async fn problem(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: IncarnationId,
) -> Result<Option<String>> {
    let problem: Option<Option<String>> = sqlx::query_scalar(
        "select problem from incarnation where subscription_id = $1 and id = $2",
    )
    .bind(subscription.0)
    .bind(id.0)
    .fetch_optional(conn)
    .await?;
    Ok(problem.flatten())
}

pub(crate) async fn get(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: IncarnationId,
) -> Result<Incarnation> {
    let row: Option<Row> = sqlx::query_as(
        "select subscription_id, id, server_id, vault_ids, ready_at, wrapped_key
           from incarnation where subscription_id = $1 and id = $2",
    )
    .bind(subscription.0)
    .bind(id.0)
    .fetch_optional(conn)
    .await?;
    row.map(Incarnation::from)
        .ok_or_else(|| Error::corrupt(format!("incarnation {id} is missing")))
}

pub(crate) struct Finished<'a> {
    pub system_identifier: u64,
    pub wrapped_key: &'a WrappedKey,
    pub wal_segment_bytes: u64,
    pub timeline: Timeline,
}

/// Its directory is finished; from now on it has backups and WAL.
pub(crate) async fn ready(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: IncarnationId,
    made: Finished<'_>,
    now: DateTime<Utc>,
) -> Result<()> {
    if !made.wal_segment_bytes.is_power_of_two() || made.wal_segment_bytes > 1 << 30 {
        return Err(Error::Absurd(format!(
            "WAL segments of {} bytes",
            made.wal_segment_bytes
        )));
    }
    let done = sqlx::query(
        "update incarnation
            set ready_at = $3, system_identifier = $4, wrapped_key = $5, wal_segment_bytes = $6,
                head = greatest(head, $7)
          where subscription_id = $1 and id = $2 and ready_at is null",
    )
    .bind(subscription.0)
    .bind(id.0)
    .bind(now)
    .bind(made.system_identifier.to_string())
    .bind(Json(made.wrapped_key))
    .bind(bytes(made.wal_segment_bytes)?)
    .bind(number(made.timeline)?)
    .execute(conn)
    .await?;
    match done.rows_affected() {
        1 => Ok(()),
        _ => Err(Error::corrupt(format!("incarnation {id} was ready before"))),
    }
}

/// The incarnation of this id if its server is on this node: agents speak for their own servers only.
pub(crate) async fn on_node(
    conn: &mut PgConnection,
    id: IncarnationId,
    node: NodeId,
) -> Result<Option<SubscriptionId>> {
    let row: Option<(Uuid,)> = sqlx::query_as(
        "select i.subscription_id
           from incarnation i
           join server s on (s.subscription_id, s.id) = (i.subscription_id, i.server_id)
          where i.id = $1 and s.node_id = $2",
    )
    .bind(id.0)
    .bind(node.0)
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|(id,)| SubscriptionId(id)))
}

/// Whose it is.
pub(crate) async fn subscription_of(
    conn: &mut PgConnection,
    id: IncarnationId,
) -> Result<Option<SubscriptionId>> {
    let row: Option<(Uuid,)> =
        sqlx::query_as("select subscription_id from incarnation where id = $1")
            .bind(id.0)
            .fetch_optional(conn)
            .await?;
    Ok(row.map(|(id,)| SubscriptionId(id)))
}
