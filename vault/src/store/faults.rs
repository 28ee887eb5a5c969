//! A store that misbehaves on demand, for tests: answers that fail, answers that get lost after the
//! work was done, requests that hang, content that is damaged on its way, creates that overwrite.

use std::fmt;
use std::ops::Range;
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
    /// So many puts keep another last byte than was sent.
    pub damage: AtomicU32,
    /// Puts are never answered.
    pub hangs: AtomicBool,
    /// What was read of which key, in order.
    pub reads: Mutex<Vec<(String, Range<u64>)>>,
    /// Puts of keys that contain this fail for good.
    pub refuse_puts_of: Mutex<Option<&'static str>>,
}

impl FaultyStore {
    /// The store and a handle for doing harm. Its proof is taken for given, so that the first fault
    /// hits what the test is about.
    pub fn new() -> (super::Store, Arc<Self>) {
        let (store, faulty) = Self::unproven();
        store.inner.proven.set(()).expect("nobody has used it yet");
        (store, faulty)
    }

    pub fn unproven() -> (super::Store, Arc<Self>) {
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
        if take_one(&self.fail) {
            return Err(unavailable());
        }
        Ok(())
    }
}

/// Whether there was one left.
fn take_one(left: &AtomicU32) -> bool {
    let less = |left: u32| left.checked_sub(1);
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok()
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
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let refused = *self.refuse_puts_of.lock().unwrap();
        if refused.is_some_and(|part| location.as_ref().contains(part)) {
            return Err(unavailable());
        }
        if self.overwrites.load(Ordering::SeqCst) {
            options.mode = PutMode::Overwrite;
        }
        let payload = if take_one(&self.damage) {
            let mut bytes: Vec<u8> = payload.iter().flat_map(|part| part.to_vec()).collect();
            *bytes.last_mut().expect("nothing empty is put here") ^= 1;
            bytes.into()
        } else {
            payload
        };
        let result = self.inner.put_opts(location, payload, options).await?;
        if take_one(&self.lose_answers) {
            return Err(unavailable());
        }
        Ok(result)
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
        let head = options.head;
        let got = self.inner.get_opts(location, options).await?;
        if !head {
            let read = (location.to_string(), got.range.clone());
            self.reads.lock().unwrap().push(read);
        }
        Ok(got)
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
