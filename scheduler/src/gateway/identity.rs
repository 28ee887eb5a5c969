//! Which node is calling: read from the client certificate once per connection, asked for by every
//! route but `join` (RELIABILITY §4.3).
//!
//! TLS proved that our authority signed the certificate. A connection can outlive it, so its end is
//! looked at with every call; whether the *node* is still welcome is asked of its row each time.

use axum::extract::FromRequestParts;
use chrono::{DateTime, Utc};
use holdfast_domain::NodeId;
use http::request::Parts;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Gateway;
use super::reply::Refused;
use crate::authority::parse_agent_uri;

/// Who holds the other end of a connection; an extension of each of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub node: NodeId,
    /// When its certificate ends.
    pub expires: DateTime<Utc>,
}

impl Peer {
    /// Reads a certificate that TLS has verified. `None` when it does not name exactly one agent.
    #[must_use]
    pub fn of_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let [GeneralName::URI(uri)] = names.value.general_names[..] else {
            return None;
        };
        Some(Self {
            node: parse_agent_uri(uri)?,
            expires: DateTime::from_timestamp(certificate.validity().not_after.timestamp(), 0)?,
        })
    }
}

/// The node that a call speaks for.
#[derive(Debug, Clone, Copy)]
pub struct Caller(pub NodeId);

impl FromRequestParts<Gateway> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Refused> {
        let now = gateway.control_plane.clock().now();
        match parts.extensions.get::<Peer>() {
            Some(peer) if now < peer.expires => {
                tracing::Span::current().record("node.id", tracing::field::display(peer.node));
                Ok(Self(peer.node))
            }
            _ => Err(Refused::certificate()),
        }
    }
}
