//! The real thing, as a user starts it: `holdfast up` on a temporary folder, driven over its REST API.
//!
//! Nothing in here reaches into the product: it knows the binary, the URL and the token. Waiting for
//! another process is the one place where the tests poll; they wait for what the API announces
//! (`Retry-After`, an operation's end, a listed backup), bounded by a deadline.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use holdfast_agent::postgres::installation;
use serde_json::{Value, json};
use tokio::process::Command;

/// The api-version that the tests speak: the newest stable one.
pub const API_VERSION: &str = "2026-10-01";
/// Of what is ours.
pub const RECOVERY_API_VERSION: &str = "2026-11-01";

/// A running installation. Taken down, folder and all, when dropped.
pub struct Site {
    folder: tempfile::TempDir,
    binary: PathBuf,
    pub url: String,
    pub token: String,
    pub subscription: String,
    pub resource_group: String,
    pub tenant: String,
    pub ca_file: PathBuf,
    /// The major of the servers that a test creates when it does not mind.
    pub major: u16,
    client: reqwest::Client,
}

/// The distribution's on the oldest Debian that is supported, else the newest that is there.
const USUAL_MAJOR: u16 = 15;

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// `error.code` of a refusal.
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    pub fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }

    fn operation_url(&self) -> Result<String> {
        ensure!(self.status == 202, "not accepted: {self:?}");
        let url = self.headers.get("azure-asyncoperation");
        Ok(url
            .context("a 202 without Azure-AsyncOperation")?
            .to_str()?
            .to_owned())
    }
}

/// `target/debug/holdfast`, beside the test executable: nextest and cargo build it for this crate.
pub fn binary() -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let folder = executable
        .parent()
        .and_then(Path::parent)
        .context("a test executable lies in target/<profile>/deps")?;
    let binary = folder.join("holdfast");
    ensure!(
        binary.exists(),
        "{} is not built; run cargo build -p holdfast",
        binary.display()
    );
    Ok(binary)
}

impl Site {
    /// Starts a site with its own folder and waits until everything answers.
    pub async fn start() -> Result<Self> {
        // As `mktemp -d` makes it: there already, and closed to everybody else.
        let folder = tempfile::Builder::new().prefix("holdfast-e2e-").tempdir()?;
        let binary = binary()?;
        let offered = installation::discover(&[]).await;
        let major = offered
            .keys()
            .copied()
            .find(|major| *major == USUAL_MAJOR)
            .or(offered.keys().next_back().copied())
            .context("no PostgreSQL binaries; install postgresql or set HOLDFAST_PG_BIN")?;
        let mut site = Self {
            folder,
            binary,
            url: String::new(),
            token: String::new(),
            subscription: String::new(),
            resource_group: String::new(),
            tenant: String::new(),
            ca_file: PathBuf::new(),
            major,
            client: client(None)?,
        };
        site.up().await?;
        Ok(site)
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().to_path_buf()
    }

    /// Runs the binary with `--state-dir`; its standard output, or its standard error as the error.
    pub async fn command(&self, arguments: &[&str]) -> Result<String> {
        // Output goes to files: a detached site inherits and keeps pipes open.
        let (out, err) = (
            tempfile::NamedTempFile::new()?,
            tempfile::NamedTempFile::new()?,
        );
        let status = Command::new(&self.binary)
            .args(arguments)
            .arg("--state-dir")
            .arg(self.state_dir())
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(out.reopen()?)
            .stderr(err.reopen()?)
            .kill_on_drop(true)
            .status()
            .await?;
        let text = std::fs::read_to_string(out.path())?;
        if !status.success() {
            bail!(
                "holdfast {arguments:?}: {status}\n{text}\n{}",
                std::fs::read_to_string(err.path())?
            );
        }
        Ok(text)
    }

    /// Starts (again) and takes over the URL and a fresh token.
    pub async fn up(&mut self) -> Result<()> {
        self.command(&["up", "--detach", "--listen", "127.0.0.1:0"])
            .await?;
        let status = self.status().await?;
        let text = |key: &str| -> Result<String> {
            Ok(status[key]
                .as_str()
                .with_context(|| format!("status has no {key}"))?
                .to_owned())
        };
        self.url = text("url")?.trim_end_matches('/').to_owned();
        self.token = text("token")?;
        self.subscription = text("subscription")?;
        self.resource_group = text("resource_group")?;
        self.tenant = text("tenant")?;
        self.ca_file = PathBuf::from(text("ca_file")?);
        let ca = reqwest::Certificate::from_pem(&std::fs::read(&self.ca_file)?)?;
        self.client = client(Some(ca))?;
        Ok(())
    }

    pub async fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.command(&["status", "-o", "json"]).await?,
        )?)
    }

    /// `kill -9` of the process that holds API, scheduler and agents.
    pub async fn kill(&self) -> Result<()> {
        let pid = self.status().await?["pid"]
            .as_i64()
            .context("status has no pid")?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        let gone = || !Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid.as_raw());
        until(Duration::from_secs(20), || async {
            Ok(gone().then_some(()))
        })
        .await
    }

    // ------------------------------------------------------------------------------ the API

    pub fn server_path(&self, name: &str) -> String {
        format!(
            "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{name}",
            self.subscription, self.resource_group
        )
    }

    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Answer> {
        let version = if path.contains("Holdfast.Recovery") {
            RECOVERY_API_VERSION
        } else if path.contains("Microsoft.Insights") {
            "2015-04-01"
        } else if path.contains("Microsoft.Authorization") {
            "2020-05-01"
        } else {
            API_VERSION
        };
        let joint = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}{path}{joint}api-version={version}", self.url);
        self.request(method, &url, body).await
    }

    async fn request(&self, method: &str, url: &str, body: Option<Value>) -> Result<Answer> {
        let mut request = self
            .client
            .request(method.parse()?, url)
            .bearer_auth(&self.token);
        request = match body {
            Some(body) => request.json(&body),
            None => request.header("content-length", "0"),
        };
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await?;
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .with_context(|| format!("{method} {url}: {}", String::from_utf8_lossy(&bytes)))?
        };
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.call("GET", path, None).await
    }

    /// Polls an accepted request's operation to its end and returns the operation's body.
    pub async fn finish(&self, accepted: &Answer) -> Result<Value> {
        let url = accepted.operation_url()?;
        until(Duration::from_secs(300), || async {
            let answer = self.request("GET", &url, None).await?;
            ensure!(answer.status == 200, "poll: {answer:?}");
            let ended = matches!(
                answer.body["status"].as_str(),
                Some("Succeeded" | "Failed" | "Canceled")
            );
            Ok(ended.then_some(answer.body))
        })
        .await
    }

    /// As [`Self::finish`], and it must have succeeded.
    pub async fn succeed(&self, accepted: Answer) -> Result<Value> {
        let operation = self.finish(&accepted).await?;
        ensure!(operation["status"] == "Succeeded", "{operation:#}");
        Ok(operation)
    }

    pub fn create_body(&self) -> Value {
        json!({
            "location": "eastus2",
            "sku": {"name": "Standard_D2s_v3", "tier": "GeneralPurpose"},
            "properties": {
                "createMode": "Create",
                "version": self.major.to_string(),
                "administratorLogin": "hfadmin",
                "administratorLoginPassword": "Quite-Secret-1",
                "storage": {"storageSizeGB": 32},
            }
        })
    }

    /// Creates a server and waits until it is Ready and its first backup is listed.
    pub async fn create(&self, name: &str) -> Result<()> {
        let accepted = self
            .call("PUT", &self.server_path(name), Some(self.create_body()))
            .await?;
        self.succeed(accepted).await?;
        self.first_backup(name).await?;
        Ok(())
    }

    /// Waits for the first backup in the list.
    pub async fn first_backup(&self, name: &str) -> Result<Value> {
        let path = format!("{}/backups", self.server_path(name));
        until(Duration::from_secs(120), || async {
            Ok(self.get(&path).await?.body["value"].get(0).cloned())
        })
        .await
        .with_context(|| format!("the first backup of {name}"))
    }

    pub async fn back_up(&self, server: &str, backup: &str) -> Result<Value> {
        let path = format!("{}/backups/{backup}", self.server_path(server));
        let accepted = self.call("PUT", &path, None).await?;
        self.succeed(accepted).await?;
        Ok(self.get(&path).await?.body)
    }

    /// Asks for a restore; `at` as text, so that a test decides how it is written.
    pub async fn ask_restore(
        &self,
        source: &str,
        target: &str,
        at: Option<&str>,
    ) -> Result<Answer> {
        let mut properties = json!({
            "createMode": "PointInTimeRestore",
            "sourceServerResourceId": self.server_path(source),
        });
        if let Some(at) = at {
            properties["pointInTimeUTC"] = json!(at);
        }
        let body = json!({"location": "eastus2", "properties": properties});
        self.call("PUT", &self.server_path(target), Some(body))
            .await
    }

    /// Restores and returns the operation's body.
    pub async fn restore(
        &self,
        source: &str,
        target: &str,
        at: Option<DateTime<Utc>>,
    ) -> Result<Value> {
        let at = at.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true));
        let accepted = self.ask_restore(source, target, at.as_deref()).await?;
        self.succeed(accepted)
            .await
            .with_context(|| format!("restore of {source} to {at:?}"))
    }

    pub async fn power(&self, server: &str, verb: &str) -> Result<Value> {
        let path = format!("{}/{verb}", self.server_path(server));
        let accepted = self.call("POST", &path, None).await?;
        self.succeed(accepted).await
    }

    /// `Holdfast.Recovery/restorePoints`: bounds and the age of the recovery point.
    pub async fn restore_points(&self, server: &str) -> Result<Value> {
        let path = format!(
            "{}/providers/Holdfast.Recovery/restorePoints",
            self.server_path(server)
        );
        let answer = self.get(&path).await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer.body["properties"].clone())
    }

    /// An administrator's session, by the URI that the product gives for this machine.
    pub async fn sql(&self, server: &str) -> Result<tokio_postgres::Client> {
        let uri = self
            .command(&["server", "connection-string", server])
            .await?;
        let (client, connection) =
            tokio_postgres::connect(uri.trim(), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The data directory of a server's present life, found by the port in its configuration: only
    /// for faults that a test injects behind the product's back.
    pub async fn data_dir(&self, server: &str) -> Result<PathBuf> {
        let sql = self.sql(server).await?;
        let pid: i32 = sql.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
        Ok(std::fs::read_link(format!("/proc/{pid}/cwd"))?)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let folder = self.state_dir();
        let done = std::process::Command::new(&self.binary)
            .args(["destroy", "--yes", "--state-dir"])
            .arg(&folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("holdfast destroy did not succeed for {}", folder.display());
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that makes a site's clients"
)]
fn client(authority: Option<reqwest::Certificate>) -> Result<reqwest::Client> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(60))
        .no_proxy();
    Ok(client.tls_certs_only(authority).build()?)
}

/// Dead, with all its threads: the first may be gone while another still holds what the process held.
fn is_zombie(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads <= 1
        && std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.starts_with(" Z"))
        })
}

/// Asks again until there is an answer or the time is over.
pub async fn until<T, F>(limit: Duration, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("not within {limit:?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
