//! Brings pieces of WAL into every store, however long it takes.
//!
//! WAL is never dropped (RELIABILITY §0.11): a store that does not answer is asked again until it does, and
//! until then PostgreSQL's slot keeps what this process does not.
//!
//! An object that does not read back as it was put stays where it is: keys are written once. The same
//! bytes go up under another key then, as a range that begins a byte earlier; ranges may overlap.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_domain::Lsn;
use holdfast_domain::wal::WalObject;
use holdfast_vault::seal::Effort;
use holdfast_vault::wal::object::LARGEST_OBJECT_BYTES;
use holdfast_vault::wal::{SealedWal, WalRange, put_wal, seal_wal};
use holdfast_vault::{DataKey, Store};

use super::cutter::Piece;
use super::memory::{Holding, Spare};
use super::pg_wal::PgWal;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// After an answer that asking again will hardly change.
const FINAL_PAUSE: Duration = Duration::from_secs(30);
/// A store that damages this many objects in a row is not filled with more of them.
const MOST_DAMAGED: u64 = 3;

#[derive(Debug, Clone)]
pub(super) struct Putter {
    stores: Vec<Store>,
    data_key: DataKey,
    pub pg_wal: PgWal,
    /// Why the newest attempt failed; `None` while all is well.
    pub trouble: Trouble,
    /// Where the memory of whole units goes.
    pub spare: Spare,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, what: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
}

/// The same stores, each attempt shorter: here attempts never end, but somebody wants to know.
pub(super) fn impatient(stores: Vec<Store>) -> Vec<Store> {
    const BUDGET: Duration = Duration::from_secs(5);
    stores
        .into_iter()
        .map(|store| store.with_retry_budget(BUDGET))
        .collect()
}

impl Putter {
    pub fn new(stores: &[Store], data_key: &DataKey, pg_wal: PgWal) -> Self {
        Self {
            stores: stores.to_vec(),
            data_key: data_key.clone(),
            pg_wal,
            trouble: Trouble::default(),
            spare: Spare::default(),
        }
    }

    /// Comes back when every store has the piece.
    pub async fn put(&self, mut piece: Piece, effort: Effort, mut holding: Holding) -> WalObject {
        self.complete(&mut piece).await;
        holding.set(piece.bytes.len());
        let mut pause = FIRST_PAUSE;
        let mut sealed = None;
        loop {
            let outcome = async {
                let sealed = match &mut sealed {
                    Some(sealed) => sealed,
                    none => {
                        let fresh = self.seal(&mut piece, effort).await?;
                        holding.set(fresh.stored_bytes());
                        none.insert(fresh)
                    }
                };
                self.put_sealed(sealed).await
            };
            match outcome.await {
                Ok(object) => {
                    self.trouble.set(None);
                    return object;
                }
                Err(error) => {
                    tracing::warn!(
                        wal.start = %piece.range.start, wal.end = %piece.range.end, code = error.code(), %error,
                        "a store does not take WAL"
                    );
                    self.trouble.set(Some(format!("{}: {error}", error.code())));
                    if !error.is_retryable() {
                        pause = FINAL_PAUSE;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One attempt.
    pub async fn put_once(&self, mut piece: Piece) -> holdfast_vault::Result<WalObject> {
        let sealed = self.seal(&mut piece, Effort::Usual).await?;
        self.put_sealed(&sealed).await
    }

    /// From here on the piece has no bytes; their memory takes the next unit's.
    async fn seal(&self, piece: &mut Piece, effort: Effort) -> holdfast_vault::Result<SealedWal> {
        let (range, bytes) = (piece.range.clone(), piece.bytes.clone());
        let whole = piece.hash.is_some();
        let (sealed, bytes) = seal_wal(&self.data_key, range, bytes, piece.hash, effort).await?;
        piece.bytes = Bytes::new();
        if whole {
            self.spare.give(bytes);
        }
        Ok(sealed)
    }

    async fn put_sealed(&self, sealed: &SealedWal) -> holdfast_vault::Result<WalObject> {
        let mut outcome = sealed.put(&self.stores, &self.data_key).await;
        for back in 1..=MOST_DAMAGED {
            let Err(error @ holdfast_vault::Error::Corrupted { .. }) = &outcome else {
                break;
            };
            let range = sealed.range();
            tracing::error!(wal.start = %range.start, wal.end = %range.end, %error, "a store has damaged WAL");
            let Some((range, bytes)) = self.reach_back(sealed, back).await else {
                break;
            };
            outcome = put_wal(&self.stores, &self.data_key, range, bytes).await;
        }
        outcome
    }

    /// The same range and a few bytes before it, from the server's own `pg_wal`. What its header says stays
    /// true: no record is so short that it lies in those bytes, and one that ends in them is in the header
    /// of the range before.
    async fn reach_back(&self, sealed: &SealedWal, back: u64) -> Option<(WalRange, Bytes)> {
        let mut range = sealed.range().clone();
        let to = range.start;
        range.start = Lsn(range.start.0.checked_sub(back)?);
        if range.end.bytes_since(range.start) > LARGEST_OBJECT_BYTES {
            return None;
        }
        if range.unreadable_from.is_some() {
            range.last_counting = Some(range.start);
        }
        let (pg_wal, data_key, sealed) =
            (self.pg_wal.clone(), self.data_key.clone(), sealed.clone());
        let (timeline, from) = (range.timeline, range.start);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = BytesMut::from(&pg_wal.read(timeline, from, to).ok()?[..]);
            bytes.extend_from_slice(&sealed.open(&data_key).ok()?.bytes);
            Some(bytes.freeze())
        });
        Some((range, read.await.ok()??))
    }

    /// Makes a whole unit of the piece where it ends one: its beginning from the server's own `pg_wal`, its
    /// end from the stream. Its hash was taken while it streamed by; any doubt and the tail alone goes up.
    pub async fn complete(&self, piece: &mut Piece) {
        let Some(whole) = piece.whole.take() else {
            return;
        };
        let (pg_wal, range) = (self.pg_wal.clone(), whole.range.clone());
        let (tail, expected) = (piece.bytes.clone(), whole.hash);
        let tail_start = piece.range.start;
        let read = tokio::task::spawn_blocking(move || {
            let beginning = pg_wal.read(range.timeline, range.start, tail_start)?;
            let mut bytes = BytesMut::from(&beginning[..]);
            bytes.extend_from_slice(&tail);
            Ok::<_, std::io::Error>((blake3::hash(&bytes) == expected).then(|| bytes.freeze()))
        });
        match read.await {
            Ok(Ok(Some(bytes))) => {
                piece.range = whole.range;
                piece.bytes = bytes;
                piece.hash = Some(whole.hash);
            }
            Ok(Err(error)) => {
                tracing::debug!(wal.start = %whole.range.start, %error, "a segment cannot be read again");
            }
            Ok(Ok(None)) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_domain::lsn::segment_file_name;
    use holdfast_domain::{IncarnationId, Timeline};
    use holdfast_vault::wal::get_wal;

    use super::*;
    use crate::stream::memory::Memory;

    const SEGMENT: u64 = 1 << 20;

    #[tokio::test]
    async fn bytes_whose_object_is_damaged_become_durable_under_another_key() {
        let root = tempfile::tempdir().expect("a directory");
        let (vault, data_dir) = (root.path().join("vault"), root.path().join("data"));
        let store = Store::open(&format!("file://{}", vault.display())).expect("a store");
        let data_key = DataKey::generate().expect("a key");
        let segment: Vec<u8> = (0..SEGMENT).map(|at| (at % 251) as u8).collect();
        std::fs::create_dir_all(data_dir.join("pg_wal")).expect("made");
        let name = segment_file_name(Timeline(1), Lsn(SEGMENT), SEGMENT);
        std::fs::write(data_dir.join("pg_wal").join(name), &segment).expect("written");
        let range = WalRange {
            incarnation: IncarnationId::new(),
            timeline: Timeline(1),
            start: Lsn(SEGMENT + 1000),
            end: Lsn(SEGMENT + 5000),
            system_identifier: 1,
            wal_segment_bytes: SEGMENT,
            page_magic: None,
            first_record: None,
            stamps: None,
            last_counting: Some(Lsn(SEGMENT + 1000)),
            clock_anomaly: None,
            unreadable_from: Some(Lsn(SEGMENT + 1000)),
        };
        let piece = Piece {
            range,
            bytes: Bytes::copy_from_slice(&segment[1000..5000]),
            hash: None,
            whole: None,
        };
        // What an earlier attempt left that could not be read back.
        let stores = [store];
        let put = put_wal(&stores, &data_key, piece.range.clone(), piece.bytes.clone()).await;
        let damaged = vault.join(put.expect("put").key);
        let mut bytes = std::fs::read(&damaged).expect("there");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&damaged, &bytes).expect("damaged");

        let pg_wal = PgWal::new(&data_dir, SEGMENT);
        let putter = Putter::new(&stores, &data_key, pg_wal);
        let memory = Memory::default();
        let holding = memory.hold(piece.bytes.len());
        let object = putter.put(piece.clone(), Effort::Usual, holding).await;
        assert_eq!(memory.held(), 0);
        assert_eq!(object.end, piece.range.end);
        assert!(object.start < piece.range.start);
        assert_eq!(object.last_counting, Some(object.start), "it is marked");
        let opened = get_wal(&stores, &data_key, &object)
            .await
            .expect("readable");
        let from = (object.start.0 - SEGMENT) as usize;
        assert_eq!(opened.bytes, segment[from..5000]);
        assert_eq!(std::fs::read(&damaged).expect("there"), bytes, "untouched");

        // Without the bytes before it nothing is acknowledged, however often it is tried.
        std::fs::remove_dir_all(data_dir).expect("gone");
        for _ in 0..2 {
            let error = putter
                .put_once(piece.clone())
                .await
                .expect_err("not durable");
            assert_eq!(error.code(), "BackupCorrupted");
        }
    }
}
