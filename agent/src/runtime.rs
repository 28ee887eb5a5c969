//! An agent's process: what starts, in which order, and how it ends.
//!
//! Servers of the cache start before anybody is asked: a control plane that is away keeps no server down
//! and no stream silent (RELIABILITY §5.3.8).

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_domain::{BootId, NodeId};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Gateway;
use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::error::{Error, Result, chain};
use crate::node::Node;
use crate::postgres::service_user::create_passage;
use crate::wal_news::{self, WalNews};
use crate::{heartbeat, lease};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long the first hello waits for the servers. A long recovery delays it and hinders nothing.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long jobs and reports may take to end before the servers are stopped anyway.
const LEAVE_WITHIN: Duration = Duration::from_secs(20);

/// A running agent. Dropped without [`Agent::stop`], its servers end as in a crash.
#[derive(Debug)]
pub struct Agent {
    node: Arc<Node>,
    gateway: Arc<Gateway>,
    boot: BootId,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    /// Last: another process may have the servers once nothing of this one works on them.
    _sole: File,
}

impl Agent {
    /// Starts the cached servers, joins or re-joins, says hello once, and begins to work.
    pub async fn start(config: AgentConfig, clock: Clock) -> Result<Self> {
        Self::start_unless(config, clock, CancellationToken::new())
            .await?
            .ok_or(Error::Canceled)
    }

    /// `None` when the shutdown came first.
    async fn start_unless(
        config: AgentConfig,
        clock: Clock,
        shutdown: CancellationToken,
    ) -> Result<Option<Self>> {
        let sole = sole_agent(&config.state_dir)?;
        let node = Node::open(config.clone(), clock.clone()).await?;
        let boot = BootId::new();
        node.restore_from_cache().await;
        tokio::select! {
            // What a crash left is recovered first, so that a node that says hello has servers that answer.
            ready = tokio::time::timeout(READY_WITHIN, node.servers_ready()) => {
                if ready.is_err() {
                    tracing::warn!("a server is still starting; the node is up without it");
                }
            }
            () = shutdown.cancelled() => {
                node.shut_down().await;
                return Ok(None);
            }
        }
        let gateway = tokio::select! {
            gateway = reach(&config, &clock, &node) => Arc::new(gateway?),
            () = shutdown.cancelled() => {
                node.shut_down().await;
                return Ok(None);
            }
        };
        match heartbeat::hello(&node, &gateway, boot).await {
            Ok((wanted, asked)) => node.reconcile(wanted, asked).await,
            Err(error) => tracing::warn!(error = chain(&error), "could not say hello"),
        }
        tracing::info!(node.id = %gateway.node(), node.name = config.name, "agent is up");
        let mut tasks = JoinSet::new();
        tasks.spawn(heartbeat::keep_saying_hello(
            Arc::clone(&node),
            Arc::clone(&gateway),
            boot,
            shutdown.clone(),
        ));
        tasks.spawn(wal_news::keep_telling_wal(
            Arc::clone(&node),
            Arc::clone(&gateway),
            boot,
            shutdown.clone(),
        ));
        tasks.spawn(heartbeat::keep_looking_after(
            Arc::clone(&node),
            shutdown.clone(),
        ));
        tasks.spawn(lease::serve(
            Arc::clone(&node),
            Arc::clone(&gateway),
            boot,
            config.max_jobs,
            shutdown.clone(),
        ));
        Ok(Some(Self {
            node,
            gateway,
            boot,
            shutdown,
            tasks,
            _sole: sole,
        }))
    }

    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    #[must_use]
    pub fn id(&self) -> NodeId {
        self.gateway.node()
    }

    /// Says hello now instead of within half a minute.
    pub async fn hello(&self) -> Result<()> {
        let (wanted, asked) = heartbeat::hello(&self.node, &self.gateway, self.boot).await?;
        self.node.reconcile(wanted, asked).await;
        Ok(())
    }

    /// Ends jobs, stops every server with its last WAL in the store, and tells the scheduler of it.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        let left = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LEAVE_WITHIN, left).await.is_err() {
            tracing::warn!("some work did not end in time");
            self.tasks.abort_all();
        }
        self.node.shut_down().await;
        let mut news = WalNews::default();
        let last_word = news.tell(&self.node, &self.gateway, self.boot);
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(5), last_word).await {
            tracing::info!(
                error = chain(&error),
                "the last WAL news is told after the next start"
            );
        }
    }
}

/// Runs an agent until the token is cancelled.
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<()> {
    let started = Agent::start_unless(config, Clock::system(), shutdown.clone()).await?;
    if let Some(agent) = started {
        shutdown.cancelled().await;
        agent.stop().await;
    }
    Ok(())
}

/// Joins, or finds the certificate of an earlier life. A scheduler that is not there yet, or refuses the
/// token, is asked again: the file gets another token, and the servers run meanwhile. Only what is
/// wrong with this node itself ends it.
async fn reach(config: &AgentConfig, clock: &Clock, node: &Node) -> Result<Gateway> {
    let mut pause = FIRST_PAUSE;
    loop {
        match Gateway::connect(config, clock.clone(), node.inventory()?).await {
            Ok(gateway) => return Ok(gateway),
            Err(error @ (Error::Configuration(_) | Error::Certificate(_))) => return Err(error),
            Err(error @ Error::Refused { status: ..500, .. }) => {
                tracing::error!(
                    error = chain(&error),
                    "the scheduler does not take this node in; trying again"
                );
            }
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "the scheduler cannot be reached yet; trying again"
                );
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Two processes on the same servers would end each other's postmasters. The lock lasts as long as the file
/// is open; no child inherits it.
fn sole_agent(state_dir: &Path) -> Result<File> {
    create_passage(state_dir)?;
    let path = state_dir.join("agent.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::file("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Configuration(format!(
            "another agent works in {}; end it, or give this one a state_dir of its own",
            state_dir.display()
        ))),
        Err(TryLockError::Error(error)) => Err(Error::file("lock", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_domain::job::{JoinRequest, JoinResponse};

    use super::*;
    use crate::gateway_fixture::TestGateway;
    use crate::node_fixture::{self, TestNode};

    #[test]
    fn a_second_agent_is_refused_while_the_first_one_works() {
        let state = tempfile::tempdir().expect("a directory");
        let first = sole_agent(state.path()).expect("alone");
        let second = sole_agent(state.path()).expect_err("not alone");
        assert!(
            second.to_string().contains("another agent works in"),
            "{second}"
        );
        drop(first);
        sole_agent(state.path()).expect("alone again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_whose_token_is_spent_waits_for_another() {
        let test = TestNode::open().await;
        let mut gateway = TestGateway::open(test.root.path()).await;
        let token_file = test.root.path().join("token");
        let mut config = node_fixture::config(test.root.path());
        config.gateway = gateway.url.parse().expect("a URL");
        config.ca_file = gateway.ca_file.clone();
        config.join_token_file = Some(token_file.clone());
        std::fs::write(&token_file, "spent\n").expect("written");
        let id = NodeId::new();
        let play = async {
            let call = gateway.expect("join").await;
            assert_eq!(call.body::<JoinRequest>().token, "spent");
            std::fs::write(&token_file, "fresh\n").expect("written");
            call.refuse(403, "JoinRefused");
            let call = gateway.expect("join").await;
            let request: JoinRequest = call.body();
            assert_eq!(request.token, "fresh");
            call.answer(&JoinResponse {
                node: id,
                certificate: gateway.sign(&request.certificate_request),
                expires: Clock::system().now() + chrono::TimeDelta::hours(24),
            });
        };
        let clock = Clock::system();
        let (reached, ()) = tokio::join!(reach(&config, &clock, &test.node), play);
        assert_eq!(reached.expect("joined").node(), id);
        test.end().await;
    }
}
