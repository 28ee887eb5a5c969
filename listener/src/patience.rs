//! How long a connection may hold its place without using it (RELIABILITY §4.6, §4.9 row 44).
//!
//! hyper has timers for headers that come slowly, but none before the first byte or within half an
//! HTTP/2 preface, none for a peer that never reads, and none for one that never lets its window grow.
//! Places are few, and neither token nor certificate is asked for one: whoever could hold them
//! all by silence would stop the port.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Between two requests, the reading of the first one's answer included.
const QUIET_FOR: Duration = Duration::from_secs(120);
/// For the peer to take some of what is sent.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

/// What a connection did last.
pub(crate) struct Patience(Mutex<State>);

struct State {
    under_way: usize,
    until: Instant,
}

impl Patience {
    pub(crate) fn new(first_request_within: Duration) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            under_way: 0,
            until: Instant::now() + first_request_within,
        })))
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request came; it is under way until this is dropped.
    pub(crate) fn request(self: &Arc<Self>) -> UnderWay {
        self.with(|state| state.under_way += 1);
        UnderWay(Arc::clone(self))
    }

    /// Is over when the connection has been quiet for too long.
    pub(crate) async fn lost(&self) {
        loop {
            let now = Instant::now();
            let until = self.with(|state| match state.under_way {
                0 => state.until,
                _ => now + QUIET_FOR,
            });
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }
}

pub(crate) struct UnderWay(Arc<Patience>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.under_way -= 1;
            state.until = Instant::now() + QUIET_FOR;
        });
    }
}

/// A stream whose writes fail when the peer takes nothing for a while.
pub(crate) struct Impatient<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            stalled: None,
        }
    }

    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(WRITE_WITHIN)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(cx, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
