//! What every request is known by and every answer carries (contract §7).
//!
//! The ids of a request are decided here, once: ours (`x-ms-request-id`), the caller's correlation id
//! or a new one, and the W3C trace, which goes on into the job and the agent. Ids that are not plain
//! text are ignored, never echoed (RELIABILITY §4.9 row 45).

use std::net::SocketAddr;

use axum::response::Response;
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use uuid::Uuid;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
const CORRELATION: HeaderName = HeaderName::from_static("x-ms-correlation-request-id");
const ROUTING: HeaderName = HeaderName::from_static("x-ms-routing-request-id");
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const RETURN_CLIENT_REQUEST_ID: HeaderName =
    HeaderName::from_static("x-ms-return-client-request-id");

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// What a request is known by.
#[derive(Debug, Clone)]
pub struct Ids {
    pub request: Uuid,
    pub correlation: String,
    pub client_request: Option<String>,
    returned: bool,
    pub peer: Option<SocketAddr>,
    /// Of the request's span; see [`crate::edge::observe`].
    pub traceparent: Option<String>,
}

impl Ids {
    #[must_use]
    pub fn of(headers: &HeaderMap, peer: Option<SocketAddr>) -> Self {
        let request = Uuid::new_v4();
        let text = |name: &HeaderName| plain(headers, name);
        Self {
            request,
            correlation: text(&CORRELATION).unwrap_or_else(|| Uuid::new_v4().to_string()),
            client_request: text(&CLIENT_REQUEST_ID),
            returned: text(&RETURN_CLIENT_REQUEST_ID)
                .is_some_and(|v| v.eq_ignore_ascii_case("true")),
            peer,
            traceparent: None,
        }
    }

    /// Puts on an answer what every answer carries.
    pub fn mark(&self, response: &mut Response, routing_name: &str, now: DateTime<Utc>) {
        let headers = response.headers_mut();
        let mut set = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        let routing = format!(
            "{routing_name}:{}:{}",
            now.format("%Y%m%dT%H%M%SZ"),
            self.correlation
        );
        set(CORRELATION, &self.correlation);
        set(ROUTING, &routing);
        set(header::CACHE_CONTROL, "no-cache");
        set(header::PRAGMA, "no-cache");
        set(header::EXPIRES, "-1");
        set(
            header::STRICT_TRANSPORT_SECURITY,
            "max-age=31536000; includeSubDomains",
        );
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        if let Some(id) = self.client_request.as_deref().filter(|_| self.returned) {
            set(CLIENT_REQUEST_ID, id);
        }
        // A 202 carries its operation's id already.
        if !headers.contains_key(REQUEST_ID)
            && let Ok(id) = HeaderValue::from_str(&self.request.to_string())
        {
            headers.insert(REQUEST_ID, id);
        }
        // Terraform's poller refuses any other type, on a 204 too (contract §5).
        let json = HeaderValue::from_static("application/json; charset=utf-8");
        match headers.get(header::CONTENT_TYPE) {
            Some(kind) if kind != "application/json" => {}
            _ => drop(headers.insert(header::CONTENT_TYPE, json)),
        }
    }
}

/// A header of up to 128 printable characters.
fn plain(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers
        .get(name)
        .map(HeaderValue::as_bytes)
        .filter(|value| (1..=128).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic))
        .and_then(|value| std::str::from_utf8(value).ok())
        .map(ToOwned::to_owned)
}

/// A caller's `traceparent`, when it is one (W3C Trace Context, version 00).
#[must_use]
pub fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            && (length == 2 || part.bytes().any(|b| b != b'0'))
    };
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return None;
    };
    (version == "00" && hex(trace, 32) && hex(span, 16) && hex(flags, 2)).then(|| text.to_owned())
}

/// A trace of our own, for a caller that has none and an installation that exports none.
#[must_use]
pub fn new_traceparent() -> String {
    let span = Uuid::new_v4().simple().to_string();
    format!("00-{}-{}-01", Uuid::new_v4().simple(), &span[..16])
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_bytes(value).expect("a value"),
                )
            })
            .collect()
    }

    #[test]
    fn an_answer_carries_the_ids_of_its_request() {
        // contract §7
        let given = headers(&[
            ("x-ms-correlation-request-id", b"c-1"),
            ("x-ms-client-request-id", b"r-1"),
            ("x-ms-return-client-request-id", b"true"),
        ]);
        let ids = Ids::of(&given, None);
        let mut response = Response::new(Body::empty());
        ids.mark(
            &mut response,
            "EASTUS2",
            "2026-11-20T10:00:00Z".parse().expect("valid"),
        );
        let shown = |name: &str| {
            response
                .headers()
                .get(name)
                .map(|v| v.to_str().expect("text").to_owned())
        };
        assert_eq!(shown("x-ms-correlation-request-id").as_deref(), Some("c-1"));
        assert_eq!(shown("x-ms-client-request-id").as_deref(), Some("r-1"));
        assert_eq!(
            shown("x-ms-routing-request-id").as_deref(),
            Some("EASTUS2:20261120T100000Z:c-1")
        );
        assert_eq!(shown("x-ms-request-id"), Some(ids.request.to_string()));
        assert_eq!(
            shown("content-type").as_deref(),
            Some("application/json; charset=utf-8")
        );
        assert_eq!(shown("cache-control").as_deref(), Some("no-cache"));
    }

    #[test]
    fn ids_that_are_not_plain_text_are_ignored() {
        // RELIABILITY §4.9 row 45
        let long = [b'a'; 129];
        for bad in [&b"a b"[..], b"\x1b[31m", "\u{e9}".as_bytes(), &long] {
            let Ok(value) = HeaderValue::from_bytes(bad) else {
                continue;
            };
            let given = HeaderMap::from_iter([(CLIENT_REQUEST_ID, value)]);
            assert_eq!(Ids::of(&given, None).client_request, None);
        }
    }

    #[test]
    fn only_a_traceparent_is_a_traceparent() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(
            traceparent(&headers(&[("traceparent", good.as_bytes())])).as_deref(),
            Some(good)
        );
        for bad in [
            "00-0-0-0",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "x",
        ] {
            assert_eq!(
                traceparent(&headers(&[("traceparent", bad.as_bytes())])),
                None
            );
        }
        assert!(traceparent(&headers(&[("traceparent", new_traceparent().as_bytes())])).is_some());
    }
}
