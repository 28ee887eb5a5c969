//! Brings pieces of WAL into every store, however long it takes.
//!
//! WAL is never dropped (RELIABILITY §0.11): a store that does not answer is asked again until it does, and
//! until then PostgreSQL's slot keeps what this process does not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_domain::wal::WalObject;
use holdfast_vault::wal::put_wal;
use holdfast_vault::{DataKey, Store};

use super::cutter::{Piece, WholeUnit};
use super::pg_wal::PgWal;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// After an answer that asking again will hardly change.
const FINAL_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(super) struct Putter {
    stores: Vec<Store>,
    data_key: DataKey,
    pub pg_wal: PgWal,
    /// Why the newest attempt failed; `None` while all is well.
    pub trouble: Trouble,
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
        }
    }

    /// Comes back when every store has the piece.
    pub async fn put(&self, mut piece: Piece) -> WalObject {
        if let Some(whole) = piece.whole.take()
            && let Some(bytes) = self.complete(&whole, &piece).await
        {
            piece.range = whole.range;
            piece.bytes = bytes;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            match self.put_once(&piece).await {
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

    pub async fn put_once(&self, piece: &Piece) -> holdfast_vault::Result<WalObject> {
        put_wal(
            &self.stores,
            &self.data_key,
            piece.range.clone(),
            piece.bytes.clone(),
        )
        .await
    }

    /// The whole unit: its beginning from the server's own `pg_wal`, its end from the stream. Its hash was
    /// taken while it streamed by; any doubt and the tail alone goes up.
    pub async fn complete(&self, whole: &WholeUnit, piece: &Piece) -> Option<Bytes> {
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
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                tracing::debug!(wal.start = %whole.range.start, %error, "a segment cannot be read again");
                None
            }
            Err(_) => None,
        }
    }
}
