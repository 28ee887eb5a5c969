//! What an installation measures about itself, read at each scrape; nothing is counted on the side.
//!
//! A server that never had a backup is here too: an alert needs the line before the first backup
//! does not come (DESIGN §7).

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::node::{NodeState, SILENT_AFTER_S};
use holdfast_domain::resource_id::ServerResourceId;

use crate::store::gauge;
use crate::{ControlPlane, PageRequest, Result};

#[derive(Debug, Clone, PartialEq)]
pub struct ServerGauge {
    /// The server's resource id.
    pub server: String,
    pub earliest: Option<DateTime<Utc>>,
    pub latest: Option<DateTime<Utc>>,
    /// What would be lost now; it stands still while the server is stopped. Since creation when
    /// there is no backup yet.
    pub recovery_point_age: TimeDelta,
    /// For how long committed transactions may have been outside the store; it stands still while the
    /// server is stopped.
    pub wal_archive_lag: TimeDelta,
    pub last_backup_success: Option<DateTime<Utc>>,
    pub last_backup_failure: Option<DateTime<Utc>>,
    /// In the store, as it is paid for.
    pub backup_bytes: u64,
    pub wal_bytes: u64,
    /// Its node says that something is wrong with it.
    pub has_problem: bool,
}

/// How long operations of one kind took that ended in one way.
#[derive(Debug, Clone, PartialEq)]
pub struct Durations {
    pub kind: String,
    pub state: String,
    /// Bounds in seconds, and how many took at most so long.
    pub at_most: Vec<(f64, u64)>,
    pub operations: u64,
    pub seconds: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Gauges {
    pub servers: Vec<ServerGauge>,
    /// Of all operations that ever ended.
    pub durations: Vec<Durations>,
    /// What prune jobs have deleted so far.
    pub pruned_bytes: u64,
    /// What compactions have written so far.
    pub rewritten_bytes: u64,
    pub operations_in_progress: u64,
    /// Jobs that are not over, by state.
    pub jobs: Vec<(String, u64)>,
    /// Agents by name, and whether each was heard from lately.
    pub agents: Vec<(String, bool)>,
}

impl ControlPlane {
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn gauges(&self) -> Result<Gauges> {
        let now = self.clock().now();
        let mut conn = self.pool().acquire().await?;
        let subscriptions = gauge::subscriptions(&mut conn).await?;
        let counts = gauge::counts(&mut conn).await?;
        let facts = gauge::server_facts(&mut conn).await?;
        let durations = durations(&gauge::durations(&mut conn).await?);
        let (pruned_bytes, rewritten_bytes) = gauge::tidied(&mut conn).await?;
        drop(conn);
        let mut servers = Vec::new();
        for subscription in subscriptions {
            let mut page = PageRequest::default();
            loop {
                let listed = self.list_servers(subscription, &page).await?;
                for view in listed.items {
                    let facts = facts.get(&view.server.id).copied().unwrap_or_default();
                    let newest = view.latest_restore.unwrap_or(view.server.created_at);
                    servers.push(ServerGauge {
                        recovery_point_age: (view.server.window_end(now) - newest)
                            .max(TimeDelta::zero()),
                        wal_archive_lag: (view.server.window_end(now)
                            - facts.archived_until.unwrap_or(view.server.created_at))
                        .max(TimeDelta::zero()),
                        server: ServerResourceId {
                            subscription,
                            group: view.server.group,
                            name: view.server.name,
                        }
                        .to_string(),
                        earliest: view.earliest_restore,
                        latest: view.latest_restore,
                        last_backup_success: facts.last_success,
                        last_backup_failure: facts.last_failure,
                        backup_bytes: facts.backup_bytes,
                        wal_bytes: facts.wal_bytes,
                        has_problem: facts.has_problem,
                    });
                }
                match listed.next {
                    Some(next) => page.after = Some(next),
                    None => break,
                }
            }
        }
        let silent = now - TimeDelta::seconds(SILENT_AFTER_S);
        let agents = self
            .nodes()
            .await?
            .into_iter()
            .filter(|node| !node.revoked)
            .map(|node| {
                let up = node.node.state != NodeState::Silent
                    && node.last_seen.is_some_and(|seen| seen > silent);
                (node.name, up)
            })
            .collect();
        Ok(Gauges {
            servers,
            durations,
            pruned_bytes,
            rewritten_bytes,
            operations_in_progress: counts.operations,
            jobs: counts.jobs,
            agents,
        })
    }
}

/// Rows, one a bucket, as cumulative histograms.
fn durations(rows: &[gauge::DurationRow]) -> Vec<Durations> {
    rows.chunk_by(|a, b| (&a.kind, &a.state) == (&b.kind, &b.state))
        .map(|rows| {
            let within = |bound: f64| {
                rows.iter()
                    .filter(|row| row.at_most_s <= bound)
                    .map(|row| row.operations)
                    .sum()
            };
            Durations {
                kind: rows[0].kind.clone(),
                state: rows[0].state.clone(),
                at_most: gauge::DURATION_BOUNDS_S
                    .iter()
                    .map(|bound| (*bound, within(*bound)))
                    .collect(),
                operations: within(f64::INFINITY),
                seconds: rows.iter().map(|row| row.seconds).sum(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::PutMode;
    use crate::story::{World, at, caller, idem, minutes, wish};

    #[tokio::test]
    async fn a_server_is_measured_from_its_first_minute_on() {
        let mut world = World::new().await;
        let it = world.control_plane.clone();
        it.put_server(&caller(), at("pg1"), &wish(), PutMode::Create, &idem())
            .await
            .expect("accepted");
        world.clock.advance(minutes(2));
        let before = it.gauges().await.expect("measured");
        let server = &before.servers[0];
        assert_eq!(before.operations_in_progress, 1);
        assert_eq!(
            (
                server.last_backup_success,
                server.latest,
                server.backup_bytes
            ),
            (None, None, 0)
        );
        assert_eq!(server.recovery_point_age, minutes(2));

        world.run_until_idle().await;
        let after = it.gauges().await.expect("measured");
        let server = &after.servers[0];
        assert_eq!((after.servers.len(), after.operations_in_progress), (1, 0));
        assert!(server.last_backup_success.is_some() && server.latest.is_some());
        assert!(server.last_backup_failure.is_none());
        assert!(server.backup_bytes > 0 && server.recovery_point_age < minutes(2));
        assert!(server.server.ends_with("/flexibleServers/pg1"));
        assert_eq!(after.jobs, []);
        let created = &after.durations[0];
        assert_eq!(
            (
                created.kind.as_str(),
                created.state.as_str(),
                created.operations
            ),
            ("create-server", "succeeded", 1)
        );
        assert!((created.seconds - 120.0).abs() < 1.0, "{created:?}");
        let within = |s: f64| created.at_most.iter().find(|(bound, _)| *bound >= s);
        assert_eq!(within(60.0).map(|(_, count)| *count), Some(0));
        assert_eq!(within(300.0).map(|(_, count)| *count), Some(1));

        world.write("pg1").await;
        world.clock.advance(minutes(7));
        let later = it.gauges().await.expect("measured");
        assert_eq!(later.servers[0].wal_archive_lag, minutes(7));

        // A counter never goes down: what is forgotten stays in the sum.
        let before = after.durations;
        world.clock.advance(chrono::TimeDelta::days(31));
        assert!(it.forget().await.expect("forgets") > 0);
        assert_eq!(
            world
                .count("select count(*) from operation where kind = 'create-server'")
                .await,
            0
        );
        assert_eq!(it.gauges().await.expect("measured").durations, before);
        assert_eq!(after.agents.len(), 1);
        assert!(!server.has_problem);
    }

    #[tokio::test]
    async fn what_a_node_says_is_wrong_is_kept_until_it_says_otherwise() {
        let mut world = World::new().await;
        let it = world.control_plane.clone();
        it.put_server(&caller(), at("pg1"), &wish(), PutMode::Create, &idem())
            .await
            .expect("accepted");
        world.run_until_idle().await;
        let problem = async || {
            let view = it.server_connection(at("pg1")).await.expect("there");
            let gauges = it.gauges().await.expect("measured");
            assert_eq!(gauges.servers[0].has_problem, view.problem.is_some());
            view.problem
        };
        let wrong = "full_page_writes is 'off' and must be 'on'";
        world.hello_with_problem("pg1", Some(wrong)).await;
        assert_eq!(problem().await.as_deref(), Some(wrong));
        world.hello_with_problem("pg1", None).await;
        assert_eq!(problem().await, None);
    }
}
