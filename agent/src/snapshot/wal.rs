//! The proof that a backup's WAL is durable, and what it says about time.
//!
//! A backup without all of its WAL from start to stop cannot be restored, however complete its files
//! are (RELIABILITY §0.1, §5.2.8). So the vaults are asked, each by itself: the objects are found,
//! opened and joined, whatever the stream says it has written.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use holdfast_domain::wal::WalObject;
use holdfast_domain::{IncarnationId, Lsn, Timeline};
use holdfast_vault::backup::ManifestMeta;
use holdfast_vault::key::DataKey;
use holdfast_vault::store::Store;
use holdfast_vault::wal::object::get_wal;
use holdfast_vault::wal::survey::list_wal;
use holdfast_vault::wal::target::cover;
use holdfast_vault::wal::walker::Walker;

use crate::error::{Error, Result};

/// The WAL of one backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupWal {
    pub incarnation: IncarnationId,
    pub timeline: Timeline,
    pub start: Lsn,
    pub stop: Lsn,
    pub segment_bytes: u64,
}

impl BackupWal {
    /// That of a published backup.
    #[must_use]
    pub fn of(incarnation: IncarnationId, meta: &ManifestMeta) -> Self {
        Self {
            incarnation,
            timeline: meta.timeline,
            start: meta.start_lsn,
            stop: meta.stop_lsn,
            segment_bytes: meta.wal_segment_bytes,
        }
    }

    /// The objects that hold it, found in every store; an error when one store has a hole.
    pub async fn proven(&self, stores: &[Store], data_key: &DataKey) -> Result<Vec<WalObject>> {
        let mut proven = Vec::new();
        for store in stores {
            // From the segment's start: recovery reads the first page header of every segment.
            let from = self.start.segment_start(self.segment_bytes);
            let listed = list_wal(
                store,
                data_key,
                self.incarnation,
                Some((self.timeline, from)),
            )
            .await?;
            let (objects, reached) = self.readable(store, data_key, listed, from).await?;
            if reached < self.stop {
                return Err(Error::Failed {
                    code: "BackupWalMissing",
                    message: format!(
                        "the write-ahead log of the backup is stored up to {reached} only, it ends at {}",
                        self.stop
                    ),
                    retryable: true,
                });
            }
            proven = objects;
        }
        Ok(proven)
    }

    /// What covers the backup's WAL and opens. An object that a put left which could not prove itself has a
    /// good header now and then, and the same bytes lie beside it under another key.
    async fn readable(
        &self,
        store: &Store,
        data_key: &DataKey,
        mut listed: Vec<WalObject>,
        from: Lsn,
    ) -> Result<(Vec<WalObject>, Lsn)> {
        let mut opened = BTreeSet::new();
        'covering: loop {
            let (objects, reached) = cover(&listed, self.timeline, from);
            for object in objects.iter().filter(|object| object.start < self.stop) {
                if opened.contains(&object.key) {
                    continue;
                }
                match get_wal(std::slice::from_ref(store), data_key, object).await {
                    Ok(_) => opened.insert(object.key.clone()),
                    Err(
                        error @ (holdfast_vault::Error::Corrupted { .. }
                        | holdfast_vault::Error::NotFound { .. }),
                    ) => {
                        tracing::error!(object.key = object.key, %error, "a WAL object cannot be read and does not count");
                        let damaged = object.key.clone();
                        listed.retain(|object| object.key != damaged);
                        continue 'covering;
                    }
                    Err(error) => return Err(error.into()),
                };
            }
            return Ok((objects, reached));
        }
    }

    /// The largest stamp of a commit or abort in `(start, stop]`. A stamp that lies in an object
    /// which goes on after the stop is looked up record by record.
    pub async fn largest_stamp(
        &self,
        objects: &[WalObject],
        stores: &[Store],
        data_key: &DataKey,
    ) -> Result<Option<DateTime<Utc>>> {
        let mut largest = None;
        let mut undecided = false;
        for object in objects.iter().filter(|object| object.start < self.stop) {
            let Some(stamps) = object.stamps else {
                continue;
            };
            if stamps.last.end <= self.stop {
                largest = largest.max(Some(stamps.largest.at));
            } else if stamps.first.end <= self.stop {
                undecided = true;
            }
        }
        if undecided {
            largest = largest.max(self.walk_last_segment(objects, stores, data_key).await?);
        }
        Ok(largest)
    }

    /// Reads the records of the segment that holds the stop. Segments begin with a page, so that a
    /// walk can begin there whatever the objects' borders are.
    async fn walk_last_segment(
        &self,
        objects: &[WalObject],
        stores: &[Store],
        data_key: &DataKey,
    ) -> Result<Option<DateTime<Utc>>> {
        let begin = self.stop.segment_start(self.segment_bytes);
        let mut walker = Walker::at_page(begin, self.segment_bytes);
        let mut at = begin;
        let mut largest = None;
        for object in objects
            .iter()
            .filter(|object| object.end > begin && object.start < self.stop)
        {
            let opened = get_wal(stores, data_key, object).await?;
            let Some(bytes) = opened.bytes.get(at.bytes_since(object.start) as usize..) else {
                continue;
            };
            let fed = walker.feed(bytes, |record| {
                if let Some(stamp) = record.stamp()
                    && stamp.end <= self.stop
                {
                    largest = largest.max(Some(stamp.at));
                }
            });
            fed.map_err(|invalid| Error::Failed {
                code: "BackupCorrupted",
                message: invalid.to_string(),
                retryable: false,
            })?;
            at = object.end;
        }
        Ok(largest)
    }
}
