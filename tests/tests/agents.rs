//! The agent port over real TLS: who gets in, and what is said to the others.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use chrono::TimeDelta;
use holdfast_domain::job::{
    HelloResponse, Idleness, JobKind, JobResult, JoinRequest, JoinResponse, LeaseRef, LeaseRequest,
    LeaseResponse, NodeInventory, Power, Progress, ProgressRequest, RenewCertificateRequest,
    ReportRequest, WalReport, WalReportRequest, WalReportResponse,
};
use holdfast_domain::{IncarnationId, Lsn, NodeId, Timeline};
use holdfast_scheduler::{Authority, gateway};
use holdfast_tests::harness::{Harness, REGION, at, caller, request, wish};
use holdfast_tests::scripted_node::Deed;
use reqwest::{Certificate, Client, Identity};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A gateway, served until the test ends.
struct Gateway {
    harness: Harness,
    address: SocketAddr,
    authority: Authority,
    shutdown: CancellationToken,
    served: Option<tokio::task::JoinHandle<holdfast_scheduler::Result<()>>>,
    _ends_with_the_test: DropGuard,
    _folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    fn refusal(&self) -> (u16, &str) {
        (self.status, self.body["code"].as_str().unwrap_or_default())
    }

    /// What was not kept of WAL news, and why.
    fn refused_news(&self) -> Vec<(IncarnationId, String)> {
        assert_eq!(self.status, 200, "{self:?}");
        let answer: WalReportResponse =
            serde_json::from_value(self.body.clone()).expect("an answer to news");
        let refused = answer.refused.into_iter();
        refused.map(|one| (one.incarnation, one.code)).collect()
    }
}

/// A key and what its holder shows.
struct Credentials {
    key: rcgen::KeyPair,
}

impl Credentials {
    fn new() -> Result<Self> {
        Ok(Self {
            key: rcgen::KeyPair::generate()?,
        })
    }

    fn request(&self) -> Result<String> {
        let request = rcgen::CertificateParams::default().serialize_request(&self.key)?;
        Ok(request.pem()?)
    }

    fn with(&self, certificate: &str) -> String {
        format!("{certificate}{}", self.key.serialize_pem())
    }
}

impl Gateway {
    async fn start() -> Result<Self> {
        let harness = Harness::beginning_now().await?;
        let folder = tempfile::tempdir()?;
        let authority = Authority::open_or_create(folder.path(), harness.now())?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shutdown = CancellationToken::new();
        let served = tokio::spawn({
            let (control_plane, authority) = (harness.control_plane.clone(), authority.clone());
            let shutdown = shutdown.clone();
            async move {
                let names = ["127.0.0.1".to_owned()];
                gateway::serve(control_plane, authority, &names, listener, shutdown).await
            }
        });
        Ok(Self {
            harness,
            address,
            authority,
            _ends_with_the_test: shutdown.clone().drop_guard(),
            shutdown,
            served: Some(served),
            _folder: folder,
        })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place that makes the test's clients"
    )]
    fn client(&self, identity: Option<&str>) -> Result<Client> {
        let mut client = Client::builder()
            .tls_certs_only([Certificate::from_pem(self.authority.ca_pem().as_bytes())?]);
        if let Some(identity) = identity {
            client = client.identity(Identity::from_pem(identity.as_bytes())?);
        }
        Ok(client.build()?)
    }

    async fn call(&self, client: &Client, call: &str, body: &impl Serialize) -> Result<Answer> {
        let url = format!("https://{}/agent/v1/{call}", self.address);
        let response = client.post(url).json(body).send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body = serde_json::from_str(&text).with_context(|| format!("{status}: {text}"))?;
        Ok(Answer { status, body })
    }

    /// A stream's news without objects.
    fn news(&self, node: usize, incarnation: IncarnationId, durable: Lsn) -> WalReportRequest {
        WalReportRequest {
            idleness: Idleness::default(),
            boot: self.harness.nodes[node].boot,
            reports: vec![WalReport {
                incarnation,
                timeline: Timeline::FIRST,
                durable,
                objects: vec![],
                superseded: vec![],
                timelines: vec![],
                caught_up_at: None,
                last_counting: None,
                held_bytes: 0,
                gap: None,
            }],
        }
    }

    /// A client with the certificate of a node that the harness has.
    fn client_of(&self, node: NodeId) -> Result<Client> {
        let credentials = Credentials::new()?;
        let signed =
            self.authority
                .sign_agent(&credentials.request()?, node, self.harness.now())?;
        self.client(Some(&credentials.with(&signed.certificate_pem)))
    }

    async fn join(&self, token: &str, region: &str) -> Result<(Credentials, Answer)> {
        let credentials = Credentials::new()?;
        let request = JoinRequest {
            token: token.to_owned(),
            certificate_request: credentials.request()?,
            inventory: NodeInventory {
                name: "newcomer".to_owned(),
                region: region.to_owned(),
                zone: Some("2".to_owned()),
                ..self.harness.nodes[0].inventory.clone()
            },
        };
        let answer = self.call(&self.client(None)?, "join", &request).await?;
        Ok((credentials, answer))
    }

    async fn token(&self) -> Result<String> {
        let life = TimeDelta::hours(1);
        let control_plane = &self.harness.control_plane;
        Ok(control_plane
            .issue_join_token("newcomer", REGION, Some("2"), life)
            .await?)
    }
}

fn poll(harness: &Harness) -> LeaseRequest {
    LeaseRequest {
        boot: harness.nodes[0].boot,
        capacity: 4,
        wait_s: 0,
        running: Vec::new(),
    }
}

#[tokio::test]
async fn a_node_joins_once_and_is_known_by_its_certificate() -> Result<()> {
    // RELIABILITY §4.9 row 39
    let gateway = Gateway::start().await?;
    let token = gateway.token().await?;
    let (credentials, joined) = gateway.join(&token, REGION).await?;
    assert_eq!(joined.status, 200, "{joined:?}");
    let joined: JoinResponse = serde_json::from_value(joined.body)?;
    assert_eq!(joined.expires, gateway.harness.now() + TimeDelta::hours(24));

    let client = gateway.client(Some(&credentials.with(&joined.certificate)))?;
    let hello = json!({
        "boot": gateway.harness.nodes[0].boot,
        "inventory": NodeInventory {
            name: "newcomer".to_owned(),
            zone: Some("2".to_owned()),
            ..gateway.harness.nodes[0].inventory.clone()
        },
        "servers": [],
    });
    let answer = gateway.call(&client, "hello", &hello).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer: HelloResponse = serde_json::from_value(answer.body)?;
    assert_eq!((answer.node, answer.servers.len()), (joined.node, 0));

    let renewal = RenewCertificateRequest {
        certificate_request: credentials.request()?,
    };
    let renewed = gateway.call(&client, "renew-certificate", &renewal).await?;
    let renewed: JoinResponse = serde_json::from_value(renewed.body)?;
    assert_eq!(renewed.node, joined.node);
    assert_ne!(renewed.certificate, joined.certificate);

    let (_, again) = gateway.join(&token, REGION).await?;
    assert_eq!(again.refusal(), (403, "JoinRefused"));
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_shared_lets_exactly_one_in() -> Result<()> {
    // RELIABILITY §4.9 row 39
    let gateway = Gateway::start().await?;
    let token = gateway.token().await?;
    let joins = (0..8).map(|_| gateway.join(&token, REGION));
    let mut let_in = 0;
    for joined in futures::future::join_all(joins).await {
        match joined?.1 {
            answer if answer.status == 200 => let_in += 1,
            answer => assert_eq!(answer.refusal(), (403, "JoinRefused")),
        }
    }
    assert_eq!(let_in, 1);
    Ok(())
}

#[tokio::test]
async fn a_token_is_for_one_place_and_one_hour_and_is_not_spent_by_a_bad_request() -> Result<()> {
    // RELIABILITY §4.9 row 39
    let gateway = Gateway::start().await?;
    let token = gateway.token().await?;
    let (_, elsewhere) = gateway.join(&token, "northcentralus").await?;
    assert_eq!(elsewhere.refusal(), (403, "JoinRefused"));
    let (_, guessed) = gateway.join(&"0".repeat(64), REGION).await?;
    assert_eq!(guessed.refusal(), (403, "JoinRefused"));

    let nonsense = JoinRequest {
        token: token.clone(),
        certificate_request: "no PEM".to_owned(),
        inventory: gateway.harness.nodes[0].inventory.clone(),
    };
    let refused = gateway
        .call(&gateway.client(None)?, "join", &nonsense)
        .await?;
    assert_eq!(refused.refusal(), (400, "InvalidRequest"));

    gateway.harness.advance(TimeDelta::minutes(59)).await?;
    assert_eq!(gateway.join(&token, REGION).await?.1.status, 200);
    let late = gateway.token().await?;
    gateway.harness.advance(TimeDelta::minutes(61)).await?;
    assert_eq!(
        gateway.join(&late, REGION).await?.1.refusal(),
        (403, "JoinRefused")
    );
    Ok(())
}

#[tokio::test]
async fn without_a_certificate_of_ours_nothing_is_leased() -> Result<()> {
    // RELIABILITY §4.9 row 37
    let gateway = Gateway::start().await?;
    let node = gateway.harness.nodes[0].id;
    let body = poll(&gateway.harness);

    let bare = gateway.call(&gateway.client(None)?, "lease", &body).await?;
    assert_eq!(bare.refusal(), (403, "ClientCertificateRequired"));

    let known = gateway.client_of(node)?;
    assert_eq!(gateway.call(&known, "lease", &body).await?.status, 200);

    let never_joined = gateway.client_of(NodeId::new())?;
    let refused = gateway.call(&never_joined, "lease", &body).await?;
    assert_eq!(refused.refusal(), (403, "NodeNotKnown"));

    // Another authority, with the right name in it.
    let folder = tempfile::tempdir()?;
    let other = Authority::open_or_create(folder.path(), gateway.harness.now())?;
    let credentials = Credentials::new()?;
    let forged = other.sign_agent(&credentials.request()?, node, gateway.harness.now())?;
    let forged = gateway.client(Some(&credentials.with(&forged.certificate_pem)))?;
    assert!(
        gateway.call(&forged, "lease", &body).await.is_err(),
        "TLS refuses it"
    );

    // A server's certificate of ours is no client's.
    let server = gateway
        .authority
        .server_certificate(&["x".to_owned()], gateway.harness.now())?;
    let server = format!("{}{}", server.certificate_pem, server.key_pem);
    let server = gateway.client(Some(&server))?;
    assert!(
        gateway.call(&server, "lease", &body).await.is_err(),
        "TLS refuses it"
    );
    Ok(())
}

#[tokio::test]
async fn a_certificate_ends_after_a_day_on_open_connections_too() -> Result<()> {
    // RELIABILITY §4.3
    let gateway = Gateway::start().await?;
    let body = poll(&gateway.harness);
    let client = gateway.client_of(gateway.harness.nodes[0].id)?;
    assert_eq!(gateway.call(&client, "lease", &body).await?.status, 200);
    gateway.harness.advance(TimeDelta::hours(25)).await?;
    let open = gateway.call(&client, "lease", &body).await;
    if let Ok(answer) = open {
        assert_eq!(answer.refusal(), (403, "ClientCertificateRequired"));
    }
    Ok(())
}

#[tokio::test]
async fn a_revoked_node_is_heard_no_more() -> Result<()> {
    // RELIABILITY §4.9 row 37
    let gateway = Gateway::start().await?;
    let node = gateway.harness.nodes[0].id;
    let client = gateway.client_of(node)?;
    let body = poll(&gateway.harness);
    assert_eq!(gateway.call(&client, "lease", &body).await?.status, 200);
    assert!(gateway.harness.control_plane.revoke_node(node).await?);
    for (call, body) in [
        ("lease", serde_json::to_value(&body)?),
        (
            "wal",
            json!({"boot": gateway.harness.nodes[0].boot, "reports": []}),
        ),
        (
            "renew-certificate",
            json!({"certificate_request": Credentials::new()?.request()?}),
        ),
    ] {
        let refused = gateway.call(&client, call, &body).await?;
        assert_eq!(refused.refusal(), (403, "NodeNotKnown"), "{call}");
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_true_is_refused_and_changes_nothing() -> Result<()> {
    // RELIABILITY §4.9 rows 38, 40; F70, F71
    let mut gateway = Gateway::start().await?;
    gateway.harness.create("pg1").await?;
    let incarnation = gateway.harness.incarnation("pg1").await?;
    let (own, other) = (gateway.harness.nodes[0].id, gateway.harness.nodes[1].id);
    let client = gateway.client_of(own)?;
    let before = gateway.harness.server("pg1").await?;
    let huge = gateway
        .call(&client, "wal", &gateway.news(0, incarnation, Lsn(u64::MAX)))
        .await?;
    assert_eq!(
        huge.refused_news(),
        [(incarnation, "InvalidRequest".into())]
    );

    // Another node's server.
    let stranger = gateway.client_of(other)?;
    let foreign = gateway.news(1, incarnation, Lsn(0x0500_0000));
    let foreign = gateway.call(&stranger, "wal", &foreign).await?;
    assert_eq!(foreign.refused_news(), [(incarnation, "StaleLease".into())]);

    let garbage = gateway
        .call(&client, "wal", &json!({"boot": "x", "reports": -1}))
        .await?;
    assert_eq!(garbage.refusal(), (400, "InvalidRequest"));
    let after = gateway.harness.server("pg1").await?;
    assert_eq!(after.latest_restore, before.latest_restore);
    Ok(())
}

#[tokio::test]
async fn one_refused_report_does_not_hold_up_the_others() -> Result<()> {
    let mut gateway = Gateway::start().await?;
    gateway.harness.create("pg1").await?;
    let client = gateway.client_of(gateway.harness.nodes[0].id)?;
    let before = gateway.harness.server("pg1").await?.latest_restore;
    gateway.harness.advance(TimeDelta::minutes(3)).await?;
    gateway.harness.write("pg1").await?;
    let bad = [IncarnationId::new(), IncarnationId::new()];
    let mut news = gateway.news(0, bad[0], Lsn(8));
    let absurd = gateway.news(0, bad[1], Lsn(u64::MAX));
    news.reports.extend(absurd.reports);
    let now = gateway.harness.now();
    news.reports.extend(gateway.harness.nodes[0].news(now));
    let answer = gateway.call(&client, "wal", &news).await?;
    assert_eq!(
        answer.refused_news(),
        [
            (bad[0], "StaleLease".into()),
            (bad[1], "InvalidRequest".into())
        ]
    );
    let after = gateway.harness.server("pg1").await?.latest_restore;
    assert!(after > before, "{after:?} is not later than {before:?}");
    Ok(())
}

#[tokio::test]
async fn a_long_poll_is_answered_when_work_comes_and_a_stale_report_is_refused() -> Result<()> {
    // RELIABILITY §3.2, §4.9 row 38
    let mut gateway = Gateway::start().await?;
    let node = gateway.harness.nodes[0].id;
    let client = gateway.client_of(node)?;
    let waiting = tokio::spawn({
        let request = LeaseRequest {
            wait_s: 30,
            ..poll(&gateway.harness)
        };
        let url = format!("https://{}/agent/v1/lease", gateway.address);
        let client = client.clone();
        async move {
            client
                .post(url)
                .json(&request)
                .send()
                .await?
                .json::<LeaseResponse>()
                .await
        }
    });
    gateway.harness.nodes[0]
        .script
        .insert(JobKind::Provision, Deed::Abandon);
    gateway.harness.request_create("pg1", &wish()).await?;
    holdfast_scheduler::run_once(&gateway.harness.control_plane).await?;
    let leased = waiting.await??;
    assert_eq!(leased.jobs.len(), 1);
    let job = &leased.jobs[0];
    let lease = gateway.harness.nodes[0].lease_of(job);

    let progress = ProgressRequest {
        lease,
        progress: Some(Progress::default()),
    };
    assert_eq!(
        gateway.call(&client, "progress", &progress).await?.status,
        200
    );
    let stale = ReportRequest {
        lease: LeaseRef {
            epoch: job.epoch + 1,
            ..lease
        },
        result: JobResult::Canceled,
    };
    let refused = gateway.call(&client, "report", &stale).await?;
    assert_eq!(refused.refusal(), (409, "StaleLease"));
    Ok(())
}

#[tokio::test]
async fn a_long_poll_is_answered_when_a_job_is_not_wanted_any_more() -> Result<()> {
    // DESIGN §2: a stop cancels a running automatic backup
    let mut gateway = Gateway::start().await?;
    let client = gateway.client_of(gateway.harness.nodes[0].id)?;
    let node = &mut gateway.harness.nodes[0];
    node.script.insert(JobKind::Snapshot, Deed::Abandon);
    gateway.harness.request_create("pg1", &wish()).await?;
    gateway.harness.run_until_idle().await?;
    let node = &gateway.harness.nodes[0];
    let running = node.abandoned.first().context("the first backup runs")?;
    let lease = node.lease_of(running);
    let older = LeaseRef {
        epoch: lease.epoch - 1,
        ..lease
    };
    let ask = |capacity, wait_s, running| LeaseRequest {
        capacity,
        wait_s,
        running,
        ..poll(&gateway.harness)
    };
    let calm = ask(0, 0, vec![lease]);
    assert_eq!(
        gateway.call(&client, "lease", &calm).await?.body,
        json!({"jobs": []})
    );
    let overtaken = ask(0, 30, vec![older]);
    assert_eq!(
        gateway.call(&client, "lease", &overtaken).await?.body,
        json!({"jobs": [], "renew": [lease.job]})
    );
    let waiting = ask(0, 30, vec![lease]);
    let (who, how) = (caller(), request("POST", "pg1/stop"));
    let control_plane = &gateway.harness.control_plane;
    let stopping = control_plane.power_server(&who, at("pg1"), Power::Stopped, &how);
    let (answer, stopped) = tokio::join!(gateway.call(&client, "lease", &waiting), async {
        tokio::task::yield_now().await;
        stopping.await
    });
    stopped?;
    assert_eq!(answer?.body, json!({"jobs": [], "renew": [lease.job]}));
    Ok(())
}

#[tokio::test]
async fn a_stopping_gateway_lets_its_long_polls_go() -> Result<()> {
    let mut gateway = Gateway::start().await?;
    let served = gateway.served.take().context("it was started")?;
    let client = gateway.client_of(gateway.harness.nodes[0].id)?;
    // The connection is there before the poll that is to be cut short.
    gateway
        .call(&client, "lease", &poll(&gateway.harness))
        .await?;
    let request = LeaseRequest {
        wait_s: 30,
        ..poll(&gateway.harness)
    };
    let started = tokio::time::Instant::now();
    let (answer, served) = tokio::join!(gateway.call(&client, "lease", &request), async {
        gateway.shutdown.cancel();
        served.await
    });
    served??;
    assert!(started.elapsed() < std::time::Duration::from_secs(15));
    // Either answered with nothing, or not accepted any more.
    if let Ok(answer) = answer {
        assert_eq!(answer.body, json!({"jobs": []}));
    }
    Ok(())
}
