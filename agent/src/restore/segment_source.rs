//! Makes the planned WAL files out of the vault's objects, ahead of PostgreSQL's asking.
//!
//! A file is written to a spool directory piece by piece, padded with zeroes to the segment's size,
//! and hashed on the way; each object's own hash and seal were checked when it was opened. The spool
//! holds a few files: those ahead, and the one or two PostgreSQL may ask for again.
//!
//! A store that does not answer is asked again for longer than any planned outage of a second
//! or twenty; only then is a planned file given up, which ends the recovery (RELIABILITY §5.4.6).

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use holdfast_domain::wal::WalObject;
use holdfast_vault::key::DataKey;
use holdfast_vault::store::Store;
use holdfast_vault::wal::history::get_history;
use holdfast_vault::wal::object::get_wal;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Mutex;

use super::patience::patiently;
use super::plan::{Piece, Plan};
use super::tablespace_guard::TablespaceGuard;
use crate::error::{Error, Result};

/// Disk that the spool may take for files that PostgreSQL has not asked for yet.
const AHEAD_BYTES: u64 = 128 << 20;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A file as it lies in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spooled {
    pub path: PathBuf,
    pub bytes: u64,
    pub hash: [u8; blake3::OUT_LEN],
}

pub struct SegmentSource {
    plan: Arc<Plan>,
    stores: Vec<Store>,
    data_key: DataKey,
    spool: PathBuf,
    /// One lock a segment: whoever comes second waits for the first and finds the file.
    made: Vec<Mutex<Option<Spooled>>>,
    /// A bundle holds several segments; it is fetched once.
    newest_object: Mutex<Option<(String, Bytes)>>,
    guard: Arc<std::sync::Mutex<TablespaceGuard>>,
}

impl SegmentSource {
    /// `spool` exists and is empty.
    #[must_use]
    pub fn new(plan: Arc<Plan>, stores: Vec<Store>, data_key: DataKey, spool: PathBuf) -> Self {
        let made = plan.segments.iter().map(|_| Mutex::new(None)).collect();
        let begin = plan.begin.segment_start(plan.segment_bytes);
        let guard = Arc::new(std::sync::Mutex::new(TablespaceGuard::new(
            begin,
            plan.segment_bytes,
        )));
        Self {
            plan,
            stores,
            data_key,
            spool,
            made,
            newest_object: Mutex::new(None),
            guard,
        }
    }

    /// How many segments are made before they are asked for.
    #[must_use]
    pub fn ahead(&self) -> usize {
        usize::try_from(AHEAD_BYTES / self.plan.segment_bytes)
            .unwrap_or(1)
            .clamp(1, 8)
    }

    /// The file, for somebody who waits for it: tried until the budget is used up.
    pub async fn obtain(&self, number: usize) -> Result<Spooled> {
        let spooled = patiently("a planned WAL file", || self.make(number)).await?;
        let (guard, start, path) = (
            Arc::clone(&self.guard),
            self.plan.segments[number].start,
            spooled.path.clone(),
        );
        tokio::task::spawn_blocking(move || {
            guard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .admit(start, &path)
        })
        .await??;
        Ok(spooled)
    }

    /// The file, for nobody yet: one try, an error is the next asker's.
    pub async fn prefetch(&self, number: usize) {
        if number < self.made.len()
            && let Err(error) = self.make(number).await
        {
            tracing::debug!(%error, "a WAL file could not be fetched ahead");
        }
    }

    /// PostgreSQL has gone past this segment: its file need not stay.
    pub async fn retire(&self, number: usize) {
        if let Some(spooled) = self.made[number].lock().await.take() {
            let _ = tokio::fs::remove_file(&spooled.path).await;
        }
    }

    /// The text of a planned history file.
    pub async fn history(&self, timeline: holdfast_domain::Timeline) -> Result<Bytes> {
        patiently("a planned history file", || async {
            get_history(&self.stores, &self.data_key, self.plan.source, timeline)
                .await
                .map_err(missing_is_a_gap)
        })
        .await
    }

    async fn make(&self, number: usize) -> Result<Spooled> {
        let mut made = self.made[number].lock().await;
        if let Some(spooled) = &*made {
            return Ok(spooled.clone());
        }
        let segment = &self.plan.segments[number];
        let path = self.spool.join(&segment.name);
        let file = File::create(&path)
            .await
            .map_err(Error::file("write", &path))?;
        let mut out = Out {
            file,
            hasher: blake3::Hasher::new(),
            bytes: 0,
            path,
        };
        for piece in &segment.pieces {
            out.write(&self.piece(piece).await?).await?;
        }
        out.pad(self.plan.segment_bytes).await?;
        let spooled = out.finish().await?;
        *made = Some(spooled.clone());
        Ok(spooled)
    }

    async fn piece(&self, piece: &Piece) -> Result<Bytes> {
        let whole = self.object(piece).await?;
        let from = piece.from.bytes_since(piece.object.start) as usize;
        let to = piece.to.bytes_since(piece.object.start) as usize;
        if to > whole.len() || from > to {
            return Err(Error::Failed {
                code: "BackupCorrupted",
                message: format!(
                    "an object of the write-ahead log at {} is shorter than its name says",
                    piece.from
                ),
                retryable: false,
            });
        }
        Ok(whole.slice(from..to))
    }

    async fn object(&self, piece: &Piece) -> Result<Bytes> {
        let object = &piece.object;
        if piece.from == object.start && piece.to == object.end {
            return self.fetch(object).await;
        }
        // Held while it is fetched: whoever wants another part of it finds it afterwards.
        let mut newest = self.newest_object.lock().await;
        if let Some((key, bytes)) = &*newest
            && *key == object.key
        {
            return Ok(bytes.clone());
        }
        let bytes = self.fetch(object).await?;
        *newest = Some((object.key.clone(), bytes.clone()));
        Ok(bytes)
    }

    async fn fetch(&self, object: &WalObject) -> Result<Bytes> {
        let opened = get_wal(&self.stores, &self.data_key, object).await;
        Ok(opened.map_err(missing_is_a_gap)?.bytes)
    }
}

/// The catalogue knows the object and no store has it: a hole that appeared since (F35).
#[must_use]
pub fn missing_is_a_gap(error: holdfast_vault::Error) -> Error {
    match error {
        holdfast_vault::Error::NotFound { .. } => Error::Failed {
            code: "WalGap",
            message:
                "a part of the write-ahead log that the catalogue names is gone from the store; \
                      restore to an earlier time, or from a backup taken after the gap"
                    .into(),
            retryable: false,
        },
        other => other.into(),
    }
}

struct Out {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    path: PathBuf,
}

impl Out {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .await
            .map_err(Error::file("write", &self.path))
    }

    async fn pad(&mut self, size: u64) -> Result<()> {
        let mut left = size.saturating_sub(self.bytes);
        while left > 0 {
            let count = left.min(ZEROES.len() as u64) as usize;
            self.write(&ZEROES[..count]).await?;
            left -= count as u64;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Spooled> {
        self.file
            .flush()
            .await
            .map_err(Error::file("write", &self.path))?;
        Ok(Spooled {
            path: self.path,
            bytes: self.bytes,
            hash: *self.hasher.finalize().as_bytes(),
        })
    }
}
