//! One use case's transaction: what is written, who is to be woken, what goes into the activity log.
//!
//! Events are written last, because that locks the end of the subscription's chain until the commit;
//! hints go out with the commit and inside the process after it.

use chrono::{DateTime, Utc};
use holdfast_domain::NodeId;
use holdfast_domain::activity::ActivityEvent;
use sqlx::{PgConnection, Postgres};

use crate::hints::{CHANNEL, Hint};
use crate::{ControlPlane, Hints, Result, store};

pub(crate) struct Unit {
    transaction: sqlx::Transaction<'static, Postgres>,
    now: DateTime<Utc>,
    bus: Hints,
    hints: Vec<Hint>,
    events: Vec<ActivityEvent>,
}

impl Unit {
    pub(crate) async fn begin(control_plane: &ControlPlane) -> Result<Self> {
        Ok(Self {
            transaction: control_plane.pool().begin().await?,
            now: control_plane.clock().now(),
            bus: control_plane.hints().clone(),
            hints: Vec::new(),
            events: Vec::new(),
        })
    }

    /// The moment of this use case: one for everything in it.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.now
    }

    pub(crate) fn conn(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    pub(crate) fn wake_node(&mut self, node: NodeId) {
        self.wake(Hint::Jobs(node));
    }

    pub(crate) fn wake_operations(&mut self) {
        self.wake(Hint::Operations);
    }

    fn wake(&mut self, hint: Hint) {
        if !self.hints.contains(&hint) {
            self.hints.push(hint);
        }
    }

    pub(crate) fn record(&mut self, event: ActivityEvent) {
        self.events.push(event);
    }

    pub(crate) async fn commit(mut self) -> Result<()> {
        store::activity::append(&mut self.transaction, &self.events).await?;
        if !self.hints.is_empty() {
            let text: Vec<String> = self.hints.iter().map(|hint| hint.text()).collect();
            // A payload has 8000 bytes at most; the rest looks by itself.
            sqlx::query("select pg_notify($1, $2)")
                .bind(CHANNEL)
                .bind(text.into_iter().take(128).collect::<Vec<_>>().join(","))
                .execute(&mut *self.transaction)
                .await?;
        }
        self.transaction.commit().await?;
        for hint in self.hints {
            self.bus.send(hint);
        }
        Ok(())
    }
}
