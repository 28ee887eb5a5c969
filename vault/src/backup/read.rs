//! Reading leaves, for restoring and for comparing. Leaf objects are fetched whole and kept a while:
//! files that were stored together are read together.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use holdfast_domain::IncarnationId;

use super::leaf::{Leaf, PackId};
use super::manifest::{LeafAt, Manifest};
use crate::key::DataKey;
use crate::seal::Class;
use crate::seal::frame::{FrameCipher, Origin};
use crate::store::{Store, try_each};
use crate::{Error, Result, layout};

/// Leaf objects are a few MiB; this holds the ones in use by all workers.
const CACHE_BYTES: usize = 48 << 20;

pub(crate) struct LeafReader {
    stores: Vec<Store>,
    data_key: DataKey,
    incarnation: IncarnationId,
    ciphers: Mutex<HashMap<Origin, Arc<FrameCipher>>>,
    cache: Mutex<Cache>,
}

/// Newest at the back. The store is part of the key: a copy that turned out damaged is not another
/// vault's copy.
#[derive(Default)]
struct Cache {
    objects: VecDeque<((usize, PackId), Bytes)>,
    bytes: usize,
}

impl LeafReader {
    pub fn new(stores: Vec<Store>, data_key: DataKey, incarnation: IncarnationId) -> Self {
        Self {
            stores,
            data_key,
            incarnation,
            ciphers: Mutex::default(),
            cache: Mutex::default(),
        }
    }

    /// One leaf of `manifest`, from the first vault whose copy is good.
    pub async fn leaf(&self, manifest: &Manifest, at: LeafAt) -> Result<Leaf> {
        let object = manifest.leaf_object(at);
        let key = layout::leaves(
            self.incarnation,
            object.origin.job,
            object.origin.epoch,
            object.number,
        );
        let cipher = self.cipher(object.origin)?;
        let (key, cipher) = (key.as_str(), cipher.as_ref());
        try_each(&self.stores, |store| async move {
            let bytes = self.object(store, object, key).await?;
            let (start, end) = (at.1 as usize, at.1 as usize + at.2 as usize);
            let sealed = bytes
                .get(start..end)
                .ok_or_else(|| Error::corrupted(key, "it is shorter than the leaves in it"))?;
            Leaf::decode(&cipher.open(at.4, at.3 as usize, sealed, key)?, key)
        })
        .await
    }

    async fn object(&self, store: &Store, object: PackId, key: &str) -> Result<Bytes> {
        let id = (store.identity(), object);
        if let Some(bytes) = lock(&self.cache).take(id) {
            return Ok(bytes);
        }
        let bytes = store.get(key).await?;
        lock(&self.cache).put(id, bytes.clone());
        Ok(bytes)
    }

    fn cipher(&self, origin: Origin) -> Result<Arc<FrameCipher>> {
        let mut ciphers = lock(&self.ciphers);
        if let Some(cipher) = ciphers.get(&origin) {
            return Ok(cipher.clone());
        }
        let cipher = FrameCipher::new(&self.data_key, Class::Leaves, self.incarnation, origin)?;
        Ok(ciphers.entry(origin).or_insert(Arc::new(cipher)).clone())
    }
}

impl Cache {
    fn take(&mut self, id: (usize, PackId)) -> Option<Bytes> {
        let at = self.objects.iter().position(|(known, _)| *known == id)?;
        let entry = self.objects.remove(at)?;
        let bytes = entry.1.clone();
        self.objects.push_back(entry);
        Some(bytes)
    }

    fn put(&mut self, id: (usize, PackId), bytes: Bytes) {
        self.bytes += bytes.len();
        self.objects.push_back((id, bytes));
        while self.bytes > CACHE_BYTES && self.objects.len() > 1 {
            if let Some((_, oldest)) = self.objects.pop_front() {
                self.bytes -= oldest.len();
            }
        }
    }
}

/// What these locks protect is whole between any two statements; a panic elsewhere does not spoil it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
