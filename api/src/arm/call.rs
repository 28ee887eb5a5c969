//! One request, as handlers see it: who asks, in which version, with which body.
//!
//! Made after the token was checked. A handler says [`Call::require`] first, reads the body second and
//! calls its use case third: nothing is looked up for somebody who may not know (DESIGN §3.12).

use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use holdfast_control_plane::{Idempotency, PageRequest};
use holdfast_domain::activity::Caller;
use http::HeaderMap;
use serde_json::Value;

use super::api_version::ApiVersion;
use super::body;
use super::error::{ArmError, Result};
use super::headers::Ids;
use crate::auth::{Identity, Rights};
use crate::config::Api;
use crate::wire::server::Surroundings;

pub struct Call {
    pub api: Api,
    pub version: ApiVersion,
    pub rights: Rights,
    pub query: Vec<(String, String)>,
    ids: Ids,
    method: &'static str,
    path: String,
    headers: HeaderMap,
    /// A body can be read once; the lock only makes the call shareable across awaits.
    body: Mutex<Option<Body>>,
}

impl FromRequest<Api> for Call {
    type Rejection = ArmError;

    async fn from_request(request: Request, api: &Api) -> Result<Self> {
        let (parts, body) = request.into_parts();
        let missing = |what: &'static str| {
            ArmError::internal(&std::io::Error::other(format!(
                "a request came without {what}"
            )))
        };
        let identity = parts
            .extensions
            .get::<Identity>()
            .cloned()
            .ok_or_else(|| missing("identity"))?;
        let ids = parts
            .extensions
            .get::<Ids>()
            .cloned()
            .ok_or_else(|| missing("ids"))?;
        let query: Vec<(String, String)> =
            url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let version = ApiVersion::from_query(&query)?;
        let principals: Vec<String> = std::iter::once(&identity.principal)
            .chain(&identity.groups)
            .cloned()
            .collect();
        let assignments = api.control().assignments_of(&principals).await?;
        Ok(Self {
            version,
            rights: Rights::new(identity, assignments),
            query,
            ids,
            method: match parts.method.as_str() {
                "PUT" => "PUT",
                "PATCH" => "PATCH",
                "POST" => "POST",
                "DELETE" => "DELETE",
                "HEAD" => "HEAD",
                _ => "GET",
            },
            path: parts.uri.path().to_owned(),
            headers: parts.headers,
            body: Mutex::new(Some(body)),
            api: api.clone(),
        })
    }
}

impl Call {
    /// # Errors
    /// 403 `AuthorizationFailed`.
    pub fn require(&self, action: &str, scope: &str) -> Result<()> {
        self.rights.require(action, scope)
    }

    /// A query parameter, by its name without case.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Who is on record for what this request does.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller {
            principal: self.rights.identity.principal.clone(),
            name: self.rights.identity.name.clone(),
            client_address: self.ids.peer.map(|peer| peer.ip().to_string()),
            client_request_id: self.ids.client_request.clone(),
            correlation_id: self.ids.correlation.clone(),
            traceparent: self.ids.traceparent.clone(),
        }
    }

    async fn bytes(&self) -> Result<Bytes> {
        let body = self
            .body
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        body::read(&self.headers, body.unwrap_or_default()).await
    }

    /// The JSON body, and what makes a repetition of this request the same request.
    ///
    /// # Errors
    /// As [`body::read`] and [`body::json`].
    pub async fn json(&self) -> Result<(Value, Idempotency)> {
        let bytes = self.bytes().await?;
        let value = body::json(&self.headers, &bytes)?;
        Ok((value, self.idempotency(&bytes)))
    }

    /// As [`Call::json`], for actions whose body may be absent.
    ///
    /// # Errors
    /// As [`Call::json`].
    pub async fn optional_json(&self) -> Result<(Option<Value>, Idempotency)> {
        let bytes = self.bytes().await?;
        let value = if bytes.is_empty() {
            None
        } else {
            Some(body::json(&self.headers, &bytes)?)
        };
        Ok((value, self.idempotency(&bytes)))
    }

    /// For requests without a body; one that is sent all the same is read and not looked at.
    ///
    /// # Errors
    /// As [`body::read`].
    pub async fn no_body(&self) -> Result<Idempotency> {
        Ok(self.idempotency(&self.bytes().await?))
    }

    fn idempotency(&self, bytes: &[u8]) -> Idempotency {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let mut body_hash = [0; 32];
        body_hash.copy_from_slice(digest.as_ref());
        Idempotency {
            client_request_id: self.ids.client_request.clone(),
            method: self.method,
            path: self.path.to_ascii_lowercase(),
            body_hash,
        }
    }

    /// # Errors
    /// 400 for a `$skipToken` that is not this list's.
    pub fn page(&self) -> Result<PageRequest> {
        self.api
            .seal()
            .request(&self.rights.identity.principal, &self.path, &self.query)
    }

    /// # Errors
    /// Only when the cryptographic library fails.
    pub fn next_link(&self, next: Option<&str>) -> Result<Option<String>> {
        self.api.seal().next_link(
            &self.api.config().public_url,
            &self.rights.identity.principal,
            &self.path,
            &self.query,
            next,
        )
    }

    #[must_use]
    pub fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            site: self.api.control().site(),
            domain_suffix: &self.api.config().domain_suffix,
            version: &self.version,
        }
    }
}
