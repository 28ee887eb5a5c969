//! The activity log: append-only, chained by hashes inside each subscription.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256};
use chrono::{DateTime, Utc};
use holdfast_domain::activity::{ActivityEvent, Caller};
use holdfast_domain::{EventId, OperationId, SubscriptionId};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::label::{from_label, json, label};
use crate::activity::ActivityFilter;
use crate::{Error, Result};

/// Appends events in their order. Locks the end of each subscription's chain until the commit, so it
/// is the last thing that a transaction does.
pub(crate) async fn append(conn: &mut PgConnection, events: &[ActivityEvent]) -> Result<()> {
    let mut by_subscription: BTreeMap<SubscriptionId, Vec<&ActivityEvent>> = BTreeMap::new();
    for event in events {
        by_subscription
            .entry(event.subscription)
            .or_default()
            .push(event);
    }
    for (subscription, events) in by_subscription {
        let (mut number, mut hash): (i64, Vec<u8>) = sqlx::query_as(
            "insert into activity_chain as c (subscription_id, length, hash) values ($1, 0, '\\x00')
             on conflict (subscription_id) do update set length = c.length
             returning length, hash",
        )
        .bind(subscription.0)
        .fetch_one(&mut *conn)
        .await?;
        for event in events {
            number += 1;
            let next = chained(&hash, event);
            insert(&mut *conn, event, number, &hash, &next).await?;
            hash = next;
        }
        sqlx::query("update activity_chain set length = $2, hash = $3 where subscription_id = $1")
            .bind(subscription.0)
            .bind(number)
            .bind(hash)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// SHA-256 over the hash before and everything that the event says.
pub(crate) fn chained(previous: &[u8], event: &ActivityEvent) -> Vec<u8> {
    let said = serde_json::json!([
        event.id,
        event.subscription,
        event.group,
        event.resource_id,
        event.action,
        event.status,
        event.operation,
        event.caller,
        event.at.timestamp_micros(),
        event.http_method,
        event.http_status,
        event.properties,
    ]);
    let mut context = Context::new(&SHA256);
    context.update(previous);
    context.update(said.to_string().as_bytes());
    context.finish().as_ref().to_vec()
}

async fn insert(
    conn: &mut PgConnection,
    event: &ActivityEvent,
    number: i64,
    previous: &[u8],
    hash: &[u8],
) -> Result<()> {
    sqlx::query(
        "insert into activity_event (subscription_id, number, id, group_name, resource_id, action, status,
                                     operation_id, caller, correlation_id, at, http_method, http_status,
                                     properties, previous_hash, hash)
         values ($1, $2, $3, $4, $5, $6, $7::activity_status, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
    )
    .bind(event.subscription.0)
    .bind(number)
    .bind(event.id.0)
    .bind(&event.group)
    .bind(&event.resource_id)
    .bind(&event.action)
    .bind(label(event.status))
    .bind(event.operation.map(|id| id.0))
    .bind(Json(&event.caller))
    .bind(&event.caller.correlation_id)
    .bind(event.at)
    .bind(&event.http_method)
    .bind(event.http_status.map(i32::from))
    .bind(json(&event.properties)?)
    .bind(previous)
    .bind(hash)
    .execute(conn)
    .await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Row {
    subscription_id: Uuid,
    number: i64,
    id: Uuid,
    group_name: String,
    resource_id: String,
    action: String,
    status: String,
    operation_id: Option<Uuid>,
    caller: Json<Caller>,
    at: DateTime<Utc>,
    http_method: Option<String>,
    http_status: Option<i32>,
    properties: Json<BTreeMap<String, String>>,
}

impl TryFrom<Row> for ActivityEvent {
    type Error = Error;
    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            id: EventId(row.id),
            subscription: SubscriptionId(row.subscription_id),
            group: row.group_name,
            resource_id: row.resource_id,
            action: row.action,
            status: from_label(row.status)?,
            operation: row.operation_id.map(OperationId),
            caller: row.caller.0,
            at: row.at,
            http_method: row.http_method,
            http_status: row
                .http_status
                .and_then(|status| u16::try_from(status).ok()),
            properties: row.properties.0,
        })
    }
}

/// Newest first, with their numbers. `before`: time and number of the last event already shown.
pub(crate) async fn query(
    conn: &mut PgConnection,
    filter: &ActivityFilter,
    before: Option<(DateTime<Utc>, i64)>,
    limit: i64,
) -> Result<Vec<(i64, ActivityEvent)>> {
    let rows: Vec<Row> = sqlx::query_as(
        "select subscription_id, number, id, group_name, resource_id, action, status::text as status, operation_id,
                caller, at, http_method, http_status, properties
           from activity_event
          where subscription_id = $1 and at >= $2 and ($3::timestamptz is null or at <= $3)
            and ($4::text is null or lower(group_name) = lower($4))
            and ($5::text is null or lower(resource_id) = lower($5))
            and ($6::text is null or starts_with(lower(action), lower($6) || '/'))
            and ($7::text is null or lower(correlation_id) = lower($7))
            and ($8::text is null or status = $8::activity_status)
            and ($9::text is null or lower(caller ->> 'name') = lower($9) or lower(caller ->> 'principal') = lower($9))
            and ($10::timestamptz is null or (at, number) < ($10, $11))
          order by at desc, number desc
          limit $12",
    )
    .bind(filter.subscription.0)
    .bind(filter.from)
    .bind(filter.to)
    .bind(&filter.group)
    .bind(&filter.resource_id)
    .bind(&filter.provider)
    .bind(&filter.correlation_id)
    .bind(filter.status.map(label))
    .bind(&filter.caller)
    .bind(before.map(|(at, _)| at))
    .bind(before.map(|(_, number)| number))
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| Ok((row.number, row.try_into()?)))
        .collect()
}

/// Drops events that are older; the chain goes on from the first that is left.
pub(crate) async fn forget(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    let done = sqlx::query("delete from activity_event where at < $1")
        .bind(before)
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}
