//! Subscriptions: the tenant's boundary.
use holdfast_domain::SubscriptionId;

use crate::{ControlPlane, Error, Result};

impl ControlPlane {
    pub async fn ensure_subscription(&self, _id: SubscriptionId) -> Result<()> { Err(Error::Corrupt("not yet".into())) }
    pub async fn subscription_exists(&self, _id: SubscriptionId) -> Result<bool> { Err(Error::Corrupt("not yet".into())) }
}
