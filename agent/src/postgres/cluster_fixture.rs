//! A real, small PostgreSQL cluster – 15 unless a test says otherwise – in a temporary directory, for tests of this crate.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::configuration::{self, ServerConfiguration};
use super::{
    Connection, Installation, PostmasterSpec, ServiceUser, connection, initdb, installation,
};

/// Free for tests: TCP is never used, so the number only names the socket.
pub(crate) const PORT: u16 = 5432;

pub(crate) struct Cluster {
    root: TempDir,
    user: ServiceUser,
    installation: Installation,
}

/// Every major of this machine: 15 from the system's packages, more where `HOLDFAST_PG_BIN` names them,
/// as `./test` does.
pub(crate) async fn majors() -> Vec<u16> {
    let found: Vec<u16> = installation::discover(&[]).await.into_keys().collect();
    assert!(found.contains(&15), "PostgreSQL 15 is installed");
    found
}

impl Cluster {
    pub(crate) async fn create() -> Self {
        Self::create_major(15).await
    }

    pub(crate) async fn create_major(major: u16) -> Self {
        let root = tempfile::Builder::new()
            .prefix("hf")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711))
            .tempdir()
            .expect("a temporary directory");
        let found = installation::discover(&[]).await;
        let cluster = Self {
            user: ServiceUser::resolve("postgres").expect("this machine has the user"),
            installation: installation::of(&found, major).expect("this major is installed"),
            root,
        };
        cluster
            .user
            .create_dir_with(&cluster.socket_dir(), 0o755)
            .expect("made");
        initdb::run(&cluster.installation, &cluster.data_dir(), &cluster.user)
            .await
            .expect("initdb works");
        configuration::write(&cluster.data_dir(), &cluster.configuration(), &cluster.user)
            .expect("written");
        cluster
    }

    pub(crate) fn user(&self) -> &ServiceUser {
        &self.user
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.root.path().join("s")
    }

    pub(crate) fn configuration(&self) -> ServerConfiguration {
        ServerConfiguration {
            major: self.installation.major,
            port: PORT,
            socket_dir: self.socket_dir(),
            cluster_name: "test".into(),
            agent_os_user: self.user.agent_name().to_owned(),
        }
    }

    /// Without TCP, so that tests run side by side.
    pub(crate) fn spec(&self) -> PostmasterSpec {
        PostmasterSpec {
            installation: self.installation.clone(),
            data_dir: self.data_dir(),
            log_file: self.root.path().join("server.log"),
            socket_dir: self.socket_dir(),
            port: PORT,
            user: self.user.clone(),
            settings: vec![
                ("listen_addresses".into(), String::new()),
                ("shared_buffers".into(), "16MB".into()),
            ],
        }
    }

    pub(crate) async fn connect(&self) -> Connection {
        connection::connect(&self.socket_dir(), PORT)
            .await
            .expect("connected")
    }

    /// As a tenant would: by password, on the socket.
    pub(crate) async fn connect_as(
        &self,
        login: &str,
        password: &str,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        connect_as(&self.socket_dir(), PORT, login, password, database).await
    }
}

pub(crate) async fn connect_as(
    socket_dir: &Path,
    port: u16,
    login: &str,
    password: &str,
    database: &str,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, driver) = tokio_postgres::Config::new()
        .host_path(socket_dir)
        .port(port)
        .user(login)
        .password(password)
        .dbname(database)
        .connect(tokio_postgres::NoTls)
        .await?;
    tokio::spawn(driver);
    Ok(client)
}
