//! Answers `wal-get`: the agent's end of a recovery's `restore_command`.
//!
//! One Unix socket for one attempt, named after its epoch, in a directory that only the postmaster's
//! user can enter. What is not in the plan does not exist; what is in the plan is sent whole, or the
//! recovery is told to abort and the reason is kept for the job's error (RELIABILITY §5.4.6).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::plan::Plan;
use super::segment_source::SegmentSource;
use super::wal_get::{FILE, NAME_LIMIT, NOT_PLANNED, UNOBTAINABLE};
use crate::error::{Error, Result};
use crate::postgres::ServiceUser;

/// Two requests of 16 MiB, each with a store's latency before it, bring more than PostgreSQL replays (PERFORMANCE §5).
const AT_ONCE: usize = 2;

/// A running server. Dropping it closes the socket; who asks afterwards gets no answer, which
/// `wal-get` turns into an abort.
pub struct WalServer {
    socket: PathBuf,
    shared: Arc<Shared>,
    _serving: AbortOnDropHandle<()>,
}

struct Shared {
    plan: Arc<Plan>,
    source: SegmentSource,
    failure: Mutex<Option<Error>>,
    /// The furthest segment that PostgreSQL has asked for.
    asked: watch::Sender<Option<usize>>,
}

impl WalServer {
    /// Serves `{directory}/{epoch}.wal`. Blocks nobody: the first segments are fetched at once.
    pub fn start(
        directory: &Path,
        epoch: i64,
        user: &ServiceUser,
        plan: Arc<Plan>,
        source: SegmentSource,
    ) -> Result<Self> {
        let socket = directory.join(format!("{epoch}.wal"));
        let listener = UnixListener::bind(&socket).map_err(Error::file("listen at", &socket))?;
        user.chown(&socket)?;
        let shared = Arc::new(Shared {
            plan,
            source,
            failure: Mutex::new(None),
            asked: watch::Sender::new(None),
        });
        let serving = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self {
            socket,
            shared,
            _serving: AbortOnDropHandle::new(serving),
        })
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Changes when PostgreSQL asks for a further segment.
    #[must_use]
    pub fn asked(&self) -> watch::Receiver<Option<usize>> {
        self.shared.asked.subscribe()
    }

    /// Why a planned file could not be had, if that has happened.
    #[must_use]
    pub fn take_failure(&self) -> Option<Error> {
        self.shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Drop for WalServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    // Everything under way ends with this task.
    let mut askers = tokio::task::JoinSet::new();
    let mut asked = shared.asked.subscribe();
    askers.spawn(prefetch(Arc::clone(&shared), 0));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let shared = Arc::clone(&shared);
                    askers.spawn(async move {
                        if let Err(error) = answer(stream, &shared).await {
                            tracing::debug!(%error, "a wal-get went away");
                        }
                    });
                }
                Err(error) => tracing::warn!(%error, "could not accept a wal-get"),
            },
            Ok(()) = asked.changed() => {
                let at = asked.borrow_and_update().map_or(0, |number| number + 1);
                askers.spawn(prefetch(Arc::clone(&shared), at));
            }
            Some(ended) = askers.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "answering a wal-get failed");
                }
            }
        }
    }
}

/// Makes the files that will be asked for next, and lets go of those that will not be again.
/// PostgreSQL asks for the newest file a second time when recovery ends, and for the first one twice.
async fn prefetch(shared: Arc<Shared>, from: usize) {
    if let Some(gone) = from.checked_sub(4) {
        shared.source.retire(gone).await;
    }
    let until = (from + shared.source.ahead()).min(shared.plan.segments.len());
    let source = &shared.source;
    futures::stream::iter(from..until)
        .for_each_concurrent(AT_ONCE, |number| source.prefetch(number))
        .await;
}

async fn answer(stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(NAME_LIMIT as u64))
        .read_line(&mut line)
        .await?;
    let name = line.trim_end_matches('\n');

    if let Some(number) = shared.plan.segment(name) {
        shared.asked.send_if_modified(|furthest| {
            let further = Some(number) > *furthest;
            if further {
                *furthest = Some(number);
            }
            further
        });
        match shared.source.obtain(number).await {
            Ok(spooled) => {
                let mut file = File::open(&spooled.path).await?;
                write.write_all(&head(spooled.bytes, &spooled.hash)).await?;
                tokio::io::copy(&mut file, &mut write).await?;
            }
            Err(error) => shared.give_up(name, error, &mut write).await?,
        }
    } else if let Some(timeline) = shared.plan.history(name) {
        match shared.source.history(timeline).await {
            Ok(text) => {
                write
                    .write_all(&head(text.len() as u64, blake3::hash(&text).as_bytes()))
                    .await?;
                write.write_all(&text).await?;
            }
            Err(error) => shared.give_up(name, error, &mut write).await?,
        }
    } else {
        write.write_all(&[NOT_PLANNED]).await?;
    }
    write.shutdown().await
}

fn head(bytes: u64, hash: &[u8; blake3::OUT_LEN]) -> Vec<u8> {
    let mut head = Vec::with_capacity(1 + 8 + blake3::OUT_LEN);
    head.push(FILE);
    head.extend(bytes.to_le_bytes());
    head.extend(hash);
    head
}

impl Shared {
    async fn give_up(
        &self,
        name: &str,
        error: Error,
        write: &mut (impl tokio::io::AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        tracing::error!(%error, file = name, "a planned WAL file cannot be had; the recovery is aborted");
        // Before the answer: PostgreSQL's end must find the reason.
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        write.write_all(&[UNOBTAINABLE]).await
    }
}
