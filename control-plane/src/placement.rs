//! Where things go: a node and a port for a new server, vaults for its objects.

use holdfast_domain::job::{Placement, VaultRef};
use holdfast_domain::node::{Node, NodeState, place};
use holdfast_domain::redundancy::{Redundancy, Vault, demanded_vaults};
use holdfast_domain::server::Server;
use holdfast_domain::{NodeId, Refusal, VaultId};

use crate::store::incarnation::Incarnation;
use crate::transaction::Unit;
use crate::{Error, Result, store};

/// A place for a new server.
pub(crate) struct Place {
    pub node: NodeId,
    pub zone: Option<String>,
    pub port: u16,
    pub vaults: Vec<VaultId>,
}

/// Every node, as placement sees it.
pub(crate) async fn nodes(unit: &mut Unit) -> Result<Vec<Node>> {
    let now = unit.now();
    let nodes = store::node::all(unit.conn(), now).await?;
    Ok(nodes.into_iter().map(|view| view.node).collect())
}

/// The majors that can be had in a region now.
pub(crate) fn majors(nodes: &[Node], region: &str) -> Vec<u16> {
    let mut majors: Vec<u16> = nodes
        .iter()
        .filter(|node| node.region == region && node.state == NodeState::Up)
        .flat_map(|node| node.majors.keys().copied())
        .collect();
    majors.sort_unstable();
    majors.dedup();
    majors
}

/// Finds a node, takes a port of it and says which vaults hold what the server will write. A zone
/// that was asked for binds, a preferred one does not.
pub(crate) async fn find(
    unit: &mut Unit,
    nodes: &[Node],
    region: &str,
    zone: Option<&str>,
    preferred_zone: Option<&str>,
    major: u16,
    redundancy: Redundancy,
) -> Result<Place> {
    let no_capacity = || Refusal::NoCapacity {
        location: region.to_owned(),
        zone: zone.map(str::to_owned),
        major,
    };
    let node = zone
        .or(preferred_zone)
        .and_then(|zone| place(nodes, region, Some(zone), major))
        .or_else(|| {
            zone.is_none()
                .then(|| place(nodes, region, None, major))
                .flatten()
        })
        .ok_or_else(no_capacity)?;
    let all = store::node::vaults(unit.conn()).await?;
    let vaults: Vec<VaultId> = demanded_vaults(redundancy, region, node.zone.as_deref(), &all)
        .into_iter()
        .map(|vault| vault.id)
        .collect();
    if vaults.is_empty() {
        return Err(no_capacity().into());
    }
    store::node::hold(unit.conn(), node.id).await?;
    let port = store::server::free_port(unit.conn(), node.id, node.port_range)
        .await?
        .ok_or_else(no_capacity)?;
    Ok(Place {
        node: node.id,
        zone: node.zone.clone(),
        port,
        vaults,
    })
}

/// The facts that every job of one incarnation carries.
pub(crate) fn placement(
    server: &Server,
    incarnation: &Incarnation,
    vaults: &[Vault],
) -> Result<Placement> {
    Ok(Placement {
        server: server.id,
        incarnation: incarnation.id,
        server_name: server.name.clone(),
        major: server.settings.major,
        // A tombstone has none, and nothing that is done to one listens.
        port: server.port.unwrap_or(0),
        vaults: vault_refs(incarnation, vaults)?,
    })
}

pub(crate) fn vault_refs(incarnation: &Incarnation, vaults: &[Vault]) -> Result<Vec<VaultRef>> {
    incarnation
        .vaults
        .iter()
        .map(|id| {
            vaults
                .iter()
                .find(|vault| vault.id == *id)
                .map(|vault| VaultRef {
                    id: *id,
                    url: vault.url.clone(),
                })
                .ok_or_else(|| Error::corrupt(format!("vault {id} is not registered any more")))
        })
        .collect()
}
