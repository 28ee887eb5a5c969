//! What a restored server must not keep from its source before anybody reaches it (RELIABILITY §5.4.8).
//!
//! A copy's subscription pulls rows newer than the target and steals the publisher's slot (measured);
//! an inherited slot holds WAL for somebody who will never come. All of it is done in the database
//! `postgres` on shared catalogs: no tenant's database is entered, so nothing that lives in one –
//! event triggers, functions, operators – runs with the agent's rights.

use std::path::Path;

use secrecy::SecretString;

use crate::error::{Error, Result};
use crate::postgres::{Connection, administrator, connection};

/// What was found and put right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handover {
    /// `database.subscription` of those that were enabled.
    pub subscriptions: Vec<String>,
    pub slots_dropped: u64,
    pub prepared_transactions: Vec<String>,
}

/// A login that the body of the restore gives; otherwise those of the restored state stay.
pub struct NewPassword<'a> {
    pub login: &'a str,
    pub password: &'a SecretString,
}

/// Cleans a promoted server that nobody but the agent can reach yet.
pub async fn clean(
    socket_dir: &Path,
    port: u16,
    major: u16,
    password: Option<NewPassword<'_>>,
) -> Result<Handover> {
    let session = connection::connect(socket_dir, port).await?;
    let handover = Handover {
        subscriptions: disable_subscriptions(&session).await?,
        slots_dropped: drop_slots(&session).await?,
        prepared_transactions: prepared_transactions(&session).await?,
    };
    drop(session);
    if let Some(NewPassword { login, password }) = password {
        administrator::ensure(socket_dir, port, major, login, Some(password)).await?;
    }
    Ok(handover)
}

/// `ALTER SUBSCRIPTION … DISABLE` would have to enter each database; the shared catalog has them all.
/// No worker has read it yet: `max_logical_replication_workers` is 0 until hand-over.
async fn disable_subscriptions(session: &Connection) -> Result<Vec<String>> {
    let disabled = session
        .query(
            "WITH disabled AS (
                 UPDATE pg_catalog.pg_subscription SET subenabled = false WHERE subenabled
                 RETURNING subdbid, subname)
             SELECT coalesce(d.datname, '?')::text || '.' || s.subname::text
               FROM disabled s LEFT JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
              ORDER BY 1",
            &[],
        )
        .await
        .map_err(Error::postgres("disable inherited subscriptions"))?;
    Ok(disabled.iter().map(|row| row.get(0)).collect())
}

async fn drop_slots(session: &Connection) -> Result<u64> {
    session
        .execute(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots",
            &[],
        )
        .await
        .map_err(Error::postgres("drop inherited replication slots"))
}

async fn prepared_transactions(session: &Connection) -> Result<Vec<String>> {
    let open = session
        .query(
            "SELECT database::text || ': ' || gid FROM pg_catalog.pg_prepared_xacts ORDER BY prepared",
            &[],
        )
        .await
        .map_err(Error::postgres("list prepared transactions"))?;
    Ok(open.iter().map(|row| row.get(0)).collect())
}
