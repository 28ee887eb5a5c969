//! Objects, durably. Every object is written once: creating one that exists succeeds only when its
//! content is the same (RELIABILITY §0.5), so a lost answer is repaired by asking again. `Ok` from a
//! put means durable *and proven*: size by HEAD, content by the store's own checksum (S3) or by
//! reading back – from a directory after fsync (DESIGN §3.4).
//!
//! Before its first object a store proves that it honours create-if-absent ([`Store::probe`]): one that
//! overwrites silently takes nothing of ours, whoever registered it and whoever opened it.

mod directory;
mod failure;
mod open;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures::TryStreamExt;
use holdfast_domain::job::ObjectRef;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::OnceCell;

pub use directory::create_private_dir;
use failure::{describe, is_transient};

use crate::{Error, Result};

/// Longer than a restart of a store or a rolling deployment of one; a job's own retries come after.
const RETRY_BUDGET: Duration = Duration::from_secs(90);
/// What one request may take: 64 MiB go up within it at 2 Mbit/s. A request that hangs is given up.
const ONE_REQUEST: Duration = Duration::from_secs(300);
/// Whole objects are read into memory; nothing that this format writes whole is larger.
const MAX_OBJECT_BYTES: u64 = 320 << 20;
/// An object is read back and compared in pieces of this size.
const READ_BACK_BYTES: usize = 4 << 20;

/// One place for objects. Cheap to clone; the clones share the counters.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    read_back: bool,
    retry_budget: Duration,
    requests: Arc<Counters>,
    /// The directory that a `file://` store is.
    root: Option<PathBuf>,
    /// Set once the store has shown that it honours create-if-absent.
    proven: Arc<OnceCell<()>>,
}

#[derive(Default)]
struct Counters {
    puts: AtomicU64,
    gets: AtomicU64,
    heads: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
}

/// Requests made so far, retries included: what a store bills.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    pub puts: u64,
    pub gets: u64,
    pub heads: u64,
    pub lists: u64,
    pub deletes: u64,
}

impl Requests {
    #[must_use]
    pub fn total(self) -> u64 {
        self.puts + self.gets + self.heads + self.lists + self.deletes
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({}, /{})", self.inner.objects, self.inner.prefix)
    }
}

impl Store {
    /// A store that somebody made otherwise: tests wrap one with faults.
    #[must_use]
    pub fn from_object_store(objects: Arc<dyn ObjectStore>) -> Self {
        Self::new(objects, Path::default(), false)
    }

    fn new(objects: Arc<dyn ObjectStore>, prefix: Path, read_back: bool) -> Self {
        Self {
            inner: Arc::new(Inner {
                objects,
                prefix,
                read_back,
                retry_budget: RETRY_BUDGET,
                requests: Arc::default(),
                root: None,
                proven: Arc::default(),
            }),
        }
    }

    fn in_directory(self, root: PathBuf) -> Self {
        self.with(|inner| inner.root = Some(root))
    }

    /// Whether each put is read back and compared. Off where the store verifies a checksum itself.
    #[must_use]
    pub fn with_read_back(self, read_back: bool) -> Self {
        self.with(|inner| inner.read_back = read_back)
    }

    /// How long a store that does not answer is asked again before `StoreUnavailable`.
    #[must_use]
    pub fn with_retry_budget(self, retry_budget: Duration) -> Self {
        self.with(|inner| inner.retry_budget = retry_budget)
    }

    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let old = &self.inner;
        let mut inner = Inner {
            objects: old.objects.clone(),
            prefix: old.prefix.clone(),
            read_back: old.read_back,
            retry_budget: old.retry_budget,
            requests: old.requests.clone(),
            root: old.root.clone(),
            proven: old.proven.clone(),
        };
        change(&mut inner);
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Tells stores of one process apart; the same for clones.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.inner).addr()
    }

    #[must_use]
    pub fn requests(&self) -> Requests {
        let counters = &self.inner.requests;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Requests {
            puts: read(&counters.puts),
            gets: read(&counters.gets),
            heads: read(&counters.heads),
            lists: read(&counters.lists),
            deletes: read(&counters.deletes),
        }
    }

    /// Creates an object. The same content again is success, another content is `Conflict`.
    pub async fn put_new(&self, key: &str, content: Bytes) -> Result<()> {
        self.put_new_parts(key, vec![content]).await
    }

    /// The same for content in pieces, which are not copied together.
    pub async fn put_new_parts(&self, key: &str, parts: Vec<Bytes>) -> Result<()> {
        self.inner
            .proven
            .get_or_try_init(|| self.probe())
            .await
            .inspect_err(|error| {
                tracing::error!(store = ?self, code = error.code(), error = %error, "store.proof.failed");
            })?;
        self.create(key, parts).await
    }

    async fn create(&self, key: &str, parts: Vec<Bytes>) -> Result<()> {
        let path = self.path(key)?;
        let payload: PutPayload = parts.into_iter().collect();
        let length = payload.content_length() as u64;
        let created = self
            .request(key, &self.inner.requests.puts, || async {
                let options = PutOptions::from(PutMode::Create);
                match self
                    .inner
                    .objects
                    .put_opts(&path, payload.clone(), options)
                    .await
                {
                    Ok(_) => Ok(true),
                    Err(
                        object_store::Error::AlreadyExists { .. }
                        | object_store::Error::Precondition { .. },
                    ) => Ok(false),
                    Err(error) => Err(error),
                }
            })
            .await?;
        if !created {
            // Ours, if an answer was lost or an attempt repeated; somebody else's otherwise.
            return match self.holds(key, &payload, length).await? {
                true => self.settle(key).await,
                false => Err(Error::Conflict {
                    key: key.to_owned(),
                }),
            };
        }
        if self.inner.read_back {
            if !self.holds(key, &payload, length).await? {
                return Err(Error::corrupted(
                    key,
                    "the store gives back something else than was put",
                ));
            }
        } else if self.head(key).await? != length {
            return Err(Error::corrupted(
                key,
                "the store has another size than was put",
            ));
        }
        Ok(())
    }

    /// Makes an object durable that was there before: whoever created it may have died between the
    /// creation and the fsync. Only directories need that; elsewhere an object that exists is durable.
    pub(crate) async fn settle(&self, key: &str) -> Result<()> {
        let Some(root) = self.inner.root.clone() else {
            return Ok(());
        };
        let path = self.path(key)?;
        tokio::task::spawn_blocking(move || directory::settle(&root, path.as_ref()))
            .await
            .map_err(|_| Error::Stopped)?
            .map_err(|error| Error::io("an object of the store cannot be synced", error))
    }

    /// Whether the object has exactly this content.
    async fn holds(&self, key: &str, payload: &PutPayload, length: u64) -> Result<bool> {
        if self.head(key).await? != length {
            return Ok(false);
        }
        let mut expected = payload
            .iter()
            .map(|part| &part[..])
            .filter(|part| !part.is_empty());
        let mut part: &[u8] = &[];
        for start in (0..length).step_by(READ_BACK_BYTES) {
            let read = self
                .get_range(key, start..length.min(start + READ_BACK_BYTES as u64))
                .await?;
            let mut read = &read[..];
            while !read.is_empty() {
                if part.is_empty() {
                    part = expected.next().unwrap_or_default();
                }
                let both = part.len().min(read.len());
                if both == 0 || part[..both] != read[..both] {
                    return Ok(false);
                }
                (part, read) = (&part[both..], &read[both..]);
            }
        }
        Ok(true)
    }

    /// A whole object.
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        let path = self.path(key)?;
        let bytes = self
            .request(key, &self.inner.requests.gets, || async {
                let result = self.inner.objects.get(&path).await?;
                if result.meta.size > MAX_OBJECT_BYTES {
                    return Ok(None);
                }
                result.bytes().await.map(Some)
            })
            .await?;
        bytes.ok_or_else(|| Error::corrupted(key, "it is larger than any object of a vault"))
    }

    /// Exactly these bytes of an object; fewer is `Corrupted`.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let path = self.path(key)?;
        let wanted = range.end - range.start;
        let bytes = self
            .request(key, &self.inner.requests.gets, || async {
                let options = GetOptions::new().with_range(Some(range.clone()));
                match self.inner.objects.get_opts(&path, options).await {
                    Ok(result) if result.range == range => result.bytes().await.map(Some),
                    Ok(_) => Ok(None),
                    // There is no variant for "out of range": ask how long the object really is.
                    Err(error @ object_store::Error::Generic { .. }) => {
                        self.inner.requests.heads.fetch_add(1, Ordering::Relaxed);
                        match self.inner.objects.head(&path).await {
                            Ok(meta) if meta.size < range.end => Ok(None),
                            _ => Err(error),
                        }
                    }
                    Err(error) => Err(error),
                }
            })
            .await?;
        bytes
            .filter(|bytes| bytes.len() as u64 == wanted)
            .ok_or_else(|| Error::corrupted(key, "it is shorter than what was named in it"))
    }

    /// The size of an object.
    pub async fn head(&self, key: &str) -> Result<u64> {
        let path = self.path(key)?;
        self.request(key, &self.inner.requests.heads, || async {
            self.inner.objects.head(&path).await.map(|meta| meta.size)
        })
        .await
    }

    /// Removes an object and says whether it was there. Gone is gone: a second delete succeeds.
    pub async fn delete(&self, key: &str) -> Result<bool> {
        let path = self.path(key)?;
        let deleted = self
            .request(key, &self.inner.requests.deletes, || {
                self.inner.objects.delete(&path)
            })
            .await;
        match deleted {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All objects under a prefix that ends with `/`, by key. A listing may find, it may never
    /// lead a deletion (DESIGN §3.9).
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectRef>> {
        self.list_after(prefix, "").await
    }

    /// The same, of keys greater than `after`.
    pub async fn list_after(&self, prefix: &str, after: &str) -> Result<Vec<ObjectRef>> {
        let path = self.path(prefix.trim_end_matches('/'))?;
        let metas: Vec<_> = self
            .request(prefix, &self.inner.requests.lists, || async {
                let stream = if after.is_empty() {
                    self.inner.objects.list(Some(&path))
                } else {
                    let after = self
                        .path(after)
                        .map_err(|error| object_store::Error::Generic {
                            store: "key",
                            source: error.into(),
                        })?;
                    self.inner.objects.list_with_offset(Some(&path), &after)
                };
                stream.try_collect().await
            })
            .await?;
        let mut found: Vec<_> = metas
            .into_iter()
            .filter_map(|meta| {
                Some(ObjectRef {
                    key: self.key_of(&meta.location)?,
                    bytes: meta.size,
                    living: None,
                })
            })
            .collect();
        found.sort();
        Ok(found)
    }

    /// Whether the store honours create-if-absent, and takes, gives and removes objects at all. Run
    /// when a site registers a store, and in each process before the first object goes there: one that
    /// overwrites silently cannot hold backups.
    pub async fn probe(&self) -> Result<()> {
        let key = format!("probe/{}", uuid::Uuid::new_v4());
        let path = self.path(&key)?;
        self.create(&key, vec![Bytes::from_static(b"first")])
            .await?;
        let second = self
            .request(&key, &self.inner.requests.puts, || async {
                let options = PutOptions::from(PutMode::Create);
                let payload = PutPayload::from_static(b"second");
                match self.inner.objects.put_opts(&path, payload, options).await {
                    Ok(_) => Ok(Err(Error::StoreOverwrites)),
                    Err(
                        object_store::Error::AlreadyExists { .. }
                        | object_store::Error::Precondition { .. },
                    ) => Ok(Ok(())),
                    Err(
                        object_store::Error::NotImplemented { .. }
                        | object_store::Error::NotSupported { .. },
                    ) => Ok(Err(Error::StoreOverwrites)),
                    Err(error) => Err(error),
                }
            })
            .await?;
        let kept = self.get(&key).await?;
        self.delete(&key).await?;
        second?;
        if &kept[..] != b"first" {
            return Err(Error::StoreOverwrites);
        }
        Ok(())
    }

    fn path(&self, key: &str) -> Result<Path> {
        let key = Path::parse(key)
            .map_err(|_| Error::refused(format!("{key:?} is not an object key")))?;
        Ok(self.inner.prefix.parts().chain(key.parts()).collect())
    }

    fn key_of(&self, path: &Path) -> Option<String> {
        let parts: Vec<_> = path.prefix_match(&self.inner.prefix)?.collect();
        Some(
            parts
                .iter()
                .map(AsRef::as_ref)
                .collect::<Vec<&str>>()
                .join("/"),
        )
    }

    /// Runs one request, again when the store was not reachable, until the budget is used up. Pauses
    /// and attempts together take no longer than the budget, or than one request may take.
    async fn request<T, F, Fut>(&self, key: &str, counter: &AtomicU64, request: F) -> Result<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = object_store::Result<T>>,
    {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times()
            .with_total_delay(Some(self.inner.retry_budget));
        let attempt = || {
            counter.fetch_add(1, Ordering::Relaxed);
            request()
        };
        let answered = attempt
            .retry(backoff)
            .when(is_transient)
            .notify(|error, wait| {
                tracing::warn!(object.key = key, error = %error, retry_in = ?wait, "store.request.retry");
            });
        match tokio::time::timeout(self.inner.retry_budget.max(ONE_REQUEST), answered).await {
            Ok(answer) => answer.map_err(|error| describe(key, error)),
            Err(_) => {
                tracing::error!(object.key = key, "store.request.hangs");
                Err(Error::StoreUnavailable {
                    what: "it did not answer within the retry budget".to_owned(),
                })
            }
        }
    }
}

/// Creates an object in every vault. It is durable when all have it.
pub async fn put_everywhere(stores: &[Store], key: &str, content: Bytes) -> Result<()> {
    put_parts_everywhere(stores, key, vec![content]).await
}

pub(crate) async fn put_parts_everywhere(
    stores: &[Store],
    key: &str,
    parts: Vec<Bytes>,
) -> Result<()> {
    if stores.is_empty() {
        return Err(Error::refused("there is no store to write to"));
    }
    let puts = stores
        .iter()
        .map(|store| store.put_new_parts(key, parts.clone()));
    futures::future::try_join_all(puts).await.map(|_| ())
}

/// Reads an object from the first vault whose copy `verify` accepts; the next one is asked when a
/// copy is missing, damaged or out of reach. When none is good and some vault could not be reached,
/// that is the error: its copy may be the good one.
pub async fn get_anywhere<T>(
    stores: &[Store],
    key: &str,
    verify: impl Fn(Bytes) -> Result<T>,
) -> Result<T> {
    try_each(stores, |store| async {
        store.get(key).await.and_then(&verify)
    })
    .await
}

/// One read, tried at each vault in turn.
pub(crate) async fn try_each<'a, T, F, Fut>(stores: &'a [Store], read: F) -> Result<T>
where
    F: Fn(&'a Store) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut worst: Option<Error> = None;
    for store in stores {
        match read(store).await {
            Ok(value) => return Ok(value),
            Err(error) if error.another_copy_may_help() => {
                tracing::warn!(store = ?store, error = %error, "store.copy.bad");
                // A store that may come back keeps the whole read worth another attempt.
                if !worst.as_ref().is_some_and(Error::is_retryable) {
                    worst = Some(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(worst.unwrap_or_else(|| Error::refused("there is no store to read from")))
}

/// Objects and sizes as a look-up, for those who compare listings.
#[must_use]
pub fn sizes(objects: &[ObjectRef]) -> HashMap<&str, u64> {
    objects
        .iter()
        .map(|object| (object.key.as_str(), object.bytes))
        .collect()
}

#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
mod tests;
