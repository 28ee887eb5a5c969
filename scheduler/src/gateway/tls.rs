//! The agent port: TCP, TLS and HTTP/1.1 or 2, up to the router.
//!
//! A client certificate is optional on the TLS level, because an agent that joins has none yet; the
//! routes ask for it. The gateway's own certificate is renewed in place at half of its life, so a
//! scheduler can run for years.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use chrono::{DateTime, Utc};
use holdfast_control_plane::clock::Clock;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::identity::Peer;
use super::patience::{Impatient, Patience};
use crate::authority::{Authority, SERVER_CERTIFICATE_LIFE};
use crate::{Error, Result};

/// An agent keeps one or two connections; this many are 5,000 nodes with room to spare.
const MAX_CONNECTIONS: usize = 20_000;
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER_READ: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: usize = 16 << 10;
/// What a stopping scheduler waits for: longer than any call but a long poll, which ends at once.
const DRAIN: Duration = Duration::from_secs(10);
/// After `accept` failed (no file descriptor left): a pause, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts agents until `shutdown`, then lets running calls end.
pub async fn accept(
    listener: TcpListener,
    router: Router,
    authority: &Authority,
    names: &[String],
    clock: &Clock,
    shutdown: CancellationToken,
) -> Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut server = Identity::new(authority, names, clock)?;
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => {
                slot.expect("the semaphore lives in this function and is never closed")
            }
        };
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept an agent");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        if server.renew_at <= clock.now() {
            server = Identity::new(authority, names, clock)?;
        }
        let acceptor = server.acceptor.clone();
        tokio::spawn(connection(
            stream,
            acceptor,
            router.clone(),
            graceful.watcher(),
            slot,
        ));
    }
    drop(listener);
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("some calls of agents did not end in time and were cut off");
    }
    Ok(())
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    watcher: Watcher,
    _slot: OwnedSemaphorePermit,
) {
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "TLS with an agent failed"
            );
            return;
        }
        Err(_) => return,
    };
    let peer = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first)
        .and_then(Peer::of_certificate);
    let patience = Patience::new(HEADER_READ);
    let service = service_fn({
        let patience = Arc::clone(&patience);
        move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            let under_way = patience.request();
            let answer = router.clone().oneshot(request);
            async move {
                let answer = answer.await;
                drop(under_way);
                answer
            }
        }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ)
        .max_buf_size(MAX_HEADER_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEADER_READ)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX));
    let connection = http
        .serve_connection(TokioIo::new(Impatient::new(stream)), service)
        .into_owned();
    tokio::select! {
        ended = watcher.watch(connection) => if let Err(error) = ended {
            tracing::debug!(error = %error, "connection of an agent ended");
        },
        () = patience.lost() => tracing::debug!("connection closed: no agent said anything"),
    }
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
