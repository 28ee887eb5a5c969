//! Nodes, join tokens and vaults.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::job::NodeInventory;
use holdfast_domain::node::{Node, NodeState, SILENT_AFTER_S};
use holdfast_domain::redundancy::Vault;
use holdfast_domain::{BootId, NodeId, VaultId};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::label::bytes;
use crate::node::NodeView;
use crate::{Error, Result};

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    name: String,
    region: String,
    zone: Option<String>,
    host: String,
    socket_root: Option<String>,
    majors: Json<BTreeMap<u16, String>>,
    port_first: i32,
    port_last: i32,
    free_bytes: i64,
    drained: bool,
    last_seen_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
    servers: i64,
}

const SELECT: &str = "
    select n.id, n.name, n.region, n.zone, n.host, n.socket_root, n.majors, n.port_first, n.port_last, n.free_bytes, n.drained,
           n.last_seen_at, n.revoked_at, (select count(*) from server s where s.node_id = n.id) as servers
      from node n";

/// When a node was last heard from that counts as silent now.
pub(crate) fn silent_since(now: DateTime<Utc>) -> DateTime<Utc> {
    now - TimeDelta::seconds(SILENT_AFTER_S)
}

impl Row {
    fn view(self, now: DateTime<Utc>) -> Result<NodeView> {
        let port = |port: i32| u16::try_from(port).map_err(|_| Error::corrupt("port out of range"));
        let heard = self.last_seen_at.is_some_and(|at| at >= silent_since(now));
        Ok(NodeView {
            node: Node {
                id: NodeId(self.id),
                region: self.region,
                zone: self.zone,
                state: match (heard && self.revoked_at.is_none(), self.drained) {
                    (false, _) => NodeState::Silent,
                    (true, true) => NodeState::Drained,
                    (true, false) => NodeState::Up,
                },
                majors: self.majors.0,
                port_range: (port(self.port_first)?, port(self.port_last)?),
                servers: u32::try_from(self.servers).unwrap_or(u32::MAX),
            },
            name: self.name,
            host: self.host,
            socket_root: self.socket_root,
            free_bytes: self.free_bytes.unsigned_abs(),
            last_seen: self.last_seen_at,
            revoked: self.revoked_at.is_some(),
        })
    }
}

pub(crate) async fn all(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Vec<NodeView>> {
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(format!("{SELECT} order by n.name")))
        .fetch_all(conn)
        .await?;
    rows.into_iter().map(|row| row.view(now)).collect()
}

pub(crate) async fn get(
    conn: &mut PgConnection,
    id: NodeId,
    now: DateTime<Utc>,
) -> Result<Option<NodeView>> {
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(format!("{SELECT} where n.id = $1")))
        .bind(id.0)
        .fetch_optional(conn)
        .await?;
    row.map(|row| row.view(now)).transpose()
}

/// Nobody else gives out a port of this node until the end of the transaction.
pub(crate) async fn hold(conn: &mut PgConnection, id: NodeId) -> Result<()> {
    sqlx::query("select id from node where id = $1 for no key update")
        .bind(id.0)
        .execute(conn)
        .await?;
    Ok(())
}

pub(crate) async fn insert_token(
    conn: &mut PgConnection,
    hash: &[u8],
    name: &str,
    region: &str,
    zone: Option<&str>,
    expires_at: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "insert into join_token (hash, node_name, region, zone, expires_at) values ($1, $2, $3, $4, $5)",
    )
    .bind(hash)
    .bind(name)
    .bind(region)
    .bind(zone)
    .bind(expires_at)
    .execute(conn)
    .await?;
    Ok(())
}

/// Uses a token up; `false`: it was used, is too old, or was made for another node.
pub(crate) async fn use_token(
    conn: &mut PgConnection,
    hash: &[u8],
    inventory: &NodeInventory,
    now: DateTime<Utc>,
) -> Result<bool> {
    let done = sqlx::query(
        "update join_token set used_at = $5
          where hash = $1 and node_name = $2 and region = $3 and zone is not distinct from $4
            and used_at is null and expires_at > $5",
    )
    .bind(hash)
    .bind(&inventory.name)
    .bind(&inventory.region)
    .bind(&inventory.zone)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A node that joins again under its name is the same node.
pub(crate) async fn join(
    conn: &mut PgConnection,
    inventory: &NodeInventory,
    now: DateTime<Utc>,
) -> Result<NodeId> {
    let (id,): (Uuid,) = sqlx::query_as(
        "insert into node (id, name, region, zone, host, majors, port_first, port_last, free_bytes, joined_at, socket_root)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         on conflict (name) do update
            set host = excluded.host, majors = excluded.majors, port_first = excluded.port_first,
                port_last = excluded.port_last, free_bytes = excluded.free_bytes, socket_root = excluded.socket_root,
                revoked_at = null
          where node.region = excluded.region and node.zone is not distinct from excluded.zone
         returning id",
    )
    .bind(NodeId::new().0)
    .bind(&inventory.name)
    .bind(&inventory.region)
    .bind(&inventory.zone)
    .bind(&inventory.host)
    .bind(Json(&inventory.majors))
    .bind(i32::from(inventory.port_range.0))
    .bind(i32::from(inventory.port_range.1))
    .bind(bytes(inventory.free_bytes)?)
    .bind(now)
    .bind(&inventory.socket_root)
    .fetch_optional(conn)
    .await?
    .ok_or(Error::JoinRefused)?;
    Ok(NodeId(id))
}

/// The node is there and has this. Answers with the boot that spoke before. Whoever was replaced stays
/// replaced: a process that hung while a newer one took over does not get the node back (F24).
pub(crate) async fn heard(
    conn: &mut PgConnection,
    id: NodeId,
    boot: BootId,
    inventory: &NodeInventory,
    now: DateTime<Utc>,
) -> Result<Option<BootId>> {
    // The newest sixteen are remembered: more processes of one node than that do not hang at once.
    let before: Option<(Option<Uuid>,)> = sqlx::query_as(
        "with before as (select id, boot_id, earlier_boots from node
                          where id = $1 and revoked_at is null for no key update)
         update node n
            set boot_id = $2, host = $3, majors = $4, port_first = $5, port_last = $6, free_bytes = $7,
                last_seen_at = $8, socket_root = $9,
                idle_until = case when before.boot_id = $2 then n.idle_until end,
                earlier_boots = case when before.boot_id <> $2
                                     then (before.earlier_boots || before.boot_id)
                                          [greatest(cardinality(before.earlier_boots) - 14, 1):]
                                     else before.earlier_boots end
           from before where n.id = before.id and $2 <> all (before.earlier_boots)
         returning before.boot_id",
    )
    .bind(id.0)
    .bind(boot.0)
    .bind(&inventory.host)
    .bind(Json(&inventory.majors))
    .bind(i32::from(inventory.port_range.0))
    .bind(i32::from(inventory.port_range.1))
    .bind(bytes(inventory.free_bytes)?)
    .bind(now)
    .bind(&inventory.socket_root)
    .fetch_optional(&mut *conn)
    .await?;
    match before {
        Some((before,)) => Ok(before.map(BootId)),
        None => {
            // Unknown or revoked, which says so itself; else replaced.
            self::boot(conn, id).await?;
            Err(Error::Stale)
        }
    }
}

/// The process that may speak for the node.
pub(crate) async fn boot(conn: &mut PgConnection, id: NodeId) -> Result<Option<BootId>> {
    let row: Option<(Option<Uuid>,)> =
        sqlx::query_as("select boot_id from node where id = $1 and revoked_at is null")
            .bind(id.0)
            .fetch_optional(conn)
            .await?;
    let (boot,) = row.ok_or(Error::UnknownNode(id))?;
    Ok(boot.map(BootId))
}

pub(crate) async fn revoke(
    conn: &mut PgConnection,
    id: NodeId,
    now: DateTime<Utc>,
) -> Result<bool> {
    let done = sqlx::query("update node set revoked_at = coalesce(revoked_at, $2) where id = $1")
        .bind(id.0)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// That a place has one vault of each ordinal is looked at when the transaction commits: on the way
/// there two may share one.
pub(crate) async fn put_vaults(conn: &mut PgConnection, vaults: &[Vault]) -> Result<()> {
    for vault in vaults {
        sqlx::query(
            "insert into vault (id, region, zone, url, own_copies, ordinal) values ($1, $2, $3, $4, $5, $6)
             on conflict (id) do update
                set url = excluded.url, own_copies = excluded.own_copies, ordinal = excluded.ordinal",
        )
        .bind(vault.id.0)
        .bind(&vault.region)
        .bind(&vault.zone)
        .bind(&vault.url)
        .bind(i32::from(vault.own_copies))
        .bind(i32::from(vault.ordinal))
        .execute(&mut *conn)
        .await?;
    }
    // Those that nobody names any more are still read from; they come after the named ones.
    sqlx::query(
        "update vault v
            set ordinal = after.ordinal
           from (select old.id, (select max(ordinal) from vault where id = any($1))
                                + row_number() over (order by old.ordinal, old.id) as ordinal
                   from vault old
                  where old.id <> all($1)
                    and exists (select from vault named
                                 where named.id = any($1) and named.region = old.region
                                   and named.zone is not distinct from old.zone)) after
          where v.id = after.id",
    )
    .bind(vaults.iter().map(|vault| vault.id.0).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn vaults(conn: &mut PgConnection) -> Result<Vec<Vault>> {
    let rows: Vec<(Uuid, String, Option<String>, String, i32, i32)> = sqlx::query_as(
        "select id, region, zone, url, own_copies, ordinal from vault order by region, zone, ordinal",
    )
    .fetch_all(conn)
    .await?;
    let small =
        |number: i32| u16::try_from(number).map_err(|_| Error::corrupt("vault out of range"));
    rows.into_iter()
        .map(|(id, region, zone, url, own_copies, ordinal)| {
            Ok(Vault {
                id: VaultId(id),
                region,
                zone,
                url,
                own_copies: small(own_copies)?,
                ordinal: small(ordinal)?,
            })
        })
        .collect()
}

/// Drops tokens that can no longer be used.
pub(crate) async fn forget_tokens(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<u64> {
    let done = sqlx::query("delete from join_token where expires_at <= $1 or used_at is not null")
        .bind(now)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}
