//! The agent's calls to the scheduler: JSON over HTTPS, the gateway's certificate checked against the
//! one authority in the configuration, ours shown in return (RELIABILITY §4.3). The types are those of
//! `holdfast_domain::job`.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use holdfast_domain::NodeId;
use holdfast_domain::job::{
    HelloRequest, HelloResponse, JobResult, JoinRequest, JoinResponse, LeaseRef, LeaseRequest,
    LeaseResponse, NodeInventory, Progress, ProgressRequest, ProgressResponse,
    RenewCertificateRequest, ReportRequest, ValidateRequest, ValidateResponse, WalReportRequest,
    WalReportResponse,
};
use reqwest::{Certificate, Identity, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::credentials::{Credentials, Request};
use crate::error::{Error, Result};

/// How long an ordinary call may take; a long poll gets its wait on top.
const CALL_WITHIN: Duration = Duration::from_secs(20);
/// A lease must be renewed, or known not to be, well before it is given up.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// Lists of objects can be long.
const REPORT_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Gateway {
    base: Url,
    authority: Certificate,
    config: AgentConfig,
    clock: Clock,
    current: RwLock<Current>,
}

#[derive(Debug, Clone)]
struct Current {
    credentials: Credentials,
    http: reqwest::Client,
}

/// An error's body. Resource Manager's envelope is understood too.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Complaint {
    Plain {
        code: String,
        #[serde(default)]
        message: String,
    },
    Envelope {
        error: Inner,
    },
}

#[derive(Debug, Deserialize)]
struct Inner {
    code: String,
    #[serde(default)]
    message: String,
}

impl Gateway {
    /// Uses the certificate on disk; a node that has none yet, or let it expire, joins with its token.
    pub async fn connect(
        config: &AgentConfig,
        clock: Clock,
        inventory: NodeInventory,
    ) -> Result<Self> {
        let pem = std::fs::read(&config.ca_file).map_err(Error::file("read", &config.ca_file))?;
        let authority = Certificate::from_pem(&pem)
            .map_err(|error| Error::Certificate(format!("ca_file: {error}")))?;
        let credentials = match Credentials::load(&config.state_dir)? {
            Some(credentials) if !credentials.expired(clock.now()) => credentials,
            _ => join(config, &authority, &clock, inventory).await?,
        };
        let http = http_client(&authority, Some(&credentials))?;
        Ok(Self {
            base: config.gateway.clone(),
            authority,
            config: config.clone(),
            clock,
            current: RwLock::new(Current { credentials, http }),
        })
    }

    #[must_use]
    pub fn node(&self) -> NodeId {
        self.current().credentials.node
    }

    fn current(&self) -> Current {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Renews the certificate when two thirds of its life are over. Cheap when they are not. One that ran
    /// out, because the machine slept or the scheduler was away, proves nothing any more: the node joins.
    pub async fn renew_if_due(&self, inventory: &NodeInventory) -> Result<()> {
        let now = self.clock.now();
        let credentials = self.current().credentials;
        if credentials.expired(now) {
            let inventory = inventory.clone();
            let joined = join(&self.config, &self.authority, &self.clock, inventory).await?;
            return self.take(joined);
        }
        if !credentials.renewal_is_due(now) {
            return Ok(());
        }
        let request = Request::new(&self.config.name)?;
        let body = RenewCertificateRequest {
            certificate_request: request.certificate_request.clone(),
        };
        let answer: JoinResponse = self.call("renew-certificate", &body, CALL_WITHIN).await?;
        let credentials = request.answered(answer, self.clock.now());
        credentials.save(&self.config.state_dir)?;
        tracing::info!(node.id = %credentials.node, expires = %credentials.expires, "renewed the node's certificate");
        self.take(credentials)
    }

    fn take(&self, credentials: Credentials) -> Result<()> {
        let http = http_client(&self.authority, Some(&credentials))?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) =
            Current { credentials, http };
        Ok(())
    }

    pub async fn hello(&self, request: &HelloRequest) -> Result<HelloResponse> {
        self.call("hello", request, CALL_WITHIN).await
    }

    pub async fn lease(&self, request: &LeaseRequest) -> Result<LeaseResponse> {
        let wait = Duration::from_secs(request.wait_s.into());
        self.call("lease", request, CALL_WITHIN + wait).await
    }

    /// Renews a lease. A refusal because of another holder is [`Error::StaleLease`].
    pub async fn progress(
        &self,
        lease: LeaseRef,
        progress: Option<Progress>,
    ) -> Result<ProgressResponse> {
        self.call(
            "progress",
            &ProgressRequest { lease, progress },
            RENEW_WITHIN,
        )
        .await
    }

    pub async fn report(&self, lease: LeaseRef, result: &JobResult) -> Result<()> {
        let request = ReportRequest {
            lease,
            result: result.clone(),
        };
        self.send("report", &request, REPORT_WITHIN).await.map(drop)
    }

    pub async fn validate(&self, lease: LeaseRef, keys: &[String]) -> Result<Vec<String>> {
        let request = ValidateRequest {
            lease,
            keys: keys.to_vec(),
        };
        let answer: ValidateResponse = self.call("validate", &request, CALL_WITHIN).await?;
        Ok(answer.may_delete)
    }

    pub async fn wal(&self, request: &WalReportRequest) -> Result<WalReportResponse> {
        self.call("wal", request, REPORT_WITHIN).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        call: &'static str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<T> {
        let response = self.send(call, body, within).await?;
        response
            .json()
            .await
            .map_err(|source| Error::Gateway { call, source })
    }

    async fn send(
        &self,
        call: &'static str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<reqwest::Response> {
        post(&self.current().http, &self.base, call, body, within).await
    }
}

async fn join(
    config: &AgentConfig,
    authority: &Certificate,
    clock: &Clock,
    inventory: NodeInventory,
) -> Result<Credentials> {
    let path = config.join_token_file.as_ref().ok_or_else(|| {
        Error::Configuration(
            "this node has no valid certificate and join_token_file is not set".into(),
        )
    })?;
    let token = std::fs::read_to_string(path).map_err(Error::file("read the join token", path))?;
    let request = Request::new(&config.name)?;
    let body = JoinRequest {
        token: token.trim().to_owned(),
        certificate_request: request.certificate_request.clone(),
        inventory,
    };
    let http = http_client(authority, None)?;
    let call = "join";
    let answer: JoinResponse = post(&http, &config.gateway, call, &body, CALL_WITHIN)
        .await?
        .json()
        .await
        .map_err(|source| Error::Gateway { call, source })?;
    let credentials = request.answered(answer, clock.now());
    credentials.save(&config.state_dir)?;
    tracing::info!(node.id = %credentials.node, "joined");
    Ok(credentials)
}

fn http_client(
    authority: &Certificate,
    credentials: Option<&Credentials>,
) -> Result<reqwest::Client> {
    let wrong = |error: reqwest::Error| Error::Certificate(error.to_string());
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where an agent makes its client: time limits, one authority, no redirects"
    )]
    let mut builder = reqwest::Client::builder()
        .https_only(true)
        .tls_certs_only([authority.clone()])
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        // A dead connection under a long poll must show before the lease runs out.
        .tcp_keepalive(Duration::from_secs(10))
        .no_proxy();
    if let Some(credentials) = credentials {
        builder = builder.identity(Identity::from_pem(&credentials.identity_pem()).map_err(wrong)?);
    }
    builder.build().map_err(wrong)
}

async fn post(
    http: &reqwest::Client,
    base: &Url,
    call: &'static str,
    body: &impl Serialize,
    within: Duration,
) -> Result<reqwest::Response> {
    let url = base
        .join(&format!("/agent/v1/{call}"))
        .map_err(|error| Error::Configuration(format!("gateway: {error}")))?;
    let response = http
        .post(url)
        .timeout(within)
        .json(body)
        .send()
        .await
        .map_err(|source| Error::Gateway { call, source })?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    Err(refusal(call, status, &text))
}

fn refusal(call: &'static str, status: StatusCode, body: &str) -> Error {
    let (code, message) = match serde_json::from_str(body) {
        Ok(
            Complaint::Plain { code, message }
            | Complaint::Envelope {
                error: Inner { code, message },
            },
        ) => (code, message),
        Err(_) => (String::from("NoBody"), body.chars().take(200).collect()),
    };
    if status == StatusCode::CONFLICT && code == "StaleLease" {
        return Error::StaleLease;
    }
    Error::Refused {
        call,
        status: status.as_u16(),
        code,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_lease_is_told_from_every_other_refusal() {
        let body = r#"{"code":"StaleLease","message":"epoch 2 is newer"}"#;
        assert!(matches!(
            refusal("progress", StatusCode::CONFLICT, body),
            Error::StaleLease
        ));
        let wrapped = r#"{"error":{"code":"StaleLease","message":""}}"#;
        assert!(matches!(
            refusal("report", StatusCode::CONFLICT, wrapped),
            Error::StaleLease
        ));
        let other = refusal("report", StatusCode::FORBIDDEN, r#"{"code":"NodeRevoked"}"#);
        assert!(matches!(other, Error::Refused { status: 403, .. }));
        assert!(matches!(
            refusal("hello", StatusCode::BAD_GATEWAY, "<html>"),
            Error::Refused { status: 502, .. }
        ));
    }
}
