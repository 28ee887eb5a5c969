//! Who this node is to the scheduler: a key that never leaves the machine and a short-lived client
//! certificate for it (RELIABILITY §4.3).
//!
//! The key is made here, the certificate comes from the control plane's authority against a one-time
//! token, and is renewed at two thirds of its life. Both are files that only the agent can read.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use holdfast_domain::NodeId;
use holdfast_domain::job::JoinResponse;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const FILE: &str = "node.json";

/// What a node shows the scheduler. The private key is in here: never printed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    pub node: NodeId,
    pub certificate: String,
    private_key: String,
    pub issued: DateTime<Utc>,
    pub expires: DateTime<Utc>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, until {})", self.node, self.expires)
    }
}

/// A key and the request for a certificate over it, not yet answered.
pub struct Request {
    key: KeyPair,
    /// PKCS #10, PEM.
    pub certificate_request: String,
}

impl Request {
    pub fn new(node_name: &str) -> Result<Self> {
        let wrong = |error: rcgen::Error| Error::Certificate(error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(wrong)?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, node_name);
        let certificate_request = params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(wrong)?;
        Ok(Self {
            key,
            certificate_request,
        })
    }

    #[must_use]
    pub fn answered(self, answer: JoinResponse, now: DateTime<Utc>) -> Credentials {
        Credentials {
            node: answer.node,
            certificate: answer.certificate,
            private_key: self.key.serialize_pem(),
            issued: now,
            expires: answer.expires,
        }
    }
}

impl Credentials {
    /// `None` when the node never joined.
    pub fn load(state_dir: &Path) -> Result<Option<Self>> {
        let path = state_dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::Certificate(format!("{FILE} cannot be read: {error}")))
    }

    pub fn save(&self, state_dir: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::Certificate(format!("{FILE} cannot be written: {error}")))?;
        replace_private(&state_dir.join(FILE), &text)
    }

    /// Certificate and key in one PEM text, as the TLS client wants them.
    #[must_use]
    pub fn identity_pem(&self) -> Vec<u8> {
        format!("{}\n{}", self.certificate, self.private_key).into_bytes()
    }

    /// Two thirds of its life are over.
    #[must_use]
    pub fn renewal_is_due(&self, now: DateTime<Utc>) -> bool {
        now >= self.issued + (self.expires - self.issued) * 2 / 3
    }

    #[must_use]
    pub fn expired(&self, now: DateTime<Utc>) -> bool {
        now >= self.expires
    }
}

/// Writes a file that only the agent can read, whole or not at all.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(Error::file("create", &beside))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(Error::file("write", &beside))?;
    std::fs::rename(&beside, path).map_err(Error::file("put in place", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn credentials_are_kept_privately_and_renewed_at_two_thirds() {
        let now = DateTime::UNIX_EPOCH;
        let request = Request::new("n1").expect("a key");
        assert!(request.certificate_request.contains("CERTIFICATE REQUEST"));
        let answer = JoinResponse {
            node: NodeId::new(),
            certificate: "PEM".into(),
            expires: now + TimeDelta::hours(24),
        };
        let credentials = request.answered(answer, now);
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(Credentials::load(dir.path()).expect("readable").is_none());
        credentials.save(dir.path()).expect("saved");
        let mode = std::fs::metadata(dir.path().join(FILE))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Credentials::load(dir.path())
            .expect("readable")
            .expect("there");
        assert_eq!(again.identity_pem(), credentials.identity_pem());
        assert!(!again.renewal_is_due(now + TimeDelta::minutes(16 * 60 - 1)));
        assert!(again.renewal_is_due(now + TimeDelta::hours(16)));
        assert!(!format!("{again:?}").contains("KEY"));
    }
}
