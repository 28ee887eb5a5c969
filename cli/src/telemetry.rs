//! Logs and traces of a process. Logs go to standard error, as JSON unless a person is looking; traces
//! go out by OTLP when an endpoint is set, and a trace has its ids even when it goes nowhere, so that a
//! request, its job and its log lines can be put together.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::Problems;

/// OpenTelemetry's own variables; the exporter reads them, too.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Json,
    Text,
}

/// `[telemetry]` of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub log_format: LogFormat,
    /// `info`, or per target as in `info,holdfast_agent=debug`; `RUST_LOG` wins.
    pub log_filter: String,
    /// Where traces go: `http://collector:4318/v1/traces`.
    pub otlp_endpoint: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Json,
            log_filter: "info".to_owned(),
            otlp_endpoint: None,
        }
    }
}

impl Settings {
    /// As `[telemetry]` of a configuration file.
    pub(crate) fn check(&self, problems: &mut Problems) {
        if let Err(error) = self.log_filter.parse::<EnvFilter>() {
            problems.add("telemetry.log_filter", error);
        }
    }

    /// In the foreground of a terminal: what went wrong, and no more. Who collects traces wants all.
    #[must_use]
    pub fn for_a_person() -> Self {
        if !std::io::stderr().is_terminal() || endpoint_in_environment() {
            return Self::default();
        }
        Self {
            log_format: LogFormat::Text,
            log_filter: "warn".to_owned(),
            otlp_endpoint: None,
        }
    }

    #[must_use]
    pub fn for_a_machine() -> Self {
        Self::default()
    }
}

fn endpoint_in_environment() -> bool {
    ENDPOINTS
        .iter()
        .any(|name| std::env::var_os(name).is_some())
}

/// Keeps the exporter. What it has not sent yet goes out with [`Self::flush`].
#[derive(Debug)]
pub struct Telemetry(SdkTracerProvider);

impl Telemetry {
    pub fn flush(&self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Once per process.
pub fn init(settings: &Settings) -> Result<Telemetry> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let resource = Resource::builder()
        .with_service_name("holdfast")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let mut provider = SdkTracerProvider::builder().with_resource(resource);
    if settings.otlp_endpoint.is_some() || endpoint_in_environment() {
        let mut exporter = SpanExporter::builder().with_http();
        // The environment is the operator's last word.
        if let Some(endpoint) = settings
            .otlp_endpoint
            .as_ref()
            .filter(|_| !endpoint_in_environment())
        {
            exporter = exporter.with_endpoint(endpoint);
        }
        let exporter = exporter
            .build()
            .context("traces cannot be sent to the OTLP endpoint")?;
        provider = provider.with_batch_exporter(exporter);
    }
    let provider = provider.build();
    global::set_tracer_provider(provider.clone());

    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => filter,
        _ => settings.log_filter.clone(),
    };
    let filter: EnvFilter = filter.parse().context("the log filter is not understood")?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match settings.log_format {
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
        LogFormat::Text => lines.with_target(false).boxed(),
    };
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("holdfast"));
    // One filter for both. Filters per layer lose a span or an event after each question whether
    // something would be logged that all of them say no to, and sqlx asks that at every statement.
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .with(traces)
        .try_init()
        .context("logging was set up before")?;
    Ok(Telemetry(provider))
}
