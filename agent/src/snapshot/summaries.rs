//! What PostgreSQL 17 and newer remember themselves of the blocks that their log changed: a second source for
//! [`Reading`](super::reading::Reading) when the agent has not seen all of the log, because it was restarted, say (ADR 15).
//!
//! Summaries lie in `pg_wal/summaries`, one from checkpoint to checkpoint. They are believed when they reach
//! without a hole from the base's start to where what the agent saw begins. PostgreSQL's manual, "WAL Summarization
//! Information Functions".

use holdfast_domain::Lsn;
use holdfast_vault::wal::blocks::MAIN_FORK;
use holdfast_vault::wal::record::RelFileLocator;

use super::session::BackupSession;
use crate::error::{Error, Result};
use crate::stream::change_map::Changes;

const FIRST_MAJOR: u16 = 17;

impl BackupSession {
    /// What records changed that begin in `[since, until)`, and perhaps some more; `None` when PostgreSQL does not
    /// know all of it.
    pub async fn summarized(&self, since: Lsn, until: Lsn) -> Result<Option<Changes>> {
        if self.facts.major < FIRST_MAJOR {
            return Ok(None);
        }
        let what = "read its summaries of the log";
        let timeline = i64::from(self.timeline.0);
        let (since, until) = (since.to_string(), until.to_string());
        // Those that begin where the one before ended, or earlier; the newest end of such a chain.
        let reached = self
            .connection
            .query_one(
                "WITH RECURSIVE summary AS (
                     SELECT start_lsn, end_lsn FROM pg_available_wal_summaries() WHERE tli = $1
                 ), chain(reached) AS (
                     SELECT $2::text::pg_lsn
                     UNION
                     SELECT summary.end_lsn FROM chain JOIN summary
                         ON summary.start_lsn <= chain.reached AND summary.end_lsn > chain.reached
                 )
                 SELECT max(reached) >= $3::text::pg_lsn FROM chain",
                &[&timeline, &since, &until],
            )
            .await
            .map_err(Error::postgres(what))?;
        if !reached.get::<_, bool>(0) {
            return Ok(None);
        }
        let rows = self
            .connection
            .query(
                "SELECT reltablespace::int8, reldatabase::int8, relfilenode::int8, relforknumber::int4,
                        is_limit_block, relblocknumber
                   FROM pg_available_wal_summaries() summary,
                        pg_wal_summary_contents(summary.tli, summary.start_lsn, summary.end_lsn)
                  WHERE summary.tli = $1
                    AND summary.end_lsn > $2::text::pg_lsn AND summary.start_lsn < $3::text::pg_lsn",
                &[&timeline, &since, &until],
            )
            .await
            .map_err(Error::postgres(what))?;
        let mut changes = Changes::default();
        for row in rows {
            let oid = |column| u32::try_from(row.get::<_, i64>(column)).unwrap_or(u32::MAX);
            let relation = RelFileLocator {
                tablespace: oid(0),
                database: oid(1),
                relation: oid(2),
            };
            let (fork, is_limit) = (row.get::<_, i32>(3), row.get::<_, bool>(4));
            match (is_limit, relation.relation) {
                // Copied as files, or dropped.
                (true, 0) => changes.add_database(relation.database),
                // Made, or cut to that many blocks.
                (true, _) => changes.add_relation(relation),
                (false, _) if fork == i32::from(MAIN_FORK) => changes.add_block(relation, oid(5)),
                (false, _) => {}
            }
        }
        Ok(Some(changes))
    }
}
