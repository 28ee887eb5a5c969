//! What the stream asks the server in SQL: how far it is, and which relations are statistics.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use holdfast_domain::Lsn;
use holdfast_vault::wal::counting::StatisticsRelations;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};
use tokio_util::task::AbortOnDropHandle;

use super::error::{Error, Result};
use super::replication::SLOT;

const EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
/// Asynchronous commits reach the disk within three rounds of the WAL writer, 200 ms each by default.
const WAL_WRITER_ROUNDS: u32 = 15;
const WAL_WRITER_STEP: Duration = Duration::from_millis(50);

/// How the socket is reached.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub socket_dir: PathBuf,
    pub port: u16,
    pub user: String,
}

/// Where the server's log stood at an instant of its own clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Observation {
    pub at: DateTime<Utc>,
    pub inserted: Lsn,
    pub flushed: Lsn,
}

/// The slot as the server sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub restart: Option<Lsn>,
    pub active_pid: Option<i32>,
}

/// One SQL session; it ends with this value.
pub(super) struct Session {
    client: Client,
    _driver: AbortOnDropHandle<()>,
}

impl Address {
    pub async fn open(&self, database: &str) -> Result<Session> {
        let mut config = Config::new();
        config
            .host_path(&self.socket_dir)
            .port(self.port)
            .user(&self.user)
            .dbname(database)
            .application_name("holdfast stream observer")
            .connect_timeout(PATIENCE)
            .options("-c search_path=pg_catalog -c statement_timeout=10s");
        let (client, connection) = config.connect(NoTls).await.map_err(|source| Error::Sql {
            what: "connect",
            source,
        })?;
        let driver: JoinHandle<()> = tokio::spawn(async move {
            // Its end is seen by whoever asks next.
            let _ended = connection.await;
        });
        Ok(Session {
            client,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// The relations of every database whose rows are statistics (RELIABILITY §5.5).
    pub async fn statistics(&self) -> Result<StatisticsRelations> {
        let home = self.open("postgres").await?;
        let mut pairs = Vec::new();
        for (oid, name) in home.databases().await? {
            let session = self.open(&name).await?;
            pairs.extend(
                session
                    .statistics_files()
                    .await?
                    .into_iter()
                    .map(|file| (oid, file)),
            );
        }
        Ok(pairs.into_iter().collect())
    }

    /// Everything that was committed before this call lies before the position it returns.
    pub async fn committed_until(&self) -> Result<Lsn> {
        let session = self.open("postgres").await?;
        let first = session.observe().await?;
        let mut flushed = first.flushed;
        // Commits with synchronous_commit off are in the log and perhaps not on the disk. What is
        // still not there after the WAL writer's rounds belongs to transactions that have not committed.
        for _ in 0..WAL_WRITER_ROUNDS {
            if flushed >= first.inserted {
                return Ok(first.inserted);
            }
            tokio::time::sleep(WAL_WRITER_STEP).await;
            flushed = session.observe().await?.flushed;
        }
        Ok(flushed.min(first.inserted))
    }

    /// Looks once a second until nobody listens or the session ends.
    pub async fn watch(self, news: mpsc::Sender<Observation>) -> Result<()> {
        let session = self.open("postgres").await?;
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let observation = session.observe().await?;
            if news.send(observation).await.is_err() {
                return Ok(());
            }
        }
    }
}

impl Session {
    /// The clock first: whatever has a stamp up to it and reached the log lies before the position.
    pub async fn observe(&self) -> Result<Observation> {
        let what = "look at its log";
        let row = self
            .client
            .query_one(
                "SELECT clock_timestamp(), pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text",
                &[],
            )
            .await
            .map_err(|source| Error::Sql { what, source })?;
        let sql = |source| Error::Sql { what, source };
        Ok(Observation {
            at: row.try_get(0).map_err(sql)?,
            inserted: position(row.try_get(1).map_err(sql)?)?,
            flushed: position(row.try_get(2).map_err(sql)?)?,
        })
    }

    pub async fn slot(&self) -> Result<Option<Slot>> {
        let sql = |source| Error::Sql {
            what: "look at its slot",
            source,
        };
        let row = self
            .client
            .query_opt(
                "SELECT restart_lsn::text, active_pid FROM pg_replication_slots WHERE slot_name = $1",
                &[&SLOT],
            )
            .await
            .map_err(sql)?;
        row.map(|row| {
            let restart: Option<&str> = row.try_get(0).map_err(sql)?;
            Ok(Slot {
                restart: restart.map(position).transpose()?,
                active_pid: row.try_get(1).map_err(sql)?,
            })
        })
        .transpose()
    }

    /// Ends the session that still holds our slot: a receiver of ours that died.
    pub async fn end_session(&self, pid: i32) -> Result<()> {
        self.client
            .execute("SELECT pg_terminate_backend($1)", &[&pid])
            .await
            .map_err(|source| Error::Sql {
                what: "free its slot",
                source,
            })?;
        Ok(())
    }

    async fn databases(&self) -> Result<Vec<(u32, String)>> {
        let sql = |source| Error::Sql {
            what: "list its databases",
            source,
        };
        let rows = self
            .client
            .query(
                "SELECT oid, datname::text FROM pg_database WHERE datallowconn AND datconnlimit <> -2",
                &[],
            )
            .await
            .map_err(sql)?;
        rows.iter()
            .map(|row| Ok((row.try_get(0).map_err(sql)?, row.try_get(1).map_err(sql)?)))
            .collect()
    }

    async fn statistics_files(&self) -> Result<Vec<u32>> {
        let sql = |source| Error::Sql {
            what: "find its statistics",
            source,
        };
        let rows = self
            .client
            .query(
                "SELECT pg_relation_filenode(file) \
                   FROM pg_class, LATERAL (VALUES (oid), (nullif(reltoastrelid, 0))) AS files (file) \
                  WHERE relnamespace = 'pg_catalog'::regnamespace \
                    AND relname IN ('pg_statistic', 'pg_statistic_ext_data') \
                    AND pg_relation_filenode(file) IS NOT NULL",
                &[],
            )
            .await
            .map_err(sql)?;
        rows.iter().map(|row| row.try_get(0).map_err(sql)).collect()
    }
}

fn position(text: &str) -> Result<Lsn> {
    text.parse()
        .map_err(|_| Error::Protocol(format!("{text:?} is not a WAL position")))
}
