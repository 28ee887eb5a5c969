//! Subscriptions and resource groups.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use holdfast_domain::SubscriptionId;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::Result;
use crate::resource_group::ResourceGroup;

pub(crate) async fn ensure_subscription(
    conn: &mut PgConnection,
    id: SubscriptionId,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query("insert into subscription (id, created_at) values ($1, $2) on conflict do nothing")
        .bind(id.0)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

pub(crate) async fn subscription_exists(
    conn: &mut PgConnection,
    id: SubscriptionId,
) -> Result<bool> {
    let (exists,): (bool,) =
        sqlx::query_as("select exists (select from subscription where id = $1)")
            .bind(id.0)
            .fetch_one(conn)
            .await?;
    Ok(exists)
}

/// Makes the group; `false`: there is one of this name.
pub(crate) async fn insert(
    conn: &mut PgConnection,
    group: &ResourceGroup,
    now: DateTime<Utc>,
) -> Result<bool> {
    let done = sqlx::query(
        "insert into resource_group (subscription_id, name_key, name, location, tags, created_at)
         values ($1, lower($2), $2, $3, $4, $5) on conflict do nothing",
    )
    .bind(group.subscription.0)
    .bind(&group.name)
    .bind(&group.location)
    .bind(Json(&group.tags))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn get(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    name: &str,
) -> Result<Option<ResourceGroup>> {
    type Row = (String, String, Json<BTreeMap<String, String>>);
    let row: Option<Row> = sqlx::query_as(
        "select name, location, tags from resource_group where subscription_id = $1 and name_key = lower($2)",
    )
    .bind(subscription.0)
    .bind(name)
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|(name, location, tags)| ResourceGroup {
        subscription,
        name,
        location,
        tags: tags.0,
    }))
}

pub(crate) async fn set_tags(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    name: &str,
    tags: &BTreeMap<String, String>,
) -> Result<()> {
    sqlx::query(
        "update resource_group set tags = $3 where subscription_id = $1 and name_key = lower($2)",
    )
    .bind(subscription.0)
    .bind(name)
    .bind(Json(tags))
    .execute(conn)
    .await?;
    Ok(())
}
