//! Servers as callers see them.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use holdfast_domain::restore::bounds;
use holdfast_domain::server::Server;
use holdfast_domain::{IncarnationId, Refusal, SubscriptionId, name};

use super::{ServerRef, living};
use crate::store::catalogue::Depth;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Page, PageRequest, Result};

#[derive(Debug, Clone, PartialEq)]
pub struct ServerView {
    pub server: Server,
    pub earliest_restore: Option<DateTime<Utc>>,
    pub latest_restore: Option<DateTime<Utc>>,
    /// What a client on its node's network calls that node.
    pub host: Option<String>,
    /// On that node itself.
    pub socket_dir: Option<PathBuf>,
}

/// How a client reaches a server.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectionView {
    pub server: Server,
    pub host: String,
    pub port: u16,
    /// On the server's node itself.
    pub socket_dir: Option<PathBuf>,
    pub administrator_login: String,
    /// What its node says is wrong with it.
    pub problem: Option<String>,
}

impl ControlPlane {
    /// # Errors
    /// [`Refusal::ResourceNotFound`].
    pub async fn get_server(&self, at: ServerRef<'_>) -> Result<ServerView> {
        let mut unit = Unit::begin(self).await?;
        let server = living(&mut unit, at, Hold::None).await?;
        let mut views = views(&mut unit, vec![server]).await?;
        views.pop().ok_or_else(|| at.not_found().into())
    }

    /// In the order of their names.
    ///
    /// # Errors
    /// [`Refusal::ResourceGroupNotFound`].
    pub async fn list_servers_of_group(
        &self,
        subscription: SubscriptionId,
        group: &str,
        page: &PageRequest,
    ) -> Result<Page<ServerView>> {
        self.get_resource_group(subscription, group).await?;
        self.list(subscription, Some(group), page).await
    }

    /// In the order of their names.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn list_servers(
        &self,
        subscription: SubscriptionId,
        page: &PageRequest,
    ) -> Result<Page<ServerView>> {
        self.list(subscription, None, page).await
    }

    async fn list(
        &self,
        subscription: SubscriptionId,
        group: Option<&str>,
        page: &PageRequest,
    ) -> Result<Page<ServerView>> {
        let mut unit = Unit::begin(self).await?;
        let (after, limit) = (page.after.as_deref(), i64::from(page.limit) + 1);
        let servers = store::server::list(unit.conn(), subscription, group, after, limit).await?;
        let page = Page::of(servers, page.limit, |server| server.name.clone());
        Ok(Page {
            items: views(&mut unit, page.items).await?,
            next: page.next,
        })
    }

    /// # Errors
    /// [`Refusal::ResourceNotFound`]; [`Refusal::ServerIsNotReady`] before it has a place.
    pub async fn server_connection(&self, at: ServerRef<'_>) -> Result<ConnectionView> {
        let view = self.get_server(at).await?;
        let (Some(host), Some(port)) = (view.host, view.server.port) else {
            return Err(Refusal::ServerIsNotReady {
                server: view.server.name,
                state: view.server.state,
                wanted: "Ready",
            }
            .into());
        };
        let problem = match view.server.incarnation {
            Some(incarnation) => {
                let mut conn = self.pool().acquire().await?;
                store::incarnation::problem(&mut conn, view.server.subscription, incarnation)
                    .await?
            }
            None => None,
        };
        Ok(ConnectionView {
            problem,
            host,
            port,
            socket_dir: view.socket_dir,
            administrator_login: view.server.settings.administrator_login.clone(),
            server: view.server,
        })
    }

    /// Whether a new server could have this name. Names are unique over the installation.
    ///
    /// # Errors
    /// [`Refusal::InvalidResourceName`].
    pub async fn server_name_available(&self, name: &str) -> Result<bool> {
        name::new_server(name)?;
        let mut conn = self.pool().acquire().await?;
        Ok(!store::server::name_is_taken(&mut conn, name).await?)
    }
}

/// What callers see of servers: four more queries, however many servers there are.
async fn views(unit: &mut Unit, servers: Vec<Server>) -> Result<Vec<ServerView>> {
    let now = unit.now();
    let lives: Vec<(SubscriptionId, IncarnationId)> = servers
        .iter()
        .filter_map(|server| Some((server.subscription, server.incarnation?)))
        .collect();
    let catalogues = store::catalogue::load_many(unit.conn(), &lives, Depth::Newest).await?;
    let nodes = store::node::all(unit.conn(), now).await?;
    Ok(servers
        .into_iter()
        .map(|server| {
            let bounds = server
                .incarnation
                .and_then(|id| catalogues.get(&id))
                .and_then(|catalogue| {
                    bounds(catalogue, server.settings.retention, server.window_end(now))
                });
            let host = nodes.iter().find(|node| Some(node.node.id) == server.node);
            ServerView {
                earliest_restore: bounds.map(|bounds| bounds.earliest),
                latest_restore: bounds.map(|bounds| bounds.latest),
                host: host.map(|node| node.host.clone()),
                socket_dir: host.and_then(|node| {
                    Some(Path::new(node.socket_root.as_ref()?).join(server.port?.to_string()))
                }),
                server,
            }
        })
        .collect())
}
