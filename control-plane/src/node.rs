//! Nodes and the vaults beside them: how they join, what they say, what they should be running.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::job::{
    Assignment, HelloRequest, HelloResponse, JoinRequest, NodeInventory, Power,
};
use holdfast_domain::node::Node;
use holdfast_domain::redundancy::Vault;
use holdfast_domain::region::canonical;
use holdfast_domain::server::ServerState;
use holdfast_domain::{NodeId, Refusal};

use crate::placement::placement;
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result, rescue, store};

/// A node as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    pub node: Node,
    pub name: String,
    pub host: String,
    /// `{socket_root}/{port}` is a server's socket directory on the node itself.
    pub socket_root: Option<String>,
    pub free_bytes: u64,
    pub last_seen: Option<DateTime<Utc>>,
    pub revoked: bool,
}

impl ControlPlane {
    /// Makes the vaults known, or brings their URLs, copies and order up to date: all at once, because
    /// one more at the front moves every other one of its zone.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn register_vaults(&self, vaults: &[Vault]) -> Result<()> {
        let mut unit = Unit::begin(self).await?;
        store::node::put_vaults(unit.conn(), vaults).await?;
        unit.commit().await
    }

    /// # Errors
    /// Only the store's.
    pub async fn vaults(&self) -> Result<Vec<Vault>> {
        let mut conn = self.pool().acquire().await?;
        store::node::vaults(&mut conn).await
    }

    /// A secret that lets one agent of this name, region and zone join once (RELIABILITY §4.3).
    ///
    /// # Errors
    /// An unknown region or zone.
    pub async fn issue_join_token(
        &self,
        name: &str,
        region: &str,
        zone: Option<&str>,
        ttl: TimeDelta,
    ) -> Result<String> {
        let region = self.region(region)?;
        let fits = match zone {
            Some(zone) => region.zones.iter().any(|one| one == zone),
            None => region.zones.is_empty(),
        };
        if !fits {
            let message = format!(
                "Region {} has the zones [{}].",
                region.name,
                region.zones.join(", ")
            );
            return Err(Refusal::invalid("zone", message).into());
        }
        let mut secret = [0_u8; 32];
        rand::fill(&mut secret).map_err(|_| Error::corrupt("the system gives no randomness"))?;
        let token = URL_SAFE_NO_PAD.encode(secret);
        let expires = self.clock().now() + ttl;
        let mut conn = self.pool().acquire().await?;
        store::node::insert_token(&mut conn, &hash(&token), name, &region.name, zone, expires)
            .await?;
        Ok(token)
    }

    /// Takes a node in. Its token works once.
    ///
    /// # Errors
    /// [`Error::JoinRefused`]; [`Error::Absurd`].
    pub async fn join(&self, request: &JoinRequest) -> Result<NodeId> {
        plausible(&request.inventory)?;
        let mut unit = Unit::begin(self).await?;
        let now = unit.now();
        let inventory = NodeInventory {
            region: canonical(&request.inventory.region),
            ..request.inventory.clone()
        };
        if !store::node::use_token(unit.conn(), &hash(&request.token), &inventory, now).await? {
            return Err(Error::JoinRefused);
        }
        let node = store::node::join(unit.conn(), &inventory, now).await?;
        unit.commit().await?;
        Ok(node)
    }

    /// The node is up. What an earlier process of it was working on is given out again at once: two
    /// processes of one node do not live side by side.
    ///
    /// # Errors
    /// [`Error::UnknownNode`]; [`Error::Absurd`]; [`Error::Stale`] for a process that was replaced.
    pub async fn hello(&self, node: NodeId, request: &HelloRequest) -> Result<HelloResponse> {
        plausible(&request.inventory)?;
        let mut unit = Unit::begin(self).await?;
        let now = unit.now();
        // First: the word of an earlier process counts only while that is the node's newest.
        store::wal::end_earlier_idleness(unit.conn(), node, request.boot).await?;
        let before =
            store::node::heard(unit.conn(), node, request.boot, &request.inventory, now).await?;
        let mut servers = Vec::new();
        let vaults = store::node::vaults(unit.conn()).await?;
        for server in store::server::of_node(unit.conn(), node).await? {
            let power = match server.state {
                ServerState::Ready | ServerState::Updating | ServerState::Starting => {
                    Power::Running
                }
                ServerState::Stopping | ServerState::Stopped | ServerState::Dropping => {
                    Power::Stopped
                }
                ServerState::Provisioning | ServerState::Dropped | ServerState::Failed => continue,
            };
            let Some(incarnation) = server.incarnation else {
                continue;
            };
            let incarnation =
                store::incarnation::get(unit.conn(), server.subscription, incarnation).await?;
            if let Some(wrapped_key) = incarnation.wrapped_key.clone() {
                let placement = placement(&server, &incarnation, &vaults)?;
                servers.push(Assignment {
                    placement,
                    wrapped_key,
                    power,
                });
            }
        }
        for observed in &request.servers {
            if let Some(problem) = &observed.problem {
                tracing::warn!(server.id = %observed.server, node.id = %node, problem, "a server has a problem");
            }
            let problem = observed.problem.as_deref();
            store::incarnation::observe(unit.conn(), node, observed.incarnation, problem, now)
                .await?;
        }
        unit.commit().await?;
        if before.is_some_and(|boot| boot != request.boot) {
            rescue::of_earlier_boots(self, node, request.boot).await?;
        }
        Ok(HelloResponse { node, servers })
    }

    /// From now on nothing is heard from this node. Answers with whether it was known.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn revoke_node(&self, node: NodeId) -> Result<bool> {
        let now = self.clock().now();
        let mut conn = self.pool().acquire().await?;
        store::node::revoke(&mut conn, node, now).await
    }

    /// Whether the node may speak; for calls that carry nothing else to check.
    ///
    /// # Errors
    /// [`Error::UnknownNode`].
    pub async fn check_node(&self, node: NodeId) -> Result<()> {
        let mut conn = self.pool().acquire().await?;
        store::node::boot(&mut conn, node).await?;
        Ok(())
    }

    /// # Errors
    /// Only the store's.
    pub async fn nodes(&self) -> Result<Vec<NodeView>> {
        let now = self.clock().now();
        let mut conn = self.pool().acquire().await?;
        store::node::all(&mut conn, now).await
    }
}

fn hash(token: &str) -> Vec<u8> {
    digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

fn plausible(inventory: &NodeInventory) -> Result<()> {
    let (first, last) = inventory.port_range;
    if first == 0 || first > last {
        return Err(Error::Absurd(format!("port range {first} to {last}")));
    }
    let short = |text: &str| !text.is_empty() && text.len() <= 255;
    if !short(&inventory.name) || !short(&inventory.host) {
        return Err(Error::Absurd(
            "node without a name or host of reasonable length".to_owned(),
        ));
    }
    let path =
        |text: &String| text.starts_with('/') && short(text) && !text.chars().any(char::is_control);
    if !inventory.socket_root.as_ref().is_none_or(path) {
        return Err(Error::Absurd(
            "socket root that is not an absolute path".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_domain::VaultId;

    use super::*;
    use crate::story::World;

    #[tokio::test]
    async fn a_vault_that_is_put_before_another_moves_it() {
        let world = World::new().await;
        let it = &world.control_plane;
        let old = it.vaults().await.expect("answers").remove(0);
        let first = Vault {
            id: VaultId::new(),
            url: "file:///first".to_owned(),
            ..old.clone()
        };
        let second = Vault {
            ordinal: old.ordinal + 1,
            ..old
        };
        it.register_vaults(&[first.clone(), second.clone()])
            .await
            .expect("looked at when it commits");
        assert_eq!(
            it.vaults().await.expect("answers"),
            [first.clone(), second.clone()]
        );
        // One that nobody names any more stays, after those that are named.
        let alone = Vault {
            ordinal: second.ordinal,
            ..first
        };
        it.register_vaults(std::slice::from_ref(&alone))
            .await
            .expect("none in its place");
        let last = Vault {
            ordinal: alone.ordinal + 1,
            ..second
        };
        assert_eq!(it.vaults().await.expect("answers"), [alone, last]);
    }
}
