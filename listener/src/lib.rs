//! From TCP to a router: TLS, HTTP/1 and HTTP/2, limits on what a connection may cost, an orderly end.
//! The API's port and the agents' are served by this one loop.
//!
//! A connection that says nothing, says it slowly, or does not read its answers is closed by a timeout
//! (RELIABILITY §4.6, §4.9 rows 43 and 44).

mod patience;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Extensions;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use self::patience::{Impatient, Patience};

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// After an accept that failed (no file descriptor left): a pause, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What one port may be asked to bear.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once. More wait in the kernel's queue.
    pub connections: usize,
    /// Bytes of a request's headers; more are answered 431.
    pub header_bytes: u32,
    /// How long answers that are under way may take after the end was asked for.
    pub grace: Duration,
}

/// Serves `router` until `shutdown` is over, then lets what is under way finish.
///
/// `tls` is asked at each connection, so that a certificate can change while it runs; `None` is plain
/// HTTP. `who` makes of a connection's other end – its address and the certificates it showed – what
/// each of its requests carries as extensions.
pub async fn serve(
    listener: TcpListener,
    limits: Limits,
    mut tls: impl FnMut() -> Option<TlsAcceptor>,
    who: impl Fn(SocketAddr, &[CertificateDer<'_>]) -> Extensions + Clone + Send + 'static,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let builder = Arc::new(builder(limits.header_bytes));
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    tokio::pin!(shutdown);
    loop {
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
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let (tls, who, router, builder, watcher) = (
            tls(),
            who.clone(),
            router.clone(),
            Arc::clone(&builder),
            graceful.watcher(),
        );
        tokio::spawn(async move {
            connection(stream, peer, tls, who, router, &builder, watcher).await;
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.grace, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some connections did not end in time and were cut off");
    }
}

fn builder(header_bytes: u32) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(header_bytes as usize)
        .max_headers(100);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(header_bytes)
        .max_concurrent_streams(128)
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_WITHIN);
    builder
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    who: impl Fn(SocketAddr, &[CertificateDer<'_>]) -> Extensions,
    router: Router,
    builder: &Builder<TokioExecutor>,
    watcher: Watcher,
) {
    // Without it small answers wait for the acknowledgement of the ones before.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return speak(stream, peer, who(peer, &[]), router, builder, watcher).await;
    };
    match tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let who = who(peer, shown);
            speak(stream, peer, who, router, builder, watcher).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    who: Extensions,
    router: Router,
    builder: &Builder<TokioExecutor>,
    watcher: Watcher,
) {
    let patience = Patience::new(HEADERS_WITHIN);
    let service = service_fn({
        let patience = Arc::clone(&patience);
        move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().extend(who.clone());
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
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    const LIMITS: Limits = Limits {
        connections: 8,
        header_bytes: 64 << 10,
        grace: Duration::from_secs(5),
    };

    async fn loopback() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
        let at = listener.local_addr().expect("bound");
        (listener, at)
    }

    /// In plain HTTP.
    async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
        let nobody = |_: SocketAddr, _: &[CertificateDer<'_>]| Extensions::new();
        super::serve(listener, LIMITS, || None, nobody, router, shutdown).await;
    }

    async fn answer(mut stream: TcpStream, request: &[u8]) -> String {
        stream.write_all(request).await.expect("sends");
        let mut text = Vec::new();
        // A server that hangs up without a goodbye has still said what it said.
        let _ = stream.read_to_end(&mut text).await;
        String::from_utf8(text).expect("text")
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
        let served = tokio::spawn(serve(listener, Router::new(), std::future::pending()));
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
        let served = tokio::spawn(serve(listener, router, std::future::pending()));
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
        let served = tokio::spawn(serve(listener, Router::new(), async {
            let _ = stopped.await;
        }));
        let long = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}",
            "a".repeat(LIMITS.header_bytes as usize + 1)
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
        served.await.expect("ends in order");
    }
}
