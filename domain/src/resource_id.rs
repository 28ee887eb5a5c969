//! Resource Manager's ids: `/subscriptions/{s}/resourceGroups/{g}/providers/{ns}/{type}/{name}…`.
//!
//! Compared without case, echoed as the caller wrote them (contract, fact 12). The parser is strict:
//! what it lets through contains no `..`, no empty segment and no character that means anything to a
//! path or a URL (RELIABILITY §4.9 row 12).

use std::fmt;

use uuid::Uuid;

use crate::SubscriptionId;
use crate::refusal::Refusal;

pub const PROVIDER: &str = "Microsoft.DBforPostgreSQL";
pub const SERVERS: &str = "flexibleServers";

/// The id of a server, the only kind of id that callers send in a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerResourceId {
    pub subscription: SubscriptionId,
    pub group: String,
    pub name: String,
}

impl ServerResourceId {
    /// Parses `sourceServerResourceId`.
    ///
    /// # Errors
    /// [`Refusal::InvalidResourceId`] for anything that is not exactly a flexible server's id.
    pub fn parse(given: &str) -> Result<Self, Refusal> {
        let bad = |reason| Refusal::InvalidResourceId {
            given: given.to_owned(),
            reason,
        };
        if given.len() > 512 {
            return Err(bad("it is too long"));
        }
        if !given.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.' | b'(' | b')')
        }) {
            return Err(bad("it has a character that ids do not have"));
        }
        let parts: Vec<&str> = given
            .strip_prefix('/')
            .ok_or_else(|| bad("it does not begin with '/'"))?
            .split('/')
            .collect();
        if parts
            .iter()
            .any(|part| part.is_empty() || part.chars().all(|c| c == '.'))
        {
            return Err(bad("it has an empty or dotted segment"));
        }
        let [
            subs,
            subscription,
            groups,
            group,
            providers,
            provider,
            kind,
            name,
        ] = parts[..]
        else {
            return Err(bad(
                "it does not have the form /subscriptions/{id}/resourceGroups/{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{name}",
            ));
        };
        for (part, expected) in [
            (subs, "subscriptions"),
            (groups, "resourceGroups"),
            (providers, "providers"),
            (provider, PROVIDER),
            (kind, SERVERS),
        ] {
            if !part.eq_ignore_ascii_case(expected) {
                return Err(bad(
                    "it is not the id of a Microsoft.DBforPostgreSQL/flexibleServers resource",
                ));
            }
        }
        let subscription =
            Uuid::try_parse(subscription).map_err(|_| bad("its subscription is not a GUID"))?;
        Ok(Self {
            subscription: SubscriptionId(subscription),
            group: group.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for ServerResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "/subscriptions/{}/resourceGroups/{}/providers/{PROVIDER}/{SERVERS}/{}",
            self.subscription, self.group, self.name
        )
    }
}

/// `/subscriptions/{s}/resourceGroups/{g}`.
#[must_use]
pub fn group_scope(subscription: SubscriptionId, group: &str) -> String {
    format!("/subscriptions/{subscription}/resourceGroups/{group}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg1/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1";

    #[test]
    fn case_does_not_matter_and_is_kept() {
        let id = ServerResourceId::parse(&ID.replace("resourceGroups/rg1", "RESOURCEgroups/Rg1"))
            .expect("valid");
        assert_eq!((id.group.as_str(), id.name.as_str()), ("Rg1", "pg1"));
        assert_eq!(ServerResourceId::parse(ID).expect("valid").to_string(), ID);
    }

    #[test]
    fn nothing_but_a_servers_id_passes() {
        for bad in [
            String::new(),
            ID.replace("rg1", ".."),
            ID.replace("/rg1", "//rg1"),
            ID.replace("rg1", "%2e%2e"),
            format!("{ID}#"),
            format!("{ID}/"),
            format!("{ID}/backups/b"),
            ID.replace("flexibleServers", "servers"),
            ID.replace("11111111-2222-3333-4444-555555555555", "x"),
            ID.trim_start_matches('/').to_owned(),
        ] {
            assert!(
                matches!(
                    ServerResourceId::parse(&bad),
                    Err(Refusal::InvalidResourceId { .. })
                ),
                "{bad}"
            );
        }
    }
}
