//! The other end of the agent's calls for tests of client and lease: real HTTPS with an authority of its
//! own and client certificates signed from the agent's requests. What to answer is the test's business:
//! it takes calls from a queue, one by one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

pub(crate) struct TestGateway {
    pub(crate) url: String,
    pub(crate) ca_file: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    calls: mpsc::UnboundedReceiver<Call>,
    /// Calls that came while the test waited for another; their callers wait too.
    held: Vec<Call>,
}

/// One call that waits for its answer.
pub(crate) struct Call {
    /// `hello`, `lease`, …
    pub(crate) name: String,
    /// Whether a certificate of our authority was shown.
    pub(crate) certified: bool,
    body: Bytes,
    answer: oneshot::Sender<(u16, Vec<u8>)>,
}

impl Call {
    pub(crate) fn body<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).expect("the agent speaks the protocol")
    }

    pub(crate) fn answer(self, body: &impl Serialize) {
        self.answer_with(200, body);
    }

    pub(crate) fn refuse(self, status: u16, code: &str) {
        self.answer_with(status, &serde_json::json!({ "code": code, "message": "" }));
    }

    /// Ends when the caller has gone without waiting for an answer.
    pub(crate) async fn answer_dropped(mut self) {
        self.answer.closed().await;
    }

    fn answer_with(self, status: u16, body: &impl Serialize) {
        // A caller that was dropped meanwhile does not listen.
        let _ = self
            .answer
            .send((status, serde_json::to_vec(body).expect("JSON")));
    }
}

impl TestGateway {
    pub(crate) async fn open(dir: &Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca_pem = params.self_signed(&key).expect("signed").pem();
        let ca_file = dir.join("ca.pem");
        std::fs::write(&ca_file, &ca_pem).expect("written");
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).expect("ours");

        let server_key = KeyPair::generate().expect("a key");
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .and_then(|params| params.signed_by(&server_key, &issuer))
            .expect("signed");
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("PEM"))
            .expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .expect("a verifier");
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![server.der().clone()],
                PrivateKeyDer::from_pem_slice(server_key.serialize_pem().as_bytes()).expect("PEM"),
            )
            .expect("a certificate with its key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let url = format!("https://{}", listener.local_addr().expect("bound"));
        let (sender, calls) = mpsc::unbounded_channel();
        tokio::spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(config)),
            sender,
        ));
        Self {
            url,
            ca_file,
            issuer,
            calls,
            held: Vec::new(),
        }
    }

    /// The next call of this name. Others before it are held.
    pub(crate) async fn expect(&mut self, name: &str) -> Call {
        self.expect_while(name, |_| None::<fn(Call)>).await
    }

    /// The next call of this name; `answer` says what to do with each other one, or to hold it.
    pub(crate) async fn expect_while<F: FnOnce(Call)>(
        &mut self,
        name: &str,
        mut answer: impl FnMut(&str) -> Option<F>,
    ) -> Call {
        if let Some(at) = self.held.iter().position(|call| call.name == name) {
            return self.held.remove(at);
        }
        loop {
            let call = self.calls.recv().await.expect("the agent still lives");
            if call.name == name {
                return call;
            }
            match answer(&call.name) {
                Some(answer) => answer(call),
                None => self.held.push(call),
            }
        }
    }

    pub(crate) fn sign(&self, certificate_request: &str) -> String {
        CertificateSigningRequestParams::from_pem(certificate_request)
            .and_then(|request| request.signed_by(&self.issuer))
            .expect("a good request")
            .pem()
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, calls: mpsc::UnboundedSender<Call>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, calls) = (tls.clone(), calls.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let certified = stream.get_ref().1.peer_certificates().is_some();
            let service = service_fn(move |request| serve(request, certified, calls.clone()));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn serve(
    request: Request<Incoming>,
    certified: bool,
    calls: mpsc::UnboundedSender<Call>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let (answer, answered) = oneshot::channel();
    let name = path
        .strip_prefix("/agent/v1/")
        .unwrap_or("unknown")
        .to_owned();
    let _ = calls.send(Call {
        name,
        certified,
        body,
        answer,
    });
    let (status, body) = answered.await.unwrap_or((503, b"{}".to_vec()));
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status.try_into().expect("a status");
    Ok(response)
}
