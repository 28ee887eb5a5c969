//! What a caller may do, decided from the path alone (RELIABILITY §4.2, DESIGN §3.12).
//!
//! Nothing is looked up but the caller's own role assignments, so the answer to somebody without rights
//! is the same whether or not the thing exists.

use holdfast_domain::lock::covers;
use holdfast_domain::role::{RoleAssignment, allowed};
use http::StatusCode;

use super::token::Identity;
use crate::arm::error::{ArmError, Result};

/// A caller and the roles of the caller and its groups.
#[derive(Debug, Clone)]
pub struct Rights {
    pub identity: Identity,
    assignments: Vec<RoleAssignment>,
}

impl Rights {
    #[must_use]
    pub fn new(identity: Identity, assignments: Vec<RoleAssignment>) -> Self {
        Self {
            identity,
            assignments,
        }
    }

    #[must_use]
    pub fn allow(&self, action: &str, scope: &str) -> bool {
        allowed(&self.assignments, action, scope)
    }

    /// # Errors
    /// 403 `AuthorizationFailed`: az's fall-backs key on exactly that code (contract, other-apis §8).
    pub fn require(&self, action: &str, scope: &str) -> Result<()> {
        if self.allow(action, scope) {
            return Ok(());
        }
        Err(self.forbidden(action, scope))
    }

    /// For lists: the action on the scope itself, or on something below it. The rows are then to be
    /// filtered by [`Rights::allow`].
    ///
    /// # Errors
    /// As [`Rights::require`].
    pub fn require_within(&self, action: &str, scope: &str) -> Result<()> {
        let below = self
            .assignments
            .iter()
            .any(|assignment| covers(scope, &assignment.scope) && assignment.role.allows(action));
        if below || self.allow(action, scope) {
            return Ok(());
        }
        Err(self.forbidden(action, scope))
    }

    fn forbidden(&self, action: &str, scope: &str) -> ArmError {
        ArmError::new(
            StatusCode::FORBIDDEN,
            "AuthorizationFailed",
            format!(
                "The client '{}' with object id '{}' does not have authorization to perform action '{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh your credentials.",
                self.identity.name, self.identity.principal
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use holdfast_domain::role::Role;

    use super::*;

    const READ: &str = "Microsoft.DBforPostgreSQL/flexibleServers/read";
    const BACKUP: &str = "Microsoft.DBforPostgreSQL/flexibleServers/backups/write";

    fn reader_of(scope: &str) -> Rights {
        let identity = Identity {
            principal: "o".into(),
            name: "n".into(),
            app: "a".into(),
            tenant: "t".into(),
            groups: vec![],
        };
        let assignment = RoleAssignment {
            principal: "o".into(),
            role: Role::Reader,
            scope: scope.into(),
        };
        Rights::new(identity, vec![assignment])
    }

    #[test]
    fn a_reader_takes_no_backup_and_is_told_what_is_missing() {
        // RELIABILITY §4.9 row 10
        let error = reader_of("/subscriptions/s")
            .require(BACKUP, "/subscriptions/s/x")
            .expect_err("forbidden");
        assert_eq!(
            (error.status().as_u16(), error.code()),
            (403, "AuthorizationFailed")
        );
        assert!(
            error.message().contains(BACKUP) && error.message().contains("'/subscriptions/s/x'")
        );
    }

    #[test]
    fn somebody_with_one_group_may_list_the_subscription() {
        let rights = reader_of("/subscriptions/s/resourceGroups/g");
        assert!(rights.require_within(READ, "/subscriptions/S").is_ok());
        assert!(rights.require(READ, "/subscriptions/s").is_err());
        assert!(rights.require_within(READ, "/subscriptions/other").is_err());
        assert!(rights.require_within(BACKUP, "/subscriptions/s").is_err());
    }
}
