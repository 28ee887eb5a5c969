//! The activity log: who did what to which resource and how it ended.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use holdfast_domain::activity::{ActivityEvent, ActivityStatus, Caller};
use holdfast_domain::{EventId, SubscriptionId};

use crate::{ControlPlane, Error, Page, PageRequest, Result, store};

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

/// One event, as it stands before anything is said about the request.
pub(crate) fn event(
    subscription: SubscriptionId,
    group: &str,
    resource_id: &str,
    action: &str,
    status: ActivityStatus,
    caller: &Caller,
    now: DateTime<Utc>,
) -> ActivityEvent {
    ActivityEvent {
        id: EventId::new(),
        subscription,
        group: group.to_owned(),
        resource_id: resource_id.to_owned(),
        action: action.to_owned(),
        status,
        operation: None,
        caller: caller.clone(),
        at: now,
        http_method: None,
        http_status: None,
        properties: BTreeMap::new(),
    }
}

/// What happens at once has two events and no operation: it started, and it succeeded.
pub(crate) fn at_once(
    caller: &Caller,
    subscription: SubscriptionId,
    group: &str,
    resource_id: &str,
    action: &str,
    now: DateTime<Utc>,
) -> [ActivityEvent; 2] {
    [ActivityStatus::Started, ActivityStatus::Succeeded].map(|status| {
        event(
            subscription,
            group,
            resource_id,
            action,
            status,
            caller,
            now,
        )
    })
}

impl ControlPlane {
    /// Newest first.
    pub async fn query_activity(
        &self,
        filter: &ActivityFilter,
        page: &PageRequest,
    ) -> Result<Page<ActivityEvent>> {
        let before = page.after.as_deref().map(position).transpose()?;
        let mut conn = self.pool().acquire().await?;
        let rows =
            store::activity::query(&mut conn, filter, before, i64::from(page.limit) + 1).await?;
        let page = Page::of(rows, page.limit, |(number, event)| {
            format!("{}.{number}", event.at.timestamp_micros())
        });
        Ok(Page {
            items: page.items.into_iter().map(|(_, event)| event).collect(),
            next: page.next,
        })
    }
}

/// `microseconds.number` of the last event shown.
fn position(text: &str) -> Result<(DateTime<Utc>, i64)> {
    let read = || {
        let (at, number) = text.split_once('.')?;
        Some((
            DateTime::from_timestamp_micros(at.parse().ok()?)?,
            number.parse().ok()?,
        ))
    };
    read().ok_or_else(|| Error::Absurd("a page position that was never given out".to_owned()))
}
