//! Management locks (FLX-073; contract, other-apis §2).

use holdfast_domain::SubscriptionId;
use holdfast_domain::activity::Caller;
use holdfast_domain::lock::{Lock, LockLevel, Verb, check, covers};

use crate::activity::at_once;
use crate::transaction::Unit;
use crate::{ControlPlane, Result, store};

impl ControlPlane {
    /// Answers with the lock and whether it is new.
    pub async fn put_lock(
        &self,
        caller: &Caller,
        subscription: SubscriptionId,
        scope: &str,
        name: &str,
        level: LockLevel,
        notes: Option<String>,
    ) -> Result<(Lock, bool)> {
        let mut unit = Unit::begin(self).await?;
        let now = unit.now();
        let answer = store::lock::put(
            unit.conn(),
            subscription,
            scope,
            name,
            level,
            notes.as_deref(),
            now,
        )
        .await?;
        record(&mut unit, caller, subscription, scope, name, "write");
        unit.commit().await?;
        Ok(answer)
    }

    pub async fn get_lock(
        &self,
        subscription: SubscriptionId,
        scope: &str,
        name: &str,
    ) -> Result<Option<Lock>> {
        let mut conn = self.pool().acquire().await?;
        let locks = store::lock::all(&mut conn, subscription).await?;
        Ok(locks.into_iter().find(|lock| {
            lock.name.eq_ignore_ascii_case(name) && lock.scope.eq_ignore_ascii_case(scope)
        }))
    }

    /// Answers with whether there was one.
    pub async fn delete_lock(
        &self,
        caller: &Caller,
        subscription: SubscriptionId,
        scope: &str,
        name: &str,
    ) -> Result<bool> {
        let mut unit = Unit::begin(self).await?;
        if !store::lock::delete(unit.conn(), subscription, scope, name).await? {
            return Ok(false);
        }
        record(&mut unit, caller, subscription, scope, name, "delete");
        unit.commit().await?;
        Ok(true)
    }

    /// The locks on the scope, above it and, unless `at_scope`, below it.
    pub async fn list_locks(
        &self,
        subscription: SubscriptionId,
        scope: &str,
        at_scope: bool,
    ) -> Result<Vec<Lock>> {
        let mut conn = self.pool().acquire().await?;
        let mut locks = store::lock::all(&mut conn, subscription).await?;
        locks
            .retain(|lock| covers(&lock.scope, scope) || (!at_scope && covers(scope, &lock.scope)));
        Ok(locks)
    }
}

/// Refuses what a lock on the target or above it forbids.
pub(crate) async fn allow(
    unit: &mut Unit,
    subscription: SubscriptionId,
    target: &str,
    verb: Verb,
) -> Result<()> {
    let locks = store::lock::all(unit.conn(), subscription).await?;
    Ok(check(&locks, target, verb)?)
}

fn record(
    unit: &mut Unit,
    caller: &Caller,
    subscription: SubscriptionId,
    scope: &str,
    name: &str,
    verb: &str,
) {
    // `/subscriptions/{s}/resourceGroups/{g}…`: a lock on the subscription has no group.
    let group = scope.split('/').nth(4).unwrap_or_default().to_owned();
    let events = at_once(
        caller,
        subscription,
        &group,
        &format!("{scope}/providers/Microsoft.Authorization/locks/{name}"),
        &format!("Microsoft.Authorization/locks/{verb}"),
        unit.now(),
    );
    events.into_iter().for_each(|event| unit.record(event));
}
