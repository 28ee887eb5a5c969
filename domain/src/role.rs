//! Who may do what (RELIABILITY §4.2; contract, other-apis §8).
//!
//! An action is a path such as `Microsoft.DBforPostgreSQL/flexibleServers/backups/write`. A role
//! allows patterns minus patterns; what one role subtracts, another may still allow. Assignments
//! hold on their scope and below it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::lock::covers;
use crate::name;
use crate::resource_id::ServerResourceId;

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
                // From it only: making the new server takes a right to write where that goes.
                "Microsoft.DBforPostgreSQL/flexibleServers/restore/action",
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

/// Whether roles can be assigned on this: a subscription, a resource group or a server.
///
/// # Errors
/// What to write instead.
pub fn check_scope(scope: &str) -> Result<(), &'static str> {
    const RULE: &str = "use /subscriptions/{id}, /subscriptions/{id}/resourceGroups/{name} or the resource id of a server";
    let parts: Vec<&str> = scope.strip_prefix('/').ok_or(RULE)?.split('/').collect();
    let (fixed, subscription) = match parts[..] {
        [subscriptions, id] => (subscriptions.eq_ignore_ascii_case("subscriptions"), id),
        [subscriptions, id, groups, group] => (
            subscriptions.eq_ignore_ascii_case("subscriptions")
                && groups.eq_ignore_ascii_case("resourceGroups")
                && name::new_resource_group(group).is_ok(),
            id,
        ),
        _ => {
            return ServerResourceId::parse(scope).map(|_| ()).map_err(|_| RULE);
        }
    };
    if fixed && Uuid::try_parse(subscription).is_ok() {
        Ok(())
    } else {
        Err(RULE)
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
    fn who_reads_a_server_may_not_restore_from_it() {
        // RELIABILITY §4.2
        const RESTORE: &str = "Microsoft.DBforPostgreSQL/flexibleServers/restore/action";
        assert!(!Role::Reader.allows(RESTORE));
        for role in [Role::Contributor, Role::Owner, Role::BackupOperator] {
            assert!(role.allows(RESTORE), "{role:?}");
        }
    }

    #[test]
    fn only_an_owner_makes_locks() {
        assert!(Role::Owner.allows(LOCK_WRITE));
        assert!(!Role::Contributor.allows(LOCK_WRITE));
        assert!(Role::Contributor.allows("Microsoft.Authorization/locks/read"));
        assert!(!Role::Reader.allows(BACKUP_WRITE));
    }

    #[test]
    fn roles_are_assigned_on_subscriptions_groups_and_servers() {
        let s = "/subscriptions/11111111-2222-3333-4444-555555555555";
        let group = format!("{s}/resourceGroups/rg1");
        let server = format!("{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/pg1");
        for good in [s, &group, &server] {
            assert_eq!(check_scope(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/",
            "/subscriptions/mine",
            "subscriptions/11111111-2222-3333-4444-555555555555",
            &format!("{s}/"),
            &format!("{s}/resourceGroups/"),
            &format!("{server}/backups/b1"),
        ] {
            assert!(check_scope(bad).is_err(), "{bad}");
        }
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
