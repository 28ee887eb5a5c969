//! Client and lease against a real HTTPS end: joining, renewing, and every way in which a job must stop.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::TimeDelta;
use holdfast_domain::job::{
    HelloRequest, HelloResponse, JobOutcome, JobResult, JobSpec, JoinRequest, JoinResponse,
    LeaseRequest, LeaseResponse, LeasedJob, ProgressRequest, ProgressResponse, PruneOutcome,
    PruneSpec, RenewCertificateRequest, ReportRequest, ValidateRequest, ValidateResponse, VaultRef,
};
use holdfast_domain::leavings::{EndedAttempts, Leavings};
use holdfast_domain::{BackupId, BootId, IncarnationId, JobId, NodeId, VaultId};
use holdfast_vault::layout;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::Gateway;
use crate::clock::Clock;
use crate::error::Error;
use crate::gateway_fixture::{Call, TestGateway};
use crate::lease;
use crate::node_fixture::{TestNode, config};

/// An agent's lease loop against a gateway that the test plays.
struct Site {
    gateway: TestGateway,
    test: TestNode,
    incarnation: IncarnationId,
    shutdown: CancellationToken,
    agent: JoinHandle<()>,
}

async fn joined(gateway: &mut TestGateway, test: &TestNode, clock: Clock) -> Gateway {
    let mut config = config(test.root.path());
    config.gateway = gateway.url.parse().expect("a URL");
    config.ca_file = gateway.ca_file.clone();
    config.join_token_file = Some(test.root.path().join("token"));
    std::fs::write(test.root.path().join("token"), "once\n").expect("written");
    let inventory = test.node.inventory().expect("looked");
    let play = async {
        let call = gateway.expect("join").await;
        assert!(!call.certified);
        let request: JoinRequest = call.body();
        assert_eq!(request.token, "once");
        let certificate = gateway.sign(&request.certificate_request);
        call.answer(&JoinResponse {
            node: NodeId::new(),
            certificate,
            expires: Clock::system().now() + TimeDelta::hours(24),
        });
    };
    let (connected, ()) = tokio::join!(Gateway::connect(&config, clock, inventory), play);
    connected.expect("joined")
}

impl Site {
    async fn open() -> Self {
        let test = TestNode::open().await;
        let mut gateway = TestGateway::open(test.root.path()).await;
        let client = Arc::new(joined(&mut gateway, &test, Clock::system()).await);
        let shutdown = CancellationToken::new();
        let agent = tokio::spawn(lease::serve(
            Arc::clone(&test.node),
            client,
            BootId::new(),
            4,
            shutdown.clone(),
        ));
        Self {
            gateway,
            test,
            incarnation: IncarnationId::new(),
            shutdown,
            agent,
        }
    }

    /// A job that asks before it deletes: it stands still until that question is answered.
    fn job(&self, job: JobId, epoch: i64, lease_s: u32) -> LeasedJob {
        LeasedJob {
            job,
            epoch,
            operation: None,
            lease_s,
            attempt: 1,
            spec: JobSpec::Prune(PruneSpec {
                incarnation: self.incarnation,
                vault: VaultRef {
                    id: VaultId::new(),
                    url: format!("file://{}", self.test.root.path().join("vault").display()),
                },
                keys: vec![format!("packs/{}/a", self.incarnation)],
                leavings: Leavings::Nowhere,
            }),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        }
    }

    async fn give(&mut self, job: LeasedJob) {
        let call = self.gateway.expect("lease").await;
        assert!(call.certified, "only a client certificate leases");
        let request: LeaseRequest = call.body();
        assert!(request.capacity >= 1 && request.wait_s <= 30);
        call.answer(&LeaseResponse {
            jobs: vec![job],
            renew: Vec::new(),
        });
    }

    /// Lets renewals pass until a call of this name comes.
    async fn until(&mut self, name: &str) -> Call {
        self.gateway
            .expect_while(name, |other| (other == "progress").then_some(renewed))
            .await
    }

    async fn end(self) {
        self.shutdown.cancel();
        drop(self.gateway);
        self.agent.await.expect("it ends");
        self.test.end().await;
    }
}

fn renewed(call: Call) {
    let request: ProgressRequest = call.body();
    assert!(request.lease.epoch > 0);
    call.answer(&ProgressResponse {
        cancel: false,
        lease_s: 60,
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_renews_its_certificate_at_two_thirds_and_joins_again_when_it_ran_out() {
    let test = TestNode::open().await;
    let mut gateway = TestGateway::open(test.root.path()).await;
    let (clock, hand) = Clock::manual(Clock::system().now());
    let client = joined(&mut gateway, &test, clock).await;
    let inventory = test.node.inventory().expect("looked");
    let renew = || client.renew_if_due(&inventory);
    renew().await.expect("nothing is due");
    hand.advance(TimeDelta::hours(17));
    let play = async {
        let call = gateway.expect("renew-certificate").await;
        assert!(call.certified);
        let request: RenewCertificateRequest = call.body();
        let certificate = gateway.sign(&request.certificate_request);
        call.answer(&JoinResponse {
            node: client.node(),
            certificate,
            expires: hand.now() + TimeDelta::hours(24),
        });
        let call = gateway.expect("hello").await;
        assert!(call.certified, "under the new certificate");
        call.answer(&HelloResponse {
            node: client.node(),
            servers: Vec::new(),
        });
    };
    let ask = async {
        renew().await.expect("renewed");
        let request = HelloRequest {
            boot: BootId::new(),
            inventory: inventory.clone(),
            servers: Vec::new(),
        };
        client.hello(&request).await.expect("answered");
    };
    tokio::join!(play, ask);

    // The machine slept for a day.
    hand.advance(TimeDelta::hours(25));
    std::fs::write(test.root.path().join("token"), "again\n").expect("written");
    let play = async {
        let call = gateway.expect("join").await;
        assert!(!call.certified);
        let request: JoinRequest = call.body();
        assert_eq!(request.token, "again");
        call.answer(&JoinResponse {
            node: client.node(),
            certificate: gateway.sign(&request.certificate_request),
            expires: hand.now() + TimeDelta::hours(24),
        });
    };
    let (joined, ()) = tokio::join!(renew(), play);
    joined.expect("joined");
    renew().await.expect("nothing is due");
    test.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_another_authoritys_certificate_is_not_spoken_to() {
    let test = TestNode::open().await;
    let gateway = TestGateway::open(test.root.path()).await;
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let other = TestGateway::open(elsewhere.path()).await;
    let mut config = config(test.root.path());
    config.gateway = gateway.url.parse().expect("a URL");
    config.ca_file = other.ca_file.clone();
    config.join_token_file = Some(other.ca_file.clone());
    let inventory = test.node.inventory().expect("looked");
    let error = Gateway::connect(&config, Clock::system(), inventory)
        .await
        .expect_err("refused");
    assert!(
        matches!(error, Error::Gateway { call: "join", .. }),
        "{error}"
    );
    test.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_job_is_done_and_reported_under_its_epoch() {
    let mut site = Site::open().await;
    let job = JobId::new();
    site.give(site.job(job, 7, 60)).await;
    let call = site.until("validate").await;
    let request: ValidateRequest = call.body();
    assert_eq!((request.lease.job, request.lease.epoch), (job, 7));
    // A pin was made meanwhile: nothing may go, and nothing goes.
    call.answer(&serde_json::json!({ "may_delete": [] }));
    let call = site.until("report").await;
    let report: ReportRequest = call.body();
    assert_eq!(report.lease.epoch, 7);
    assert!(matches!(report.result, JobResult::Done(_)), "{report:?}");
    // A report that was not heard is sent again, and heard.
    call.refuse(503, "ServiceUnavailable");
    let call = site.until("report").await;
    assert_eq!(call.body::<ReportRequest>().result, report.result);
    call.answer(&serde_json::json!({}));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_stops_and_says_so() {
    let mut site = Site::open().await;
    site.give(site.job(JobId::new(), 1, 60)).await;
    let renewal = site.gateway.expect("progress").await;
    renewal.answer(&ProgressResponse {
        cancel: true,
        lease_s: 60,
    });
    let call = site.until("report").await;
    assert_eq!(call.body::<ReportRequest>().result, JobResult::Canceled);
    call.answer(&serde_json::json!({}));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_which_the_scheduler_has_news_is_renewed_at_once() {
    let mut site = Site::open().await;
    let (job, other) = (JobId::new(), JobId::new());
    site.give(site.job(job, 3, 3600)).await;
    let question = site.until("validate").await;
    // The first renewal went out at the beginning; the next one would come in a quarter of an hour.
    let call = site.until("lease").await;
    let asked: LeaseRequest = call.body();
    let named: Vec<_> = asked
        .running
        .iter()
        .map(|one| (one.job, one.epoch))
        .collect();
    assert_eq!(named, [(job, 3)]);
    let gone = question.answer_dropped();
    call.answer(&LeaseResponse {
        jobs: Vec::new(),
        renew: vec![other, job],
    });
    let renewal = site.gateway.expect_while("progress", |other| {
        // Said once: a poll that named it again would be answered at once, for ever.
        (other == "lease").then_some(|call: Call| {
            assert!(call.body::<LeaseRequest>().running.is_empty());
            drop(call);
        })
    });
    renewal.await.answer(&ProgressResponse {
        cancel: true,
        lease_s: 3600,
    });
    gone.await;
    let call = site.gateway.expect_while("report", |other| {
        (other == "lease").then_some(drop as fn(Call))
    });
    let call = call.await;
    assert_eq!(call.body::<ReportRequest>().result, JobResult::Canceled);
    call.answer(&serde_json::json!({}));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_looks_for_leavings_only_where_it_is_told_and_leaves_what_it_may_not_delete() {
    // RELIABILITY §5.6
    let mut site = Site::open().await;
    let life = site.incarnation;
    let (dead, alive, failed) = (JobId::new(), JobId::new(), BackupId::new());
    let manifest = layout::manifest(life, failed, 1);
    let leaf = layout::leaves(life, dead, 2, 0);
    let adopted = layout::pack(life, dead, 1, 0);
    let listed = format!("packs/{life}/a");
    let untouched = [
        layout::pack(life, alive, 1, 0),
        layout::pack(life, dead, 3, 0),
        layout::manifest(life, BackupId::new(), 1),
        layout::pack(IncarnationId::new(), dead, 1, 0),
    ];
    let mut job = site.job(JobId::new(), 1, 60);
    let JobSpec::Prune(spec) = &mut job.spec else {
        panic!("a prune")
    };
    spec.leavings = Leavings::Attempts(vec![EndedAttempts {
        job: dead,
        epoch: 2,
        failed_backup: Some(failed),
    }]);
    let store = site.test.node.stores(std::slice::from_ref(&spec.vault));
    let store = store.expect("opens").remove(0);
    for key in [&manifest, &leaf, &adopted, &listed]
        .into_iter()
        .chain(&untouched)
    {
        let content = Bytes::from_static(b"12345");
        store.put_new(key, content).await.expect("put");
    }
    site.give(job).await;
    let mut asked = Vec::new();
    for _ in 0..4 {
        let call = site.until("validate").await;
        let request: ValidateRequest = call.body();
        let may_delete = request.keys.iter().filter(|key| **key != adopted);
        let may_delete = may_delete.cloned().collect();
        asked.extend(request.keys);
        call.answer(&ValidateResponse { may_delete });
    }
    let call = site.until("report").await;
    let result = call.body::<ReportRequest>().result;
    call.answer(&serde_json::json!({}));
    assert_eq!(
        asked,
        [&manifest, &adopted, &leaf, &listed].map(Clone::clone)
    );
    let done = JobResult::Done(JobOutcome::Prune(PruneOutcome {
        deleted: vec![manifest, leaf, listed],
        bytes_freed: 15,
        left: 1,
    }));
    assert_eq!(result, done);
    for key in untouched.iter().chain([&adopted]) {
        assert_eq!(store.head(key).await.expect("still there"), 5);
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_lease_is_stale_or_silent_stops_without_a_report() {
    let mut site = Site::open().await;
    // Refused by epoch.
    site.give(site.job(JobId::new(), 1, 60)).await;
    let question = site.gateway.expect("validate").await;
    site.gateway
        .expect("progress")
        .await
        .refuse(409, "StaleLease");
    let first_gone = question.answer_dropped();
    // Not answered at all, and a lease of two seconds.
    site.give(site.job(JobId::new(), 1, 2)).await;
    let second_gone = site.gateway.expect("validate").await.answer_dropped();
    let watch = async {
        first_gone.await;
        second_gone.await;
    };
    let judged = async {
        tokio::select! {
            () = watch => {}
            _ = site.gateway.expect("report") => panic!("nobody may report without a lease"),
        }
    };
    tokio::time::timeout(Duration::from_secs(30), judged)
        .await
        .expect("the work has stopped");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_leased_again_never_runs_twice_at_once() {
    let mut site = Site::open().await;
    let job = JobId::new();
    site.give(site.job(job, 1, 60)).await;
    let first = site.until("validate").await;
    site.give(site.job(job, 2, 60)).await;
    let first_gone = first.answer_dropped();
    let second = site.until("validate").await;
    assert_eq!(second.body::<ValidateRequest>().lease.epoch, 2);
    // The first attempt had ended before the second asked.
    tokio::time::timeout(Duration::from_secs(5), first_gone)
        .await
        .expect("it is gone");
    second.answer(&serde_json::json!({ "may_delete": [] }));
    let report = site.until("report").await;
    assert_eq!(report.body::<ReportRequest>().lease.epoch, 2);
    report.answer(&serde_json::json!({}));
    site.end().await;
}
