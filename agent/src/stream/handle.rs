//! How the rest of the agent speaks with a stream.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use holdfast_domain::job::{Placement, WalReport};
use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::{DataKey, Store};
use tokio::sync::{mpsc, oneshot, watch};

use super::change_map::{ChangeMap, Changes};
use super::error::{Error, Result};
use super::ledger::Ledger;
use super::observer::Address;

/// Everything a stream needs; nothing of it comes from the control plane while it runs.
#[derive(Clone)]
pub struct StreamConfig {
    pub placement: Placement,
    pub socket_dir: PathBuf,
    pub port: u16,
    /// The agent's own superuser role.
    pub user: String,
    pub data_dir: PathBuf,
    /// The agent's; one small file per incarnation goes there.
    pub state_dir: PathBuf,
    /// All of them must have a byte before it is flushed for PostgreSQL.
    pub stores: Vec<Store>,
    pub data_key: DataKey,
    pub system_identifier: u64,
    pub wal_segment_bytes: u64,
    pub now: Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>,
}

impl StreamConfig {
    pub(super) fn address(&self) -> Address {
        Address {
            socket_dir: self.socket_dir.clone(),
            port: self.port,
            user: self.user.clone(),
        }
    }
}

/// What a stream is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStatus {
    pub connected: bool,
    /// The slot exists: PostgreSQL keeps WAL for us.
    pub slot: bool,
    pub timeline: Timeline,
    /// Everything before this is in every store.
    pub durable: Lsn,
    pub received: Lsn,
    /// How far the server's WAL was flushed when it was last heard of.
    pub server_flush: Lsn,
    /// The newest instant at which everything committed was durable.
    pub caught_up_at: Option<DateTime<Utc>>,
    pub last_counting: Option<Lsn>,
    pub held_bytes: u64,
    /// What somebody has to know; `None` while all is well.
    pub problem: Option<String>,
    /// Objects that the control plane has not kept yet.
    pub unacknowledged: usize,
    /// The stream has ended and will not come back.
    pub ended: bool,
}

impl StreamStatus {
    pub(super) fn new(timeline: Timeline, durable: Lsn) -> Self {
        Self {
            connected: false,
            slot: false,
            timeline,
            durable,
            received: durable,
            server_flush: durable,
            caught_up_at: None,
            last_counting: None,
            held_bytes: 0,
            problem: None,
            unacknowledged: 0,
            ended: false,
        }
    }
}

pub(super) enum Command {
    /// Answer once everything before the position is durable, and hurry.
    WaitDurable(Lsn, oneshot::Sender<()>),
    /// The server is about to stop: take everything, until it ends the stream or time is up.
    Drain(Duration, oneshot::Sender<bool>),
    Close,
}

/// A running stream. Dropping a handle changes nothing; [`StreamHandle::close`] and
/// [`StreamHandle::drain_and_close`] end it.
#[derive(Clone)]
pub struct StreamHandle {
    pub(super) address: Address,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) status: watch::Receiver<StreamStatus>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) changes: Arc<Mutex<ChangeMap>>,
}

impl StreamHandle {
    /// Comes back once PostgreSQL keeps WAL for this stream, or the stream has ended.
    pub async fn wait_slot(&self) {
        let mut status = self.status.clone();
        // An error means that the stream is gone, and nobody waits for that here.
        let _ended = status.wait_for(|status| status.slot || status.ended).await;
    }

    /// Everything the server has committed until now is durable when this comes back.
    pub async fn flush(&self) -> Result<Lsn> {
        let until = self.address.committed_until().await?;
        self.wait_durable(until).await?;
        Ok(self.status.borrow().durable)
    }

    /// Comes back once everything before `lsn` is durable. Does not wait for a tail's time.
    pub async fn wait_durable(&self, lsn: Lsn) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.commands
            .send(Command::WaitDurable(lsn, answer))
            .await
            .map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)
    }

    #[must_use]
    pub fn status(&self) -> watch::Receiver<StreamStatus> {
        self.status.clone()
    }

    /// What nobody has acknowledged yet. A long silence is told in several reports.
    #[must_use]
    pub fn report(&self) -> WalReport {
        self.ledger().report()
    }

    /// The control plane has kept this report.
    pub fn ack_report(&self, report: &WalReport) {
        self.ledger().acknowledge(report);
    }

    /// Takes what a server that is being stopped still sends, its shutdown checkpoint included. To be called
    /// before and awaited while the server is told to stop: PostgreSQL waits for our acknowledgement
    /// (RELIABILITY §5.3.6).
    ///
    /// `true`: the server ended the stream and all of it is durable. `false`: time was up or the server was
    /// not there; the rest lies in its `pg_wal`. The stream has ended either way.
    pub async fn drain_and_close(&self, deadline: Duration) -> bool {
        let (answer, answered) = oneshot::channel();
        if self
            .commands
            .send(Command::Drain(deadline, answer))
            .await
            .is_err()
        {
            return false;
        }
        answered.await.unwrap_or(false)
    }

    /// Ends the stream at once. The slot keeps what was not durable.
    pub async fn close(&self) {
        // Nobody there to hear it: it has ended already.
        let _ended = self.commands.send(Command::Close).await;
        let mut status = self.status.clone();
        let _ended = status.wait_for(|status| status.ended).await;
    }

    /// The blocks that records changed which begin in `[since, until)`, and perhaps some more. `None`: not
    /// all of these records were seen, and nothing is known. Waits until the log up to `until` has come.
    pub async fn changes(&self, since: Lsn, until: Lsn) -> Result<Option<Arc<Changes>>> {
        self.wait_durable(until).await?;
        Ok(self.change_map().since(since))
    }

    /// From where on changes are known; `None`: not at all.
    #[must_use]
    pub fn changes_begin(&self, timeline: Timeline) -> Option<Lsn> {
        self.change_map().begins(timeline)
    }

    /// No backup will ask about changes before this any more.
    pub fn forget_changes_before(&self, lsn: Lsn) {
        self.change_map().forget_before(lsn);
    }

    /// The map was wrong once: it is never asked again while this stream lives.
    pub fn distrust_changes(&self) {
        self.change_map().distrust();
    }

    fn change_map(&self) -> std::sync::MutexGuard<'_, ChangeMap> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
