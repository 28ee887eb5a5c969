//! Where agents call: HTTPS on a port of its own, with client certificates of our authority, and the
//! types of `domain/src/job.rs`. Agents pull; nothing here ever calls a node (RELIABILITY §3.2).
//!
//! A route checks that what was said is possible, makes one call of the control plane and answers.
//! Whether the lease stands, and whether job, server and incarnation are the caller's, is decided
//! there, in the transaction that would be wrong otherwise.

mod check;
mod identity;
mod reply;
mod tls;
mod trace;

use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use holdfast_control_plane::ControlPlane;
use holdfast_domain::job::{
    HelloRequest, HelloResponse, Idleness, JoinRequest, JoinResponse, LeaseRequest, LeaseResponse,
    ProgressRequest, ProgressResponse, RenewCertificateRequest, ReportRequest, ValidateRequest,
    ValidateResponse, WalReport, WalReportRequest, WalReportResponse,
};
use holdfast_domain::{BootId, NodeId};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower::timeout::TimeoutLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;

pub use self::identity::Peer;

use self::identity::Caller;
use self::reply::{Body, Refused};
use crate::Result;
use crate::authority::Authority;

/// Bodies of most calls: a hello of a node with thousands of servers.
const BODY_BYTES: usize = 8 << 20;
/// A backup names every pack and leaf, a survey every WAL object.
const LARGE_BODY_BYTES: usize = 64 << 20;
/// From the first byte of a call to the last of its answer; the long poll is below it.
const CALL: Duration = Duration::from_secs(60);
const LONGEST_POLL: Duration = Duration::from_secs(30);
/// A long poll looks again this often whatever the hints say: a job whose back-off has passed makes
/// no hint, and a hint may be lost.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// An agent that asks for more gets the rest with its next call.
const MOST_JOBS: u32 = 64;

/// What the routes work with.
#[derive(Clone)]
pub struct Gateway {
    control_plane: ControlPlane,
    authority: Authority,
    shutdown: CancellationToken,
}

/// Serves agents until `shutdown`. `names` are the names and addresses that agents reach it under.
///
/// # Errors
/// When its certificate cannot be made.
pub async fn serve(
    control_plane: ControlPlane,
    authority: Authority,
    names: &[String],
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<()> {
    let clock = control_plane.clock().clone();
    let router = router(control_plane, authority.clone(), shutdown.clone());
    tls::serve(listener, router, &authority, names, &clock, shutdown).await
}

/// The routes without TLS. The caller's [`Peer`] is expected as an extension of each request.
pub fn router(
    control_plane: ControlPlane,
    authority: Authority,
    shutdown: CancellationToken,
) -> Router {
    let large = DefaultBodyLimit::max(LARGE_BODY_BYTES);
    let layers = ServiceBuilder::new()
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(trace::span)
                .on_request(())
                .on_response(
                    |response: &http::Response<_>, _: Duration, span: &tracing::Span| {
                        span.record("http.response.status_code", response.status().as_u16());
                    },
                ),
        )
        .layer(CatchPanicLayer::new())
        .layer(HandleErrorLayer::new(|_: tower::BoxError| async {
            Refused::timeout()
        }))
        .layer(TimeoutLayer::new(CALL))
        .layer(DefaultBodyLimit::max(BODY_BYTES));
    Router::new()
        .route("/healthz", get(|| async { StatusCode::OK }))
        .route("/agent/v1/join", post(join))
        .route("/agent/v1/renew-certificate", post(renew_certificate))
        .route("/agent/v1/hello", post(hello))
        .route("/agent/v1/lease", post(lease))
        .route("/agent/v1/progress", post(progress))
        .route("/agent/v1/report", post(report).layer(large))
        .route("/agent/v1/validate", post(validate))
        .route("/agent/v1/wal", post(wal).layer(large))
        .fallback(|| async { Refused::not_found() })
        .layer(layers)
        .with_state(Gateway {
            control_plane,
            authority,
            shutdown,
        })
}

type Answer<T> = std::result::Result<Json<T>, Refused>;

/// The only call without a certificate: a token, good once, buys one. The request is read before
/// the token is spent, so a bad one costs nothing.
async fn join(
    State(gateway): State<Gateway>,
    Body(request): Body<JoinRequest>,
) -> Answer<JoinResponse> {
    check::inventory(&request.inventory)?;
    Authority::check_request(&request.certificate_request)?;
    let node = gateway.control_plane.join(&request).await?;
    tracing::info!(node.id = %node, node.name = request.inventory.name, "a node joined");
    gateway.certificate(&request.certificate_request, node)
}

async fn renew_certificate(
    State(gateway): State<Gateway>,
    Caller(node): Caller,
    Body(request): Body<RenewCertificateRequest>,
) -> Answer<JoinResponse> {
    gateway.control_plane.check_node(node).await?;
    gateway.certificate(&request.certificate_request, node)
}

async fn hello(
    State(gateway): State<Gateway>,
    Caller(node): Caller,
    Body(request): Body<HelloRequest>,
) -> Answer<HelloResponse> {
    check::hello(&request)?;
    Ok(Json(gateway.control_plane.hello(node, &request).await?))
}

/// The long poll: for work, and for news of what the agent works on. It listens before it looks, so that
/// what happens in between is not missed.
async fn lease(
    State(gateway): State<Gateway>,
    Caller(node): Caller,
    Body(request): Body<LeaseRequest>,
) -> Answer<LeaseResponse> {
    let capacity = request.capacity.min(MOST_JOBS);
    let running = &request.running[..request.running.len().min(MOST_JOBS as usize)];
    let wait = Duration::from_secs(request.wait_s.into()).min(LONGEST_POLL);
    let until = Instant::now() + wait;
    loop {
        let mut wake = gateway.control_plane.hints().subscribe();
        let jobs = gateway
            .control_plane
            .lease(node, request.boot, capacity)
            .await?;
        let renew = gateway.control_plane.to_renew(node, running).await?;
        let left = until.saturating_duration_since(Instant::now());
        let news = !jobs.is_empty() || !renew.is_empty();
        if news || left.is_zero() || gateway.shutdown.is_cancelled() {
            return Ok(Json(LeaseResponse { jobs, renew }));
        }
        tokio::select! {
            () = wake.jobs(node, left.min(LOOK_AGAIN)) => {}
            () = gateway.shutdown.cancelled() => return Ok(Json(LeaseResponse::default())),
        }
    }
}

async fn progress(
    State(gateway): State<Gateway>,
    Caller(node): Caller,
    Body(request): Body<ProgressRequest>,
) -> Answer<ProgressResponse> {
    note_job(&request.lease.job);
    if let Some(progress) = &request.progress {
        check::progress(progress)?;
    }
    let said = request.progress.as_ref();
    Ok(Json(
        gateway
            .control_plane
            .progress(node, request.lease, said)
            .await?,
    ))
}

async fn report(
    State(gateway): State<Gateway>,
    Caller(node): Caller,
    Body(request): Body<ReportRequest>,
) -> Answer<Value> {
    note_job(&request.lease.job);
    check::result(&request.result, gateway.control_plane.clock().now())?;
    gateway
        .control_plane
        .report(node, request.lease, &request.result)
        .await?;
    Ok(Json(json!({})))
}

async fn validate(
    State(gateway): State<Gateway>,
    Caller(node): Caller,
    Body(request): Body<ValidateRequest>,
) -> Answer<ValidateResponse> {
    note_job(&request.lease.job);
    check::keys(&request.keys)?;
    let may_delete = gateway
        .control_plane
        .validate(node, request.lease, &request.keys)
        .await?;
    Ok(Json(ValidateResponse { may_delete }))
}

/// What one server's stream says does not keep the others' from being known.
async fn wal(
    State(gateway): State<Gateway>,
    Caller(node): Caller,
    Body(request): Body<WalReportRequest>,
) -> Answer<WalReportResponse> {
    let Idleness {
        ended,
        begun,
        until,
    } = &request.idleness;
    // A node that was revoked is to know it, whatever it has to say.
    gateway.control_plane.check_node(node).await?;
    check::idle_until(*until, gateway.control_plane.clock().now())?;
    if !ended.is_empty() {
        gateway
            .control_plane
            .end_idleness(node, request.boot, ended)
            .await?;
    }
    let mut refused = Vec::new();
    for report in &request.reports {
        if let Err(refusal) = gateway.take_in(node, request.boot, report).await {
            if refusal.concerns_the_call() {
                return Err(refusal);
            }
            refused.push(refusal.of(report.incarnation));
        }
    }
    if !begun.is_empty() || until.is_some() {
        gateway
            .control_plane
            .idle(node, request.boot, begun, *until)
            .await?;
    }
    Ok(Json(WalReportResponse { refused }))
}

fn note_job(job: &holdfast_domain::JobId) {
    tracing::Span::current().record("job.id", tracing::field::display(job));
}

impl Gateway {
    async fn take_in(
        &self,
        node: NodeId,
        boot: BootId,
        report: &WalReport,
    ) -> std::result::Result<(), Refused> {
        check::wal(report, self.control_plane.clock().now())?;
        self.control_plane.wal_report(node, boot, report).await?;
        Ok(())
    }

    fn certificate(&self, request: &str, node: NodeId) -> Answer<JoinResponse> {
        let now = self.control_plane.clock().now();
        let signed = self.authority.sign_agent(request, node, now)?;
        Ok(Json(JoinResponse {
            node,
            certificate: signed.certificate_pem,
            expires: signed.expires,
        }))
    }
}
