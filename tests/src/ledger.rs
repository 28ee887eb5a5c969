//! The oracle of RELIABILITY §2.1: one writer keeps a ledger of what it sent and what was
//! acknowledged, on the server's own clock; a restored copy is compared with it.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use tokio_postgres::Client;

/// One transaction of the writer.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub sequence: i64,
    /// The server's clock before the transaction was sent.
    pub sent: DateTime<Utc>,
    /// The server's clock after its commit was acknowledged.
    pub acknowledged: DateTime<Utc>,
}

/// A single writer's ledger: rows of table `ledger`, one transaction each, in sequence.
#[derive(Debug, Default)]
pub struct Ledger {
    pub entries: Vec<Entry>,
}

impl Ledger {
    pub async fn prepare(sql: &Client) -> Result<Self> {
        sql.batch_execute(
            "CREATE TABLE ledger (seq bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), pad text)",
        )
        .await?;
        Ok(Self::default())
    }

    /// Writes `rows` transactions.
    pub async fn write(&mut self, sql: &Client, rows: usize) -> Result<()> {
        for _ in 0..rows {
            let sequence = self.entries.len() as i64 + 1;
            let sent = clock(sql).await?;
            sql.execute(
                "INSERT INTO ledger (seq, pad) VALUES ($1::bigint, repeat(md5(($1::bigint)::text), 8))",
                &[&sequence],
            )
            .await?;
            self.entries.push(Entry {
                sequence,
                sent,
                acknowledged: clock(sql).await?,
            });
        }
        Ok(())
    }

    pub fn last(&self) -> Result<Entry> {
        self.entries.last().copied().context("nothing was written")
    }

    /// What a copy restored to `at` must hold: everything acknowledged by then, nothing sent later,
    /// and of what lies between, a prefix.
    pub async fn compare(&self, copy: &Client, at: DateTime<Utc>) -> Result<i64> {
        let present = prefix(copy).await?;
        let acknowledged = self
            .entries
            .iter()
            .filter(|entry| entry.acknowledged <= at)
            .count();
        let sent = self.entries.iter().filter(|entry| entry.sent <= at).count();
        ensure!(
            (acknowledged as i64..=sent as i64).contains(&present),
            "restored to {at}: {present} rows, but {acknowledged} were acknowledged and {sent} sent by then"
        );
        Ok(present)
    }
}

/// A server's own clock, which is the one that its promises are kept by.
pub async fn clock(sql: &Client) -> Result<DateTime<Utc>> {
    let row = sql.query_one("SELECT clock_timestamp()", &[]).await?;
    Ok(row.get(0))
}

/// The rows of a copy, which must be 1…n without a hole.
pub async fn prefix(copy: &Client) -> Result<i64> {
    let row = copy
        .query_one("SELECT count(*), coalesce(max(seq), 0) FROM ledger", &[])
        .await?;
    let (count, max): (i64, i64) = (row.get(0), row.get(1));
    ensure!(
        count == max,
        "{count} rows up to sequence {max}: not a prefix"
    );
    Ok(count)
}
