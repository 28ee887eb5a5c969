//! The embedded metadata PostgreSQL: a cluster of its own in the state directory, reached by nobody but
//! this process's user over a Unix socket (DESIGN §6).
//!
//! After `kill -9` of the site its postmaster lives on. Starting goes through the agent's own
//! [`Postmaster`], which finds whoever has the directory open by asking the kernel and ends it first.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_agent::postgres::configuration::{quote, replace};
use holdfast_agent::postgres::installation::{self, Installation};
use holdfast_agent::postgres::postmaster::{Postmaster, PostmasterSpec, StopMode};
use holdfast_agent::postgres::{AGENT_ROLE, ServiceUser, initdb};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::state_dir::{StateDir, passage};

/// Part of the socket's name only.
/// Migrations say `NULLS NOT DISTINCT`, which is new in PostgreSQL 15. Servers may be older.
pub const OLDEST_MAJOR: u16 = 15;
const PORT: u16 = 5432;
const DATABASE: &str = "postgres";
/// Crash recovery of a metadata store is short, but the machine may be busy.
const READY_WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(60);
const RESTART_AFTER: Duration = Duration::from_millis(500);
const CONNECTIONS: u32 = 40;

#[derive(Debug)]
pub struct Metadata {
    socket_dir: PathBuf,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Metadata {
    /// Makes the cluster when there is none, starts it, and keeps it running.
    pub async fn start(
        state: &StateDir,
        pg_bin: &[PathBuf],
        run_dir: &Path,
        user: &ServiceUser,
    ) -> Result<Self> {
        let home = state.metadata_dir();
        passage(&home)?;
        let data_dir = state.metadata_data_dir();
        let installed = installation::discover(pg_bin).await;
        let installation = match major_of(&data_dir)? {
            Some(major) => installation::of(&installed, major).with_context(|| {
                format!("the metadata store in {} needs PostgreSQL {major}", data_dir.display())
            })?,
            None => installed
                .into_values()
                .next_back()
                .filter(|newest| newest.major >= OLDEST_MAJOR)
                .with_context(|| format!(
                    "the metadata store needs PostgreSQL {OLDEST_MAJOR} or newer: apt-get install postgresql, or set HOLDFAST_PG_BIN",
                ))?,
        };
        if major_of(&data_dir)?.is_none() {
            make_cluster(&installation, &home, &data_dir, user).await?;
        }
        let socket_dir = run_dir.join("metadata");
        user.create_dir(&socket_dir)?;
        configure(&data_dir, &socket_dir, user)?;
        let spec = PostmasterSpec {
            installation,
            data_dir,
            log_file: home.join("server.log"),
            socket_dir: socket_dir.clone(),
            port: PORT,
            user: user.clone(),
            settings: Vec::new(),
        };
        let postmaster = launch(&spec)
            .await
            .context("the metadata PostgreSQL does not start")?;
        let stop = CancellationToken::new();
        let keeper = tokio::spawn(keep(spec, postmaster, stop.clone()));
        Ok(Self {
            socket_dir,
            stop,
            keeper,
        })
    }

    /// A pool of connections as the cluster's owner, by peer authentication.
    #[must_use]
    pub fn pool(&self) -> PgPool {
        let options = PgConnectOptions::new_without_pgpass()
            .socket(&self.socket_dir)
            .port(PORT)
            .username(AGENT_ROLE)
            .database(DATABASE)
            .application_name("holdfast");
        PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(10))
            .connect_lazy_with(options)
    }

    /// A clean shutdown. The pool must be closed before.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "the metadata PostgreSQL's keeper ended badly");
        }
    }
}

async fn launch(spec: &PostmasterSpec) -> holdfast_agent::Result<Postmaster> {
    let postmaster = Postmaster::spawn(spec).await?;
    postmaster.wait_ready(READY_WITHIN).await?;
    Ok(postmaster)
}

/// Starts the postmaster again whenever it ends, until it is told to stop.
async fn keep(spec: PostmasterSpec, mut postmaster: Postmaster, stop: CancellationToken) {
    loop {
        let status = tokio::select! {
            status = postmaster.wait() => status,
            () = stop.cancelled() => {
                if let Err(error) = postmaster.stop(StopMode::Fast, STOP_WITHIN).await {
                    tracing::warn!(%error, "the metadata PostgreSQL is stopped at once");
                }
                return;
            }
        };
        tracing::error!(%status, "the metadata PostgreSQL ended; starting it again");
        postmaster = loop {
            if stop.is_cancelled() {
                return;
            }
            match launch(&spec).await {
                Ok(postmaster) => break postmaster,
                Err(error) => tracing::error!(%error, "the metadata PostgreSQL does not start"),
            }
            tokio::time::sleep(RESTART_AFTER).await;
        };
    }
}

/// The major of an existing cluster.
fn major_of(data_dir: &Path) -> Result<Option<u16>> {
    match std::fs::read_to_string(data_dir.join("PG_VERSION")) {
        Ok(text) => {
            let major = text.trim().parse().ok();
            ensure!(
                major.is_some(),
                "{} holds no PostgreSQL cluster",
                data_dir.display()
            );
            Ok(major)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("the metadata store cannot be read"),
    }
}

/// `initdb` under another name, renamed when it is complete: a directory `data` is a whole cluster.
async fn make_cluster(
    installation: &Installation,
    home: &Path,
    data_dir: &Path,
    user: &ServiceUser,
) -> Result<()> {
    let building = home.join("data.building");
    match std::fs::remove_dir_all(&building) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    initdb::run(installation, &building, user).await?;
    std::fs::rename(&building, data_dir)?;
    std::fs::File::open(home)?.sync_all()?;
    Ok(())
}

fn configure(data_dir: &Path, socket_dir: &Path, user: &ServiceUser) -> Result<()> {
    let socket = quote(
        socket_dir
            .to_str()
            .context("the run directory's path must be text")?,
    )?;
    let settings = format!(
        "# Written by Holdfast before every start.\n\
         listen_addresses = ''\n\
         unix_socket_directories = {socket}\n\
         unix_socket_permissions = 0700\n\
         port = {PORT}\n\
         max_connections = 100\n\
         shared_buffers = 64MB\n\
         dynamic_shared_memory_type = posix\n\
         wal_level = minimal\n\
         max_wal_senders = 0\n\
         max_wal_size = 256MB\n\
         timezone = 'UTC'\n\
         log_timezone = 'UTC'\n\
         log_line_prefix = '%m [%p] '\n\
         cluster_name = 'holdfast-metadata'\n"
    );
    let owner = user.agent_name();
    ensure!(
        !owner.contains(['"', '\n']) && !owner.starts_with('/'),
        "odd user name {owner:?}"
    );
    let files = [
        ("postgresql.conf", settings),
        ("postgresql.auto.conf", String::new()),
        (
            "pg_hba.conf",
            format!("local all {AGENT_ROLE} peer map=site\n"),
        ),
        ("pg_ident.conf", format!("site \"{owner}\" {AGENT_ROLE}\n")),
    ];
    for (name, text) in files {
        replace(&data_dir.join(name), &text, user)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::service_users;
    use holdfast_agent::postgres::occupancy;

    #[tokio::test]
    async fn the_metadata_store_survives_its_postmaster_and_its_site() {
        let dir = tempfile::Builder::new()
            .prefix("holdfast-")
            .tempdir()
            .expect("a directory");
        std::fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o711),
        )
        .expect("ours");
        let state = StateDir::choose(Some(dir.path().to_path_buf())).expect("there");
        let user = service_users::resolve().expect("a user").metadata;
        let run_dir = dir.path().join("run");
        passage(&run_dir).expect("made");
        let start = || Metadata::start(&state, &[], &run_dir, &user);

        let first = start().await.expect("made and started");
        let pool = first.pool();
        let mut session = pool.acquire().await.expect("answers");
        sqlx::Connection::ping(&mut *session)
            .await
            .expect("answers");
        drop(session);
        // As after kill -9 of the site: nobody stops it, and the next start finds it running.
        first.keeper.abort();
        let second = start().await.expect("taken over");
        let pool = second.pool();
        pool.acquire().await.expect("answers");
        pool.close().await;
        second.stop().await;
        let data = state.metadata_data_dir();
        assert!(occupancy::holders(&data).await.expect("asked").is_empty());
        assert!(!data.join("postmaster.pid").exists());
    }
}
