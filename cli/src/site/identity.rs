//! What a site is born with and keeps: its ids and its ports. Made once, by the first `up`.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Context, Result, bail};
use holdfast_domain::{SubscriptionId, VaultId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::state_dir::{self, StateDir};

/// Ports of all sites lie here: above the privileged ones, below those that the kernel hands out.
const FIRST_PORT: u16 = 10_240;
const SLOTS: u16 = 44;
/// Servers that one node of the built-in site can have.
pub const PORTS_PER_NODE: u16 = 64;
/// The built-in site has eight.
const NODES: u16 = 8;
const PORTS_PER_SITE: u16 = PORTS_PER_NODE * NODES;

/// The group that the built-in subscription begins with.
pub const RESOURCE_GROUP: &str = "holdfast";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Ids that must be the same at every start are derived from it.
    pub site: Uuid,
    pub tenant: Uuid,
    pub subscription: SubscriptionId,
    pub resource_group: String,
    /// The principal of `status`'s token: Owner of the subscription.
    pub administrator: Uuid,
    /// Which block of ports is the site's: servers keep theirs for life.
    pub port_slot: u16,
}

/// A block of ports, held for as long as this value lives: the kernel knows its name and forgets it
/// with the process, so two sites on one machine never give the same port to two servers.
#[derive(Debug)]
pub struct Ports {
    _held: UnixListener,
    first: u16,
}

impl Identity {
    /// The site's identity, if it has one already.
    pub fn load(state: &StateDir) -> Result<Option<Self>> {
        state_dir::read_json(&state.site_file())
    }

    /// Loads the identity or makes it, and holds its ports.
    pub fn open_or_create(state: &StateDir) -> Result<(Self, Ports)> {
        if let Some(identity) = Self::load(state)? {
            let Some(ports) = Ports::hold(identity.port_slot)? else {
                let first = Ports::first_of(identity.port_slot);
                bail!(
                    "another site on this machine holds the ports {first}–{} of this one: stop it first",
                    first + (PORTS_PER_SITE - 1)
                );
            };
            return Ok((identity, ports));
        }
        let site = Uuid::new_v4();
        // Anywhere in the range, so that sites that never run together seldom share a block.
        let start = site.as_u128() % u128::from(SLOTS);
        let start = u16::try_from(start).context("a remainder of 44 fits")?;
        for slot in (0..SLOTS).map(|step| (start + step) % SLOTS) {
            let Some(ports) = Ports::hold(slot)? else {
                continue;
            };
            if !ports.all_free() {
                continue;
            }
            let identity = Self {
                site,
                tenant: Uuid::new_v4(),
                subscription: SubscriptionId(Uuid::new_v4()),
                resource_group: RESOURCE_GROUP.to_owned(),
                administrator: Uuid::new_v4(),
                port_slot: slot,
            };
            state_dir::write_json(&state.site_file(), &identity)?;
            return Ok((identity, ports));
        }
        bail!(
            "no block of {PORTS_PER_SITE} free ports between {FIRST_PORT} and {}: stop another site",
            FIRST_PORT + SLOTS * PORTS_PER_SITE
        )
    }

    /// The same id for the same store at every start.
    #[must_use]
    pub fn vault_id(&self, place: &str) -> VaultId {
        VaultId(Uuid::new_v5(&self.site, place.as_bytes()))
    }
}

impl Ports {
    fn first_of(slot: u16) -> u16 {
        FIRST_PORT + slot * PORTS_PER_SITE
    }

    /// `None`: another site has them now.
    fn hold(slot: u16) -> Result<Option<Self>> {
        let name = format!("holdfast-ports-{slot}");
        let address = SocketAddr::from_abstract_name(name.as_bytes())?;
        match UnixListener::bind_addr(&address) {
            Ok(held) => Ok(Some(Self {
                _held: held,
                first: Self::first_of(slot),
            })),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error).context("a block of ports cannot be reserved"),
        }
    }

    /// Asked once, when the block is chosen; a port that is taken later is that server's problem.
    fn all_free(&self) -> bool {
        (self.first..self.first + PORTS_PER_SITE)
            .all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
    }

    /// The first and last port of the nth node.
    #[must_use]
    pub fn of_node(&self, nth: u16) -> (u16, u16) {
        let first = self.first + nth * PORTS_PER_NODE;
        (first, first + PORTS_PER_NODE - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::choose(Some(dir.path().to_path_buf())).expect("there");
        (dir, state)
    }

    #[test]
    fn a_site_keeps_its_ids_and_its_ports() {
        let (_dir, state) = state();
        let (first, ports) = Identity::open_or_create(&state).expect("made");
        let range = ports.of_node(7);
        assert!(
            Identity::open_or_create(&state).is_err(),
            "its ports are held"
        );
        drop(ports);
        let (again, ports) = Identity::open_or_create(&state).expect("opened");
        assert_eq!((again, ports.of_node(7)), (first, range));
    }

    #[test]
    fn two_sites_never_share_a_port() {
        let ((_a, a), (_b, b)) = (state(), state());
        let (one, _ports) = Identity::open_or_create(&a).expect("made");
        let (two, _more) = Identity::open_or_create(&b).expect("made");
        assert_ne!(one.port_slot, two.port_slot);
    }

    #[test]
    fn every_block_lies_below_the_kernels_own_ports() {
        let last = Ports::first_of(SLOTS - 1) + (PORTS_PER_SITE - 1);
        assert!(last < 32_768, "{last}");
    }
}
