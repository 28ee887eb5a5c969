//! What every server of a node shares: PostgreSQL's programs, the service user, keys, open stores, and
//! the short directory for sockets.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use holdfast_domain::job::{Placement, VaultRef, WrappedKey};
use holdfast_vault::key::{DataKey, KeyRing, establish_data_key};
use holdfast_vault::store::{Requests, Store};
use holdfast_vault::{Courtesy, Pace};

use crate::clock::Clock;
use crate::config::{AgentConfig, first_closed_parent};
use crate::error::{Error, Result};
use crate::postgres::service_user::create_passage;
use crate::postgres::{Installation, ServiceUser, installation};

#[derive(Debug)]
pub struct Equipment {
    pub config: AgentConfig,
    pub clock: Clock,
    pub user: ServiceUser,
    pub installations: BTreeMap<u16, Installation>,
    pub key_ring: KeyRing,
    pub run_dir: PathBuf,
    stores: Mutex<HashMap<String, Store>>,
    /// What was last said of each store's requests.
    requests_told: Mutex<HashMap<String, Requests>>,
    /// One for all jobs.
    upload: Pace,
}

impl Equipment {
    pub async fn gather(config: AgentConfig, clock: Clock) -> Result<Self> {
        config.check()?;
        let user = ServiceUser::resolve(&config.service_user)?;
        create_passage(&config.state_dir)?;
        create_passage(&config.servers_dir())?;
        let servers_dir = config.servers_dir();
        let servers_dir = servers_dir
            .canonicalize()
            .map_err(Error::file("resolve", &servers_dir))?;
        if let Some(closed) = first_closed_parent(&servers_dir, |dir| user.can_enter(dir)) {
            return Err(Error::Configuration(format!(
                "user {} cannot pass through {}: give others the right to enter it (chmod o+x), or move state_dir",
                user.name(),
                closed.display()
            )));
        }
        let key_ring = KeyRing::load(&config.key_dir)?;
        if key_ring.is_empty() {
            return Err(Error::Configuration(
                "key_dir holds no {version}.key file".into(),
            ));
        }
        Ok(Self {
            run_dir: prepare_run_dir(&config)?,
            installations: installation::discover(&config.pg_bin).await,
            stores: Mutex::default(),
            requests_told: Mutex::default(),
            upload: config.limits.upload(),
            config,
            clock,
            user,
            key_ring,
        })
    }

    /// Opens stores once; later calls get the same ones. Each proves before its first write that it honours
    /// create-if-absent (`Store::probe`): a server must start, and be read, while its store is away.
    pub fn stores(&self, vaults: &[VaultRef]) -> Result<Vec<Store>> {
        if vaults.is_empty() {
            return Err(Error::Configuration("a job names no vault".into()));
        }
        let mut open = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        vaults
            .iter()
            .map(|vault| {
                if let Some(store) = open.get(&vault.url) {
                    return Ok(store.clone());
                }
                let store = Store::open(&vault.url)?;
                open.insert(vault.url.clone(), store.clone());
                Ok(store)
            })
            .collect()
    }

    /// Puts a store in place of what a URL would open: tests wrap one with faults.
    pub fn use_store(&self, url: &str, store: Store) {
        self.stores
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(url.to_owned(), store);
    }

    /// Logs how many requests each store got from this node since its process began, when there were
    /// any since the last time: what a store bills. `bench/spine` reads these lines.
    pub fn tell_requests(&self) {
        let open = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = self
            .requests_told
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (url, store) in open.iter() {
            let now = store.requests();
            if told.insert(url.clone(), now) == Some(now) {
                continue;
            }
            tracing::info!(
                node.name = self.config.name,
                store.url = url,
                store.puts = now.puts,
                store.gets = now.gets,
                store.heads = now.heads,
                store.lists = now.lists,
                store.deletes = now.deletes,
                "requests to a store so far"
            );
        }
    }

    /// What one job may take of this machine.
    #[must_use]
    pub fn courtesy(&self) -> Courtesy {
        self.config.limits.courtesy(&self.upload)
    }

    pub fn data_key(&self, placement: &Placement, wrapped: &WrappedKey) -> Result<DataKey> {
        Ok(self.key_ring.unwrap(wrapped, placement.incarnation)?)
    }

    /// The data key of a new incarnation: made, wrapped, and durable in every vault before anything is
    /// sealed with it (DESIGN §3.14). A key that an earlier attempt left is used again, and completed
    /// where a vault lacks it: objects may be sealed with it already.
    pub async fn create_key(&self, placement: &Placement) -> Result<(DataKey, WrappedKey)> {
        let stores = self.stores(&placement.vaults)?;
        Ok(establish_data_key(&stores, &self.key_ring, placement.incarnation).await?)
    }

    /// A short directory of one purpose below the run directory, of the service user's.
    pub fn socket_dir(&self, name: &str, mode: u32) -> Result<PathBuf> {
        if name.is_empty() || name.len() > 40 || name.contains(['/', '\0']) || name.starts_with('.')
        {
            return Err(Error::Unquotable {
                what: "a directory's name",
            });
        }
        let path = self.run_dir.join(name);
        self.user.create_dir_with(&path, mode)?;
        Ok(path)
    }
}

/// Sockets need short paths (DESIGN §6): `/run/holdfast-{hash of the state directory}`, or the same in
/// the temporary directory when `/run` is not ours to write.
fn prepare_run_dir(config: &AgentConfig) -> Result<PathBuf> {
    if let Some(path) = &config.run_dir {
        return ours(path);
    }
    let state_dir = config
        .state_dir
        .canonicalize()
        .map_err(Error::file("resolve", &config.state_dir))?;
    let hash = uuid::Uuid::new_v5(
        &uuid::Uuid::NAMESPACE_URL,
        state_dir.as_os_str().as_encoded_bytes(),
    );
    let name = format!("holdfast-{}", &hash.simple().to_string()[..12]);
    ours(&Path::new("/run").join(&name)).or_else(|_| ours(&std::env::temp_dir().join(&name)))
}

/// Makes the directory, or takes one that exists if it is truly ours: in a directory that everybody may
/// write, somebody else could have been first.
fn ours(path: &Path) -> Result<PathBuf> {
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::file("create the directory", path)(error));
        }
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(path).map_err(Error::file("look at", path))?;
    if !metadata.is_dir()
        || metadata.uid() != nix::unistd::geteuid().as_raw()
        || metadata.mode() & 0o022 != 0
    {
        return Err(Error::Configuration(format!(
            "{} exists and is not a directory of this agent's alone",
            path.display()
        )));
    }
    Ok(path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::Arc;

    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use holdfast_domain::job::ProvisionSpec;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    };

    use super::*;
    use crate::node_fixture::{LOGIN, PASSWORD, TestNode};
    use crate::work::provision;

    /// A store that does not know create-if-absent, as some that call themselves S3-compatible.
    #[derive(Debug, Default)]
    struct Overwriting(InMemory);

    impl fmt::Display for Overwriting {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("overwriting")
        }
    }

    #[async_trait]
    impl ObjectStore for Overwriting {
        async fn put_opts(
            &self,
            location: &Path,
            payload: PutPayload,
            mut options: PutOptions,
        ) -> Result<PutResult> {
            options.mode = PutMode::Overwrite;
            self.0.put_opts(location, payload, options).await
        }

        async fn put_multipart_opts(
            &self,
            location: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(location, options).await
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
            self.0.get_opts(location, options).await
        }

        fn delete_stream(
            &self,
            locations: BoxStream<'static, Result<Path>>,
        ) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.0.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    #[tokio::test]
    async fn a_server_is_not_made_on_a_store_that_overwrites() {
        let site = TestNode::open().await;
        let placement = site.placement();
        let objects = Arc::new(Overwriting::default());
        let store = Store::from_object_store(Arc::clone(&objects) as Arc<dyn ObjectStore>);
        site.node
            .equipment()
            .use_store(&placement.vaults[0].url, store.clone());
        let spec = ProvisionSpec {
            placement: placement.clone(),
            administrator_login: LOGIN.into(),
            administrator_password: Some(PASSWORD.into()),
        };
        let error = provision::run(&site.context(), spec)
            .await
            .expect_err("refused");
        assert_eq!(
            (error.code.as_str(), error.retryable),
            ("ObjectStoreOverwrites", false)
        );
        assert_eq!(store.list("keys/").await.expect("a list"), []);
        assert!(!site.node.server_dir(placement.incarnation).exists());
        site.end().await;
    }
}
