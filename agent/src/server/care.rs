//! Looking after a server while nothing happens: drift, the size of its log and its data, and what the
//! control plane is told of it with every hello.

use std::path::Path;
use std::time::Duration;

use holdfast_domain::job::ServerObservation;
use tokio::time::Instant;

use super::{Running, ServerHandle};
use crate::error::chain;
use crate::postgres::{Instance, InstanceState, drift, server_log};
use crate::stream::StreamHandle;

/// Adding up a directory's size is not free.
const SIZE_EVERY: Duration = Duration::from_secs(300);

impl ServerHandle {
    /// One look at the server: its settings, its log, its size.
    pub(crate) async fn look_after(&self) {
        if let Err(error) = server_log::trim(&self.log_file()) {
            tracing::warn!(error = chain(&error), "could not trim a server's log");
        }
        let stale = self.note(|notes| notes.size.is_none_or(|(at, _)| at.elapsed() > SIZE_EVERY));
        if stale {
            let data_dir = self.data_dir();
            if let Ok(bytes) = tokio::task::spawn_blocking(move || directory_bytes(&data_dir)).await
            {
                self.note(|notes| notes.size = Some((Instant::now(), bytes)));
            }
        }
        let Some(Running { instance, stream }) = self.running() else {
            return;
        };
        let problem = match instance.state() {
            InstanceState::Failing { reason, attempts } => {
                tracing::warn!(server.incarnation = %self.incarnation(), attempts, reason, "a server does not stay up");
                Some(format!(
                    "PostgreSQL ended {attempts} times and is started again; its log has the reason"
                ))
            }
            InstanceState::Running { .. } => self.drifted(&instance).await,
            InstanceState::Starting | InstanceState::Stopped => None,
        };
        let problem = problem.or_else(|| self.stream_trouble(&stream));
        self.note(|notes| notes.problem = problem);
    }

    async fn drifted(&self, instance: &Instance) -> Option<String> {
        let look = async {
            let session = self.connect().await?;
            let user = &self.0.equipment.user;
            drift::check(
                instance,
                &session,
                &self.data_dir(),
                &self.configuration(),
                user,
            )
            .await
        };
        match look.await {
            Ok(wrong) if wrong.is_empty() => None,
            Ok(wrong) => Some(wrong.join("; ")),
            Err(error) => Some(error.public_message()),
        }
    }

    /// A user may read this: its causes, with paths and addresses, stay in this node's log.
    fn stream_trouble(&self, stream: &StreamHandle) -> Option<String> {
        let problem = stream.status().borrow().problem.clone()?;
        tracing::warn!(server.incarnation = %self.incarnation(), problem, "the write-ahead log does not get on");
        let code = problem
            .split(':')
            .next()
            .filter(|word| word.chars().all(|c| c.is_ascii_alphabetic()));
        Some(format!(
            "its write-ahead log does not reach the store ({}); the node's log has the reason",
            code.unwrap_or("InvalidWal")
        ))
    }

    /// Something that somebody has to know; shown until the next look finds it mended.
    pub(crate) fn complain(&self, problem: String) {
        self.note(|notes| notes.problem = Some(problem));
    }

    pub(crate) fn observe(&self) -> ServerObservation {
        let placement = self.placement();
        let (data_bytes, problem) =
            self.note(|notes| (notes.size.map(|(_, bytes)| bytes), notes.problem.clone()));
        ServerObservation {
            server: placement.server,
            incarnation: placement.incarnation,
            running: self.is_running(),
            data_bytes,
            problem,
        }
    }
}

/// Bytes of all regular files below a directory; what disappears meanwhile does not count.
fn directory_bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
            Ok(metadata) if metadata.is_file() => metadata.len(),
            _ => 0,
        })
        .sum()
}
