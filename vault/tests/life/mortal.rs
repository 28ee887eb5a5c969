//! A store that can die: at the n-th put or delete from now on, before that is done or right after it, and from
//! then on it answers nothing until it is brought back. What a process sees whose machine goes, and what the next
//! one finds.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use holdfast_vault::Store;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// When to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// Puts and deletes that are done before.
    pub after: u32,
    /// The one after them is done and its answer lost; else it is not done.
    pub done: bool,
}

#[derive(Debug, Default)]
struct State {
    death: Option<Death>,
    dead: bool,
}

#[derive(Debug)]
pub struct Mortal {
    objects: Mutex<Arc<InMemory>>,
    state: Arc<Mutex<State>>,
}

impl Mortal {
    /// The store, its proof given, and the handle to it.
    pub async fn open() -> (Store, Arc<Self>) {
        let mortal = Arc::new(Self {
            objects: Mutex::default(),
            state: Arc::default(),
        });
        let store = Store::from_object_store(mortal.clone()).with_retry_budget(Duration::ZERO);
        store.put_new("probe/first", "1".into()).await.unwrap();
        store.delete("probe/first").await.unwrap();
        (store, mortal)
    }

    pub fn dies(&self, death: Option<Death>) {
        *self.state.lock().unwrap() = State { death, dead: false };
    }

    /// Answers again. Whether it had died.
    pub fn revive(&self) -> bool {
        std::mem::take(&mut *self.state.lock().unwrap()).dead
    }

    pub fn saved(&self) -> InMemory {
        self.objects.lock().unwrap().fork()
    }

    pub fn back_to(&self, saved: &InMemory) {
        *self.objects.lock().unwrap() = Arc::new(saved.fork());
    }

    fn objects(&self) -> Arc<InMemory> {
        Arc::clone(&self.objects.lock().unwrap())
    }

    fn lives(&self) -> Result<()> {
        lives(&self.state.lock().unwrap())
    }
}

fn lives(state: &State) -> Result<()> {
    if state.dead { Err(gone()) } else { Ok(()) }
}

/// Counts one put or delete. Whether its answer is lost.
fn count(state: &Mutex<State>) -> Result<bool> {
    let mut state = state.lock().unwrap();
    lives(&state)?;
    match &mut state.death {
        Some(Death { after: 0, done }) => {
            let done = *done;
            state.dead = true;
            if done { Ok(true) } else { Err(gone()) }
        }
        Some(death) => {
            death.after -= 1;
            Ok(false)
        }
        None => Ok(false),
    }
}

fn gone() -> object_store::Error {
    object_store::Error::Generic {
        store: "mortal",
        source: "it does not answer".into(),
    }
}

impl fmt::Display for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mortal")
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let lost = count(&self.state)?;
        let put = self.objects().put_opts(location, payload, options).await?;
        if lost { Err(gone()) } else { Ok(put) }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.lives()?;
        self.objects().put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.lives()?;
        self.objects().get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (objects, state) = (self.objects(), Arc::clone(&self.state));
        locations
            .and_then(move |location| {
                let (objects, state) = (Arc::clone(&objects), Arc::clone(&state));
                async move {
                    let lost = count(&state)?;
                    objects.delete(&location).await?;
                    if lost { Err(gone()) } else { Ok(location) }
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.lives() {
            Ok(()) => self.objects().list(prefix),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.lives()?;
        self.objects().list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.lives()?;
        self.objects().copy_opts(from, to, options).await
    }
}
