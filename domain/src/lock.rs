//! Management locks (FLX-073; contract, other-apis §2).

use serde::{Deserialize, Serialize};

use crate::LockId;
use crate::refusal::Refusal;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockLevel {
    CanNotDelete,
    ReadOnly,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    pub id: LockId,
    pub name: String,
    /// The scope it is on, in the case in which it was made.
    pub scope: String,
    pub level: LockLevel,
    pub notes: Option<String>,
}

/// What a request does to its target. Reading is never locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Write,
    Delete,
}

/// Whether `scope` is `target` or one of its parents. Ids are compared without case.
#[must_use]
pub fn covers(scope: &str, target: &str) -> bool {
    let (scope, target) = (
        scope.trim_end_matches('/').to_ascii_lowercase(),
        target.trim_end_matches('/').to_ascii_lowercase(),
    );
    target == scope
        || target
            .strip_prefix(&scope)
            .is_some_and(|rest| rest.starts_with('/'))
}

/// Refuses when a lock on the target or above it forbids the verb.
///
/// # Errors
/// [`Refusal::ScopeLocked`] with every scope that forbids it.
pub fn check(locks: &[Lock], target: &str, verb: Verb) -> Result<(), Refusal> {
    let locked: Vec<String> = locks
        .iter()
        .filter(|lock| covers(&lock.scope, target))
        .filter(|lock| lock.level == LockLevel::ReadOnly || verb == Verb::Delete)
        .map(|lock| lock.scope.clone())
        .collect();
    if locked.is_empty() {
        return Ok(());
    }
    Err(Refusal::ScopeLocked {
        target: target.to_owned(),
        verb: match verb {
            Verb::Write => "write",
            Verb::Delete => "delete",
        },
        locked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(scope: &str, level: LockLevel) -> Lock {
        Lock {
            id: LockId::new(),
            name: "keep".into(),
            scope: scope.into(),
            level,
            notes: None,
        }
    }

    #[test]
    fn a_lock_on_a_server_guards_its_backups_and_not_its_neighbour() {
        // FLX-073
        let locks = [lock("/subscriptions/S/a/pg1", LockLevel::CanNotDelete)];
        assert!(check(&locks, "/subscriptions/s/a/PG1/backups/b", Verb::Delete).is_err());
        assert!(check(&locks, "/subscriptions/s/a/pg1", Verb::Write).is_ok());
        assert!(check(&locks, "/subscriptions/s/a/pg10", Verb::Delete).is_ok());
    }

    #[test]
    fn a_read_only_lock_refuses_writes_too() {
        let locks = [lock("/subscriptions/s", LockLevel::ReadOnly)];
        let refusal = check(&locks, "/subscriptions/s/a/pg1", Verb::Write).expect_err("locked");
        assert_eq!(
            refusal.to_string(),
            "The scope '/subscriptions/s/a/pg1' cannot perform write operation because following scope(s) are locked: '/subscriptions/s'. Please remove the lock and try again."
        );
    }
}
