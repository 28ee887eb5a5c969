//! The servers of this machine: which there are, where they lie, and that they are as the control plane
//! last said they should be.
//!
//! Directories: `{state}/servers/{incarnation}/data`; unfinished ones end in `.building` and are never
//! started or reported. A directory with its final name is complete (DESIGN §3.7).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use holdfast_domain::job::{
    Assignment, NodeInventory, Placement, Power, ServerObservation, VaultRef, WalReport, WrappedKey,
};
use holdfast_domain::{IncarnationId, JobId};
use holdfast_vault::key::{DataKey, KeyRing};
use holdfast_vault::store::Store;

use crate::assignments::Assignments;
use crate::busy::{BusyGuard, BusyServers};
use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::equipment::Equipment;
use crate::error::{Error, Result, chain};
use crate::frozen;
use crate::postgres::{Installation, ServiceUser, installation, occupancy};
use crate::reserve::{Reserve, Room};
use crate::restore::directory::keep_newest_failed;
use crate::server::{ServerHandle, Stopped};

/// So many failed restores are kept for diagnosis (RELIABILITY §5.4.7).
const FAILED_RESTORES: usize = 3;
/// What a stream that gets on well has under way; stopping such a server would free nothing.
const IN_FLIGHT_BYTES: u64 = 64 << 20;

#[derive(Debug)]
pub struct Node {
    equipment: Arc<Equipment>,
    servers: RwLock<BTreeMap<IncarnationId, ServerHandle>>,
    assignments: Mutex<Assignments>,
    backup_locks: Mutex<HashMap<IncarnationId, Arc<tokio::sync::Mutex<()>>>>,
    busy: Arc<BusyServers>,
}

impl Node {
    /// Looks at the machine and its files. No network, nothing is started.
    pub async fn open(config: AgentConfig, clock: Clock) -> Result<Arc<Self>> {
        let equipment = Arc::new(Equipment::gather(config, clock).await?);
        let assignments = Assignments::load(&equipment.config.state_dir)?;
        Ok(Arc::new(Self {
            equipment,
            servers: RwLock::default(),
            assignments: Mutex::new(assignments),
            backup_locks: Mutex::default(),
            busy: Arc::default(),
        }))
    }

    #[must_use]
    pub fn equipment(&self) -> &Equipment {
        &self.equipment
    }

    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.equipment.clock
    }

    #[must_use]
    pub fn key_ring(&self) -> &KeyRing {
        &self.equipment.key_ring
    }

    #[must_use]
    pub fn service_user(&self) -> &ServiceUser {
        &self.equipment.user
    }

    /// `holdfast`, for `restore_command`.
    #[must_use]
    pub fn executable(&self) -> &Path {
        &self.equipment.config.executable
    }

    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.equipment.config.state_dir
    }

    #[must_use]
    pub fn servers_dir(&self) -> PathBuf {
        self.equipment.config.servers_dir()
    }

    #[must_use]
    pub fn server_dir(&self, incarnation: IncarnationId) -> PathBuf {
        self.servers_dir().join(incarnation.to_string())
    }

    /// Where one attempt of one job makes a directory that is not finished.
    #[must_use]
    pub fn building_dir(&self, incarnation: IncarnationId, job: JobId, epoch: i64) -> PathBuf {
        self.servers_dir()
            .join(format!("{incarnation}.{job}.{epoch}.building"))
    }

    /// A short directory that only the service user (and root) can enter.
    pub fn private_dir(&self, name: &str) -> Result<PathBuf> {
        self.equipment.socket_dir(name, 0o700)
    }

    pub fn installation(&self, major: u16) -> Result<Installation> {
        installation::of(&self.equipment.installations, major)
    }

    pub fn stores(&self, vaults: &[VaultRef]) -> Result<Vec<Store>> {
        self.equipment.stores(vaults)
    }

    pub fn data_key(&self, placement: &Placement, wrapped: &WrappedKey) -> Result<DataKey> {
        self.equipment.data_key(placement, wrapped)
    }

    pub async fn create_key(&self, placement: &Placement) -> Result<(DataKey, WrappedKey)> {
        self.equipment.create_key(placement).await
    }

    /// A server that this node knows, running or not.
    #[must_use]
    pub fn server(&self, incarnation: IncarnationId) -> Option<ServerHandle> {
        self.read_servers().get(&incarnation).cloned()
    }

    #[must_use]
    pub fn servers(&self) -> Vec<ServerHandle> {
        self.read_servers().values().cloned().collect()
    }

    fn read_servers(
        &self,
    ) -> std::sync::RwLockReadGuard<'_, BTreeMap<IncarnationId, ServerHandle>> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember<T>(&self, change: impl FnOnce(&mut Assignments) -> T) -> T {
        change(
            &mut self
                .assignments
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// The handle of an incarnation, made when it is new to this process.
    pub fn adopt(&self, placement: &Placement, wrapped_key: &WrappedKey) -> ServerHandle {
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        let handle = servers.entry(placement.incarnation).or_insert_with(|| {
            ServerHandle::new(
                Arc::clone(&self.equipment),
                self.server_dir(placement.incarnation),
                placement.clone(),
                wrapped_key.clone(),
            )
        });
        handle.update(placement, wrapped_key);
        handle.clone()
    }

    /// Gives a finished directory its final name; from here on it is a server's.
    pub async fn publish(&self, placement: &Placement, building: &Path) -> Result<()> {
        let place = self.server_dir(placement.incarnation);
        let (from, servers_dir) = (building.to_path_buf(), self.servers_dir());
        tokio::task::spawn_blocking(move || {
            sync_dir(&from)?;
            // Never over a directory that has something in it: rename(2) refuses that by itself.
            std::fs::rename(&from, &place).map_err(Error::file("put in place", &place))?;
            sync_dir(&servers_dir)
        })
        .await?
    }

    /// Directories that earlier attempts at this incarnation left unfinished.
    pub fn unfinished(&self, incarnation: IncarnationId) -> Result<Vec<PathBuf>> {
        let dir = self.servers_dir();
        let prefix = format!("{incarnation}.");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(Error::file("list", &dir))? {
            let entry = entry.map_err(Error::file("list", &dir))?;
            let name = entry.file_name();
            if name
                .to_str()
                .is_some_and(|name| name.starts_with(&prefix) && name.ends_with(".building"))
            {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Ends whatever runs in a server's directory (finished or not) and removes it.
    pub async fn remove_dir(&self, directory: &Path) -> Result<()> {
        if directory.parent() != Some(self.servers_dir().as_path()) {
            return Err(Error::Configuration(
                "only a server's directory is removed".into(),
            ));
        }
        occupancy::evict(&directory.join("data")).await?;
        let directory = directory.to_path_buf();
        tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("remove", &directory)(error))
            }
            _ => Ok(()),
        })
        .await?
    }

    /// Runs a server whose directory has its final name, with its slot and stream; waits until it takes
    /// connections. May be called any number of times.
    pub async fn start_server(
        &self,
        placement: &Placement,
        wrapped_key: &WrappedKey,
    ) -> Result<ServerHandle> {
        let server = self.adopt(placement, wrapped_key);
        self.remember(|assignments| {
            assignments.put(Assignment {
                placement: placement.clone(),
                wrapped_key: wrapped_key.clone(),
                power: Power::Running,
            })
        })?;
        server.start().await?;
        Ok(server)
    }

    /// Stops a server and drains its WAL.
    pub async fn stop_server(&self, incarnation: IncarnationId) -> Result<Stopped> {
        let server = self
            .server(incarnation)
            .ok_or(Error::NoSuchServer(incarnation))?;
        self.remember(|assignments| assignments.set_power(incarnation, Power::Stopped))?;
        server.stop().await
    }

    /// Forgets a server whose directory is gone.
    pub fn forget(&self, incarnation: IncarnationId) -> Result<()> {
        self.servers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&incarnation);
        self.remember(|assignments| assignments.remove(incarnation))
    }

    /// Work that writes or deletes backup objects of one incarnation takes turns (DESIGN §3.9).
    pub async fn backup_lock(
        &self,
        incarnation: IncarnationId,
    ) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self
                .backup_locks
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // Nobody waits for a lock that only this map holds.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(incarnation).or_default())
        };
        lock.lock_owned().await
    }

    /// While the guard lives, an assignment does not change the server's power: a job does.
    #[must_use]
    pub fn busy(&self, incarnation: IncarnationId) -> BusyGuard {
        self.busy.begin(incarnation)
    }

    /// A moment in the order of this node's events. Take one before asking what should be running.
    #[must_use]
    pub fn moment(&self) -> u64 {
        self.busy.moment()
    }

    /// Takes the servers from the cache of an earlier life, starts those that should run, and removes what
    /// backups of that life had begun to freeze.
    pub async fn restore_from_cache(&self) {
        let cached = self.remember(|assignments| assignments.list());
        let asked = self.moment();
        self.reconcile(cached, asked).await;
        self.for_each_server_dir(
            "could not remove what a backup had frozen",
            frozen::clear_unfinished,
        )
        .await;
    }

    /// Does something with each directory below that of the servers; what fails is only told.
    async fn for_each_server_dir(&self, failing: &'static str, act: fn(&Path) -> Result<()>) {
        let servers = self.servers_dir();
        let all = tokio::task::spawn_blocking(move || {
            let entries = std::fs::read_dir(&servers).map_err(Error::file("list", &servers))?;
            for directory in entries.flatten() {
                if let Err(error) = act(&directory.path()) {
                    tracing::warn!(error = chain(&error), failing);
                }
            }
            Ok::<_, Error>(())
        });
        if let Err(error) = all.await.map_err(Error::from).and_then(|all| all) {
            tracing::warn!(error = chain(&error), failing);
        }
    }

    /// Waits until every server that is meant to run takes connections, or has failed to a few times; its
    /// supervisor goes on in either case.
    pub async fn servers_ready(&self) {
        let servers = self.servers();
        futures::future::join_all(servers.iter().map(|server| async move {
            match server.ready().await {
                // It is not meant to run.
                Ok(()) | Err(Error::NotStreaming) => {}
                Err(error) => {
                    tracing::warn!(server.incarnation = %server.incarnation(), error = chain(&error), "a server does not start");
                }
            }
        }))
        .await;
    }

    /// Makes the servers what the control plane said when it was asked at `asked`. What a job has
    /// touched since is left alone: the answer may be older than the job.
    pub async fn reconcile(&self, wanted: Vec<Assignment>, asked: u64) {
        self.forget_unlisted(&wanted, asked);
        for assignment in wanted {
            let incarnation = assignment.placement.incarnation;
            if self.busy.changed_since(incarnation, asked) {
                continue;
            }
            let server = self.adopt(&assignment.placement, &assignment.wrapped_key);
            let power = assignment.power;
            if let Err(error) = self.remember(|assignments| assignments.put(assignment)) {
                tracing::error!(error = chain(&error), "could not keep an assignment");
            }
            let result = match power {
                Power::Running | Power::Restarted => server.begin().await,
                Power::Stopped if server.is_wanted() => server.stop().await.map(drop),
                Power::Stopped => Ok(()),
            };
            if let Err(error) = result {
                tracing::error!(server.incarnation = %incarnation, error = chain(&error), "a server is not as it should be");
                server.complain(error.public_message());
            }
        }
    }

    /// A server that is no longer listed is not started at the next boot; nothing is stopped or removed
    /// for that, a job does it.
    fn forget_unlisted(&self, wanted: &[Assignment], asked: u64) {
        let result = self.remember(|assignments| {
            for known in assignments.list() {
                let incarnation = known.placement.incarnation;
                let listed = wanted
                    .iter()
                    .any(|a| a.placement.incarnation == incarnation);
                if !listed && !self.busy.changed_since(incarnation, asked) {
                    assignments.remove(incarnation)?;
                }
            }
            Ok::<_, Error>(())
        });
        if let Err(error) = result {
            tracing::error!(error = chain(&error), "could not keep the assignments");
        }
    }

    /// One round of care: drift, logs, and what a stop could not drain.
    pub async fn look_after(&self) {
        self.equipment.tell_requests();
        let reserve = Reserve::new(self.state_dir());
        match tokio::task::spawn_blocking(move || reserve.look()).await {
            Ok(Ok(room)) => self.live_with(room).await,
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "could not keep a reserve"),
            Err(error) => tracing::error!(%error, "could not look at the disk"),
        }
        // Side by side: a store that does not answer one server must not keep the others waiting.
        let servers = self.servers();
        futures::future::join_all(servers.iter().map(|server| async {
            server.look_after().await;
            server.drain_if_failing().await;
            server.drain_if_left().await;
        }))
        .await;
    }

    /// What follows from the room on the disk: what may go goes, and before nothing is left the server that
    /// fills it most with WAL stops, one a round (RELIABILITY §5.1).
    pub(crate) async fn live_with(&self, room: Room) {
        let failed = match room {
            Room::Enough | Room::Filling | Room::Scarce => FAILED_RESTORES,
            Room::NearlyNone { .. } | Room::None { .. } => 0,
        };
        if let Err(error) = keep_newest_failed(self, failed).await {
            tracing::warn!(error = chain(&error), "could not remove failed restores");
        }
        if room != Room::Enough || !self.equipment.config.frozen_copies {
            self.for_each_server_dir("could not remove a frozen copy", frozen::remove)
                .await;
        }
        match room {
            Room::Enough | Room::Filling => {
                for server in self.servers() {
                    server.make_room_over().await;
                }
            }
            Room::Scarce => {}
            Room::NearlyNone { used_percent } => {
                tracing::error!(
                    used_percent,
                    "the disk is nearly full: servers will be stopped"
                );
            }
            Room::None { used_percent } => {
                tracing::error!(used_percent, "the disk is full");
                let servers = self.servers();
                let largest = servers
                    .iter()
                    .filter(|server| server.held_bytes() > IN_FLIGHT_BYTES)
                    .max_by_key(|server| server.held_bytes());
                if let Some(server) = largest
                    && let Err(error) = server.make_room().await
                {
                    tracing::error!(server.incarnation = %server.incarnation(), error = chain(&error), "could not stop a server");
                }
            }
        }
    }

    #[must_use]
    pub fn observations(&self) -> Vec<ServerObservation> {
        self.servers().iter().map(ServerHandle::observe).collect()
    }

    /// What this node can do, for joining and for every hello.
    pub fn inventory(&self) -> Result<NodeInventory> {
        let config = &self.equipment.config;
        let disk = nix::sys::statvfs::statvfs(&config.state_dir).map_err(|errno| {
            Error::file("look at the file system of", &config.state_dir)(errno.into())
        })?;
        Ok(NodeInventory {
            name: config.name.clone(),
            region: config.region.clone(),
            zone: config.zone.clone(),
            majors: self
                .equipment
                .installations
                .iter()
                .map(|(major, installation)| (*major, installation.minor.clone()))
                .collect(),
            port_range: config.port_range,
            host: config.host.clone(),
            socket_root: self.equipment.run_dir.to_str().map(str::to_owned),
            free_bytes: disk.blocks_available() * disk.fragment_size(),
        })
    }

    /// The streams' reports that the scheduler has not kept yet.
    #[must_use]
    pub fn wal_news(&self) -> Vec<WalReport> {
        self.servers()
            .iter()
            .filter_map(ServerHandle::wal_news)
            .collect()
    }

    pub fn wal_kept(&self, reports: &[WalReport]) {
        for report in reports {
            if let Some(server) = self.server(report.incarnation) {
                server.wal_kept(report);
            }
        }
    }

    /// Stops all servers side by side, each with its last WAL in the store. Their assignments stay.
    pub async fn shut_down(&self) {
        let servers: Vec<_> = self
            .servers()
            .into_iter()
            .filter(ServerHandle::is_wanted)
            .collect();
        futures::future::join_all(servers.iter().map(|server| async move {
            if let Err(error) = server.stop().await {
                tracing::error!(server.incarnation = %server.incarnation(), error = chain(&error), "could not stop a server");
            }
        }))
        .await;
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    std::fs::File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::file("sync", path))
}
