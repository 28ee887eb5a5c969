//! The two things an agent says without being asked: that it lives and what it has (every half minute,
//! answered with what it should be running), and what its streams made durable (about once a second
//! while there is news, RELIABILITY §5.3).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_domain::job::{Assignment, HelloRequest, WalReport, WalReportRequest};
use holdfast_domain::{BootId, IncarnationId};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::client::Gateway;
use crate::error::{Result, chain};
use crate::node::Node;

const HELLO_EVERY: Duration = Duration::from_secs(30);
/// A file in the state directory, written anew after each answered hello.
const ALIVE: &str = "alive";
const NEWS_EVERY: Duration = Duration::from_secs(1);
/// A stream without news says so this often: how old the recovery point is counts from it.
const QUIET_EVERY: Duration = Duration::from_secs(15);
/// So many reports at most go in one call; the rest follows with the next.
const REPORTS_PER_CALL: usize = 64;

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

/// Which reports were sent when, to tell news from repetition.
#[derive(Debug, Default)]
pub struct WalNews {
    sent: HashMap<IncarnationId, (Instant, WalReport)>,
}

impl WalNews {
    /// The reports worth a call now.
    fn worth_telling(&self, reports: Vec<WalReport>, now: Instant) -> Vec<WalReport> {
        reports
            .into_iter()
            .filter(|report| match self.sent.get(&report.incarnation) {
                None => true,
                Some((at, _)) if now.duration_since(*at) >= QUIET_EVERY => true,
                Some((_, last)) => is_news(last, report),
            })
            .take(REPORTS_PER_CALL)
            .collect()
    }

    /// Tells the scheduler what is new and lets the streams forget what it kept.
    pub async fn tell(&mut self, node: &Node, gateway: &Gateway, boot: BootId) -> Result<()> {
        let now = Instant::now();
        let reports = self.worth_telling(node.wal_news(), now);
        if reports.is_empty() {
            return Ok(());
        }
        let request = WalReportRequest { boot, reports };
        gateway.wal(&request).await?;
        node.wal_kept(&request.reports);
        for report in request.reports {
            self.sent.insert(report.incarnation, (now, report));
        }
        let known: Vec<IncarnationId> = node.servers().iter().map(|s| s.incarnation()).collect();
        self.sent
            .retain(|incarnation, _| known.contains(incarnation));
        Ok(())
    }
}

/// More durable WAL, a new object or hole. That time passed on an idle server can wait.
fn is_news(last: &WalReport, now: &WalReport) -> bool {
    !now.objects.is_empty()
        || !now.superseded.is_empty()
        || !now.timelines.is_empty()
        || now.timeline != last.timeline
        || now.durable != last.durable
        || now.last_counting != last.last_counting
        || now.gap != last.gap
}

/// Tells WAL news about once a second, for ever.
pub async fn keep_telling_wal(
    node: Arc<Node>,
    gateway: Arc<Gateway>,
    boot: BootId,
    shutdown: CancellationToken,
) {
    let mut news = WalNews::default();
    let mut beat = tokio::time::interval(NEWS_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent_until = Instant::now();
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = shutdown.cancelled() => return,
        }
        if Instant::now() < silent_until {
            continue;
        }
        if let Err(error) = news.tell(&node, &gateway, boot).await {
            tracing::warn!(error = chain(&error), "could not tell WAL news");
            silent_until = Instant::now() + Duration::from_secs(5);
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_domain::{Lsn, Timeline};

    use super::*;

    fn report(durable: u64) -> WalReport {
        WalReport {
            incarnation: IncarnationId(uuid::Uuid::nil()),
            timeline: Timeline::FIRST,
            durable: Lsn(durable),
            objects: Vec::new(),
            superseded: Vec::new(),
            timelines: Vec::new(),
            caught_up_at: None,
            last_counting: None,
            held_bytes: 0,
            gap: None,
        }
    }

    #[test]
    fn an_idle_stream_reports_every_fifteen_seconds_and_a_busy_one_at_once() {
        let now = Instant::now();
        let mut news = WalNews::default();
        let told =
            |news: &WalNews, durable, at| !news.worth_telling(vec![report(durable)], at).is_empty();
        assert!(told(&news, 8, now));
        news.sent.insert(report(8).incarnation, (now, report(8)));
        assert!(!told(&news, 8, now + Duration::from_secs(14)));
        assert!(told(&news, 8, now + Duration::from_secs(15)));
        assert!(told(&news, 16, now + Duration::from_secs(1)));
    }
}
