//! A store that misbehaves on demand, for tests: answers that fail, answers that get lost after the
//! work was done, creates that overwrite.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

#[derive(Debug, Default)]
pub(crate) struct FaultyStore {
    pub inner: InMemory,
    /// So many requests fail before anything is done.
    pub fail: AtomicU32,
    /// So many puts are done and then answered with an error.
    pub lose_answers: AtomicU32,
    /// Creating what exists succeeds.
    pub overwrites: AtomicBool,
    /// Puts of keys that contain this fail for good.
    pub refuse_puts_of: Mutex<Option<&'static str>>,
}

impl FaultyStore {
    /// The store and a handle for doing harm.
    pub fn new() -> (super::Store, Arc<Self>) {
        let faulty = Arc::new(Self::default());
        (super::Store::from_object_store(faulty.clone()), faulty)
    }

    /// Replaces an object behind everybody's back.
    pub async fn tamper(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = Path::parse(key).unwrap();
        let mut bytes = self
            .inner
            .get(&path)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
            .to_vec();
        change(&mut bytes);
        self.inner.put(&path, bytes.into()).await.unwrap();
    }

    pub async fn bytes(&self, key: &str) -> Bytes {
        self.inner
            .get(&Path::parse(key).unwrap())
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
    }

    pub async fn remove(&self, key: &str) {
        self.inner.delete(&Path::parse(key).unwrap()).await.unwrap();
    }

    fn may_fail(&self) -> Result<()> {
        let less = |left: u32| left.checked_sub(1);
        match self
            .fail
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        {
            Ok(_) => Err(unavailable()),
            Err(_) => Ok(()),
        }
    }
}

fn unavailable() -> object_store::Error {
    object_store::Error::Generic {
        store: "faulty",
        source: "503 slow down".into(),
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        self.may_fail()?;
        let refused = *self.refuse_puts_of.lock().unwrap();
        if refused.is_some_and(|part| location.as_ref().contains(part)) {
            return Err(unavailable());
        }
        if self.overwrites.load(Ordering::SeqCst) {
            options.mode = PutMode::Overwrite;
        }
        let result = self.inner.put_opts(location, payload, options).await?;
        let less = |left: u32| left.checked_sub(1);
        match self
            .lose_answers
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        {
            Ok(_) => Err(unavailable()),
            Err(_) => Ok(result),
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.may_fail()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
