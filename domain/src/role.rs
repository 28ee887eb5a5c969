//! Who may do what (RELIABILITY §4.2; contract, other-apis §8).
//!
//! An action is a path such as `Microsoft.DBforPostgreSQL/flexibleServers/backups/write`. A role
//! allows patterns minus patterns; what one role subtracts, another may still allow. Assignments
//! hold on their scope and below it.

use serde::{Deserialize, Serialize};

use crate::lock::covers;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    Reader,
    Contributor,
    Owner,
    #[serde(rename = "Backup Operator")]
    BackupOperator,
}

impl Role {
    pub const ALL: [Role; 4] = [
        Role::Reader,
        Role::Contributor,
        Role::Owner,
        Role::BackupOperator,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reader => "Reader",
            Self::Contributor => "Contributor",
            Self::Owner => "Owner",
            Self::BackupOperator => "Backup Operator",
        }
    }

    fn actions(self) -> &'static [&'static str] {
        match self {
            Self::Reader => &["*/read"],
            Self::Contributor | Self::Owner => &["*"],
            Self::BackupOperator => &[
                "Microsoft.DBforPostgreSQL/*/read",
                "Microsoft.DBforPostgreSQL/flexibleServers/backups/write",
                "Microsoft.DBforPostgreSQL/flexibleServers/ltrPreBackup/action",
                "Microsoft.DBforPostgreSQL/flexibleServers/startLtrBackup/action",
                "Holdfast.Recovery/*/read",
                "Microsoft.Resources/subscriptions/resourceGroups/read",
                "Microsoft.Insights/eventtypes/values/read",
            ],
        }
    }

    fn not_actions(self) -> &'static [&'static str] {
        match self {
            // Locks are the owner's: a contributor may neither make nor remove them.
            Self::Contributor => &[
                "Microsoft.Authorization/*/write",
                "Microsoft.Authorization/*/delete",
                "Microsoft.Authorization/elevateAccess/action",
            ],
            _ => &[],
        }
    }

    #[must_use]
    pub fn allows(self, action: &str) -> bool {
        let any = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, action));
        any(self.actions()) && !any(self.not_actions())
    }
}

/// One principal's role on one scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleAssignment {
    /// Object id of a user, group or service principal.
    pub principal: String,
    pub role: Role,
    pub scope: String,
}

/// Whether the assignments of a caller (and of its groups) allow `action` on `scope`. Decided from
/// the path alone: nothing is looked up, so the answer cannot tell whether the thing exists.
#[must_use]
pub fn allowed(assignments: &[RoleAssignment], action: &str, scope: &str) -> bool {
    assignments
        .iter()
        .any(|assignment| covers(&assignment.scope, scope) && assignment.role.allows(action))
}

/// `*` stands for any text, slashes included; case does not matter.
fn matches(pattern: &str, action: &str) -> bool {
    let (pattern, action) = (pattern.to_ascii_lowercase(), action.to_ascii_lowercase());
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == action;
    };
    action.len() >= head.len() + tail.len() && action.starts_with(head) && action.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKUP_WRITE: &str = "Microsoft.DBforPostgreSQL/flexibleServers/backups/write";
    const LOCK_WRITE: &str = "Microsoft.Authorization/locks/write";

    #[test]
    fn a_backup_operator_takes_backups_and_deletes_none() {
        // FLX-138
        let role = Role::BackupOperator;
        assert!(role.allows(BACKUP_WRITE));
        assert!(role.allows("microsoft.dbforpostgresql/flexibleservers/READ"));
        assert!(!role.allows("Microsoft.DBforPostgreSQL/flexibleServers/backups/delete"));
        assert!(!role.allows("Microsoft.DBforPostgreSQL/flexibleServers/write"));
    }

    #[test]
    fn only_an_owner_makes_locks() {
        assert!(Role::Owner.allows(LOCK_WRITE));
        assert!(!Role::Contributor.allows(LOCK_WRITE));
        assert!(Role::Contributor.allows("Microsoft.Authorization/locks/read"));
        assert!(!Role::Reader.allows(BACKUP_WRITE));
    }

    #[test]
    fn an_assignment_holds_below_its_scope_only() {
        let given = [RoleAssignment {
            principal: "p".into(),
            role: Role::Owner,
            scope: "/subscriptions/s/resourceGroups/rg1".into(),
        }];
        assert!(allowed(
            &given,
            LOCK_WRITE,
            "/subscriptions/S/resourcegroups/RG1/x"
        ));
        assert!(!allowed(
            &given,
            LOCK_WRITE,
            "/subscriptions/s/resourceGroups/rg10"
        ));
        assert!(!allowed(&given, LOCK_WRITE, "/subscriptions/s"));
    }
}
