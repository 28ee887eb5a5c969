//! `/metrics`: what is measured at the edge, and what the control plane knows, in one page.
//!
//! Request durations are counted as they happen; everything about servers, jobs and agents is read from
//! the truth at each scrape, so that any API process tells the same and a restart forgets nothing. Names
//! follow Prometheus' rules: base units, and a line for every server from its first minute on.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use holdfast_control_plane::ControlPlane;
use holdfast_control_plane::gauge::{Gauges, ServerGauge};
use metrics::{histogram, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use tokio::time::MissedTickBehavior;

use crate::arm::Result;

/// As often as pages are usually asked for.
const UPKEEP_EVERY: Duration = Duration::from_secs(15);
const BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets(BUCKETS)
            .unwrap_or_else(|_| PrometheusBuilder::new())
            .build_recorder();
        Self {
            handle: recorder.handle(),
            recorder,
        }
    }

    /// One request is answered. `route` is the pattern, never the path: paths have no end.
    pub fn request(&self, method: &str, route: &str, status: u16, took: Duration) {
        with_local_recorder(&self.recorder, || {
            histogram!(
                "http_server_request_duration_seconds",
                "http_request_method" => method.to_owned(),
                "http_route" => route.to_owned(),
                "http_response_status_code" => status.to_string(),
            )
            .record(took.as_secs_f64());
        });
    }

    /// Empties what requests have piled up into the histograms, from now on and until the metrics are
    /// gone: nobody may ever ask for the page.
    pub fn keep(self: &Arc<Self>) {
        let metrics = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut due = tokio::time::interval(UPKEEP_EVERY);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                due.tick().await;
                let Some(metrics) = metrics.upgrade() else {
                    return;
                };
                metrics.handle.run_upkeep();
            }
        });
    }

    /// # Errors
    /// 503 when the metadata store does not answer.
    pub async fn render(&self, control: &ControlPlane) -> Result<String> {
        let gauges = control.gauges().await?;
        let mut page = self.handle.render();
        page.push_str(&text(&gauges));
        Ok(page)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Lines of one name, under their help and type.
struct Family<'a> {
    page: &'a mut String,
    name: &'static str,
}

impl<'a> Family<'a> {
    fn new(page: &'a mut String, name: &'static str, help: &str) -> Self {
        Self::of_kind(page, name, "gauge", help)
    }

    fn of_kind(page: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self { page, name }
    }

    fn line(&mut self, labels: &[(&str, &str)], value: f64) {
        self.part("", labels, value);
    }

    /// A line whose name goes on, as those of a histogram do.
    fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.page.push_str(self.name);
        self.page.push_str(suffix);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.page.push(if index == 0 { '{' } else { ',' });
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.page, "{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.page.push('}');
        }
        let _ = writeln!(self.page, " {value}");
    }
}

fn seconds(at: DateTime<Utc>) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds since 1970 fit a double for 285 years"
    )]
    let micros = at.timestamp_micros() as f64;
    micros / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' values are doubles")]
fn number(count: u64) -> f64 {
    count as f64
}

/// Which of a server's instants a line shows.
type InstantOf = fn(&ServerGauge) -> Option<DateTime<Utc>>;

fn text(gauges: &Gauges) -> String {
    let mut page = String::new();
    let instants: [(&str, &str, InstantOf); 4] = [
        (
            "holdfast_backup_last_success_timestamp_seconds",
            "When the newest complete backup ended; 0 when there is none.",
            |s| s.last_backup_success,
        ),
        (
            "holdfast_backup_last_failure_timestamp_seconds",
            "When a backup failed last; 0 when none did.",
            |s| s.last_backup_failure,
        ),
        (
            "holdfast_restorable_earliest_timestamp_seconds",
            "The earliest instant that can be restored; 0 when there is none.",
            |s| s.earliest,
        ),
        (
            "holdfast_restorable_latest_timestamp_seconds",
            "The latest instant that can be restored; 0 when there is none.",
            |s| s.latest,
        ),
    ];
    for (name, help, of) in instants {
        let mut family = Family::new(&mut page, name, help);
        for server in &gauges.servers {
            family.line(
                &[("server", &server.server)],
                of(server).map_or(0.0, seconds),
            );
        }
    }
    let mut family = Family::new(
        &mut page,
        "holdfast_recovery_point_age_seconds",
        "How old the latest restorable state is: what would be lost now.",
    );
    for server in &gauges.servers {
        let age = server
            .recovery_point_age
            .to_std()
            .unwrap_or_default()
            .as_secs_f64();
        family.line(&[("server", &server.server)], age);
    }
    let mut family = Family::new(
        &mut page,
        "holdfast_server_problem",
        "1 while the server's node says that something is wrong with it.",
    );
    for server in &gauges.servers {
        let problem = f64::from(u8::from(server.has_problem));
        family.line(&[("server", &server.server)], problem);
    }
    let mut family = Family::new(
        &mut page,
        "holdfast_wal_archive_lag_seconds",
        "For how long committed transactions may have been outside the store.",
    );
    for server in &gauges.servers {
        let lag = server
            .wal_archive_lag
            .to_std()
            .unwrap_or_default()
            .as_secs_f64();
        family.line(&[("server", &server.server)], lag);
    }
    let mut family = Family::new(
        &mut page,
        "holdfast_backup_storage_used_bytes",
        "Stored bytes of backups and write-ahead log.",
    );
    for server in &gauges.servers {
        family.line(
            &[("server", &server.server), ("kind", "backup")],
            number(server.backup_bytes),
        );
        family.line(
            &[("server", &server.server), ("kind", "wal")],
            number(server.wal_bytes),
        );
    }
    Family::of_kind(
        &mut page,
        "holdfast_prune_deleted_bytes_total",
        "counter",
        "Stored bytes that retention has deleted.",
    )
    .line(&[], number(gauges.pruned_bytes));
    Family::of_kind(
        &mut page,
        "holdfast_compaction_written_bytes_total",
        "counter",
        "Stored bytes that were written to free those of mostly dead packs.",
    )
    .line(&[], number(gauges.rewritten_bytes));
    let mut family = Family::of_kind(
        &mut page,
        "holdfast_operation_duration_seconds",
        "histogram",
        "How long operations took from acceptance to their end.",
    );
    for one in &gauges.durations {
        let labels = [("type", one.kind.as_str()), ("status", one.state.as_str())];
        let whole = ("+Inf".to_owned(), one.operations);
        let bounds = one
            .at_most
            .iter()
            .map(|(bound, count)| (bound.to_string(), *count));
        for (bound, count) in bounds.chain([whole]) {
            family.part(
                "_bucket",
                &[labels[0], labels[1], ("le", &bound)],
                number(count),
            );
        }
        family.part("_sum", &labels, one.seconds);
        family.part("_count", &labels, number(one.operations));
    }
    Family::new(
        &mut page,
        "holdfast_operation_in_progress",
        "Operations that users wait for.",
    )
    .line(&[], number(gauges.operations_in_progress));
    let mut family = Family::new(&mut page, "holdfast_jobs", "Jobs that are not over.");
    for state in ["queued", "leased"] {
        let count = gauges
            .jobs
            .iter()
            .find(|(name, _)| name == state)
            .map_or(0, |(_, count)| *count);
        family.line(&[("state", state)], number(count));
    }
    let mut family = Family::new(
        &mut page,
        "holdfast_agent_up",
        "1 when the agent was heard from lately.",
    );
    for (agent, up) in &gauges.agents {
        family.line(&[("agent", agent)], f64::from(u8::from(*up)));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;
    use holdfast_control_plane::gauge::Durations;

    #[test]
    fn a_server_without_a_backup_has_its_lines() {
        let gauges = Gauges {
            servers: vec![ServerGauge {
                server: "/s/pg\"1".into(),
                earliest: None,
                latest: None,
                recovery_point_age: TimeDelta::milliseconds(1500),
                wal_archive_lag: TimeDelta::milliseconds(250),
                last_backup_success: None,
                last_backup_failure: DateTime::from_timestamp_micros(1_500_000),
                backup_bytes: 0,
                wal_bytes: 10,
                has_problem: true,
            }],
            durations: vec![Durations {
                kind: "create-server".into(),
                state: "succeeded".into(),
                at_most: vec![(1.0, 0), (5.0, 2)],
                operations: 3,
                seconds: 12.5,
            }],
            pruned_bytes: 4096,
            rewritten_bytes: 512,
            operations_in_progress: 1,
            jobs: vec![("leased".into(), 2)],
            agents: vec![("eastus2-1".into(), true)],
        };
        let page = text(&gauges);
        for line in [
            "holdfast_backup_last_success_timestamp_seconds{server=\"/s/pg\\\"1\"} 0",
            "holdfast_backup_last_failure_timestamp_seconds{server=\"/s/pg\\\"1\"} 1.5",
            "holdfast_recovery_point_age_seconds{server=\"/s/pg\\\"1\"} 1.5",
            "holdfast_backup_storage_used_bytes{server=\"/s/pg\\\"1\",kind=\"wal\"} 10",
            "holdfast_server_problem{server=\"/s/pg\\\"1\"} 1",
            "holdfast_wal_archive_lag_seconds{server=\"/s/pg\\\"1\"} 0.25",
            "# TYPE holdfast_prune_deleted_bytes_total counter",
            "holdfast_prune_deleted_bytes_total 4096",
            "holdfast_compaction_written_bytes_total 512",
            "# TYPE holdfast_operation_duration_seconds histogram",
            "holdfast_operation_duration_seconds_bucket{type=\"create-server\",status=\"succeeded\",le=\"5\"} 2",
            "holdfast_operation_duration_seconds_bucket{type=\"create-server\",status=\"succeeded\",le=\"+Inf\"} 3",
            "holdfast_operation_duration_seconds_sum{type=\"create-server\",status=\"succeeded\"} 12.5",
            "holdfast_operation_duration_seconds_count{type=\"create-server\",status=\"succeeded\"} 3",
            "holdfast_operation_in_progress 1",
            "holdfast_jobs{state=\"queued\"} 0",
            "holdfast_jobs{state=\"leased\"} 2",
            "holdfast_agent_up{agent=\"eastus2-1\"} 1",
        ] {
            assert!(page.lines().any(|one| one == line), "{line}\n{page}");
        }
    }

    #[test]
    fn requests_are_counted_by_route() {
        let metrics = Metrics::new();
        metrics.request("GET", "/x/{id}", 200, Duration::from_millis(20));
        let page = metrics.handle.render();
        assert!(page.contains("http_server_request_duration_seconds_bucket{http_request_method=\"GET\",http_route=\"/x/{id}\",http_response_status_code=\"200\",le=\"0.025\"} 1"), "{page}");
    }
}
