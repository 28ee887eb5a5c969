//! One trace from a user's request through its job to the agent's report: an agent's calls about a
//! job carry the job's W3C trace context, and their spans hang below it (ECOSYSTEM §5).

use http::{HeaderMap, Request};
use opentelemetry::propagation::Extractor;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The span of one call.
pub fn span<B>(request: &Request<B>) -> Span {
    let span = tracing::info_span!(
        "agent.call",
        http.request.method = %request.method(),
        url.path = request.uri().path(),
        http.response.status_code = tracing::field::Empty,
        node.id = tracing::field::Empty,
        job.id = tracing::field::Empty,
    );
    let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.extract(&Headers(request.headers()))
    });
    // Without an exporter there is no layer to take a parent; that is no error.
    let _no_exporter = span.set_parent(parent);
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
