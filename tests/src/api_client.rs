//! The API in this process: the real router, with the real checks of tokens and rights, and no
//! socket. Tokens are minted by our own issuer, whose keys the API reads from a file.

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use chrono::TimeDelta;
use holdfast_api::auth::AuthConfig;
use holdfast_api::auth::issuer::{Issuer, Mint};
use holdfast_api::{ApiConfig, router};
use holdfast_control_plane::Clock;
use holdfast_domain::role::{Role, RoleAssignment};
use http::{HeaderMap, Method, Request, header};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use crate::harness::{GROUP, Harness, SUBSCRIPTION};

pub const API_VERSION: &str = "2026-10-01";
pub const ISSUER: &str = "https://issuer.test/";
pub const AUDIENCE: &str = "https://management.azure.com/";
pub const TENANT: &str = "7e9a9700-0000-4000-8000-000000000001";
/// Owner of the subscription.
pub const OWNER: &str = "0b1ec700-0000-4000-8000-00000000000a";
/// Reader of the resource group.
pub const READER: &str = "0b1ec700-0000-4000-8000-00000000000b";
/// Nobody in particular.
pub const STRANGER: &str = "0b1ec700-0000-4000-8000-00000000000c";

/// Headers that snapshots show; the others change or say nothing.
const SHOWN: [&str; 9] = [
    "azure-asyncoperation",
    "location",
    "retry-after",
    "www-authenticate",
    "x-ms-request-id",
    "x-ms-correlation-request-id",
    "x-ms-client-request-id",
    "cache-control",
    "content-type",
];

pub struct ApiClient {
    router: Router,
    issuer: Issuer,
    clock: Clock,
    pub jwks_file: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl ApiClient {
    /// An API on the harness's store, with an owner and a reader.
    pub async fn new(harness: &Harness) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let jwks_file = folder.path().join("jwks.json");
        let issuer = Issuer::load_or_create(&folder.path().join("issuer.pem"), &jwks_file)?;
        let auth = AuthConfig {
            issuer: ISSUER.to_owned(),
            audiences: vec![AUDIENCE.to_owned()],
            tenant: Some(TENANT.to_owned()),
            jwks_file: jwks_file.clone(),
        };
        let config = ApiConfig {
            public_url: "https://api.test".to_owned(),
            domain_suffix: "postgres.test".to_owned(),
            ..ApiConfig::default()
        };
        let router = router(harness.control_plane.clone(), auth, config)?;
        let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}");
        for (principal, role, scope) in [
            (OWNER, Role::Owner, format!("/subscriptions/{SUBSCRIPTION}")),
            (READER, Role::Reader, group),
        ] {
            let principal = principal.to_owned();
            let assignment = RoleAssignment {
                principal,
                role,
                scope,
            };
            harness.control_plane.assign_role(&assignment).await?;
        }
        let clock = harness.clock.clone();
        Ok(Self {
            router,
            issuer,
            clock,
            jwks_file,
            _folder: folder,
        })
    }

    /// What a token of this principal says, to be spoiled by tests.
    #[must_use]
    pub fn mint(&self, principal: &str) -> Mint {
        Mint {
            issuer: ISSUER.to_owned(),
            audience: AUDIENCE.to_owned(),
            tenant: TENANT.to_owned(),
            principal: principal.to_owned(),
            name: "somebody@test".to_owned(),
            groups: vec![],
            valid_for: TimeDelta::hours(1),
        }
    }

    pub fn token(&self, principal: &str) -> Result<String> {
        Ok(self.issuer.mint(&self.mint(principal), self.clock.now())?)
    }

    #[must_use]
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// As the owner; `path` may have a query of its own.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        self.call_as(OWNER, method, path, body).await
    }

    pub async fn call_as(
        &self,
        principal: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer> {
        let token = self.token(principal)?;
        let mut request =
            request(method, path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body)?).await
    }

    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.call(Method::GET, path, None).await
    }

    /// For answers that are no JSON: status and text.
    pub async fn send_for_text(&self, request: Request<Body>) -> Result<(u16, String)> {
        let response = self.router.clone().oneshot(request).await?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let text = String::from_utf8(bytes.to_vec())?;
        Ok((parts.status.as_u16(), text))
    }

    pub async fn send(&self, request: Request<Body>) -> Result<Answer> {
        let response = self.router.clone().oneshot(request).await?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .with_context(|| String::from_utf8_lossy(&bytes).into_owned())?
        };
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        })
    }

    /// The same API behind a socket of this machine, for clients that are processes of their own. Gone
    /// when the task is.
    pub async fn listen(&self) -> Result<(std::net::SocketAddr, tokio::task::JoinSet<()>)> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let router = self.router.clone();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            let served = holdfast_api::serve(listener, None, router, std::future::pending());
            served.await.expect("loopback needs no TLS");
        });
        Ok((address, task))
    }

    /// The path of the operation that a 202 names.
    pub fn operation_of(answer: &Answer) -> Result<String> {
        let url = answer
            .headers
            .get("azure-asyncoperation")
            .context("no operation")?;
        let path = url
            .to_str()?
            .strip_prefix("https://api.test")
            .context("not our URL")?;
        Ok(path.to_owned())
    }
}

/// A request without a token; the newest api-version unless the path has a query.
pub fn request(method: Method, path: &str) -> http::request::Builder {
    let query = if path.contains('?') {
        ""
    } else {
        "?api-version=2026-10-01"
    };
    Request::builder()
        .method(method)
        .uri(format!("{path}{query}"))
}

/// `/subscriptions/…/flexibleServers/{name}` in the tests' group.
#[must_use]
pub fn server_path(name: &str) -> String {
    format!("{}/{name}", servers_path())
}

#[must_use]
pub fn servers_path() -> String {
    format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.DBforPostgreSQL/flexibleServers"
    )
}

/// The smallest body that creates a server.
#[must_use]
pub fn create_body() -> Value {
    json!({
        "location": "eastus2",
        "sku": {"name": "Standard_D2s_v3", "tier": "GeneralPurpose"},
        "properties": {
            "createMode": "Create",
            "version": "15",
            "administratorLogin": "hfadmin",
            "administratorLoginPassword": "correct horse battery staple",
            "storage": {"storageSizeGB": 32},
        },
    })
}

impl Answer {
    #[must_use]
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    #[must_use]
    pub fn refusal(&self) -> (u16, &str) {
        (self.status, self.code())
    }

    /// Status, shown headers and body, with every UUID that is not the tests' own replaced by its
    /// number of first appearance: the same in every run.
    #[must_use]
    pub fn stable(&self) -> Value {
        let headers: Map<String, Value> = SHOWN
            .iter()
            .filter_map(|name| {
                let value = self.headers.get(*name)?.to_str().ok()?;
                Some(((*name).to_owned(), Value::from(value)))
            })
            .collect();
        let mut seen = Vec::new();
        stable(
            &json!({"status": self.status, "headers": headers, "body": self.body}),
            &mut seen,
        )
    }
}

fn stable(value: &Value, seen: &mut Vec<String>) -> Value {
    match value {
        Value::String(text) => Value::from(without_uuids(text, seen)),
        Value::Array(items) => items.iter().map(|item| stable(item, seen)).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), stable(value, seen)))
            .collect(),
        other => other.clone(),
    }
}

fn without_uuids(text: &str, seen: &mut Vec<String>) -> String {
    const LENGTH: usize = 36;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let candidate = rest
            .get(..LENGTH)
            .filter(|part| uuid::Uuid::try_parse(part).is_ok());
        let own = ["5ab5c21b-", "0b1ec700-", "7e9a9700-"];
        match candidate {
            Some(uuid) if !own.iter().any(|own| uuid.starts_with(own)) => {
                let uuid = uuid.to_ascii_lowercase();
                let number = seen
                    .iter()
                    .position(|known| *known == uuid)
                    .unwrap_or_else(|| {
                        seen.push(uuid);
                        seen.len() - 1
                    });
                out.push_str(&format!("[uuid {}]", number + 1));
                rest = &rest[LENGTH..];
            }
            Some(uuid) => {
                out.push_str(uuid);
                rest = &rest[LENGTH..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}
