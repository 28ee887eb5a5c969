//! Packs: frames one after the other in objects of at most 64 MiB, each put in one create-if-absent
//! request (DESIGN §3.1, §3.4). Workers append; a pack that is full goes to the uploader and the
//! next one begins. When the store is slower than the workers, appending waits.

use std::sync::Mutex;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryFutureExt};
use tokio::sync::mpsc;

use super::leaf::PackId;
use super::read::lock;
use crate::seal::frame::{FrameCipher, MAX_PACK_BYTES};
use crate::store::{Store, put_parts_everywhere};
use crate::{Error, Result};

/// Packs are closed here, well below the format's limit, to keep a writer's memory small: one
/// filling, one waiting, [`PUTS_IN_FLIGHT`] under way, for data and leaves together.
const PACK_BYTES: u64 = 16 << 20;
/// Leaf objects are read whole; see `read.rs`.
const LEAF_OBJECT_BYTES: u64 = 4 << 20;
const PUTS_IN_FLIGHT: usize = 2;

/// A pack on its way to the store.
pub(crate) struct Pack {
    pub id: PackId,
    pub key: String,
    pub parts: Vec<Bytes>,
    pub bytes: u64,
}

/// The packs of one origin and class as they fill.
pub(crate) struct PackAppender {
    pub cipher: FrameCipher,
    key: Box<dyn Fn(u32) -> String + Send + Sync>,
    limit: u64,
    filling: Mutex<Filling>,
    /// `None` when closed.
    uploads: Mutex<Option<mpsc::Sender<Pack>>>,
}

struct Filling {
    number: u32,
    parts: Vec<Bytes>,
    bytes: u64,
}

impl PackAppender {
    pub fn of_pages(
        cipher: FrameCipher,
        uploads: mpsc::Sender<Pack>,
        key: impl Fn(u32) -> String + Send + Sync + 'static,
    ) -> Self {
        Self::new(cipher, uploads, PACK_BYTES, Box::new(key))
    }

    pub fn of_leaves(
        cipher: FrameCipher,
        uploads: mpsc::Sender<Pack>,
        key: impl Fn(u32) -> String + Send + Sync + 'static,
    ) -> Self {
        Self::new(cipher, uploads, LEAF_OBJECT_BYTES, Box::new(key))
    }

    fn new(
        cipher: FrameCipher,
        uploads: mpsc::Sender<Pack>,
        limit: u64,
        key: Box<dyn Fn(u32) -> String + Send + Sync>,
    ) -> Self {
        let header = cipher.pack_header();
        Self {
            filling: Mutex::new(Filling {
                number: 0,
                bytes: header.len() as u64,
                parts: vec![header],
            }),
            cipher,
            key,
            limit,
            uploads: Mutex::new(Some(uploads)),
        }
    }

    /// Adds a sealed frame and says where it lies. Blocks when the store is behind.
    pub fn append(&self, frame: Bytes) -> Result<(PackId, u32)> {
        let mut filling = lock(&self.filling);
        if filling.parts.len() > 1 && filling.bytes + frame.len() as u64 > self.limit {
            let full = self.replace(&mut filling);
            let uploads = lock(&self.uploads).clone().ok_or(Error::Stopped)?;
            uploads.blocking_send(full).map_err(|_| Error::Stopped)?;
        }
        let place = (self.id(filling.number), filling.bytes as u32);
        filling.bytes += frame.len() as u64;
        filling.parts.push(frame);
        debug_assert!(filling.bytes <= MAX_PACK_BYTES);
        Ok(place)
    }

    /// Sends off the last pack, if anything is in it. Nothing can be appended afterwards.
    pub async fn close(&self) -> Result<()> {
        let uploads = lock(&self.uploads).take();
        let last = {
            let mut filling = lock(&self.filling);
            (filling.parts.len() > 1).then(|| self.replace(&mut filling))
        };
        match (uploads, last) {
            (Some(uploads), Some(last)) => uploads.send(last).await.map_err(|_| Error::Stopped),
            _ => Ok(()),
        }
    }

    /// Gives up what is not sent yet.
    pub fn abandon(&self) {
        lock(&self.uploads).take();
    }

    fn replace(&self, filling: &mut Filling) -> Pack {
        let header = self.cipher.pack_header();
        let next = Filling {
            number: filling.number + 1,
            bytes: header.len() as u64,
            parts: vec![header],
        };
        let full = std::mem::replace(filling, next);
        Pack {
            id: self.id(full.number),
            key: (self.key)(full.number),
            parts: full.parts,
            bytes: full.bytes,
        }
    }

    fn id(&self, number: u32) -> PackId {
        PackId {
            origin: self.cipher.origin(),
            number,
        }
    }
}

/// Puts packs into every vault as they come, a few at a time. Ends when all appenders are gone, or
/// at the first pack that cannot be put; from then on appending fails.
pub(crate) async fn upload(
    stores: &[Store],
    packs: &mut mpsc::Receiver<Pack>,
    put: impl Fn(u64),
) -> Result<Vec<(PackId, u64)>> {
    let mut done = Vec::new();
    let mut flying = FuturesUnordered::new();
    let mut open = true;
    while open || !flying.is_empty() {
        tokio::select! {
            pack = packs.recv(), if open && flying.len() < PUTS_IN_FLIGHT => match pack {
                Some(Pack { id, key, parts, bytes }) => {
                    flying.push(async move {
                        put_parts_everywhere(stores, &key, parts).map_ok(|()| (id, bytes)).await
                    });
                }
                None => open = false,
            },
            Some(result) = flying.next() => {
                let (id, bytes) = result?;
                put(bytes);
                done.push((id, bytes));
            }
        }
    }
    Ok(done)
}
