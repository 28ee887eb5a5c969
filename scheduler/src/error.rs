//! What can go wrong in the scheduler's own process. What an agent is told about a wrong call is in
//! `gateway/reply.rs`.

use std::path::PathBuf;

/// The scheduler's result.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} the certificate authority in {}", dir.display())]
    AuthorityFile {
        what: &'static str,
        dir: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{} does not hold a certificate followed by its private key; put the original back, or remove it to make a new authority, which every agent must then join again",
        file.display()
    )]
    AuthorityDamaged { file: PathBuf },
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// What an agent sent is not a PKCS #10 request signed by its own key.
    #[error("the certificate request is not a PKCS #10 request signed by its own key")]
    CertificateRequest,
    #[error("cannot set up TLS for the agent gateway: {0}")]
    Tls(String),
    #[error("cannot accept connections of agents")]
    Listener(#[source] std::io::Error),
    #[error(transparent)]
    ControlPlane(#[from] holdfast_control_plane::Error),
}
