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
    AGENT_ROLE, Connection, FAILING_AFTER, Installation, Instance, InstanceState, PostmasterSpec,
    StopMode, connection, installation, occupancy,
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
    /// Every byte of its `pg_wal` is in the store, and it has not taken a connection since.
    drained: bool,
    /// It was stopped because the disk is full of its WAL, and starts again when there is room.
    makes_room: bool,
    /// What a drain found that the scheduler has not kept yet.
    unreported: Option<WalReport>,
}

/// How a stop ended.
#[derive(Debug)]
pub struct Stopped {
    pub report: Option<WalReport>,
    /// Why not every byte of `pg_wal` is durable. The node goes on trying.
    pub left: Option<Error>,
}

impl Stopped {
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.left.is_none()
    }
}

impl Running {
    /// A stop began and was cut off: nothing of this life comes back.
    fn is_ending(&self) -> bool {
        self.instance.is_stopping() || self.stream.status().borrow().ended
    }

    /// It died again and again, or never came up.
    fn is_failing(&self) -> bool {
        matches!(self.instance.state(), InstanceState::Failing { attempts, .. } if attempts >= FAILING_AFTER)
    }
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

    /// Its data directory's parent: everything on this node that is this server's and nobody else's.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.0.directory.clone()
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

    pub(crate) fn postmaster_spec(&self) -> Result<PostmasterSpec> {
        Ok(PostmasterSpec {
            installation: self.installation()?,
            data_dir: self.data_dir(),
            log_file: self.log_file(),
            socket_dir: self.socket_dir(),
            port: self.port(),
            user: self.0.equipment.user.clone(),
            settings: Vec::new(),
        })
    }

    /// Begins to run the server and its stream, unless it does; does not wait for either. From here on
    /// the postmaster is started again whenever it dies.
    pub(crate) async fn begin(&self) -> Result<()> {
        let _turn = self.0.turn.lock().await;
        match self.running() {
            // A job that was cancelled in the middle of a stop left it like this.
            Some(running) if running.is_ending() => self.end(running).await?,
            Some(_) => return Ok(()),
            None if self.note(|notes| notes.makes_room) => return Err(no_room()),
            None => {}
        }
        self.note(|notes| notes.drained = false);
        self.launch().await
    }

    /// It does not run, and the caller has the turn.
    async fn launch(&self) -> Result<()> {
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
        let instance = Instance::start(self.postmaster_spec()?);
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
        self.note(|notes| notes.problem = None);
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

    /// Stops the server and brings the rest of its WAL to the store, as far as the store takes it.
    pub(crate) async fn stop(&self) -> Result<Stopped> {
        let _turn = self.0.turn.lock().await;
        self.note(|notes| notes.makes_room = false);
        match self.running() {
            Some(running) => self.end(running).await?,
            None => occupancy::evict(&self.data_dir()).await?,
        }
        // A store that is slow rather than away must not hold up a stop; the node goes on draining.
        match tokio::time::timeout(DRAIN_WITHIN, self.drain_at_rest()).await {
            Ok(stopped) => Ok(stopped),
            Err(_) => {
                let error = Error::Vault(holdfast_vault::Error::StoreUnavailable {
                    what: "it takes too long to take a server's last write-ahead log".to_owned(),
                });
                self.note(|notes| {
                    notes.drained = false;
                    notes.problem = Some(format!(
                        "its last WAL is not in the store yet: {}",
                        error.public_message()
                    ));
                });
                Ok(Stopped {
                    report: None,
                    left: Some(error),
                })
            }
        }
    }

    /// Stops it until [`Self::make_room_over`]: WAL is never dropped, so what fills the disk with it stops
    /// while there is room for a clean shutdown (RELIABILITY §5.1).
    pub(crate) async fn make_room(&self) -> Result<()> {
        let _turn = self.0.turn.lock().await;
        let Some(running) = self.running() else {
            return Ok(());
        };
        self.note(|notes| notes.makes_room = true);
        self.end(running).await?;
        self.drain_at_rest().await;
        self.complain(no_room().public_message());
        Ok(())
    }

    /// There is room again.
    pub(crate) async fn make_room_over(&self) {
        if self.note(|notes| std::mem::take(&mut notes.makes_room))
            && let Err(error) = self.begin().await
        {
            tracing::error!(server.incarnation = %self.incarnation(), error = chain(&error), "a server could not be started again");
            self.complain(error.public_message());
        }
    }

    /// WAL that lies on the disk because no store has it yet.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.running()
            .map_or(0, |running| running.stream.status().borrow().held_bytes)
    }

    /// The caller has the turn.
    async fn end(&self, Running { instance, stream }: Running) -> Result<()> {
        let (_all_durable, stopped) = tokio::join!(
            stream.drain_and_close(DRAIN_WITHIN),
            instance.stop(StopMode::Fast, FAST_WITHIN)
        );
        if stopped.is_err() {
            tracing::warn!(server.incarnation = %self.incarnation(), "a fast shutdown takes too long");
            instance.stop(StopMode::Immediate, IMMEDIATE_WITHIN).await?;
        }
        self.set_running(None);
        Ok(())
    }

    /// Waits until a server that is meant to run takes connections.
    pub(crate) async fn ready(&self) -> Result<()> {
        match self.running() {
            Some(running) => running.instance.ready().await,
            None => Err(Error::NotStreaming),
        }
    }

    /// Brings what a server that does not come up has in its `pg_wal` to the store, between two attempts
    /// to start it (RELIABILITY §5.3.6). `None` when it is not failing.
    pub(crate) async fn drain_failing(&self) -> Result<Option<Stopped>> {
        let _turn = self.0.turn.lock().await;
        let Some(running) = self.running().filter(Running::is_failing) else {
            return Ok(None);
        };
        self.end(running).await?;
        let stopped = self.drain_at_rest().await;
        // What was found counts all the same; the next hello starts it again.
        if let Err(error) = self.launch().await {
            tracing::error!(server.incarnation = %self.incarnation(), error = chain(&error), "a failing server could not be started again");
            self.complain(error.public_message());
        }
        Ok(Some(stopped))
    }

    /// As [`Self::drain_failing`], unless that was done and the server has not been up since.
    pub(crate) async fn drain_if_failing(&self) {
        let drained = self.note(|notes| notes.drained);
        let is_due = self.running().is_some_and(|running| {
            running.is_failing() && (!drained || running.instance.has_run())
        });
        if is_due && let Err(error) = self.drain_failing().await {
            tracing::error!(server.incarnation = %self.incarnation(), error = chain(&error), "a failing server could not be drained");
            self.complain(error.public_message());
        }
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
                    report: Some(report),
                    left: None,
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
                    report: None,
                    left: Some(error),
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

    /// What the scheduler has not kept yet; `None` when there is no news. What a drain found comes first:
    /// the stream of a server that does not come up never hears of it.
    pub(crate) fn wal_news(&self) -> Option<WalReport> {
        self.note(|notes| notes.unreported.clone())
            .or_else(|| self.running().map(|running| running.stream.report()))
    }

    /// The scheduler kept this report.
    pub(crate) fn wal_kept(&self, report: &WalReport) {
        let was_drained = self
            .note(|notes| notes.unreported.take_if(|drained| drained == report))
            .is_some();
        match self.running() {
            Some(running) if !was_drained => running.stream.ack_report(report),
            _ => stream::ack_drained(&self.0.equipment.config.state_dir, report),
        }
    }
}

fn no_room() -> Error {
    Error::Failed {
        code: "InsufficientStorage",
        message: "the node's disk is full of write-ahead log that the store has not taken; \
                  the server is stopped and starts again when there is room"
            .into(),
        retryable: true,
    }
}
