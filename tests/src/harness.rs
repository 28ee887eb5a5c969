//! The control plane as tests see it: the real store, a clock that they move, a crank that they
//! turn, and nodes that do as they are told.
//!
//! Nothing happens by itself. `run_until_idle` lets the duties and the nodes work until neither has
//! anything left to do; `advance` moves time and `live` does both, step by step.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_control_plane::backup::BackupView;
use holdfast_control_plane::{
    Accepted, Clock, ControlPlane, Idempotency, Policy, PutMode, ServerRef, ServerView,
};
use holdfast_domain::activity::Caller;
use holdfast_domain::backup::BackupKind;
use holdfast_domain::job::Power;
use holdfast_domain::operation::{Operation, OperationState};
use holdfast_domain::region::Site;
use holdfast_domain::resource_id::ServerResourceId;
use holdfast_domain::server::{ServerWish, Tier};
use holdfast_domain::{IncarnationId, SubscriptionId};
use holdfast_scheduler::run_once;
use uuid::{Uuid, uuid};

use crate::metadata::Database;
use crate::scripted_node::{self, ScriptedNode};

pub const SUBSCRIPTION: SubscriptionId =
    SubscriptionId(uuid!("5ab5c21b-7100-4000-8000-000000000001"));
pub const GROUP: &str = "rg1";
/// The region with zones that servers of tests are in, and the one without.
pub const REGION: &str = "eastus2";
pub const PLAIN_REGION: &str = "northcentralus";

/// More rounds than any chain of jobs needs: a plan that does not end is found.
const MOST_ROUNDS: usize = 200;

pub struct Harness {
    pub clock: Clock,
    pub database: Database,
    pub control_plane: ControlPlane,
    /// `[0]` is in [`REGION`], zone 1; `[1]` in [`PLAIN_REGION`].
    pub nodes: Vec<ScriptedNode>,
}

/// When the tests begin.
#[must_use]
pub fn beginning() -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_161_600, 0).expect("a date of 2026")
}

impl Harness {
    pub async fn new() -> Result<Self> {
        Self::with_policy(Policy::default()).await
    }

    pub async fn with_policy(policy: Policy) -> Result<Self> {
        Self::beginning_at(beginning(), policy).await
    }

    /// For tests in which somebody looks at a real clock: TLS clients do.
    pub async fn beginning_now() -> Result<Self> {
        Self::beginning_at(Clock::wall().now(), Policy::default()).await
    }

    async fn beginning_at(start: DateTime<Utc>, policy: Policy) -> Result<Self> {
        let database = Database::new().await?;
        database.set(start).await?;
        let clock = Clock::manual(start);
        let control_plane = ControlPlane::connect(
            database.pool().clone(),
            clock.clone(),
            Site::built_in(),
            policy,
        )
        .await?;
        control_plane.ensure_subscription(SUBSCRIPTION).await?;
        control_plane
            .put_resource_group(&caller(), SUBSCRIPTION, GROUP, Some(REGION), None)
            .await?;
        let nodes = vec![
            scripted_node::join(&control_plane, REGION, Some("1"), 1).await?,
            scripted_node::join(&control_plane, PLAIN_REGION, None, 2).await?,
        ];
        Ok(Self {
            clock,
            database,
            control_plane,
            nodes,
        })
    }

    /// A second process on the same database, with the same clock.
    pub async fn another_process(&self) -> Result<ControlPlane> {
        let pool = self.database.another_pool().await?;
        let policy = self.control_plane.policy().clone();
        Ok(ControlPlane::connect(pool, self.clock.clone(), Site::built_in(), policy).await?)
    }

    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// Time passes; nobody does anything.
    pub async fn advance(&self, by: TimeDelta) -> Result<()> {
        self.clock.advance(by);
        self.database.advance(by).await
    }

    /// Duties and nodes work until nothing is due.
    pub async fn run_until_idle(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.hello(&self.control_plane).await?;
            node.stream(&self.control_plane).await?;
        }
        for _ in 0..MOST_ROUNDS {
            let mut done = run_once(&self.control_plane).await?;
            for node in &mut self.nodes {
                done += node.work(&self.control_plane).await?;
            }
            if done == 0 {
                return Ok(());
            }
        }
        anyhow::bail!("there is always something left to do");
    }

    /// Time passes in steps, and what is due at each is done.
    pub async fn live(&mut self, steps: u32, step: TimeDelta) -> Result<()> {
        for _ in 0..steps {
            self.advance(step).await?;
            self.run_until_idle().await?;
        }
        Ok(())
    }

    /// Days with a change at each noon, looked at every six hours.
    pub async fn busy_days(&mut self, days: u32, server: &str) -> Result<()> {
        for _ in 0..days {
            self.live(2, TimeDelta::hours(6)).await?;
            self.write(server).await?;
            self.live(2, TimeDelta::hours(6)).await?;
        }
        Ok(())
    }

    pub async fn request_create(&self, name: &str, wish: &ServerWish) -> Result<Accepted> {
        let idem = request("PUT", name);
        let accepted = self
            .control_plane
            .put_server(&caller(), at(name), wish, PutMode::Create, &idem)
            .await?;
        Ok(accepted)
    }

    /// A server that is Ready and has its first backup.
    pub async fn create(&mut self, name: &str) -> Result<ServerView> {
        self.create_as(name, &wish()).await
    }

    pub async fn create_as(&mut self, name: &str, wish: &ServerWish) -> Result<ServerView> {
        let accepted = self.request_create(name, wish).await?;
        self.run_until_idle().await?;
        self.succeeded(&accepted.operation).await?;
        self.server(name).await
    }

    pub async fn server(&self, name: &str) -> Result<ServerView> {
        Ok(self.control_plane.get_server(at(name)).await?)
    }

    pub async fn backups(&self, name: &str) -> Result<Vec<BackupView>> {
        Ok(self.control_plane.list_backups(at(name)).await?)
    }

    pub async fn automatic(&self, name: &str) -> Result<Vec<BackupView>> {
        let all = self.backups(name).await?.into_iter();
        Ok(all
            .filter(|view| view.backup.kind == BackupKind::Automatic)
            .collect())
    }

    /// Somebody changes a row and the stream makes it durable.
    pub async fn write(&mut self, name: &str) -> Result<()> {
        let incarnation = self.incarnation(name).await?;
        let now = self.now();
        let node = self.node_of(incarnation)?;
        node.write(incarnation, now);
        let control_plane = self.control_plane.clone();
        self.node_of(incarnation)?.stream(&control_plane).await
    }

    pub async fn incarnation(&self, name: &str) -> Result<IncarnationId> {
        let view = self.server(name).await?;
        view.server
            .incarnation
            .context("the server has no data yet")
    }

    pub fn node_of(&mut self, incarnation: IncarnationId) -> Result<&mut ScriptedNode> {
        let mut nodes = self.nodes.iter_mut();
        nodes
            .find(|node| node.has(incarnation))
            .context("no node has this incarnation")
    }

    pub async fn request_backup(&self, server: &str, name: &str) -> Result<Accepted> {
        let idem = request("PUT", &format!("{server}/{name}"));
        let accepted = self
            .control_plane
            .request_backup(&caller(), at(server), name, &idem)
            .await?;
        Ok(accepted)
    }

    pub async fn power(&mut self, name: &str, to: Power) -> Result<()> {
        let idem = request("POST", name);
        let accepted = self
            .control_plane
            .power_server(&caller(), at(name), to, &idem)
            .await?;
        self.run_until_idle().await?;
        self.succeeded(&accepted.operation).await
    }

    pub async fn delete(&mut self, name: &str) -> Result<()> {
        let idem = request("DELETE", name);
        let accepted = self
            .control_plane
            .delete_server(&caller(), at(name), &idem)
            .await?
            .context("there was such a server")?;
        self.run_until_idle().await?;
        self.succeeded(&accepted.operation).await
    }

    pub async fn set_retention(&mut self, name: &str, days: i64) -> Result<()> {
        let wish = ServerWish {
            retention_days: Some(days),
            ..ServerWish::default()
        };
        let idem = request("PATCH", name);
        let accepted = self
            .control_plane
            .update_server(&caller(), at(name), &wish, false, &idem)
            .await?;
        self.run_until_idle().await?;
        self.succeeded(&accepted.operation).await
    }

    pub async fn request_restore(
        &self,
        source: &str,
        target: &str,
        at_time: Option<DateTime<Utc>>,
    ) -> Result<Accepted> {
        let source = ServerResourceId {
            subscription: SUBSCRIPTION,
            group: GROUP.to_owned(),
            name: source.to_owned(),
        };
        let idem = request("PUT", target);
        let wish = ServerWish::default();
        let accepted = self
            .control_plane
            .restore_server(&caller(), at(target), &source, at_time, &wish, &idem)
            .await?;
        Ok(accepted)
    }

    pub async fn operation(&self, operation: &Operation) -> Result<Operation> {
        let found = self
            .control_plane
            .get_operation(operation.subscription, &operation.region, operation.id)
            .await?;
        Ok(found)
    }

    pub async fn succeeded(&self, operation: &Operation) -> Result<()> {
        let found = self.operation(operation).await?;
        ensure!(found.state == OperationState::Succeeded, "{found:?}");
        Ok(())
    }

    /// One number out of the store, for what no use case shows.
    pub async fn count(&self, sql: &'static str) -> Result<i64> {
        Ok(sqlx::query_scalar(sql)
            .fetch_one(self.database.pool())
            .await?)
    }
}

/// A server's address in the tests' resource group.
#[must_use]
pub fn at(name: &str) -> ServerRef<'_> {
    ServerRef {
        subscription: SUBSCRIPTION,
        group: GROUP,
        name,
    }
}

/// The smallest create request.
#[must_use]
pub fn wish() -> ServerWish {
    ServerWish {
        location: Some(REGION.to_owned()),
        administrator_login: Some("hfadmin".to_owned()),
        administrator_password: Some("correct horse battery staple".to_owned()),
        sku_name: Some("Standard_D2s_v3".to_owned()),
        sku_tier: Some(Tier::GeneralPurpose),
        ..ServerWish::default()
    }
}

/// A user with every right: rights are the API's business.
#[must_use]
pub fn caller() -> Caller {
    Caller {
        principal: "0b1ec700-0000-4000-8000-000000000001".to_owned(),
        name: "somebody".to_owned(),
        client_address: None,
        client_request_id: None,
        correlation_id: Uuid::new_v4().to_string(),
        traceparent: None,
    }
}

/// A request that is unlike any other: no repetition of an earlier one.
#[must_use]
pub fn request(method: &'static str, path: &str) -> Idempotency {
    Idempotency {
        client_request_id: Some(Uuid::new_v4().to_string()),
        method,
        path: path.to_ascii_lowercase(),
        body_hash: [0; 32],
    }
}
