//! The API's port. Plain http is for loopback only: bearer tokens do not travel in the clear. What a
//! connection may cost is in `listener/src/lib.rs`.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use holdfast_listener::Limits;
use http::Extensions;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::arm::headers::Peer;
use crate::error::Error;

const LIMITS: Limits = Limits {
    connections: 1_024,
    // Above our own limit and above any token that deserves a 401: hyper answers 431 to what would not
    // even fit the check.
    header_bytes: 128 * 1024,
    grace: Duration::from_secs(20),
};

/// Serves until `shutdown` is over, then lets what is under way finish.
///
/// # Errors
/// [`Error::PlainHttp`] without TLS on anything but loopback; [`Error::Listen`].
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let local = listener.local_addr().map_err(Error::Listen)?;
    if tls.is_none() && !local.ip().is_loopback() {
        return Err(Error::PlainHttp(local));
    }
    accept(listener, tls, router, shutdown).await;
    Ok(())
}

/// Serves [`crate::metrics_router`] in plain HTTP wherever the operator wants it: no token goes there.
pub async fn serve_metrics(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    accept(listener, None, router, shutdown).await;
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let tls = tls.map(TlsAcceptor::from);
    let who = |peer: SocketAddr, _: &[CertificateDer<'_>]| {
        let mut who = Extensions::new();
        who.insert(Peer(peer));
        who
    };
    holdfast_listener::serve(listener, LIMITS, || tls.clone(), who, router, shutdown).await;
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;
    use axum::routing::get;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio_rustls::TlsConnector;

    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

    async fn loopback() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
        let at = listener.local_addr().expect("bound");
        (listener, at)
    }

    async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
        stream.write_all(request).await.expect("sends");
        let mut text = Vec::new();
        // A server that hangs up without a goodbye has still said what it said.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).expect("text")
    }

    #[tokio::test]
    async fn tokens_do_not_travel_in_the_clear() {
        let listener = TcpListener::bind(("0.0.0.0", 0)).await.expect("binds");
        let refused = serve(listener, None, Router::new(), std::future::ready(())).await;
        assert!(matches!(refused, Err(Error::PlainHttp(_))));
    }

    #[tokio::test]
    async fn what_is_under_way_is_answered_before_the_end() {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a certificate with its key");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();

        let (arrived, mut arrivals) = tokio::sync::mpsc::channel(1);
        let (go, gate) = tokio::sync::watch::channel(false);
        let router = Router::new().route(
            "/",
            get(async move |request: Request| {
                let Peer(peer) = *request.extensions().get::<Peer>().expect("who is there");
                arrived.send(()).await.expect("somebody waits");
                gate.clone().wait_for(|open| *open).await.expect("opens");
                peer.ip().to_string()
            }),
        );
        let (listener, at) = loopback().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(serve(listener, Some(Arc::new(server)), router, async {
            let _ = stopped.await;
        }));
        let stream = TcpStream::connect(at).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(Arc::new(client))
            .connect(name, stream)
            .await
            .expect("trusts");
        let asked = tokio::spawn(answer(stream, GET));
        arrivals.recv().await.expect("arrives");
        stop.send(()).expect("is heard");
        go.send(true).expect("is heard");
        let text = asked.await.expect("answers");
        assert!(
            text.starts_with("HTTP/1.1 200 OK") && text.ends_with("127.0.0.1"),
            "{text}"
        );
        served.await.expect("ends").expect("in order");
    }
}
