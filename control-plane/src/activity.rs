//! The activity log.
use chrono::{DateTime, Utc};
use holdfast_domain::SubscriptionId;
use holdfast_domain::activity::{ActivityEvent, ActivityStatus};

use crate::{ControlPlane, Error, Page, PageRequest, Result};

/// Which events to show; every part narrows. Text is compared without case.
#[derive(Debug, Clone)]
pub struct ActivityFilter {
    pub subscription: SubscriptionId,
    pub from: DateTime<Utc>,
    pub to: Option<DateTime<Utc>>,
    pub group: Option<String>,
    pub resource_id: Option<String>,
    pub provider: Option<String>,
    pub correlation_id: Option<String>,
    pub status: Option<ActivityStatus>,
    pub caller: Option<String>,
}

impl ControlPlane {
    /// Newest first.
    pub async fn query_activity(&self, _filter: &ActivityFilter, _page: &PageRequest) -> Result<Page<ActivityEvent>> { Err(Error::Corrupt("not yet".into())) }
}
