//! The loop that takes WAL from PostgreSQL, brings it to the stores and says so.
//!
//! One task per stream. Puts run beside it, in order, a few at a time; when they are full the socket is not
//! read, PostgreSQL waits, and its slot keeps the WAL: memory stays bounded and nothing is lost. The
//! cutter survives a broken connection, so that the next one goes on with the next byte.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use holdfast_domain::wal::WalObject;
use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::seal::Effort;
use holdfast_vault::wal::page;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::change_map::ChangeMap;
use super::cutter::{Cutter, Piece};
use super::error::{Error, Result};
use super::handle::{Command, StreamConfig, StreamHandle, StreamStatus};
use super::ledger::{Acknowledged, Ledger};
use super::memory::Memory;
use super::observer::Observation;
use super::origin::{self, Origin};
use super::pg_wal::PgWal;
use super::put::{Putter, impatient};
use super::replication::{Incoming, Replication};
use super::session::{self, Beginning, From, Opened, Resume};

/// A counting record waits this long for company. With the put itself that stays within the second
/// (RELIABILITY §5.3.10).
const URGENT_WAIT: Duration = Duration::from_millis(600);
/// WAL nobody waits for. Below the 240 s at which the age of the recovery point raises an alarm.
const QUIET_WAIT: Duration = Duration::from_secs(230);
/// PostgreSQL gives a silent receiver up after 60 s (RELIABILITY §5.1).
const STATUS_EVERY: Duration = Duration::from_secs(10);
const STATISTICS_EVERY: Duration = Duration::from_secs(300);
/// A store on a disk makes several durable in the time of one.
const MOST_PUTS: usize = 8;
/// Plaintext that is being sealed and sealed objects that are on their way. Sealing takes about as much beside it.
const MOST_PUT_BYTES: usize = 32 << 20;
/// With so many units still to come from the server, time is short.
const UNITS_BEHIND: u64 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Looks at the server's log that wait for their WAL to become durable.
const MOST_SIGHTINGS: usize = 64;

/// See the module.
pub struct Streamer {
    config: Arc<StreamConfig>,
    ledger: Arc<Mutex<Ledger>>,
    changes: Arc<Mutex<ChangeMap>>,
    status: watch::Sender<StreamStatus>,
    commands: mpsc::Receiver<Command>,
    /// Somebody still holds a handle.
    is_heard: bool,
    putter: Arc<Putter>,
    link: Link,
    pause: Duration,
    link_trouble: Option<String>,
    cutter: Option<Cutter>,
    timeline: Timeline,
    /// Set until the first bytes of a stream have come.
    origin: Option<Origin>,
    puts: FuturesOrdered<AbortOnDropHandle<WalObject>>,
    memory: Memory,
    /// How far the server's log reached when it last said.
    server_end: Lsn,
    waiters: Vec<(Lsn, oneshot::Sender<()>)>,
    draining: Option<Draining>,
    /// The server ended the stream in order.
    ended_in_order: bool,
    /// The timeline is over; once all of it is durable the next one begins.
    timeline_ended: bool,
    next_status: Instant,
    /// The server asked for a sign of life.
    owes_reply: bool,
    observations: mpsc::Receiver<Observation>,
    observer: Option<AbortOnDropHandle<()>>,
    /// Looks whose position has not been received yet.
    ahead: VecDeque<(DateTime<Utc>, Lsn)>,
    /// Looks whose WAL was received and is not durable: instant, and what has to be durable.
    behind: VecDeque<(DateTime<Utc>, Lsn)>,
    statistics: Option<AbortOnDropHandle<holdfast_vault::wal::counting::StatisticsRelations>>,
    statistics_due: Instant,
}

struct Draining {
    until: Instant,
    done: oneshot::Sender<bool>,
}

enum Link {
    Waiting(Instant),
    Opening(BoxFuture<'static, Result<Opened>>),
    Open(Box<Replication>),
    /// While draining: the server has gone and is not looked for again.
    Gone,
}

enum Event {
    Retry,
    Opened(Box<Result<Opened>>),
    Incoming(Result<Incoming>),
}

impl Link {
    /// What happens next on the connection. Can be dropped and called again without loss.
    async fn next(&mut self, may_read: bool) -> Event {
        match self {
            Self::Waiting(until) => {
                tokio::time::sleep_until(*until).await;
                Event::Retry
            }
            Self::Opening(opening) => Event::Opened(Box::new(opening.await)),
            Self::Open(replication) if may_read => Event::Incoming(replication.next().await),
            Self::Open(_) | Self::Gone => std::future::pending().await,
        }
    }
}

impl Streamer {
    /// Starts the stream. It reconnects for ever, until it is told to end.
    #[must_use]
    pub fn spawn(mut config: StreamConfig) -> StreamHandle {
        config.stores = impatient(config.stores);
        let incarnation = config.placement.incarnation;
        let known = Acknowledged::load(&config.state_dir, incarnation).unwrap_or(Acknowledged {
            timeline: Timeline::FIRST,
            durable: Lsn::ZERO,
        });
        let ledger = Ledger::new(
            incarnation,
            &config.state_dir,
            known.timeline,
            known.durable,
        );
        let ledger = Arc::new(Mutex::new(ledger));
        let changes = Arc::new(Mutex::new(ChangeMap::default()));
        let (status, status_seen) =
            watch::channel(StreamStatus::new(known.timeline, known.durable));
        let (command, commands) = mpsc::channel(16);
        let (_, observations) = mpsc::channel(1);
        let handle = StreamHandle {
            address: config.address(),
            commands: command,
            status: status_seen,
            ledger: Arc::clone(&ledger),
            changes: Arc::clone(&changes),
        };
        let pg_wal = PgWal::new(&config.data_dir, config.wal_segment_bytes);
        let putter = Putter::new(&config.stores, &config.data_key, pg_wal);
        let now = Instant::now();
        let this = Self {
            config: Arc::new(config),
            ledger,
            changes,
            status,
            commands,
            is_heard: true,
            putter: Arc::new(putter),
            link: Link::Waiting(now),
            pause: FIRST_PAUSE,
            link_trouble: None,
            cutter: None,
            timeline: known.timeline,
            origin: None,
            puts: FuturesOrdered::new(),
            memory: Memory::default(),
            server_end: Lsn::ZERO,
            waiters: Vec::new(),
            draining: None,
            ended_in_order: false,
            timeline_ended: false,
            next_status: now + STATUS_EVERY,
            owes_reply: false,
            observations,
            observer: None,
            ahead: VecDeque::new(),
            behind: VecDeque::new(),
            statistics: None,
            statistics_due: now + STATISTICS_EVERY,
        };
        tokio::spawn(this.run());
        handle
    }

    async fn run(mut self) {
        let outcome = self.turn().await;
        if let Some(draining) = self.draining.take() {
            // Whoever asked may have gone away.
            let _unheard = draining.done.send(outcome);
        }
        self.link = Link::Gone;
        self.status.send_modify(|status| {
            status.connected = false;
            status.ended = true;
        });
    }

    /// Runs until told to end. Says whether the server ended the stream and all of it is durable.
    async fn turn(&mut self) -> bool {
        loop {
            self.settle().await;
            if self.draining.is_some() && matches!(self.link, Link::Gone) && self.all_is_durable() {
                return self.ended_in_order;
            }
            let due = self.due();
            let may_read = self.may_read();
            tokio::select! {
                biased;
                command = self.commands.recv(), if self.is_heard => match command {
                    Some(Command::WaitDurable(lsn, answer)) => {
                        let lsn = page::before_header(lsn, self.config.wal_segment_bytes);
                        self.waiters.push((lsn, answer));
                    }
                    Some(Command::Drain(deadline, done)) => self.begin_drain(deadline, done),
                    Some(Command::Close) => return false,
                    // Every handle is gone; the WAL of a server that runs is wanted all the same.
                    None => self.is_heard = false,
                },
                Some(object) = self.puts.next(), if !self.puts.is_empty() => self.is_durable(object).await,
                Some(observation) = self.observations.recv() => self.observe(observation),
                () = self.memory.less(), if !may_read => {}
                event = self.link.next(may_read) => self.handle(event).await,
                () = tokio::time::sleep_until(due) => {
                    if self.draining.as_ref().is_some_and(|draining| Instant::now() >= draining.until) {
                        return false;
                    }
                }
            }
        }
    }

    /// Everything that follows from the state alone.
    async fn settle(&mut self) {
        self.cut_if_due();
        self.sight();
        let durable = self.durable();
        let is_placed = self.cutter.is_some();
        let reached = self
            .waiters
            .extract_if(.., |(lsn, _)| is_placed && *lsn <= durable);
        for (_, answer) in reached {
            // Whoever waited may have given up.
            let _unheard = answer.send(());
        }
        if self.timeline_ended && self.all_is_durable() {
            self.timeline_ended = false;
            self.open_with(Resume::Durable(self.timeline, durable));
            self.cutter = None;
        }
        if Instant::now() >= self.next_status
            && let Some(cutter) = &mut self.cutter
        {
            cutter.rest();
        }
        if self.owes_reply || Instant::now() >= self.next_status {
            self.tell_server().await;
        }
        self.keep_observing();
        self.read_statistics().await;
        self.publish();
    }

    fn due(&self) -> Instant {
        let mut due = self.next_status;
        if let Some(cutter) = &self.cutter
            && self.may_cut()
        {
            let urgent = cutter.urgent_since().map(|since| since + URGENT_WAIT);
            let quiet = cutter.quiet_since().map(|since| since + QUIET_WAIT);
            due = [urgent, quiet]
                .into_iter()
                .flatten()
                .fold(due, Instant::min);
        }
        self.draining
            .as_ref()
            .map_or(due, |draining| due.min(draining.until))
    }

    /// Tails wait for each other: the next one takes what came meanwhile.
    fn may_cut(&self) -> bool {
        self.puts.len() < 2
    }

    fn may_read(&self) -> bool {
        self.puts.len() < MOST_PUTS && self.memory.held() < MOST_PUT_BYTES
    }

    fn cut_if_due(&mut self) {
        if !self.may_cut() {
            return;
        }
        let now = Instant::now();
        let hurried = self.draining.is_some() || self.timeline_ended || self.owes_reply;
        let piece = self.cutter.as_mut().and_then(|cutter| {
            let ripe =
                |since: Option<Instant>, wait| since.is_some_and(|since| since + wait <= now);
            let awaited = self
                .waiters
                .iter()
                .any(|(lsn, _)| *lsn > cutter.cut_to() && *lsn <= cutter.received());
            let due = hurried
                || awaited
                || ripe(cutter.urgent_since(), URGENT_WAIT)
                || ripe(cutter.quiet_since(), QUIET_WAIT);
            due.then(|| cutter.cut()).flatten()
        });
        if let Some(piece) = piece {
            self.put(piece);
        }
    }

    fn put(&mut self, piece: Piece) {
        let putter = Arc::clone(&self.putter);
        let holding = self.memory.hold(piece.bytes.len());
        let effort = self.effort(piece.range.end);
        let task = tokio::spawn(async move { putter.put(piece, effort, holding).await });
        self.puts.push_back(AbortOnDropHandle::new(task));
    }

    /// How much is done to make what ends there small.
    fn effort(&self, end: Lsn) -> Effort {
        let unit = self
            .cutter
            .as_ref()
            .map_or(u64::MAX, |cutter| cutter.lineage().unit_bytes());
        match self.server_end.0.saturating_sub(end.0) / unit {
            UNITS_BEHIND.. => Effort::Light,
            _ => Effort::Usual,
        }
    }

    async fn is_durable(&mut self, object: Result<WalObject, tokio::task::JoinError>) {
        match object {
            Ok(object) => {
                self.ledger().add(object);
                self.tell_server().await;
            }
            // A put never ends without its object, except by a bug: what follows it must not count.
            Err(error) => {
                tracing::error!(%error, "a put ended without an object, streaming again from what is durable");
                self.puts = FuturesOrdered::new();
                self.cutter = None;
                self.lose(Error::Protocol("a put ended without an object".to_owned()));
            }
        }
    }

    fn all_is_durable(&self) -> bool {
        self.puts.is_empty()
            && self
                .cutter
                .as_ref()
                .is_none_or(|cutter| cutter.received() <= cutter.cut_to())
    }

    fn begin_drain(&mut self, deadline: Duration, done: oneshot::Sender<bool>) {
        self.draining = Some(Draining {
            until: Instant::now() + deadline,
            done,
        });
        if !matches!(self.link, Link::Open(_)) {
            self.link = Link::Gone;
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Retry => {
                let resume = self.cutter.as_ref().map_or(Resume::Unknown, |cutter| {
                    Resume::Received(self.timeline, cutter.received())
                });
                self.open_with(resume);
            }
            Event::Opened(opened) => match *opened {
                Ok(opened) => self.begin(opened).await,
                Err(error) => self.lose(error),
            },
            Event::Incoming(Ok(incoming)) => self.take(incoming).await,
            Event::Incoming(Err(error)) => self.lose(error),
        }
    }

    fn open_with(&mut self, resume: Resume) {
        let opening = session::open(Arc::clone(&self.config), resume, self.status.clone());
        self.link = Link::Opening(Box::pin(opening));
    }

    /// The connection is gone; another one follows, unless the server is being stopped.
    fn lose(&mut self, error: Error) {
        self.observer = None;
        self.ahead.clear();
        if self.draining.is_some() {
            self.link = Link::Gone;
            return;
        }
        if error.segment_is_gone() {
            // What was received and not put is lost to the server too: ask the stores again.
            self.cutter = None;
        }
        tracing::info!(
            server.incarnation = %self.config.placement.incarnation,
            error = error.chain(),
            "the WAL stream is interrupted"
        );
        self.link_trouble = Some(format!("{}: {}", error.code(), error.chain()));
        self.link = Link::Waiting(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    async fn begin(&mut self, opened: Opened) {
        self.link = Link::Open(Box::new(opened.replication));
        self.pause = FIRST_PAUSE;
        self.link_trouble = None;
        self.ledger().see_server_flush(opened.flushed);
        match opened.from {
            From::Received => {
                if let Some(cutter) = &mut self.cutter {
                    cutter.set_statistics(opened.statistics);
                }
            }
            From::Unit(beginning) => {
                let Beginning {
                    lineage,
                    origin,
                    timelines,
                    gap,
                } = *beginning;
                let changes = Arc::clone(&self.changes);
                let spare = self.putter.spare.clone();
                let mut cutter =
                    Cutter::resume(lineage, origin.durable, opened.statistics, changes, spare);
                cutter.remember(&origin.objects);
                {
                    let mut ledger = self.ledger();
                    ledger.enter_timeline(origin.timeline, origin.durable);
                    for start in timelines {
                        ledger.add_timeline(start);
                    }
                    for object in &origin.objects {
                        ledger.add(object.clone());
                    }
                    ledger.strand(origin.stranded.clone());
                    ledger.see_counting(cutter.last_counting());
                    if let Some(gap) = gap {
                        tracing::error!(wal.start = %gap.start, wal.end = %gap.end, "WAL is lost for ever");
                        ledger.record_gap(gap);
                    }
                }
                self.timeline = lineage.timeline;
                self.cutter = Some(cutter);
                self.origin = Some(origin);
                self.behind.clear();
            }
        }
        self.tell_server().await;
    }

    /// A second session looks at the server's log once a second; it is replaced when it ends.
    fn keep_observing(&mut self) {
        let is_alive = self
            .observer
            .as_ref()
            .is_some_and(|observer| !observer.is_finished());
        if is_alive || !matches!(self.link, Link::Open(_)) {
            return;
        }
        let (news, observations) = mpsc::channel(4);
        self.observations = observations;
        let address = self.config.address();
        self.observer = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = address.watch(news).await {
                tracing::debug!(error = error.chain(), "the server is not observed any more");
                // So that a server that refuses sessions is not asked without pause.
                tokio::time::sleep(LONGEST_PAUSE).await;
            }
        })));
    }

    async fn take(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Wal {
                start,
                server_end,
                bytes,
            } => {
                self.ledger().see_server_flush(server_end);
                self.server_end = server_end;
                self.prime(&bytes).await;
                let Some(cutter) = &mut self.cutter else {
                    return;
                };
                if start != cutter.received() {
                    let error = format!("WAL from {start} instead of {}", cutter.received());
                    return self.lose(Error::Protocol(error));
                }
                let pieces = cutter.take(&bytes, Instant::now());
                let counting = cutter.last_counting();
                self.ledger().see_counting(counting);
                for piece in pieces {
                    self.put(piece);
                }
            }
            Incoming::KeepAlive {
                server_end,
                reply_requested,
            } => {
                self.ledger().see_server_flush(server_end);
                self.owes_reply |= reply_requested;
            }
            Incoming::TimelineEnded => {
                self.timeline_ended = true;
                self.link = Link::Gone;
            }
            Incoming::Ended => {
                self.ended_in_order = true;
                self.lose(Error::Closed);
            }
        }
    }

    /// The first bytes of a stream tell whether a record crosses into them.
    async fn prime(&mut self, first: &[u8]) {
        let (Some(origin), Some(cutter)) = (self.origin.take(), &mut self.cutter) else {
            return;
        };
        let lineage = cutter.lineage();
        let stores = &self.config.stores;
        let data_key = &self.config.data_key;
        if let Some(walker) = origin::prime(stores, data_key, &lineage, &origin, first).await {
            cutter.continue_from(walker);
        }
    }

    /// Flushed means durable in every store and nothing less.
    async fn tell_server(&mut self) {
        let durable = self.durable();
        self.next_status = Instant::now() + STATUS_EVERY;
        self.owes_reply = false;
        let now = (self.config.now)();
        if let Link::Open(replication) = &mut self.link
            && self.cutter.is_some()
            && let Err(error) = replication.send_status(durable, now).await
            // A server that has all it waited for ends at once. That it did so in order is still to be read.
            && self.draining.is_none()
        {
            self.lose(error);
        }
    }

    fn observe(&mut self, observation: Observation) {
        let flushed = observation.flushed;
        self.ledger().see_server_flush(flushed);
        let inserted = page::before_header(observation.inserted, self.config.wal_segment_bytes);
        if self.ahead.len() < MOST_SIGHTINGS {
            self.ahead.push_back((observation.at, inserted));
        }
    }

    /// The newest look at the server all of whose commits are durable by now (RELIABILITY §5.5, "latest").
    fn sight(&mut self) {
        let Some(cutter) = &self.cutter else { return };
        while let Some((at, _)) = self
            .ahead
            .pop_front_if(|(_, lsn)| *lsn <= cutter.received())
        {
            if self.behind.len() >= MOST_SIGHTINGS {
                self.behind.pop_front();
            }
            self.behind.push_back((at, cutter.interest()));
        }
        let durable = self.durable();
        let mut seen = None;
        while let Some((at, _)) = self
            .behind
            .pop_front_if(|(_, interest)| *interest <= durable)
        {
            seen = Some(at);
        }
        if let Some(at) = seen {
            self.ledger().see_caught_up(at);
        }
    }

    /// Reads the statistics relations again after relations got new files, now and then.
    async fn read_statistics(&mut self) {
        if let Some(reading) = &mut self.statistics {
            if !reading.is_finished() {
                return;
            }
            let read = reading.await;
            self.statistics = None;
            if let (Ok(relations), Some(cutter)) = (read, &mut self.cutter) {
                cutter.set_statistics(Arc::new(relations));
            }
        }
        let renamed = self.cutter.as_ref().is_some_and(Cutter::relations_renamed);
        if renamed && Instant::now() >= self.statistics_due && matches!(self.link, Link::Open(_)) {
            self.statistics_due = Instant::now() + STATISTICS_EVERY;
            let address = self.config.address();
            let task = tokio::spawn(async move { session::read_statistics(&address).await });
            self.statistics = Some(AbortOnDropHandle::new(task));
        }
    }

    fn publish(&mut self) {
        let invalid = self.cutter.as_ref().and_then(Cutter::invalid);
        let problem = self
            .putter
            .trouble
            .get()
            .or_else(|| invalid.map(|invalid| invalid.to_string()))
            .or_else(|| self.link_trouble.clone());
        let received = self.cutter.as_ref().map(Cutter::received);
        let fresh = {
            let ledger = self.ledger();
            StreamStatus {
                connected: matches!(self.link, Link::Open(_)),
                slot: self.status.borrow().slot,
                timeline: ledger.timeline(),
                durable: ledger.durable(),
                received: received.unwrap_or(ledger.durable()),
                server_flush: ledger.server_flush(),
                caught_up_at: ledger.caught_up_at(),
                last_counting: ledger.last_counting(),
                held_bytes: ledger.held_bytes(),
                problem,
                unacknowledged: ledger.unacknowledged(),
                ended: false,
            }
        };
        self.status.send_if_modified(|status| {
            let changed = *status != fresh;
            *status = fresh;
            changed
        });
    }

    fn durable(&self) -> Lsn {
        self.ledger().durable()
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
