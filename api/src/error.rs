//! What can keep the API from starting or from serving. What it answers to a caller is
//! [`crate::arm::ArmError`].

use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the token keys in {} cannot be used: {reason}", path.display())]
    Jwks { path: PathBuf, reason: String },
    #[error("the issuer's key cannot be used")]
    Key(#[source] rcgen::Error),
    #[error("a token cannot be signed")]
    Mint(#[source] jsonwebtoken::errors::Error),
    #[error("cannot read or write {}", path.display())]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the public address '{0}' is not an http or https address without path and query")]
    PublicUrl(String),
    #[error("the key that seals list positions cannot be used")]
    Seal,
    #[error("plain http is served on loopback addresses only, not on {0}; configure a certificate")]
    PlainHttp(SocketAddr),
    #[error("cannot use the certificate or its key")]
    Tls(#[from] rustls::Error),
    #[error("cannot accept connections")]
    Listen(#[source] std::io::Error),
}
