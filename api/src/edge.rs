//! Where requests come in: what each must pass, and the listener (RELIABILITY §4.6).
//!
//! Order from the outside: [`observe`] (limits, ids, span, duration, panics), [`authenticate`],
//! [`canonical_path`], the router. The listener is in [`listener`].

mod crowd;
mod listener;

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use opentelemetry::propagation::{Extractor, Injector};
use tracing::{Instrument, Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

pub use crowd::Crowd;
pub use listener::{serve, serve_metrics};

use crate::arm::error::ArmError;
use crate::arm::headers::{self, Ids, Peer};
use crate::arm::path;
use crate::auth::token::{self, Denied};
use crate::config::Api;

const LONGEST_URL: usize = 8 * 1024;
const LONGEST_HEADERS: usize = 16 * 1024;

const KNOWN_METHODS: [Method; 6] = [
    Method::GET,
    Method::HEAD,
    Method::PUT,
    Method::POST,
    Method::PATCH,
    Method::DELETE,
];

/// The pattern that a request was routed by; on the answer, for the metric.
#[derive(Clone)]
struct Route(MatchedPath);

pub(crate) async fn note_route(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(Route(route));
    }
    response
}

/// The outermost layer: one span and one duration a request, the ids on every answer, no panic out.
pub(crate) async fn observe(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let peer = request.extensions().get::<Peer>().map(|Peer(peer)| *peer);
    let mut ids = Ids::of(request.headers(), peer);
    let method = request.method().clone();
    let span = tracing::info_span!(
        "http.request",
        otel.kind = "server",
        http.request.method = %method,
        url.path = %request.uri().path(),
        http.route = field::Empty,
        http.response.status_code = field::Empty,
        client.address = peer.map(|peer| field::display(peer.ip())),
        request.id = %ids.request,
        request.correlation_id = %ids.correlation,
    );
    ids.traceparent = Some(trace(&span, request.headers()));
    request.extensions_mut().insert(ids.clone());
    let mut response = async {
        match within_limits(&request) {
            Ok(()) => AssertUnwindSafe(next.run(request))
                .catch_unwind()
                .await
                .unwrap_or_else(|panic| {
                    let what = panic
                        .downcast_ref::<&str>()
                        .map(ToString::to_string)
                        .or_else(|| panic.downcast_ref::<String>().cloned())
                        .unwrap_or_default();
                    ArmError::internal(&std::io::Error::other(format!(
                        "a handler panicked: {what}"
                    )))
                    .into_response()
                }),
            Err(refused) => refused.into_response(),
        }
    }
    .instrument(span.clone())
    .await;
    ids.mark(
        &mut response,
        &api.config().routing_name,
        api.control().clock().now(),
    );
    let status = response.status();
    let route = response
        .extensions()
        .get::<Route>()
        .map(|Route(route)| route.clone());
    let route = route.as_ref().map_or("", MatchedPath::as_str);
    let took = started.elapsed();
    span.record("http.route", route);
    span.record("http.response.status_code", status.as_u16());
    // Anybody can make up methods; a label for each would be a way to fill the memory.
    let label = match KNOWN_METHODS.contains(&method) {
        true => method.as_str(),
        false => "_OTHER",
    };
    api.metrics().request(label, route, status.as_u16(), took);
    span.in_scope(|| {
        tracing::info!(duration_ms = took.as_secs_f64() * 1e3, "request answered");
    });
    response
}

/// Joins the span to the caller's trace; answers with the trace context to hand on.
fn trace(span: &Span, given: &http::HeaderMap) -> String {
    struct Given<'a>(&'a http::HeaderMap);
    impl Extractor for Given<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key).and_then(|value| value.to_str().ok())
        }
        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(http::HeaderName::as_str).collect()
        }
    }
    struct Taken(Option<String>);
    impl Injector for Taken {
        fn set(&mut self, key: &str, value: String) {
            if key == "traceparent" {
                self.0 = Some(value);
            }
        }
    }
    let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.extract(&Given(given))
    });
    // Fails only when nothing exports traces; then the caller's own context is handed on.
    let _ = span.set_parent(parent);
    let mut taken = Taken(None);
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&span.context(), &mut taken);
    });
    taken
        .0
        .or_else(|| headers::traceparent(given))
        .unwrap_or_else(headers::new_traceparent)
}

fn within_limits(request: &Request) -> Result<(), ArmError> {
    let uri = request.uri();
    let url = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    if url > LONGEST_URL {
        return Err(ArmError::new(
            StatusCode::URI_TOO_LONG,
            "RequestUriTooLong",
            "The address is longer than 8 KiB.",
        ));
    }
    // A token has a limit of its own, and one above it is no identity: 401 (RELIABILITY §4.9 row 5).
    let headers: usize = request
        .headers()
        .iter()
        .filter(|(name, _)| *name != header::AUTHORIZATION)
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if headers > LONGEST_HEADERS {
        return Err(ArmError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "RequestHeadersTooLarge",
            "The headers are larger than 16 KiB.",
        ));
    }
    Ok(())
}

/// Lets a request in when its token says who calls, and when that caller has not too many under way.
pub(crate) async fn authenticate(
    State(api): State<Api>,
    mut request: Request,
    next: Next,
) -> Response {
    let now = api.control().clock().now();
    let identity = token::bearer(request.headers())
        .and_then(|token| token::check(token, &api.jwks().keys(), api.auth(), now));
    let identity = match identity {
        Ok(identity) => identity,
        Err(denied) => return unauthorized(denied, &api),
    };
    let Some(_place) = api.crowd().enter(&identity.principal).await else {
        return ArmError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequests",
            "Too many requests of this caller are under way. Wait for some to be answered.",
        )
        .retry_after(1)
        .into_response();
    };
    request.headers_mut().remove(header::AUTHORIZATION);
    request.extensions_mut().insert(identity);
    next.run(request).await
}

/// 401 with the challenge that clients know (contract §7); `claims` stays out of it, or newer clients
/// authenticate again without end.
fn unauthorized(denied: Denied, api: &Api) -> Response {
    tracing::info!(reason = denied.code(), "no identity");
    let mut response =
        ArmError::new(StatusCode::UNAUTHORIZED, denied.code(), denied.to_string()).into_response();
    let challenge = format!(
        "Bearer authorization_uri=\"{}\", error=\"invalid_token\", error_description=\"{}\"",
        api.auth().issuer.replace(['"', '\\'], ""),
        denied.to_string().replace('"', "'"),
    );
    if let Ok(challenge) = HeaderValue::from_str(&challenge) {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// Rewrites the path to the spelling of the routes.
pub(crate) async fn canonical_path(mut request: Request, next: Next) -> Response {
    let canonical = match path::canonical(request.uri().path()) {
        Ok(canonical) => canonical,
        Err(refusal) => return ArmError::from(refusal).into_response(),
    };
    if canonical != request.uri().path() {
        let with_query = match request.uri().query() {
            Some(query) => format!("{canonical}?{query}"),
            None => canonical,
        };
        match with_query.parse::<Uri>() {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => return ArmError::internal(&error).into_response(),
        }
    }
    next.run(request).await
}

/// The router adds `Allow`, with the methods of the address.
pub(crate) async fn method_not_allowed() -> ArmError {
    ArmError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "HttpMethodNotAllowed",
        "The HTTP method is not supported at this address.",
    )
}

pub(crate) async fn no_such_route() -> ArmError {
    ArmError::new(
        StatusCode::NOT_FOUND,
        "OperationNotSupported",
        "There is no resource type or operation at this address.",
    )
}
