//! The handle that every use case hangs on.

use std::sync::Arc;

use holdfast_domain::region::Site;
use sqlx::PgPool;
use sqlx::migrate::Migrator;

use crate::{Clock, Hints, Policy, Result};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

#[derive(Clone)]
pub struct ControlPlane(Arc<Inner>);

struct Inner {
    pool: PgPool,
    clock: Clock,
    hints: Hints,
    site: Site,
    policy: Policy,
}

impl ControlPlane {
    /// # Errors
    /// [`crate::Error::Unavailable`] when the store does not answer.
    pub async fn connect(pool: PgPool, clock: Clock, site: Site, policy: Policy) -> Result<Self> {
        sqlx::query("select 1").execute(&pool).await?;
        Ok(Self(Arc::new(Inner {
            pool,
            clock,
            hints: Hints::new(),
            site,
            policy,
        })))
    }

    /// Brings the schema up to date. Forward only; several processes may do it at once.
    ///
    /// # Errors
    /// [`crate::Error::Migration`].
    pub async fn migrate(pool: &PgPool) -> Result<()> {
        Ok(MIGRATIONS.run(pool).await?)
    }

    /// Whether the store answers and has exactly our schema: readiness.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`].
    pub async fn check_schema(&self) -> Result<bool> {
        let applied: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "select version, checksum from _sqlx_migrations where success order by version",
        )
        .fetch_all(self.pool())
        .await?;
        let ours = MIGRATIONS
            .iter()
            .map(|one| (one.version, one.checksum.to_vec()));
        Ok(applied.into_iter().eq(ours))
    }

    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    #[must_use]
    pub fn hints(&self) -> &Hints {
        &self.0.hints
    }

    #[must_use]
    pub fn site(&self) -> &Site {
        &self.0.site
    }

    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlane")
            .field("site", &self.0.site)
            .finish_non_exhaustive()
    }
}
