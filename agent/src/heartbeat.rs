//! What an agent says without being asked: that it lives and what it has, every half minute, answered with
//! what it should be running. The other thing is in `wal_news.rs`.

use std::sync::Arc;
use std::time::Duration;

use holdfast_domain::BootId;
use holdfast_domain::job::{Assignment, HelloRequest};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::client::Gateway;
use crate::error::{Result, chain};
use crate::node::Node;

const HELLO_EVERY: Duration = Duration::from_secs(30);
/// A file in the state directory, written anew after each answered hello.
const ALIVE: &str = "alive";

/// One hello: says what there is. The answer is what should be running, and the moment of the question.
pub async fn hello(node: &Node, gateway: &Gateway, boot: BootId) -> Result<(Vec<Assignment>, u64)> {
    let inventory = node.inventory()?;
    gateway
        .renew_if_due(&inventory)
        .await
        .unwrap_or_else(|error| {
            // A third of the certificate's life is left to try again.
            tracing::error!(
                error = chain(&error),
                "could not renew the node's certificate"
            );
        });
    let asked = node.moment();
    let answer = gateway
        .hello(&HelloRequest {
            boot,
            inventory,
            servers: node.observations(),
        })
        .await?;
    // For whoever watches this process from outside: the scheduler heard it at that time.
    let alive = node.state_dir().join(ALIVE);
    if let Err(error) = std::fs::write(&alive, format!("{}\n", node.clock().now())) {
        // On a full disk above all, the answer has to be acted on.
        tracing::warn!(%error, "could not write that the scheduler was heard");
    }
    Ok((answer.servers, asked))
}

/// Says hello every half minute, for ever, and makes true what is answered. That may take longer than a
/// beat (a shutdown that drains); the next hello does not wait for it.
pub async fn keep_saying_hello(
    node: Arc<Node>,
    gateway: Arc<Gateway>,
    boot: BootId,
    shutdown: CancellationToken,
) {
    let mut beat = tokio::time::interval(HELLO_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reconciling: Option<AbortOnDropHandle<()>> = None;
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let answer = tokio::select! {
            answer = hello(&node, &gateway, boot) => answer,
            () = shutdown.cancelled() => return,
        };
        match answer {
            Ok((wanted, asked)) => {
                if reconciling
                    .as_ref()
                    .is_none_or(AbortOnDropHandle::is_finished)
                {
                    let node = Arc::clone(&node);
                    let task = tokio::spawn(async move { node.reconcile(wanted, asked).await });
                    reconciling = Some(AbortOnDropHandle::new(task));
                }
            }
            Err(error) => tracing::warn!(error = chain(&error), "could not say hello"),
        }
    }
}

/// Looks after the servers every half minute, for ever: drift, logs, undrained WAL.
pub async fn keep_looking_after(node: Arc<Node>, shutdown: CancellationToken) {
    let mut beat = tokio::time::interval(HELLO_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            () = node.look_after() => {}
            () = shutdown.cancelled() => return,
        }
    }
}
