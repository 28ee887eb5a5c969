//! Servers and their names.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use holdfast_domain::retention::RetentionWindow;
use holdfast_domain::server::{Server, ServerSettings, ServerState};
use holdfast_domain::{IncarnationId, NodeId, ServerId, SubscriptionId};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::Hold;
use super::label::{from_label, label};
use crate::{Error, Result, ServerRef};

const SELECT: &str = "
    select subscription_id, id, group_name, name, region, state::text as state, settings, is_replica,
           node_id, placed_zone, port, minor_version, incarnation_id, created_at, stopped_at,
           dropped_at, restorable_until
      from server";
/// Tombstones and servers that were never made are shown to nobody.
const LIVING: &str = "state not in ('dropped', 'failed')";

#[derive(sqlx::FromRow)]
struct Row {
    subscription_id: Uuid,
    id: Uuid,
    group_name: String,
    name: String,
    region: String,
    state: String,
    settings: Json<ServerSettings>,
    is_replica: bool,
    node_id: Option<Uuid>,
    placed_zone: Option<String>,
    port: Option<i32>,
    minor_version: Option<String>,
    incarnation_id: Option<Uuid>,
    created_at: DateTime<Utc>,
    stopped_at: Option<DateTime<Utc>>,
    dropped_at: Option<DateTime<Utc>>,
    restorable_until: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Server {
    type Error = Error;
    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            id: ServerId(row.id),
            subscription: SubscriptionId(row.subscription_id),
            group: row.group_name,
            name: row.name,
            region: row.region,
            state: from_label(row.state)?,
            settings: row.settings.0,
            is_replica: row.is_replica,
            node: row.node_id.map(NodeId),
            placed_zone: row.placed_zone,
            port: row
                .port
                .map(u16::try_from)
                .transpose()
                .map_err(|_| Error::corrupt("port out of range"))?,
            minor_version: row.minor_version,
            incarnation: row.incarnation_id.map(IncarnationId),
            created_at: row.created_at,
            stopped_at: row.stopped_at,
            dropped_at: row.dropped_at,
            restorable_until: row.restorable_until,
        })
    }
}

/// The living server of this name, if there is one.
pub(crate) async fn find(
    conn: &mut PgConnection,
    at: ServerRef<'_>,
    hold: Hold,
) -> Result<Option<Server>> {
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT} where subscription_id = $1 and group_key = lower($2) and name = lower($3) and {LIVING}{}",
        hold.sql()
    )))
    .bind(at.subscription.0)
    .bind(at.group)
    .bind(at.name)
    .fetch_optional(conn)
    .await?;
    row.map(Server::try_from).transpose()
}

/// In whatever state it is.
pub(crate) async fn by_id(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    id: ServerId,
    hold: Hold,
) -> Result<Option<Server>> {
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT} where subscription_id = $1 and id = $2{}",
        hold.sql()
    )))
    .bind(subscription.0)
    .bind(id.0)
    .fetch_optional(conn)
    .await?;
    row.map(Server::try_from).transpose()
}

/// Living servers in the order of their names, which are unique.
pub(crate) async fn list(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    group: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Server>> {
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT}
          where subscription_id = $1 and ($2::text is null or group_key = lower($2)) and {LIVING}
            and ($3::text is null or name > $3)
          order by name limit $4"
    )))
    .bind(subscription.0)
    .bind(group)
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Server::try_from).collect()
}

/// What a node has, or had and must still clear away.
pub(crate) async fn of_node(conn: &mut PgConnection, node: NodeId) -> Result<Vec<Server>> {
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "{SELECT} where node_id = $1 order by id"
    )))
    .bind(node.0)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Server::try_from).collect()
}

/// Takes the name for this server; `false`: another living server has it.
pub(crate) async fn take_name(conn: &mut PgConnection, server: &Server) -> Result<bool> {
    let done = sqlx::query(
        "insert into server_name (name, subscription_id, server_id) values ($1, $2, $3)
         on conflict (name) do nothing",
    )
    .bind(&server.name)
    .bind(server.subscription.0)
    .bind(server.id.0)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn release_name(conn: &mut PgConnection, server: &Server) -> Result<()> {
    sqlx::query("delete from server_name where subscription_id = $1 and server_id = $2")
        .bind(server.subscription.0)
        .bind(server.id.0)
        .execute(conn)
        .await?;
    Ok(())
}

pub(crate) async fn name_is_taken(conn: &mut PgConnection, name: &str) -> Result<bool> {
    let (taken,): (bool,) =
        sqlx::query_as("select exists (select from server_name where name = lower($1))")
            .bind(name)
            .fetch_one(conn)
            .await?;
    Ok(taken)
}

pub(crate) async fn insert(conn: &mut PgConnection, server: &Server) -> Result<()> {
    sqlx::query(
        "insert into server (subscription_id, id, group_key, group_name, name, region, state, settings,
                             is_replica, node_id, placed_zone, port, incarnation_id, created_at)
         values ($1, $2, lower($3), $3, $4, $5, $6::server_state, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(server.subscription.0)
    .bind(server.id.0)
    .bind(&server.group)
    .bind(&server.name)
    .bind(&server.region)
    .bind(label(server.state))
    .bind(Json(&server.settings))
    .bind(server.is_replica)
    .bind(server.node.map(|node| node.0))
    .bind(&server.placed_zone)
    .bind(server.port.map(i32::from))
    .bind(server.incarnation.map(|id| id.0))
    .bind(server.created_at)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes what moves in a server's life back. The state in the row must still be `expected`. A shorter
/// retention leaves behind what it was, for [`former_retention`].
pub(crate) async fn update(
    conn: &mut PgConnection,
    server: &Server,
    expected: ServerState,
) -> Result<()> {
    let done = sqlx::query(
        "update server
            set state = $3::server_state, settings = $4, node_id = $5, port = $6, minor_version = $7,
                stopped_at = $8, dropped_at = $9, restorable_until = $10,
                former_retention_days = case
                    when ($4::jsonb ->> 'retention')::smallint < (settings ->> 'retention')::smallint
                    then greatest((settings ->> 'retention')::smallint,
                                  case when retention_changed_at > lease_now() - interval '24 hours'
                                       then former_retention_days end)
                    else former_retention_days end,
                retention_changed_at = case
                    when ($4::jsonb ->> 'retention')::smallint < (settings ->> 'retention')::smallint
                    then lease_now()
                    else retention_changed_at end
          where subscription_id = $1 and id = $2 and state = $11::server_state",
    )
    .bind(server.subscription.0)
    .bind(server.id.0)
    .bind(label(server.state))
    .bind(Json(&server.settings))
    .bind(server.node.map(|node| node.0))
    .bind(server.port.map(i32::from))
    .bind(&server.minor_version)
    .bind(server.stopped_at)
    .bind(server.dropped_at)
    .bind(server.restorable_until)
    .bind(label(expected))
    .execute(conn)
    .await?;
    match done.rows_affected() {
        1 => Ok(()),
        _ => Err(Error::corrupt(format!(
            "server {} is no longer {expected}",
            server.id
        ))),
    }
}

/// The smallest port of the range that no server of the node has. The caller holds the node's row.
pub(crate) async fn free_port(
    conn: &mut PgConnection,
    node: NodeId,
    (first, last): (u16, u16),
) -> Result<Option<u16>> {
    let taken: Vec<(i32,)> =
        sqlx::query_as("select port from server where node_id = $1 and port is not null")
            .bind(node.0)
            .fetch_all(conn)
            .await?;
    let taken: BTreeSet<i32> = taken.into_iter().map(|(port,)| port).collect();
    Ok((first..=last).find(|port| !taken.contains(&i32::from(*port))))
}

/// What was kept before the retention was made shorter, for the first day after that.
pub(crate) async fn former_retention(
    conn: &mut PgConnection,
    server: &Server,
) -> Result<Option<RetentionWindow>> {
    let row: Option<(i16,)> = sqlx::query_as(
        "select former_retention_days from server
          where subscription_id = $1 and id = $2 and retention_changed_at > lease_now() - interval '24 hours'",
    )
    .bind(server.subscription.0)
    .bind(server.id.0)
    .fetch_optional(conn)
    .await?;
    row.map(|(days,)| {
        RetentionWindow::new(i64::from(days)).map_err(|_| Error::corrupt("retention out of range"))
    })
    .transpose()
}

/// What the database's clock says: to compare one's own with before anything is taken away, and for
/// what all processes have to judge alike.
pub(crate) async fn database_clock(conn: &mut PgConnection) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar("select lease_now()")
        .fetch_one(conn)
        .await?)
}

/// Servers whose catalogue may have something to let go.
pub(crate) async fn to_sweep(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
) -> Result<Vec<(SubscriptionId, ServerId)>> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "select s.subscription_id, s.id
           from server s
           join incarnation i on (i.subscription_id, i.id) = (s.subscription_id, s.incarnation_id)
          where i.ready_at is not null and s.purged_at is null
            and (s.state <> 'failed')
            and (s.state <> 'dropped' or s.restorable_until > $1)
          order by s.subscription_id, s.id",
    )
    .bind(now)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(s, id)| (SubscriptionId(s), ServerId(id)))
        .collect())
}

/// Tombstones whose time is over, and servers that were never made once their node has cleared them
/// away and the last work on them ended before `ended_before`.
pub(crate) async fn to_purge(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    ended_before: DateTime<Utc>,
) -> Result<Vec<(SubscriptionId, ServerId)>> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "select subscription_id, id from server
          where state = 'dropped' and purged_at is null and restorable_until <= $1
          union all
         select s.subscription_id, s.id from server s
          where s.state = 'failed' and s.purged_at is null and s.node_id is null and s.incarnation_id is not null
            and not exists (select from job j
                             where j.subscription_id = s.subscription_id and j.server_id = s.id
                               and (j.ended_at is null or j.ended_at > $2))",
    )
    .bind(now)
    .bind(ended_before)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(s, id)| (SubscriptionId(s), ServerId(id)))
        .collect())
}

pub(crate) async fn purged(
    conn: &mut PgConnection,
    server: &Server,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query("update server set purged_at = $3 where subscription_id = $1 and id = $2 and state in ('dropped', 'failed')")
        .bind(server.subscription.0)
        .bind(server.id.0)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}
