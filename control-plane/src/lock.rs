//! Management locks.
use holdfast_domain::SubscriptionId;
use holdfast_domain::activity::Caller;
use holdfast_domain::lock::{Lock, LockLevel};

use crate::{ControlPlane, Error, Result};

impl ControlPlane {
    /// Answers with whether it is new.
    pub async fn put_lock(&self, _caller: &Caller, _subscription: SubscriptionId, _scope: &str, _name: &str, _level: LockLevel, _notes: Option<String>) -> Result<(Lock, bool)> { Err(Error::Corrupt("not yet".into())) }
    pub async fn get_lock(&self, _subscription: SubscriptionId, _scope: &str, _name: &str) -> Result<Option<Lock>> { Err(Error::Corrupt("not yet".into())) }
    /// Answers with whether there was one.
    pub async fn delete_lock(&self, _caller: &Caller, _subscription: SubscriptionId, _scope: &str, _name: &str) -> Result<bool> { Err(Error::Corrupt("not yet".into())) }
    /// The locks on the scope, above it and, unless `at_scope`, below it.
    pub async fn list_locks(&self, _subscription: SubscriptionId, _scope: &str, _at_scope: bool) -> Result<Vec<Lock>> { Err(Error::Corrupt("not yet".into())) }
}
