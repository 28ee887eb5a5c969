//! SQL to a managed server: over its Unix socket, as the agent's superuser, by peer authentication.
//!
//! The data in there is a tenant's. `search_path` is pinned to `pg_catalog` so that no object of
//! theirs stands in for a function or operator that the agent means.

use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio_postgres::{Client, Config, NoTls};

use super::AGENT_ROLE;
use crate::error::{Error, Result};

/// The database that every server has and that the agent works in.
pub const DATABASE: &str = "postgres";
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// One session. It ends with this value: PostgreSQL then ends a backup that ran in it.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    driver: AbortHandle,
}

impl Deref for Connection {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Connection {
    /// For transactions, which want the client for themselves.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A session in [`DATABASE`].
pub async fn connect(socket_dir: &Path, port: u16) -> Result<Connection> {
    connect_to(socket_dir, port, DATABASE).await
}

/// A session in any database of the server.
pub async fn connect_to(socket_dir: &Path, port: u16, database: &str) -> Result<Connection> {
    let mut config = Config::new();
    config
        .host_path(socket_dir)
        .port(port)
        .user(AGENT_ROLE)
        .dbname(database)
        .application_name("holdfast agent")
        .options("-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=60s");
    open(&config).await
}

async fn open(config: &Config) -> Result<Connection> {
    let what = "connect";
    let (client, connection) = tokio::time::timeout(CONNECT_WITHIN, config.connect(NoTls))
        .await
        .map_err(|_| Error::Slow {
            what: "answer a connection",
            within: CONNECT_WITHIN,
        })?
        .map_err(Error::postgres(what))?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a managed server ended");
        }
    })
    .abort_handle();
    Ok(Connection { client, driver })
}
