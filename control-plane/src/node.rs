//! Nodes and the vaults beside them.
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::NodeId;
use holdfast_domain::job::{HelloRequest, HelloResponse, JoinRequest};
use holdfast_domain::node::Node;
use holdfast_domain::redundancy::Vault;

use crate::{ControlPlane, Error, Result};

/// A node as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    pub node: Node,
    pub name: String,
    pub host: String,
    pub free_bytes: u64,
    pub last_seen: Option<DateTime<Utc>>,
    pub revoked: bool,
}

impl ControlPlane {
    /// Makes the vault known, or brings its facts up to date.
    pub async fn register_vault(&self, _vault: &Vault) -> Result<()> { Err(Error::Corrupt("not yet".into())) }
    pub async fn vaults(&self) -> Result<Vec<Vault>> { Err(Error::Corrupt("not yet".into())) }
    /// A secret that lets one agent of this name, region and zone join once.
    pub async fn issue_join_token(&self, _name: &str, _region: &str, _zone: Option<&str>, _ttl: TimeDelta) -> Result<String> { Err(Error::Corrupt("not yet".into())) }
    pub async fn join(&self, _request: &JoinRequest) -> Result<NodeId> { Err(Error::Corrupt("not yet".into())) }
    pub async fn hello(&self, _node: NodeId, _request: &HelloRequest) -> Result<HelloResponse> { Err(Error::Corrupt("not yet".into())) }
    /// From now on nothing is heard from this node. Answers with whether it was known.
    pub async fn revoke_node(&self, _node: NodeId) -> Result<bool> { Err(Error::Corrupt("not yet".into())) }
    /// Whether the node may speak; for calls that carry nothing else to check.
    pub async fn check_node(&self, _node: NodeId) -> Result<()> { Err(Error::Corrupt("not yet".into())) }
    pub async fn nodes(&self) -> Result<Vec<NodeView>> { Err(Error::Corrupt("not yet".into())) }
}
