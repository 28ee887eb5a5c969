//! The agent port's TLS. What a connection may cost is in `listener/src/lib.rs`.
//!
//! A client certificate is optional on the TLS level, because an agent that joins has none yet; the
//! routes ask for it. The gateway's own certificate is renewed in place at half of its life, so a
//! scheduler can run for years.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use chrono::{DateTime, Utc};
use holdfast_control_plane::clock::Clock;
use holdfast_listener::Limits;
use http::Extensions;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::identity::Peer;
use crate::authority::{Authority, SERVER_CERTIFICATE_LIFE};
use crate::{Error, Result};

const LIMITS: Limits = Limits {
    // An agent keeps one or two; this many are 5,000 nodes with room to spare.
    connections: 20_000,
    header_bytes: 16 << 10,
    // Longer than any call but a long poll, which ends at once.
    grace: Duration::from_secs(10),
};

/// Serves agents until `shutdown`, then lets running calls end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    authority: &Authority,
    names: &[String],
    clock: &Clock,
    shutdown: CancellationToken,
) -> Result<()> {
    let mut identity = Identity::new(authority, names, clock)?;
    let tls = || {
        if identity.renew_at <= clock.now() {
            match Identity::new(authority, names, clock) {
                Ok(renewed) => identity = renewed,
                Err(error) => {
                    // Half of its life is left; the next connection tries again.
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "the agent port's certificate cannot be renewed");
                }
            }
        }
        Some(identity.acceptor.clone())
    };
    let who = |_: SocketAddr, shown: &[CertificateDer<'_>]| {
        let mut who = Extensions::new();
        if let Some(peer) = shown.first().and_then(Peer::of_certificate) {
            who.insert(peer);
        }
        who
    };
    holdfast_listener::serve(listener, LIMITS, tls, who, router, shutdown.cancelled()).await;
    Ok(())
}

/// The gateway's certificate, ready for use.
struct Identity {
    acceptor: TlsAcceptor,
    renew_at: DateTime<Utc>,
}

impl Identity {
    fn new(authority: &Authority, names: &[String], clock: &Clock) -> Result<Self> {
        let certificate = authority.server_certificate(names, clock.now())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let root = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).map_err(tls)?;
        let mut roots = RootCertStore::empty();
        roots.add(root).map_err(tls)?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(tls)?;
        let chain = vec![
            CertificateDer::from_pem_slice(certificate.certificate_pem.as_bytes()).map_err(tls)?,
        ];
        let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).map_err(tls)?;
        let time = Arc::new(CertificateTime(clock.clone()));
        let mut config = rustls::ServerConfig::builder_with_details(provider, time)
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(tls)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            renew_at: certificate.expires - SERVER_CERTIFICATE_LIFE / 2,
        })
    }
}

fn tls(error: impl std::fmt::Display) -> Error {
    Error::Tls(error.to_string())
}

/// Client certificates are judged by the process's clock, the manual one of a test included.
struct CertificateTime(Clock);

impl std::fmt::Debug for CertificateTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateTime")
    }
}

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}
