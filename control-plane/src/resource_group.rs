//! Resource groups.
use std::collections::BTreeMap;
use holdfast_domain::SubscriptionId;
use holdfast_domain::activity::Caller;

use crate::{ControlPlane, Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceGroup {
    pub subscription: SubscriptionId,
    /// As it was first written.
    pub name: String,
    /// Canonical region name.
    pub location: String,
    pub tags: BTreeMap<String, String>,
}

impl ControlPlane {
    /// Answers with whether it is new.
    pub async fn put_resource_group(&self, _caller: &Caller, _subscription: SubscriptionId, _name: &str, _location: Option<&str>, _tags: Option<BTreeMap<String, String>>) -> Result<(ResourceGroup, bool)> { Err(Error::Corrupt("not yet".into())) }
    pub async fn get_resource_group(&self, _subscription: SubscriptionId, _name: &str) -> Result<ResourceGroup> { Err(Error::Corrupt("not yet".into())) }
    pub async fn resource_group_exists(&self, _subscription: SubscriptionId, _name: &str) -> Result<bool> { Err(Error::Corrupt("not yet".into())) }
}
