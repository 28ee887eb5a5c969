//! Resource groups.

use std::collections::BTreeMap;

use holdfast_domain::activity::Caller;
use holdfast_domain::lock::Verb;
use holdfast_domain::region::{Region, canonical};
use holdfast_domain::resource_id::group_scope;
use holdfast_domain::{Refusal, SubscriptionId, name};

use crate::activity::at_once;
use crate::transaction::Unit;
use crate::{ControlPlane, Result, lock, store};

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
    /// Makes the group or replaces its tags. Answers with whether it is new.
    pub async fn put_resource_group(
        &self,
        caller: &Caller,
        subscription: SubscriptionId,
        name: &str,
        location: Option<&str>,
        tags: Option<BTreeMap<String, String>>,
    ) -> Result<(ResourceGroup, bool)> {
        let mut unit = Unit::begin(self).await?;
        let now = unit.now();
        if !store::resource_group::subscription_exists(unit.conn(), subscription).await? {
            return Err(Refusal::SubscriptionNotFound(subscription.to_string()).into());
        }
        lock::allow(
            &mut unit,
            subscription,
            &group_scope(subscription, name),
            Verb::Write,
        )
        .await?;
        let existing = store::resource_group::get(unit.conn(), subscription, name).await?;
        let (group, is_new) = match existing {
            Some(mut group) => {
                if let Some(asked) = location
                    && canonical(asked) != group.location
                {
                    return Err(Refusal::InvalidResourceGroupLocation {
                        current: group.location,
                        asked: asked.to_owned(),
                    }
                    .into());
                }
                if let Some(tags) = tags {
                    store::resource_group::set_tags(unit.conn(), subscription, name, &tags).await?;
                    group.tags = tags;
                }
                (group, false)
            }
            None => {
                let group = self.new_group(subscription, name, location, tags)?;
                let is_new = store::resource_group::insert(unit.conn(), &group, now).await?;
                (group, is_new)
            }
        };
        let scope = group_scope(subscription, &group.name);
        let action = "Microsoft.Resources/subscriptions/resourceGroups/write";
        at_once(caller, subscription, &group.name, &scope, action, now)
            .into_iter()
            .for_each(|event| unit.record(event));
        unit.commit().await?;
        Ok((group, is_new))
    }

    /// The region that a caller names, by canonical or display name.
    pub(crate) fn region(&self, location: &str) -> Result<&Region> {
        Ok(self
            .site()
            .region(location)
            .ok_or_else(|| Refusal::LocationNotAvailable {
                location: location.to_owned(),
                available: self
                    .site()
                    .regions
                    .iter()
                    .map(|region| region.name.clone())
                    .collect(),
            })?)
    }

    fn new_group(
        &self,
        subscription: SubscriptionId,
        name: &str,
        location: Option<&str>,
        tags: Option<BTreeMap<String, String>>,
    ) -> Result<ResourceGroup> {
        let location = location.ok_or_else(|| {
            Refusal::invalid("location", "Give the location of the resource group.")
        })?;
        let region = self.region(location)?;
        Ok(ResourceGroup {
            subscription,
            name: name::new_resource_group(name)?,
            location: region.name.clone(),
            tags: tags.unwrap_or_default(),
        })
    }

    /// # Errors
    /// [`Refusal::ResourceGroupNotFound`].
    pub async fn get_resource_group(
        &self,
        subscription: SubscriptionId,
        name: &str,
    ) -> Result<ResourceGroup> {
        let mut conn = self.pool().acquire().await?;
        Ok(store::resource_group::get(&mut conn, subscription, name)
            .await?
            .ok_or_else(|| Refusal::ResourceGroupNotFound(name.to_owned()))?)
    }

    pub async fn resource_group_exists(
        &self,
        subscription: SubscriptionId,
        name: &str,
    ) -> Result<bool> {
        let mut conn = self.pool().acquire().await?;
        Ok(store::resource_group::get(&mut conn, subscription, name)
            .await?
            .is_some())
    }
}
