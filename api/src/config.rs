//! What an installation decides about its API.

use std::sync::Arc;

use holdfast_control_plane::ControlPlane;

use crate::arm::page::Seal;
use crate::auth::AuthConfig;
use crate::auth::jwks::Jwks;
use crate::edge::Crowd;
use crate::error::Error;
use crate::metrics::Metrics;

#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// `https://host:port`, as clients reach it: operation URLs are made of it and never of a request's
    /// `Host` (RELIABILITY §4.9 row 29).
    pub public_url: String,
    /// Servers are called `{name}.{suffix}`.
    pub domain_suffix: String,
    /// Seals list positions; the same for all API processes of an installation. `None`: one of this
    /// process only.
    pub seal_key: Option<[u8; 32]>,
    /// Shown in `x-ms-routing-request-id`.
    pub routing_name: String,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            public_url: "https://localhost".to_owned(),
            domain_suffix: "postgres.holdfast.internal".to_owned(),
            seal_key: None,
            routing_name: "HOLDFAST".to_owned(),
        }
    }
}

/// What every handler works with.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    control: ControlPlane,
    auth: AuthConfig,
    jwks: Jwks,
    config: ApiConfig,
    seal: Seal,
    metrics: Arc<Metrics>,
    crowd: Crowd,
}

impl Api {
    /// # Errors
    /// [`Error::Jwks`], [`Error::PublicUrl`], [`Error::Seal`].
    pub fn new(
        control: ControlPlane,
        auth: AuthConfig,
        mut config: ApiConfig,
    ) -> Result<Self, Error> {
        let url = url::Url::parse(&config.public_url).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.path() == "/"
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
        });
        let Some(url) = url else {
            return Err(Error::PublicUrl(config.public_url));
        };
        config.public_url = url.as_str().trim_end_matches('/').to_owned();
        let mut seal_key = config.seal_key.take().unwrap_or_default();
        if seal_key == [0; 32] {
            aws_lc_rs::rand::fill(&mut seal_key).map_err(|_| Error::Seal)?;
        }
        Ok(Self(Arc::new(Inner {
            jwks: Jwks::open(auth.jwks_file.clone())?,
            seal: Seal::new(&seal_key).map_err(|_| Error::Seal)?,
            metrics: {
                let metrics = Arc::new(Metrics::new());
                metrics.keep();
                metrics
            },
            crowd: Crowd::default(),
            control,
            auth,
            config,
        })))
    }

    #[must_use]
    pub fn control(&self) -> &ControlPlane {
        &self.0.control
    }

    #[must_use]
    pub fn auth(&self) -> &AuthConfig {
        &self.0.auth
    }

    #[must_use]
    pub fn jwks(&self) -> &Jwks {
        &self.0.jwks
    }

    #[must_use]
    pub fn config(&self) -> &ApiConfig {
        &self.0.config
    }

    #[must_use]
    pub fn seal(&self) -> &Seal {
        &self.0.seal
    }

    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    #[must_use]
    pub fn crowd(&self) -> &Crowd {
        &self.0.crowd
    }
}
