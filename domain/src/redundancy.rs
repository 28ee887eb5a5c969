//! How many copies, and where: the one place that says which vaults a server's backups must be in.

use serde::{Deserialize, Serialize};

use crate::VaultId;
use crate::region::Region;

/// Chosen when a server is created and never changed (FLX-021, FLX-036).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Redundancy {
    Local,
    Zone,
    Geo,
}

impl Redundancy {
    /// What a new server gets: Geo only when asked for, else Zone where there are zones (FLX-022,
    /// FLX-026; DESIGN §3.15).
    #[must_use]
    pub fn decide(geo_asked: bool, region: &Region) -> Self {
        match (geo_asked, region.zones.is_empty()) {
            (true, _) => Self::Geo,
            (false, false) => Self::Zone,
            (false, true) => Self::Local,
        }
    }
}

/// A place for copies: one failure domain. Users read *store*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vault {
    pub id: VaultId,
    pub region: String,
    pub zone: Option<String>,
    pub url: String,
    /// Copies it keeps by itself: 1 for a directory, 3 for an S3-class store.
    pub own_copies: u16,
    /// Order among the vaults of its zone; the lowest is written first.
    pub ordinal: u16,
}

/// The vaults that must hold an object of a server in `region`/`zone` before it is acknowledged.
///
/// Until copies exist this is the first vault of the home zone: the redundancy is decided and
/// recorded as it will stay, and this function is the only one to widen for copies (DESIGN §5).
#[must_use]
pub fn demanded_vaults<'a>(
    _redundancy: Redundancy,
    region: &str,
    zone: Option<&str>,
    vaults: &'a [Vault],
) -> Vec<&'a Vault> {
    vaults
        .iter()
        .filter(|vault| vault.region == region && vault.zone.as_deref() == zone)
        .min_by_key(|vault| vault.ordinal)
        .into_iter()
        .collect()
}
