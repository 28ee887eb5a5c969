//! One life of one `postgres` process, started by the agent itself and reaped by it (DESIGN §6).
//!
//! A restore uses this directly; a server that is to stay up is an [`super::Instance`].

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Installation, ServiceUser, connection, occupancy, server_log};
use crate::error::{Error, Result};

/// The longest path that a Unix socket can have (DESIGN §6).
const SOCKET_PATH_MAX: usize = 107;

#[derive(Debug, Clone)]
pub struct PostmasterSpec {
    pub installation: Installation,
    pub data_dir: PathBuf,
    pub log_file: PathBuf,
    pub socket_dir: PathBuf,
    pub port: u16,
    pub user: ServiceUser,
    /// Settings that win over the configuration file, passed as `-c name=value`.
    pub settings: Vec<(String, String)>,
}

/// PostgreSQL's ways of shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopMode {
    /// Ends sessions, writes a checkpoint, waits for the receiver of the WAL (RELIABILITY §5.3.6).
    Fast,
    /// Like a crash: recovery at the next start.
    Immediate,
}

impl StopMode {
    #[must_use]
    pub fn signal(self) -> Signal {
        match self {
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
        }
    }
}

/// A running (or just ended) process. Dropped while it runs, it is shut down immediately.
#[derive(Debug)]
pub struct Postmaster {
    pid: Pid,
    spec: PostmasterSpec,
    status: watch::Receiver<Option<ExitStatus>>,
}

impl Postmaster {
    /// Starts the process after ending whatever else has the directory open. It is not ready yet.
    pub async fn spawn(spec: &PostmasterSpec) -> Result<Self> {
        let socket = spec.socket_dir.join(format!(".s.PGSQL.{}", spec.port));
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(Error::Configuration(format!(
                "the socket path {} is longer than {SOCKET_PATH_MAX} bytes; set run_dir to a shorter one",
                socket.display()
            )));
        }
        occupancy::evict(&spec.data_dir).await?;
        let log = server_log::open(&spec.log_file)?;
        let copy = log
            .try_clone()
            .map_err(Error::system("duplicate a descriptor"))?;
        let program = spec.installation.program("postgres");
        let mut command = Command::new(&program);
        spec.user.apply(&mut command);
        command
            .arg("-D")
            .arg(&spec.data_dir)
            .current_dir(&spec.data_dir)
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(log)
            // A signal meant for the agent's terminal must not reach the servers.
            .process_group(0)
            .kill_on_drop(true);
        for (name, value) in &spec.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let child = command.spawn().map_err(Error::file("run", program))?;
        let pid = child
            .id()
            .map(|id| Pid::from_raw(id.cast_signed()))
            .ok_or_else(|| Error::NotStarted {
                status: "ended at once".into(),
                said: server_log::tail(&spec.log_file, 4),
            })?;
        let (sender, status) = watch::channel(None);
        tokio::spawn(reap(child, sender));
        Ok(Self {
            pid,
            spec: spec.clone(),
            status,
        })
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    #[must_use]
    pub fn spec(&self) -> &PostmasterSpec {
        &self.spec
    }

    /// How the process ended, if it has.
    #[must_use]
    pub fn exited(&self) -> Option<ExitStatus> {
        *self.status.borrow()
    }

    /// Waits until the process has ended and was reaped.
    pub async fn wait(&self) -> ExitStatus {
        let mut status = self.status.clone();
        let ended = status.wait_for(Option::is_some).await.map(|found| *found);
        match ended {
            Ok(Some(status)) => status,
            // The reaper went without a word: the runtime is ending, and the process with it.
            _ => std::os::unix::process::ExitStatusExt::from_raw(Signal::SIGKILL as i32),
        }
    }

    /// Sends a signal unless the process has ended (its pid is ours until it was reaped).
    pub fn signal(&self, signal: Signal) {
        if self.exited().is_none() {
            let _ = kill(self.pid, signal);
        }
    }

    /// Waits until the server answers a connection on its socket.
    pub async fn wait_ready(&self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let mut pause = Duration::from_millis(20);
        loop {
            if let Some(status) = self.exited() {
                return Err(self.not_started(status));
            }
            let attempt = connection::connect(&self.spec.socket_dir, self.spec.port);
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) if Instant::now() < deadline => {}
                _ => {
                    return Err(Error::Slow {
                        what: "take connections",
                        within,
                    });
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_millis(500)),
                status = self.wait() => return Err(self.not_started(status)),
            }
        }
    }

    fn not_started(&self, status: ExitStatus) -> Error {
        Error::NotStarted {
            status: status.to_string(),
            said: server_log::tail(&self.spec.log_file, 4),
        }
    }

    /// Asks for a shutdown and waits for it. After the time it still runs; ask harder, or wait on.
    pub async fn stop(&self, mode: StopMode, within: Duration) -> Result<ExitStatus> {
        self.signal(mode.signal());
        tokio::time::timeout(within, self.wait())
            .await
            .map_err(|_| Error::Slow {
                what: "shut down",
                within,
            })
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        self.signal(StopMode::Immediate.signal());
    }
}

async fn reap(mut child: Child, sender: watch::Sender<Option<ExitStatus>>) {
    match child.wait().await {
        Ok(status) => {
            sender.send_replace(Some(status));
        }
        Err(error) => tracing::error!(%error, "could not wait for a postmaster"),
    }
}
