//! The session in which PostgreSQL holds a backup open.
//!
//! The backup lives exactly as long as its session (RELIABILITY §5.2.3, measured): a lost connection
//! is a failed attempt, and dropping this value ends the backup. Nobody else can stop it.

use chrono::{DateTime, Utc};
use holdfast_domain::{BackupId, Lsn, Timeline};

use super::page::PAGE_BYTES;
use crate::error::{Error, Result};
use crate::postgres::Connection;

/// What has to be known of a server before its files are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub system_identifier: u64,
    pub wal_segment_bytes: u64,
    pub data_checksums: bool,
    pub major: u16,
}

/// A backup that PostgreSQL holds open.
pub struct BackupSession {
    pub(super) connection: Connection,
    pub facts: Facts,
    /// Where its WAL begins: the redo position of the checkpoint that the start made.
    pub start: Lsn,
    pub timeline: Timeline,
    /// The server's clock when it began.
    pub began_at: DateTime<Utc>,
}

/// What PostgreSQL says when a backup ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The server's clock, read before the stop.
    pub clock: DateTime<Utc>,
    pub stop: Lsn,
    /// The backup label, byte for byte. It belongs into the manifest, never into a live directory.
    pub label: Vec<u8>,
    pub tablespace_map: Option<Vec<u8>>,
}

impl BackupSession {
    /// Refuses on a standby. The checkpoint is made at once (`fast`): a backup is work somebody
    /// waits for.
    pub async fn start(connection: Connection, backup: BackupId) -> Result<Self> {
        let facts = facts(&connection).await?;
        // A tenant's defaults for databases and roles must not end a long backup.
        let mut settings = "SET application_name = 'holdfast-backup'; SET statement_timeout = 0; \
                            SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
                            SET client_min_messages = warning;"
            .to_owned();
        if facts.major >= 14 {
            settings.push_str(" SET idle_session_timeout = 0;");
        }
        connection
            .batch_execute(&settings)
            .await
            .map_err(Error::postgres("prepare the backup's session"))?;

        let sql = if facts.major >= 15 {
            "SELECT pg_backup_start(label => $1, fast => true)::text"
        } else {
            "SELECT pg_start_backup(label => $1, fast => true, exclusive => false)::text"
        };
        let started = connection
            .query_one(sql, &[&backup.to_string()])
            .await
            .map_err(Error::postgres("start a backup"))?;
        let start = lsn(&started.get::<_, String>(0))?;
        let sql = "SELECT timeline_id, clock_timestamp() FROM pg_control_checkpoint()";
        let row = connection
            .query_one(sql, &[])
            .await
            .map_err(Error::postgres("read the timeline"))?;
        Ok(Self {
            connection,
            facts,
            start,
            timeline: Timeline(row.get::<_, i32>(0).cast_unsigned()),
            began_at: row.get(1),
        })
    }

    /// Ends the backup and the session. Every file must have been read before.
    pub async fn stop(self) -> Result<Stopped> {
        let what = "end a backup";
        let clock: DateTime<Utc> = self
            .connection
            .query_one("SELECT clock_timestamp()", &[])
            .await
            .map_err(Error::postgres(what))?
            .get(0);
        // Archiving is off by design (DESIGN §3.3): we wait for the WAL ourselves.
        let sql = if self.facts.major >= 15 {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)"
        } else {
            "SELECT lsn::text, labelfile, spcmapfile \
               FROM pg_stop_backup(exclusive => false, wait_for_archive => false)"
        };
        let stopped = self
            .connection
            .query_one(sql, &[])
            .await
            .map_err(Error::postgres(what))?;
        let map: Option<String> = stopped.get(2);
        Ok(Stopped {
            clock,
            stop: lsn(&stopped.get::<_, String>(0))?,
            label: stopped.get::<_, String>(1).into_bytes(),
            tablespace_map: map.filter(|text| !text.is_empty()).map(String::into_bytes),
        })
    }
}

async fn facts(connection: &Connection) -> Result<Facts> {
    let row = connection
        .query_one(
            "SELECT pg_is_in_recovery(),
                    current_setting('server_version_num')::int4 / 10000,
                    (SELECT system_identifier FROM pg_control_system()),
                    (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size'),
                    current_setting('data_checksums') = 'on',
                    current_setting('block_size')::int4",
            &[],
        )
        .await
        .map_err(Error::postgres("read what kind of server this is"))?;
    if row.get::<_, bool>(0) {
        return Err(Error::Failed {
            code: "ServerIsStandby",
            message: "a standby cannot be backed up; take the backup on its primary".into(),
            retryable: false,
        });
    }
    let block_bytes: i32 = row.get(5);
    if usize::try_from(block_bytes) != Ok(PAGE_BYTES) {
        return Err(Error::Drift(format!(
            "its block size is {block_bytes} instead of {PAGE_BYTES}"
        )));
    }
    Ok(Facts {
        major: u16::try_from(row.get::<_, i32>(1))
            .map_err(|_| Error::Drift("its version is negative".into()))?,
        system_identifier: row.get::<_, i64>(2).cast_unsigned(),
        wal_segment_bytes: row.get::<_, i64>(3).cast_unsigned(),
        data_checksums: row.get(4),
    })
}

fn lsn(text: &str) -> Result<Lsn> {
    text.parse()
        .map_err(|_| Error::Drift("it answered with something that is no WAL position".into()))
}
