//! Servers: created, changed, started, stopped, dropped, looked at.
use std::path::PathBuf;
use chrono::{DateTime, Utc};
use holdfast_domain::SubscriptionId;
use holdfast_domain::activity::Caller;
use holdfast_domain::job::Power;
use holdfast_domain::server::{Server, ServerWish};

use crate::{Accepted, ControlPlane, Error, Idempotency, Page, PageRequest, Result};

/// A server as callers name it; case does not matter.
#[derive(Debug, Clone, Copy)]
pub struct ServerRef<'a> {
    pub subscription: SubscriptionId,
    pub group: &'a str,
    pub name: &'a str,
}

/// A PUT's create mode, as far as it is not a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// A new server; a taken name is refused.
    Create,
    /// New, or an update of what is there.
    Default,
    /// What is there, or nothing.
    Update,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ServerView {
    pub server: Server,
    pub earliest_restore: Option<DateTime<Utc>>,
    pub latest_restore: Option<DateTime<Utc>>,
    /// What a client on its node's network calls that node.
    pub host: Option<String>,
}

/// How a client reaches a server.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectionView {
    pub server: Server,
    pub host: String,
    pub port: u16,
    /// On the node itself. The cli knows where its agent keeps sockets; the store does not.
    pub socket_dir: Option<PathBuf>,
    pub administrator_login: String,
}

impl ControlPlane {
    pub async fn put_server(&self, _caller: &Caller, _at: ServerRef<'_>, _wish: &ServerWish, _mode: PutMode, _idem: &Idempotency) -> Result<Accepted> { Err(Error::Corrupt("not yet".into())) }
    pub async fn update_server(&self, _caller: &Caller, _at: ServerRef<'_>, _wish: &ServerWish, _client_defaults_geo: bool, _idem: &Idempotency) -> Result<Accepted> { Err(Error::Corrupt("not yet".into())) }
    pub async fn power_server(&self, _caller: &Caller, _at: ServerRef<'_>, _to: Power, _idem: &Idempotency) -> Result<Accepted> { Err(Error::Corrupt("not yet".into())) }
    /// None: there is no such server.
    pub async fn delete_server(&self, _caller: &Caller, _at: ServerRef<'_>, _idem: &Idempotency) -> Result<Option<Accepted>> { Err(Error::Corrupt("not yet".into())) }
    pub async fn get_server(&self, _at: ServerRef<'_>) -> Result<ServerView> { Err(Error::Corrupt("not yet".into())) }
    pub async fn list_servers_of_group(&self, _subscription: SubscriptionId, _group: &str, _page: &PageRequest) -> Result<Page<ServerView>> { Err(Error::Corrupt("not yet".into())) }
    pub async fn list_servers(&self, _subscription: SubscriptionId, _page: &PageRequest) -> Result<Page<ServerView>> { Err(Error::Corrupt("not yet".into())) }
    pub async fn server_connection(&self, _at: ServerRef<'_>) -> Result<ConnectionView> { Err(Error::Corrupt("not yet".into())) }
    pub async fn server_name_available(&self, _name: &str) -> Result<bool> { Err(Error::Corrupt("not yet".into())) }
}
