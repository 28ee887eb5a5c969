//! Management locks and role assignments: what is attached to scopes.

use chrono::{DateTime, Utc};
use holdfast_domain::lock::{Lock, LockLevel};
use holdfast_domain::role::{Role, RoleAssignment};
use holdfast_domain::{LockId, SubscriptionId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::label::{from_label, label};
use crate::{Error, Result};

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    name: String,
    scope: String,
    level: String,
    notes: Option<String>,
}

impl TryFrom<Row> for Lock {
    type Error = Error;
    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            id: LockId(row.id),
            name: row.name,
            scope: row.scope,
            level: from_label(row.level)?,
            notes: row.notes,
        })
    }
}

/// All of a subscription: there are few, and the domain says which of them count.
pub(crate) async fn all(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
) -> Result<Vec<Lock>> {
    let rows: Vec<Row> = sqlx::query_as(
        "select id, name, scope, level::text as level, notes from management_lock
          where subscription_id = $1 order by scope_key, name_key",
    )
    .bind(subscription.0)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Lock::try_from).collect()
}

/// The lock as it is afterwards, and whether it is new.
pub(crate) async fn put(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    scope: &str,
    name: &str,
    level: LockLevel,
    notes: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(Lock, bool)> {
    let id = LockId::new();
    let row: Row = sqlx::query_as(
        "insert into management_lock (subscription_id, scope_key, name_key, id, scope, name, level, notes, created_at)
         values ($1, lower($2), lower($3), $4, $2, $3, $5::lock_level, $6, $7)
         on conflict (subscription_id, scope_key, name_key)
         do update set level = excluded.level, notes = excluded.notes
         returning id, name, scope, level::text as level, notes",
    )
    .bind(subscription.0)
    .bind(scope)
    .bind(name)
    .bind(id.0)
    .bind(label(level))
    .bind(notes)
    .bind(now)
    .fetch_one(conn)
    .await?;
    let lock = Lock::try_from(row)?;
    let new = lock.id == id;
    Ok((lock, new))
}

pub(crate) async fn delete(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    scope: &str,
    name: &str,
) -> Result<bool> {
    let done = sqlx::query(
        "delete from management_lock
          where subscription_id = $1 and scope_key = lower($2) and name_key = lower($3)",
    )
    .bind(subscription.0)
    .bind(scope)
    .bind(name)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn assign(conn: &mut PgConnection, assignment: &RoleAssignment) -> Result<()> {
    sqlx::query(
        "insert into role_assignment (principal, scope_key, role, scope)
         values ($1, lower($2), $3::role_name, $2) on conflict do nothing",
    )
    .bind(&assignment.principal)
    .bind(&assignment.scope)
    .bind(label(assignment.role))
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes the configured assignments these and no others.
pub(crate) async fn configure(conn: &mut PgConnection, roles: &[RoleAssignment]) -> Result<()> {
    // Two schedulers that start together take turns; readers are not kept waiting.
    sqlx::query("lock table role_assignment in share row exclusive mode")
        .execute(&mut *conn)
        .await?;
    let principals: Vec<&str> = roles.iter().map(|role| role.principal.as_str()).collect();
    let scopes: Vec<&str> = roles.iter().map(|role| role.scope.as_str()).collect();
    let names: Vec<String> = roles.iter().map(|role| label(role.role)).collect();
    sqlx::query(
        "delete from role_assignment
          where configured
            and (principal, scope_key, role::text) not in
                (select principal, lower(scope), role
                   from unnest($1::text[], $2::text[], $3::text[]) as wanted (principal, scope, role))",
    )
    .bind(&principals)
    .bind(&scopes)
    .bind(&names)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "insert into role_assignment (principal, scope_key, role, scope, configured)
         select distinct on (principal, lower(scope), role) principal, lower(scope), role::role_name, scope, true
           from unnest($1::text[], $2::text[], $3::text[]) as wanted (principal, scope, role)
         on conflict do nothing",
    )
    .bind(&principals)
    .bind(&scopes)
    .bind(&names)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn assignments_of(
    conn: &mut PgConnection,
    principals: &[String],
) -> Result<Vec<RoleAssignment>> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "select principal, role::text, scope from role_assignment where principal = any($1)
          order by principal, scope_key, role",
    )
    .bind(principals)
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(principal, role, scope)| {
            Ok(RoleAssignment {
                principal,
                role: from_label::<Role>(role)?,
                scope,
            })
        })
        .collect()
}
