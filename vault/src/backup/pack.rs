//! Packs: frames one after the other in objects of at most 64 MiB, each put in one create-if-absent
//! request (DESIGN §3.1, §3.4). Workers append; a pack that is full gets its index, goes to the uploader
//! and the next one begins. When the store is slower than the workers, appending waits.

use std::sync::Mutex;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryFutureExt};
use tokio::sync::mpsc;

use super::PageHash;
use super::index::{MAX_PACK_PAGES, PackIndex};
use super::leaf::PackId;
use super::manifest::FrameIn;
use super::read::lock;
use crate::pace::Pace;
use crate::seal::frame::{FrameCipher, MAX_PACK_BYTES, Sealer};
use crate::store::{Store, put_parts_everywhere};
use crate::{Error, Result};

/// Packs are closed here, well below the format's limit, to keep a writer's memory small: one
/// filling, one waiting, [`PUTS_IN_FLIGHT`] under way, for data and leaves together.
const PACK_BYTES: usize = 8 << 20;
/// Leaf objects are read whole; see `read.rs`.
const LEAF_OBJECT_BYTES: usize = 2 << 20;
const PUTS_IN_FLIGHT: usize = 3;

/// A pack on its way to the store.
pub(crate) struct Pack {
    pub id: PackId,
    pub key: String,
    pub parts: Vec<Bytes>,
    pub bytes: u64,
    /// Where its index lies; leaf objects have none.
    pub index: Option<FrameIn>,
    pub pages: Option<u32>,
}

/// A pack or leaf object that is in every store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub bytes: u64,
    pub index: Option<FrameIn>,
    /// How many pages are in it. Leaf objects have none, and old manifests do not say.
    pub pages: Option<u32>,
}

/// The packs of one origin and class as they fill.
pub(crate) struct PackAppender {
    pub cipher: FrameCipher,
    key: Box<dyn Fn(u32) -> String + Send + Sync>,
    limit: usize,
    filling: Mutex<Filling>,
    /// `None` when closed.
    uploads: Mutex<Option<mpsc::Sender<Pack>>>,
}

struct Filling {
    number: u32,
    bytes: Vec<u8>,
    index: PackIndex,
    /// For the index alone; workers seal with their own.
    sealer: Sealer,
}

impl Filling {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl PackAppender {
    pub fn of_pages(
        cipher: FrameCipher,
        uploads: mpsc::Sender<Pack>,
        key: impl Fn(u32) -> String + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::new(cipher, uploads, PACK_BYTES, Box::new(key))
    }

    pub fn of_leaves(
        cipher: FrameCipher,
        uploads: mpsc::Sender<Pack>,
        key: impl Fn(u32) -> String + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::new(cipher, uploads, LEAF_OBJECT_BYTES, Box::new(key))
    }

    fn new(
        cipher: FrameCipher,
        uploads: mpsc::Sender<Pack>,
        limit: usize,
        key: Box<dyn Fn(u32) -> String + Send + Sync>,
    ) -> Result<Self> {
        Ok(Self {
            filling: Mutex::new(Filling {
                number: 0,
                bytes: Vec::new(),
                index: PackIndex::default(),
                sealer: Sealer::new()?,
            }),
            cipher,
            key,
            limit,
            uploads: Mutex::new(Some(uploads)),
        })
    }

    /// Adds a sealed frame with the hashes of its pages – none in leaf objects – and says where it
    /// lies. Blocks when the store is behind.
    pub fn append(&self, frame: &[u8], hashes: &[PageHash]) -> Result<(PackId, u32)> {
        let mut filling = lock(&self.filling);
        let is_full = filling.bytes.len() + frame.len() > self.limit
            || filling.index.pages() + hashes.len() > MAX_PACK_PAGES;
        if !filling.is_empty() && is_full {
            let full = self.replace(&mut filling)?;
            let uploads = lock(&self.uploads).clone().ok_or(Error::Stopped)?;
            uploads.blocking_send(full).map_err(|_| Error::Stopped)?;
        }
        if filling.is_empty() {
            filling
                .bytes
                .reserve_exact(self.limit.max(frame.len() + 80));
            let header = self.cipher.pack_header();
            filling.bytes.extend_from_slice(&header);
        }
        let offset = filling.bytes.len() as u32;
        filling.bytes.extend_from_slice(frame);
        if !hashes.is_empty() {
            filling.index.push(offset, hashes);
        }
        debug_assert!(filling.bytes.len() as u64 <= MAX_PACK_BYTES);
        Ok((self.id(filling.number), offset))
    }

    /// Sends off the last pack, if anything is in it. Nothing can be appended afterwards.
    pub async fn close(&self) -> Result<()> {
        let uploads = lock(&self.uploads).take();
        let last = {
            let mut filling = lock(&self.filling);
            match filling.is_empty() {
                true => None,
                false => Some(self.replace(&mut filling)?),
            }
        };
        match (uploads, last) {
            (Some(uploads), Some(last)) => uploads.send(last).await.map_err(|_| Error::Stopped),
            _ => Ok(()),
        }
    }

    /// What comes next goes into another pack.
    pub fn cut(&self) -> Result<()> {
        let mut filling = lock(&self.filling);
        if filling.is_empty() {
            return Ok(());
        }
        let full = self.replace(&mut filling)?;
        let uploads = lock(&self.uploads).clone().ok_or(Error::Stopped)?;
        uploads.blocking_send(full).map_err(|_| Error::Stopped)
    }

    /// Gives up what is not sent yet.
    pub fn abandon(&self) {
        lock(&self.uploads).take();
    }

    /// The pack as it goes up, its index at the end; the next one is empty.
    fn replace(&self, filling: &mut Filling) -> Result<Pack> {
        let number = filling.number;
        filling.number += 1;
        let frames = std::mem::take(&mut filling.bytes);
        let index = std::mem::take(&mut filling.index);
        let mut bytes = frames.len() as u64;
        let mut parts = vec![Bytes::from(frames)];
        let (mut at, mut pages) = (None, None);
        if index.pages() > 0 {
            pages = Some(index.pages() as u32);
            let content = index.encode();
            let (frame, sealed) = self.cipher.seal(&mut filling.sealer, &content)?;
            at = Some(FrameIn(
                bytes as u32,
                sealed.len() as u32,
                content.len() as u32,
                frame,
            ));
            bytes += sealed.len() as u64;
            parts.push(Bytes::copy_from_slice(sealed));
        }
        Ok(Pack {
            id: self.id(number),
            key: (self.key)(number),
            parts,
            bytes,
            index: at,
            pages,
        })
    }

    fn id(&self, number: u32) -> PackId {
        PackId {
            origin: self.cipher.origin(),
            number,
        }
    }
}

/// Puts packs into every vault as they come, a few at a time and no faster than `pace`. Ends when all appenders are gone, or
/// at the first pack that cannot be put; from then on appending fails.
pub(crate) async fn upload(
    stores: &[Store],
    pace: &Pace,
    packs: &mut mpsc::Receiver<Pack>,
    put: impl Fn(u64),
) -> Result<Vec<(PackId, Stored)>> {
    let mut done = Vec::new();
    let mut flying = FuturesUnordered::new();
    let mut open = true;
    while open || !flying.is_empty() {
        tokio::select! {
            pack = packs.recv(), if open && flying.len() < PUTS_IN_FLIGHT => match pack {
                Some(Pack { id, key, parts, bytes, index, pages }) => {
                    let stored = Stored { bytes, index, pages };
                    flying.push(async move {
                        pace.take(bytes * stores.len() as u64).await;
                        put_parts_everywhere(stores, &key, parts).map_ok(move |()| (id, stored)).await
                    });
                }
                None => open = false,
            },
            Some(result) = flying.next() => {
                let (id, stored) = result?;
                put(stored.bytes);
                done.push((id, stored));
            }
        }
    }
    Ok(done)
}
