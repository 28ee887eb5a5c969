//! Machines that run an agent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::NodeId;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Heard from within [`SILENT_AFTER_S`].
    Up,
    Silent,
    /// Takes no new servers.
    Drained,
}

/// A node that has said nothing for this long is silent: restores of its servers survey the store
/// instead of asking it. In seconds; three missed hellos.
pub const SILENT_AFTER_S: i64 = 100;

/// A node as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub region: String,
    pub zone: Option<String>,
    pub state: NodeState,
    pub majors: BTreeMap<u16, String>,
    pub port_range: (u16, u16),
    pub servers: u32,
}

/// Where a new server goes: the node of that place with the fewest servers that is up, has the
/// binaries and a port left. `zone` is what the caller asked for, if anything.
#[must_use]
pub fn place<'a>(
    nodes: &'a [Node],
    region: &str,
    zone: Option<&str>,
    major: u16,
) -> Option<&'a Node> {
    nodes
        .iter()
        .filter(|node| {
            node.state == NodeState::Up
                && node.region == region
                && (zone.is_none() || node.zone.as_deref() == zone)
                && node.majors.contains_key(&major)
                && node.servers < u32::from(node.port_range.1 - node.port_range.0) + 1
        })
        .min_by_key(|node| (node.servers, node.zone.clone(), node.id))
}
