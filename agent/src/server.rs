//! One managed server of this node: its directory, its postmaster, its stream.
//!
//! Starting and stopping take turns; reading (what a backup needs) never waits for them. Whatever ends
//! a postmaster, the rest of its `pg_wal` goes to the store afterwards (RELIABILITY §5.3.6).

mod care;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use holdfast_domain::IncarnationId;
use holdfast_domain::job::{Placement, WalReport, WrappedKey};
use holdfast_vault::key::DataKey;
use holdfast_vault::store::Store;
use tokio::time::Instant;

use crate::equipment::Equipment;
use crate::error::{Error, Result, chain};
use crate::postgres::configuration::{self, ServerConfiguration};
use crate::postgres::control_file::ControlFile;
use crate::postgres::{
    AGENT_ROLE, Connection, Installation, Instance, PostmasterSpec, StopMode, connection,
    installation, occupancy,
};
use crate::stream::{self, DrainConfig, StreamConfig, StreamHandle, Streamer};

/// How long a shutdown waits for the store to take the rest of the WAL (RELIABILITY §5.3.6).
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// After that the receiver is gone, and only PostgreSQL's own checkpoint is waited for.
const FAST_WITHIN: Duration = Duration::from_secs(150);
const IMMEDIATE_WITHIN: Duration = Duration::from_secs(30);

/// A server as work sees it. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle(Arc<Server>);

struct Server {
    equipment: Arc<Equipment>,
    directory: PathBuf,
    facts: RwLock<(Placement, WrappedKey)>,
    /// Held while the server starts, stops or drains.
    turn: tokio::sync::Mutex<()>,
    running: RwLock<Option<Running>>,
    notes: Mutex<Notes>,
}

#[derive(Clone)]
struct Running {
    instance: Arc<Instance>,
    stream: StreamHandle,
}

#[derive(Default)]
struct Notes {
    problem: Option<String>,
    size: Option<(Instant, u64)>,
    /// The directory is at rest and every byte of its `pg_wal` is in the store.
    drained: bool,
    /// What a drain found that the scheduler has not kept yet.
    unreported: Option<WalReport>,
}

/// How a stop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Every byte of `pg_wal` is durable. If not, the node goes on draining.
    pub drained: bool,
    pub report: Option<WalReport>,
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerHandle({})", self.incarnation())
    }
}

impl ServerHandle {
    pub(crate) fn new(
        equipment: Arc<Equipment>,
        directory: PathBuf,
        placement: Placement,
        wrapped_key: WrappedKey,
    ) -> Self {
        Self(Arc::new(Server {
            equipment,
            directory,
            facts: RwLock::new((placement, wrapped_key)),
            turn: tokio::sync::Mutex::default(),
            running: RwLock::default(),
            notes: Mutex::default(),
        }))
    }

    fn facts(&self) -> (Placement, WrappedKey) {
        self.0
            .facts
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn running(&self) -> Option<Running> {
        self.0
            .running
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_running(&self, running: Option<Running>) {
        *self
            .0
            .running
            .write()
            .unwrap_or_else(PoisonError::into_inner) = running;
    }

    fn note<T>(&self, change: impl FnOnce(&mut Notes) -> T) -> T {
        change(&mut self.0.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes newer facts: a vault that joined, a key that was wrapped again. They count from the next
    /// start on.
    pub(crate) fn update(&self, placement: &Placement, wrapped_key: &WrappedKey) {
        *self.0.facts.write().unwrap_or_else(PoisonError::into_inner) =
            (placement.clone(), wrapped_key.clone());
    }

    #[must_use]
    pub fn placement(&self) -> Placement {
        self.facts().0
    }

    #[must_use]
    pub fn wrapped_key(&self) -> WrappedKey {
        self.facts().1
    }

    #[must_use]
    pub fn incarnation(&self) -> IncarnationId {
        self.facts().0.incarnation
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.facts().0.port
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.0.directory.join("data")
    }

    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        self.0.equipment.run_dir.join(self.port().to_string())
    }

    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.0.directory.join("server.log")
    }

    pub fn installation(&self) -> Result<Installation> {
        installation::of(&self.0.equipment.installations, self.placement().major)
    }

    pub fn data_key(&self) -> Result<DataKey> {
        let (placement, wrapped) = self.facts();
        self.0.equipment.data_key(&placement, &wrapped)
    }

    pub fn stores(&self) -> Result<Vec<Store>> {
        self.0.equipment.stores(&self.placement().vaults)
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running()
            .is_some_and(|running| running.instance.state().is_running())
    }

    /// Whether it is meant to run, even if its postmaster is just being started again.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.running().is_some()
    }

    #[must_use]
    pub fn stream(&self) -> Option<StreamHandle> {
        self.running().map(|running| running.stream)
    }

    /// A session of the agent's superuser.
    pub async fn connect(&self) -> Result<Connection> {
        connection::connect(&self.socket_dir(), self.port()).await
    }

    /// What the directory's control file says.
    pub async fn control_file(&self) -> Result<ControlFile> {
        ControlFile::read(&self.installation()?, &self.data_dir()).await
    }

    fn configuration(&self) -> ServerConfiguration {
        let placement = self.placement();
        ServerConfiguration {
            major: placement.major,
            port: placement.port,
            socket_dir: self.socket_dir(),
            cluster_name: placement.incarnation.to_string(),
            agent_os_user: self.0.equipment.user.agent_name().to_owned(),
        }
    }

    /// Begins to run the server and its stream, unless it does; does not wait for either. From here on
    /// the postmaster is started again whenever it dies.
    pub(crate) async fn begin(&self) -> Result<()> {
        let _turn = self.0.turn.lock().await;
        if self.running().is_some() {
            return Ok(());
        }
        let data_dir = self.data_dir();
        let (placement, wrapped_key) = self.facts();
        if !data_dir.join("PG_VERSION").exists() {
            return Err(Error::DirectoryGone(placement.incarnation));
        }
        let equipment = &self.0.equipment;
        let installation = self.installation()?;
        let stores = self.stores()?;
        let data_key = equipment.data_key(&placement, &wrapped_key)?;
        // A postmaster of an earlier life must not read the files while they change.
        occupancy::evict(&data_dir).await?;
        equipment.user.create_dir_with(&self.socket_dir(), 0o755)?;
        configuration::write(&data_dir, &self.configuration(), &equipment.user)?;
        let control = ControlFile::read(&installation, &data_dir).await?;
        let instance = Instance::start(PostmasterSpec {
            installation,
            data_dir: data_dir.clone(),
            log_file: self.log_file(),
            socket_dir: self.socket_dir(),
            port: placement.port,
            user: equipment.user.clone(),
            settings: Vec::new(),
        });
        let stream = Streamer::spawn(StreamConfig {
            socket_dir: self.socket_dir(),
            port: placement.port,
            user: AGENT_ROLE.to_owned(),
            data_dir,
            state_dir: equipment.config.state_dir.clone(),
            stores,
            data_key,
            system_identifier: control.system_identifier,
            wal_segment_bytes: control.wal_segment_bytes,
            now: equipment.clock.as_fn(),
            placement,
        });
        self.note(|notes| {
            notes.problem = None;
            notes.drained = false;
        });
        self.set_running(Some(Running {
            instance: Arc::new(instance),
            stream,
        }));
        Ok(())
    }

    /// Runs the server and waits until it takes connections and its slot holds WAL.
    pub(crate) async fn start(&self) -> Result<()> {
        self.begin().await?;
        let running = self.running().ok_or(Error::NotStreaming)?;
        running.instance.ready().await?;
        tokio::time::timeout(DRAIN_WITHIN, running.stream.wait_slot())
            .await
            .map_err(|_| Error::NotStreaming)
    }

    /// Waits until a server that is meant to run takes connections or has failed a few times; its
    /// supervisor goes on in either case.
    pub(crate) async fn ready(&self) {
        if let Some(running) = self.running()
            && let Err(error) = running.instance.ready().await
        {
            tracing::warn!(server.incarnation = %self.incarnation(), error = chain(&error), "a server does not start");
        }
    }

    /// Stops the server and brings the rest of its WAL to the store, as far as the store takes it.
    pub(crate) async fn stop(&self) -> Result<Stopped> {
        let _turn = self.0.turn.lock().await;
        if let Some(Running { instance, stream }) = self.running() {
            let (_all_durable, stopped) = tokio::join!(
                stream.drain_and_close(DRAIN_WITHIN),
                instance.stop(StopMode::Fast, FAST_WITHIN)
            );
            if stopped.is_err() {
                tracing::warn!(server.incarnation = %self.incarnation(), "a fast shutdown takes too long");
                instance.stop(StopMode::Immediate, IMMEDIATE_WITHIN).await?;
            }
            self.set_running(None);
        } else {
            occupancy::evict(&self.data_dir()).await?;
        }
        Ok(self.drain_at_rest().await)
    }

    /// Ends the server without its last WAL, because its directory goes or its agent does.
    pub(crate) async fn kill(&self) -> Result<()> {
        let _turn = self.0.turn.lock().await;
        if let Some(Running { instance, stream }) = self.running() {
            stream.close().await;
            instance.stop(StopMode::Immediate, IMMEDIATE_WITHIN).await?;
            self.set_running(None);
        }
        occupancy::evict(&self.data_dir()).await
    }

    /// Another attempt at what a stop could not finish. Nothing to do while the server is meant to run.
    pub(crate) async fn drain_if_left(&self) {
        let _turn = self.0.turn.lock().await;
        if self.running().is_none() && !self.note(|notes| notes.drained) {
            self.drain_at_rest().await;
        }
    }

    /// The server must not run, and the caller has the turn.
    async fn drain_at_rest(&self) -> Stopped {
        match self.read_pg_wal().await {
            Ok(report) => {
                self.note(|notes| {
                    notes.drained = true;
                    notes.problem = None;
                    notes.unreported = Some(report.clone());
                });
                Stopped {
                    drained: true,
                    report: Some(report),
                }
            }
            Err(error) => {
                let text = chain(&error);
                tracing::warn!(server.incarnation = %self.incarnation(), error = text, "could not drain pg_wal");
                self.note(|notes| {
                    // A directory that is gone has nothing left to give.
                    notes.drained = matches!(error, Error::DirectoryGone(_));
                    notes.problem = Some(format!(
                        "its last WAL is not in the store yet: {}",
                        error.public_message()
                    ));
                });
                Stopped {
                    drained: false,
                    report: None,
                }
            }
        }
    }

    async fn read_pg_wal(&self) -> Result<WalReport> {
        let data_dir = self.data_dir();
        let (placement, wrapped_key) = self.facts();
        if !data_dir.join("PG_VERSION").exists() {
            return Err(Error::DirectoryGone(placement.incarnation));
        }
        let equipment = &self.0.equipment;
        Ok(stream::drain_pg_wal(DrainConfig {
            data_dir,
            state_dir: equipment.config.state_dir.clone(),
            stores: self.stores()?,
            data_key: equipment.data_key(&placement, &wrapped_key)?,
            now: equipment.clock.as_fn(),
            placement,
        })
        .await?)
    }

    /// What the scheduler has not kept yet; `None` when there is no news.
    pub(crate) fn wal_news(&self) -> Option<WalReport> {
        match self.running() {
            Some(running) => Some(running.stream.report()),
            None => self.note(|notes| notes.unreported.clone()),
        }
    }

    /// The scheduler kept this report.
    pub(crate) fn wal_kept(&self, report: &WalReport) {
        match self.running() {
            Some(running) => running.stream.ack_report(report),
            None => {
                stream::ack_drained(&self.0.equipment.config.state_dir, report);
                self.note(|notes| {
                    if notes.unreported.as_ref() == Some(report) {
                        notes.unreported = None;
                    }
                });
            }
        }
    }
}
