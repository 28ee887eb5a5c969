//! "Look now": wake-ups that make work start sooner.
//!
//! Nothing rests on them. They are sent after the commit inside the process and, once per
//! transaction, by NOTIFY to the others; a waiter that misses one looks again when its time is up.

use std::sync::Arc;
use std::time::Duration;

use holdfast_domain::NodeId;
use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::broadcast;
use tokio::time::timeout;

pub(crate) const CHANNEL: &str = "holdfast_hints";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    Jobs(NodeId),
    Operations,
}

impl Hint {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Jobs(node) => format!("jobs {node}"),
            Self::Operations => "operations".to_owned(),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            Some(("jobs", node)) => node.parse().ok().map(Self::Jobs),
            None if text == "operations" => Some(Self::Operations),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Hints(Arc<broadcast::Sender<Hint>>);

impl Hints {
    pub(crate) fn new() -> Self {
        Self(Arc::new(broadcast::channel(256).0))
    }

    pub(crate) fn send(&self, hint: Hint) {
        // Nobody waiting is fine.
        let _ = self.0.send(hint);
    }

    /// Everything that is said from now on. Subscribe first, look second, wait third: then nothing
    /// falls between looking and waiting.
    #[must_use]
    pub fn subscribe(&self) -> Waiter {
        Waiter(self.0.subscribe())
    }

    /// Returns when the node may have work, at the latest after `at_most`.
    pub async fn wait_for_jobs(&self, node: NodeId, at_most: Duration) {
        self.subscribe().jobs(node, at_most).await;
    }

    /// Returns when an operation may be able to move, at the latest after `at_most`.
    pub async fn wait_for_operations(&self, at_most: Duration) {
        self.subscribe().operations(at_most).await;
    }

    /// Passes on what other processes say, until the connection is lost for good. Run it as a task.
    ///
    /// # Errors
    /// The listening connection could not be opened.
    pub async fn follow(&self, pool: &PgPool) -> crate::Result<()> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        loop {
            let notification = listener.recv().await?;
            for hint in notification.payload().split(',').filter_map(Hint::parse) {
                self.send(hint);
            }
        }
    }
}

#[derive(Debug)]
pub struct Waiter(broadcast::Receiver<Hint>);

impl Waiter {
    pub async fn jobs(&mut self, node: NodeId, at_most: Duration) {
        self.until(at_most, |hint| hint == Hint::Jobs(node)).await;
    }

    pub async fn operations(&mut self, at_most: Duration) {
        self.until(at_most, |hint| hint == Hint::Operations).await;
    }

    async fn until(&mut self, at_most: Duration, wanted: impl Fn(Hint) -> bool) {
        let heard = async {
            loop {
                match self.0.recv().await {
                    Ok(hint) if wanted(hint) => break,
                    Ok(_) => {}
                    // Too far behind to know: look.
                    Err(broadcast::error::RecvError::Lagged(_)) => break,
                    // Cannot happen while the sender is borrowed through us; then time decides.
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let _ = timeout(at_most, heard).await;
    }
}
