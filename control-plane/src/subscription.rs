//! Subscriptions: the tenant's boundary.

use holdfast_domain::SubscriptionId;

use crate::{ControlPlane, Result, store};

impl ControlPlane {
    /// Makes the subscription if there is none of this id.
    pub async fn ensure_subscription(&self, id: SubscriptionId) -> Result<()> {
        let mut conn = self.pool().acquire().await?;
        store::resource_group::ensure_subscription(&mut conn, id, self.clock().now()).await
    }

    pub async fn subscription_exists(&self, id: SubscriptionId) -> Result<bool> {
        let mut conn = self.pool().acquire().await?;
        store::resource_group::subscription_exists(&mut conn, id).await
    }
}
