//! The API's certificate, which outlives no process but must be renewed in one: connections that begin
//! after [`Certificate::replace`] get the new one, those that are open keep theirs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

/// Certificates are renewed weeks before they run out; an hour more does not matter.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
pub struct Certificate(Arc<Shown>);

struct Shown(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.0.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl Certificate {
    pub fn new(certificate_pem: &str, key_pem: &str) -> Result<Self> {
        let certified = certified(certificate_pem, key_pem)?;
        Ok(Self(Arc::new(Shown(RwLock::new(Arc::new(certified))))))
    }

    pub fn replace(&self, certificate_pem: &str, key_pem: &str) -> Result<()> {
        let certified = Arc::new(certified(certificate_pem, key_pem)?);
        *self.0.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    /// For HTTP/2 and HTTP/1.1.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.0) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Runs `renew` from time to time; what it answers with is shown from then on.
    pub async fn keep(
        self,
        stop: CancellationToken,
        mut renew: impl FnMut() -> Result<Option<(String, String)>> + Send,
    ) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let renewed = renew().and_then(|pair| match pair {
                Some((certificate, key)) => self.replace(&certificate, &key),
                None => Ok(()),
            });
            if let Err(error) = renewed {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the certificate was not renewed"
                );
            }
        }
    }
}

fn certified(certificate_pem: &str, key_pem: &str) -> Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("the certificate is not PEM")?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).context("the key is not PEM")?;
    CertifiedKey::from_der(chain, key, &default_provider())
        .context("certificate and key do not fit")
}

/// A certificate that somebody else renews in two files.
#[derive(Debug, Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Files {
    pub fn read(&self) -> Result<(String, String)> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("{} cannot be read", path.display()))
        };
        Ok((read(&self.certificate)?, read(&self.key)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use holdfast_scheduler::Authority;

    #[test]
    fn a_key_that_does_not_fit_is_refused_and_the_old_certificate_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let now = DateTime::from_timestamp(1_800_000_000, 0).expect("valid");
        let authority = Authority::open_or_create(dir.path(), now).expect("made");
        let make = || {
            authority
                .server_certificate(&["localhost".to_owned()], now)
                .expect("made")
        };
        let (one, two) = (make(), make());
        let shown = Certificate::new(&one.certificate_pem, &one.key_pem).expect("they fit");
        assert!(shown.replace(&two.certificate_pem, &one.key_pem).is_err());
        shown
            .replace(&two.certificate_pem, &two.key_pem)
            .expect("they fit");
        shown.server_config().expect("served");
    }
}
