//! The listener: TLS, HTTP/1 and HTTP/2, limits on what a connection may cost, an orderly end.
//!
//! Plain http is for loopback only: bearer tokens do not travel in the clear. A connection that says
//! nothing, says it slowly, or does not read its answers is closed by a timeout (RELIABILITY §4.6, §4.9
//! rows 43 and 44).

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::patience::{Impatient, Patience};
use crate::arm::headers::Peer;
use crate::error::Error;

const CONNECTIONS: usize = 1_024;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// How long answers that are under way may take after the end was asked for.
const GRACE: Duration = Duration::from_secs(20);
/// hyper's own limit, above ours and above any token that deserves a 401: it answers 431 to what would
/// not even fit the check.
const HEADER_BUFFER: u32 = 128 * 1024;

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
    let builder = Arc::new(builder());
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(shutdown);
    loop {
        // A full house accepts nobody: the queue is then the kernel's.
        let place = tokio::select! {
            () = &mut shutdown => break,
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let (stream, peer) = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or a connection that was gone already.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (tls, router, builder, watcher) = (
            tls.clone(),
            router.clone(),
            Arc::clone(&builder),
            graceful.watcher(),
        );
        tokio::spawn(async move {
            connection(stream, peer, tls, router, &builder, watcher).await;
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some connections did not end in time");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADER_BUFFER as usize)
        .max_headers(100);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BUFFER)
        .max_concurrent_streams(128)
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    builder: &Builder<TokioExecutor>,
    watcher: Watcher,
) {
    // Without it small answers wait for the acknowledgement of the ones before.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return speak(stream, peer, router, builder, watcher).await;
    };
    match tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await {
        Ok(Ok(stream)) => speak(stream, peer, router, builder, watcher).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    builder: &Builder<TokioExecutor>,
    watcher: Watcher,
) {
    let patience = Patience::new(HEADERS_WITHIN);
    let service = service_fn({
        let patience = Arc::clone(&patience);
        move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            let under_way = patience.request();
            let answer = router.clone().oneshot(request);
            async move {
                let answer = answer.await;
                drop(under_way);
                answer
            }
        }
    });
    let connection = builder.serve_connection(TokioIo::new(Impatient::new(stream)), service);
    tokio::select! {
        ended = watcher.watch(connection) => if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended early");
        },
        () = patience.lost() => tracing::debug!(%peer, "connection closed: it said nothing"),
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;
    use axum::routing::get;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
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

    /// What came on a connection that nobody closed on this side, and whether the server did, within
    /// two minutes. Time is the test's: it runs when nobody has anything to do.
    async fn until_closed(mut stream: TcpStream) -> Option<Vec<u8>> {
        let mut came = Vec::new();
        let all = async {
            // A reset is an end, too.
            let _ = stream.read_to_end(&mut came).await;
        };
        let in_time = tokio::time::timeout(Duration::from_secs(120), all).await;
        in_time.is_ok().then_some(came)
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_shown_the_door() {
        // RELIABILITY §4.9 row 44: places are few, and no token is asked for one.
        let (listener, at) = loopback().await;
        let served = tokio::spawn(serve(listener, None, Router::new(), std::future::pending()));
        let starts: [&[u8]; 4] = [
            b"",
            b"PRI * HT",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost:",
        ];
        for start in starts {
            let mut stream = TcpStream::connect(at).await.expect("connects");
            stream.write_all(start).await.expect("sends");
            let what = String::from_utf8_lossy(start);
            assert!(until_closed(stream).await.is_some(), "{what:?} stays");
        }
        served.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_not_written_to_for_ever() {
        const LENGTH: usize = 64 << 20;
        let router = Router::new().route("/", get(async || vec![b'x'; LENGTH]));
        let (listener, at) = loopback().await;
        let served = tokio::spawn(serve(listener, None, router, std::future::pending()));
        let mut stream = TcpStream::connect(at).await.expect("connects");
        stream.write_all(GET).await.expect("sends");
        stream.readable().await.expect("is answered");
        tokio::time::sleep(Duration::from_secs(100)).await;
        let came = until_closed(stream).await.expect("is closed");
        assert!(came.len() < LENGTH, "the server waited for its reader");
        served.abort();
    }

    #[tokio::test]
    async fn headers_without_end_are_refused() {
        // RELIABILITY §4.9 row 43
        let (listener, at) = loopback().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(serve(listener, None, Router::new(), async {
            let _ = stopped.await;
        }));
        let long = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}",
            "a".repeat(HEADER_BUFFER as usize + 1)
        );
        let many = format!(
            "GET / HTTP/1.1\r\nHost: x\r\n{}\r\n",
            "X-Many: 1\r\n".repeat(200)
        );
        for request in [long, many] {
            let stream = TcpStream::connect(at).await.expect("connects");
            let text = answer(stream, request.as_bytes()).await;
            assert!(text.starts_with("HTTP/1.1 431"), "{text}");
        }
        stop.send(()).expect("is heard");
        served.await.expect("ends").expect("in order");
    }
}
