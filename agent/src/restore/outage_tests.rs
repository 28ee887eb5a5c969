//! A store that answers 503 for twenty seconds in the middle of a restore (F36): the restore waits and
//! brings everything back. A short success would be the worst of all answers.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::BoxStream;
use holdfast_domain::restore::RestoreTarget;
use holdfast_vault::Store;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::test_site::Site;

const OUTAGE: Duration = Duration::from_secs(20);

/// A directory whose WAL cannot be read for a while, from the first time somebody tries.
#[derive(Debug)]
struct Outage {
    inner: LocalFileSystem,
    until: Mutex<Option<Instant>>,
    refused: Mutex<u32>,
}

impl Outage {
    fn answer(&self, location: &Path) -> Result<()> {
        if !location.as_ref().starts_with("wal/") {
            return Ok(());
        }
        let until = *self
            .until
            .lock()
            .expect("not poisoned")
            .get_or_insert_with(|| Instant::now() + OUTAGE);
        if Instant::now() >= until {
            return Ok(());
        }
        *self.refused.lock().expect("not poisoned") += 1;
        Err(Error::Generic {
            store: "outage",
            source: "503 Slow Down".into(),
        })
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outage")
    }
}

#[async_trait]
impl ObjectStore for Outage {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.answer(location)?;
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

// F36
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_for_twenty_seconds_costs_twenty_seconds() {
    let site = Site::open().await;
    let source = site.provision("pg1").await;
    let session = source.server.connect().await.expect("connected");
    let backup = site.snapshot(&source, None).await;
    session
        .batch_execute("CREATE TABLE public.t AS SELECT generate_series(1, 1000) AS n")
        .await
        .expect("written");
    let facts = site.source(&source, &backup).await;

    let directory = site.vault_url().trim_start_matches("file://").to_owned();
    let outage = Arc::new(Outage {
        inner: LocalFileSystem::new_with_prefix(directory).expect("a directory"),
        until: Mutex::new(None),
        refused: Mutex::new(0),
    });
    site.node.equipment().use_store(
        site.vault_url(),
        Store::from_object_store(Arc::clone(&outage) as Arc<dyn ObjectStore>),
    );
    let begun = Instant::now();
    let (restored, _) = site.restore(&facts, RestoreTarget::Latest).await;
    assert!(begun.elapsed() >= OUTAGE, "it did not wait");
    assert!(*outage.refused.lock().expect("not poisoned") > 1);
    let count: i64 = restored
        .server
        .connect()
        .await
        .expect("connected")
        .query_one("SELECT count(*) FROM public.t", &[])
        .await
        .expect("counted")
        .get(0);
    assert_eq!(count, 1000);
    site.close().await;
}
