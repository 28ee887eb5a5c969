//! From what was asked for to one record of the log, the last that is replayed (RELIABILITY §5.5).
//!
//! The goal is always an inclusive LSN, for a backup by itself too. `recovery_target = 'immediate'`
//! would not do there (measured on 15): it stops *before the record after* the backup's end, so a
//! plan that ends with the backup – which is all that is known durable – ends in "recovery ended
//! before configured recovery target was reached". The backup-end record itself needs nothing after it.

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use holdfast_domain::job::RestoreSource;
use holdfast_domain::restore::RestoreTarget;
use holdfast_domain::wal::WalObject;
use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::key::DataKey;
use holdfast_vault::store::Store;
use holdfast_vault::wal::object::get_wal;
use holdfast_vault::wal::record::rmgr;
use holdfast_vault::wal::target::{Search, Target, Until, cover, resolve};
use holdfast_vault::wal::walker::Walker;

use super::segment_source::missing_is_a_gap;
use crate::error::{Error, Result};

/// `XLOG_BACKUP_END` among the records of the log itself.
const BACKUP_END: u8 = 0x50;
const WAL_PAGE: u64 = 8192;

/// The last record to be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    /// Its first byte: `recovery_target_lsn`.
    pub target: Lsn,
    /// The first byte after it: where the new timeline must begin.
    pub end: Lsn,
    /// The time of the commit or abort that it is; `None` for the end of the backup.
    pub stamp: Option<DateTime<Utc>>,
}

impl Goal {
    pub async fn find(
        source: &RestoreSource,
        target: RestoreTarget,
        stores: &[Store],
        data_key: &DataKey,
    ) -> Result<Self> {
        let until = match target {
            RestoreTarget::Backup(_) => return Self::end_of_backup(source, stores, data_key).await,
            RestoreTarget::Latest => Until::Latest,
            RestoreTarget::At(instant) | RestoreTarget::LatestUntil(instant) => Until::At(instant),
        };
        let search = Search {
            objects: &source.wal,
            lineage: &source.lineage,
            timeline: source.timeline,
            backup_timeline: source.backup_timeline,
            backup_stop: source.backup_stop,
            until,
        };
        let fetch = |object: WalObject| {
            let (stores, data_key) = (stores.to_vec(), data_key.clone());
            async move { get_wal(&stores, &data_key, &object).await }.boxed()
        };
        match resolve(&search, fetch).await.map_err(missing_is_a_gap)? {
            // A commit inside the backup is part of it: recovery cannot stop before the end.
            Target::Lsn {
                target, end, stamp, ..
            } if end > source.backup_stop => Ok(Self {
                target,
                end,
                stamp: Some(stamp),
            }),
            Target::Lsn { .. } | Target::Immediate => {
                Self::end_of_backup(source, stores, data_key).await
            }
        }
    }

    /// The instant that the reached state stands for (DESIGN §3.6). `completed`: the backup's.
    #[must_use]
    pub fn restored_to(&self, target: RestoreTarget, completed: DateTime<Utc>) -> DateTime<Utc> {
        match target {
            RestoreTarget::At(instant) | RestoreTarget::LatestUntil(instant) => instant,
            RestoreTarget::Latest => completed.max(self.stamp.unwrap_or(completed)),
            RestoreTarget::Backup(_) => completed,
        }
    }

    /// The record that ends at the backup's stop. It lies in the last page before that or begins in
    /// the one before; the walk can begin with any page.
    async fn end_of_backup(
        source: &RestoreSource,
        stores: &[Store],
        data_key: &DataKey,
    ) -> Result<Self> {
        let (timeline, stop) = (source.backup_timeline, source.backup_stop);
        let first = source.backup_start.segment_start(source.wal_segment_bytes);
        let page_before = ((stop.0.saturating_sub(1)) / WAL_PAGE).saturating_sub(1) * WAL_PAGE;
        let begin = Lsn(page_before).max(first);
        let (objects, reached) = cover(&source.wal, timeline, begin);
        if reached < stop {
            return Err(gap(timeline, reached, stop));
        }
        let mut walker = Walker::at_page(begin, source.wal_segment_bytes);
        let mut found = None;
        for object in objects.iter().filter(|object| object.start < stop) {
            let opened = get_wal(stores, data_key, object)
                .await
                .map_err(missing_is_a_gap)?;
            let from = walker.position().bytes_since(object.start) as usize;
            let to = stop.min(object.end).bytes_since(object.start) as usize;
            let Some(bytes) = opened.bytes.get(from..to) else {
                continue;
            };
            let fed = walker.feed(bytes, |record| {
                if record.end == stop
                    && record.rmgr == rmgr::XLOG
                    && record.info & 0xF0 == BACKUP_END
                {
                    found = Some(record.start);
                }
            });
            if let Err(invalid) = fed {
                tracing::error!(%invalid, "the end of a backup's write-ahead log is damaged");
                break;
            }
        }
        let target = found.ok_or_else(|| Error::Failed {
            code: "BackupCorrupted",
            message: format!("the write-ahead log does not have the end of the backup at {stop}"),
            retryable: false,
        })?;
        Ok(Self {
            target,
            end: stop,
            stamp: None,
        })
    }
}

/// A hole that no restore can go across.
#[must_use]
pub fn gap(timeline: Timeline, from: Lsn, to: Lsn) -> Error {
    Error::Failed {
        code: "WalGap",
        message: format!(
            "the write-ahead log of timeline {timeline} is missing from {from} to {to}; \
             restore to an earlier time, or from a backup taken after the gap"
        ),
        retryable: false,
    }
}
