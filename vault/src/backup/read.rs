//! Reading leaves, for restoring and for comparing, and packs' indexes, for comparing. Leaf objects are
//! fetched whole and kept a while, and so are indexes: files that were stored together are read together.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use holdfast_domain::IncarnationId;

use super::index::PackIndex;
use super::leaf::{Leaf, PackId};
use super::manifest::{FrameIn, LeafAt, Manifest};
use crate::key::DataKey;
use crate::seal::Class;
use crate::seal::frame::{FrameCipher, Opener, Origin};
use crate::store::{Store, try_each};
use crate::{Error, Result, layout};

/// Leaf objects are at most 2 MiB; this holds the ones in use by all workers.
const LEAF_CACHE_BYTES: usize = 8 << 20;
/// Indexes of the packs in use: one for the pages of a full backup, one for each later one that
/// changed some of them. An index of a pack of 8 MiB has 16 KiB, or a few hundred when it compressed well.
const INDEX_CACHE_BYTES: usize = 12 << 20;

pub(crate) struct LeafReader {
    stores: Vec<Store>,
    data_key: DataKey,
    incarnation: IncarnationId,
    ciphers: Mutex<HashMap<(Class, Origin), Arc<FrameCipher>>>,
    /// The store is part of the key: a copy that turned out damaged is not another vault's copy.
    leaf_objects: Mutex<Cache<(usize, PackId), Bytes>>,
    indexes: Mutex<Cache<PackId, Arc<PackIndex>>>,
}

/// Least recently used at the front.
struct Cache<K, V> {
    entries: VecDeque<(K, V, usize)>,
    bytes: usize,
    limit: usize,
}

impl LeafReader {
    pub fn new(stores: Vec<Store>, data_key: DataKey, incarnation: IncarnationId) -> Self {
        Self {
            stores,
            data_key,
            incarnation,
            ciphers: Mutex::default(),
            leaf_objects: Mutex::new(Cache::new(LEAF_CACHE_BYTES)),
            indexes: Mutex::new(Cache::new(INDEX_CACHE_BYTES)),
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
        let cipher = self.cipher(Class::Leaves, object.origin)?;
        let (key, cipher) = (key.as_str(), cipher.as_ref());
        try_each(&self.stores, |store| async move {
            let bytes = self.object(store, object, key).await?;
            let (start, end) = (at.1 as usize, at.1 as usize + at.2 as usize);
            let sealed = bytes
                .get(start..end)
                .ok_or_else(|| Error::corrupted(key, "it is shorter than the leaves in it"))?;
            let mut opener = Opener::new()?;
            Leaf::decode(
                cipher.open(&mut opener, at.4, at.3 as usize, sealed, key)?,
                key,
            )
        })
        .await
    }

    /// The index of a pack, from the first vault whose copy is good.
    pub async fn index(&self, pack: PackId, at: FrameIn) -> Result<Arc<PackIndex>> {
        if let Some(index) = lock(&self.indexes).take(pack) {
            return Ok(index);
        }
        let key = layout::pack(
            self.incarnation,
            pack.origin.job,
            pack.origin.epoch,
            pack.number,
        );
        let cipher = self.cipher(Class::Pack, pack.origin)?;
        let (key, cipher) = (key.as_str(), cipher.as_ref());
        let index = try_each(&self.stores, |store| async move {
            let range = u64::from(at.0)..u64::from(at.0) + u64::from(at.1);
            let sealed = store.get_range(key, range).await?;
            let mut opener = Opener::new()?;
            let content = cipher.open(&mut opener, at.3, at.2 as usize, &sealed, key)?;
            PackIndex::decode(content, key)
        })
        .await?;
        let index = Arc::new(index);
        lock(&self.indexes).put(pack, index.clone(), index.bytes());
        Ok(index)
    }

    async fn object(&self, store: &Store, object: PackId, key: &str) -> Result<Bytes> {
        let id = (store.identity(), object);
        if let Some(bytes) = lock(&self.leaf_objects).take(id) {
            return Ok(bytes);
        }
        let bytes = store.get(key).await?;
        lock(&self.leaf_objects).put(id, bytes.clone(), bytes.len());
        Ok(bytes)
    }

    pub fn cipher(&self, class: Class, origin: Origin) -> Result<Arc<FrameCipher>> {
        let mut ciphers = lock(&self.ciphers);
        if let Some(cipher) = ciphers.get(&(class, origin)) {
            return Ok(cipher.clone());
        }
        let cipher = FrameCipher::new(&self.data_key, class, self.incarnation, origin)?;
        let cipher = ciphers.entry((class, origin)).or_insert(Arc::new(cipher));
        Ok(cipher.clone())
    }
}

impl<K: Copy + PartialEq, V: Clone> Cache<K, V> {
    fn new(limit: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            limit,
        }
    }

    fn take(&mut self, key: K) -> Option<V> {
        let at = self.entries.iter().position(|(known, ..)| *known == key)?;
        let entry = self.entries.remove(at)?;
        let value = entry.1.clone();
        self.entries.push_back(entry);
        Some(value)
    }

    fn put(&mut self, key: K, value: V, bytes: usize) {
        self.bytes += bytes;
        self.entries.push_back((key, value, bytes));
        while self.bytes > self.limit && self.entries.len() > 1 {
            if let Some((.., oldest)) = self.entries.pop_front() {
                self.bytes -= oldest;
            }
        }
    }
}

/// What these locks protect is whole between any two statements; a panic elsewhere does not spoil it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
