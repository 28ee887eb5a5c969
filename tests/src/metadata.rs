//! The metadata store of tests: one temporary PostgreSQL for all tests of a process, one database
//! for each test.
//!
//! The cluster lives as long as some test holds a database of it and goes, folder and all, with the
//! last one. It listens on a Unix socket only and does not fsync; managed servers never run in it.
//! A database is a copy of a migrated template in which `lease_now()` is the database's clock plus
//! an offset that the test moves (DESIGN §3.11).

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_agent::postgres::installation::{self, Installation};
use holdfast_agent::postgres::service_user::ServiceUser;
use holdfast_control_plane::ControlPlane;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::sync::Mutex;
use uuid::Uuid;

const TEMPLATE: &str = "holdfast_template";
/// Who runs postmasters when the tests run as root; the first that exists.
const USERS: [&str; 2] = ["holdfast", "postgres"];

static RUNNING: Mutex<Weak<Cluster>> = Mutex::const_new(Weak::new());

/// A database of one test.
pub struct Database {
    cluster: Arc<Cluster>,
    name: String,
    pool: PgPool,
}

impl Database {
    /// A fresh, migrated database.
    pub async fn new() -> Result<Self> {
        let cluster = Cluster::running().await?;
        let name = format!("test_{}", Uuid::new_v4().simple());
        cluster
            .administer(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
            .await?;
        let pool = cluster.pool(&name).await?;
        Ok(Self {
            cluster,
            name,
            pool,
        })
    }

    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Connections of their own, as a second process has them.
    pub async fn another_pool(&self) -> Result<PgPool> {
        self.cluster.pool(&self.name).await
    }

    /// Lease time goes on from here, so that it agrees with the test's own clock.
    pub async fn set(&self, to: DateTime<Utc>) -> Result<()> {
        sqlx::query("UPDATE test_clock SET ahead = $1 - clock_timestamp()")
            .bind(to)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Moves the clock of leases.
    pub async fn advance(&self, by: TimeDelta) -> Result<()> {
        sqlx::query("UPDATE test_clock SET ahead = ahead + $1")
            .bind(
                sqlx::postgres::types::PgInterval::try_from(by)
                    .map_err(anyhow::Error::from_boxed)?,
            )
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

struct Cluster {
    folder: tempfile::TempDir,
    installation: Installation,
    user: ServiceUser,
}

impl Cluster {
    async fn running() -> Result<Arc<Self>> {
        let mut running = RUNNING.lock().await;
        if let Some(cluster) = running.upgrade() {
            return Ok(cluster);
        }
        let cluster = Arc::new(Self::start().await?);
        cluster.make_template().await?;
        *running = Arc::downgrade(&cluster);
        Ok(cluster)
    }

    async fn start() -> Result<Self> {
        let installation = installation::discover(&[])
            .await
            .into_values()
            // The oldest: SQL that works there works on the others.
            .next()
            .context("no PostgreSQL binaries; install postgresql or set HOLDFAST_PG_BIN")?;
        let user = USERS
            .iter()
            .find_map(|name| ServiceUser::resolve(name).ok())
            .context("no unprivileged user to run PostgreSQL as")?;
        // Sockets have 107 bytes (DESIGN §6): the temporary directory's own name must be short.
        let folder = tempfile::Builder::new().prefix("hfm").tempdir()?;
        user.chown(folder.path())?;
        let cluster = Self {
            folder,
            installation,
            user,
        };
        cluster.run(
            "initdb",
            &[
                "-U",
                "holdfast",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
                "-D",
            ],
        )?;
        let options = format!(
            "-k {} -c listen_addresses= -c fsync=off -c synchronous_commit=off -c full_page_writes=off \
             -c max_connections=200 -c shared_buffers=32MB -c autovacuum=off",
            cluster.folder.path().display()
        );
        let log = cluster.folder.path().join("log");
        let log = log
            .to_str()
            .context("the temporary folder's name is text")?;
        cluster.run(
            "pg_ctl",
            &["start", "-w", "-s", "-l", log, "-o", &options, "-D"],
        )?;
        Ok(cluster)
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Runs a program of PostgreSQL as the service user; the data directory is its last argument.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let path = self.installation.program(program);
        let mut command = Command::new(&path);
        if let Some((uid, gid)) = self.user.ids() {
            command.uid(uid).gid(gid);
        }
        // Not a pipe: the postmaster would inherit it and hold it open.
        let errors = std::fs::File::create(self.folder.path().join("errors"))?;
        let status = command
            .args(arguments)
            .arg(self.data_dir())
            .current_dir(self.folder.path())
            .env_remove("PGDATA")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .status()
            .with_context(|| format!("cannot run {}", path.display()))?;
        ensure!(
            status.success(),
            "{program} failed: {}",
            std::fs::read_to_string(self.folder.path().join("errors")).unwrap_or_default()
        );
        Ok(())
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.folder.path())
            .username("holdfast")
            .database(database)
    }

    async fn pool(&self, database: &str) -> Result<PgPool> {
        let pool = PgPoolOptions::new()
            .max_connections(12)
            .connect_with(self.options(database))
            .await?;
        Ok(pool)
    }

    async fn administer(&self, sql: &str) -> Result<()> {
        let pool = self.pool("postgres").await?;
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await;
        pool.close().await;
        done?;
        Ok(())
    }

    /// Migrated once and copied for each test. Nobody may be connected to it while it is copied.
    async fn make_template(&self) -> Result<()> {
        self.administer(&format!("CREATE DATABASE {TEMPLATE}"))
            .await?;
        let pool = self.pool(TEMPLATE).await?;
        ControlPlane::migrate(&pool).await?;
        sqlx::raw_sql(
            "CREATE TABLE test_clock (ahead interval NOT NULL);
             INSERT INTO test_clock VALUES ('0');
             CREATE OR REPLACE FUNCTION lease_now() RETURNS timestamptz
                 LANGUAGE sql VOLATILE
                 AS 'SELECT clock_timestamp() + ahead FROM test_clock';",
        )
        .execute(&pool)
        .await?;
        pool.close().await;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.run("pg_ctl", &["stop", "-m", "immediate", "-w", "-s", "-D"]) {
            eprintln!("the metadata store of the tests could not be stopped: {error:#}");
        }
    }
}

/// Where the tests' sources lie; committed documents are found from here.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
