//! Who may do what: `[[roles]]` of a scheduler's file, and of `roles.toml` in the state directory of `up`.

use std::path::Path;

use holdfast_domain::role::{Role, RoleAssignment, check_scope};
use serde::{Deserialize, Serialize};

use super::load::{Problems, collect, load_plain};
use super::{Check, Collect};

/// Made equal to the file at each start: what is no longer in it is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSection {
    /// `oid` – or `sub`, where tokens have none – of a user, a group or a service principal.
    pub principal: String,
    /// Reader, Contributor, Owner or Backup Operator.
    pub role: Role,
    /// A subscription, a resource group or a server, by its resource id; it holds below it as well.
    pub scope: String,
}

impl RoleSection {
    #[must_use]
    pub fn assignment(&self) -> RoleAssignment {
        RoleAssignment {
            principal: self.principal.clone(),
            role: self.role,
            scope: self.scope.clone(),
        }
    }
}

/// `roles.toml`: nothing but roles.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolesFile {
    #[serde(default)]
    pub roles: Vec<RoleSection>,
}

impl RolesFile {
    /// No file, no roles.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        if path.exists() {
            load_plain(path)
        } else {
            Ok(Self::default())
        }
    }
}

impl Check for RolesFile {
    const SECTIONS: &'static [(&'static str, Collect)] = &[("roles", collect::<Vec<RoleSection>>)];

    fn check(&self, problems: &mut Problems) {
        check_roles(&self.roles, problems);
    }
}

pub(super) fn check_roles(roles: &[RoleSection], problems: &mut Problems) {
    for (nth, role) in roles.iter().enumerate() {
        let principal = &role.principal;
        if principal.is_empty() || principal.len() > 256 || principal.chars().any(char::is_control)
        {
            problems.add(
                &format!("roles.{nth}.principal"),
                "1 to 256 printable characters, as tokens say it in `oid`",
            );
        }
        if let Err(rule) = check_scope(&role.scope) {
            problems.add(&format!("roles.{nth}.scope"), rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roles_file_gives_roles_or_says_what_is_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("roles.toml");
        assert_eq!(RolesFile::load(&path), Ok(RolesFile::default()));
        let write = |text: &str| std::fs::write(&path, text).expect("writes");
        write(
            "[[roles]]\nprincipal = \"alice\"\nrole = \"Backup Operator\"\nscope = \"/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg1\"\n",
        );
        let read = RolesFile::load(&path).expect("a good one");
        assert_eq!(
            (read.roles.len(), read.roles[0].role),
            (1, Role::BackupOperator)
        );
        for (text, key) in [
            (
                "[[roles]]\nprincipal = \"a\"\nrole = \"Reader\"\nscope = \"/\"\n",
                "roles.0.scope",
            ),
            (
                "[[roles]]\nprincipal = \"\"\nrole = \"Reader\"\nscope = \"/subscriptions/11111111-2222-3333-4444-555555555555\"\n",
                "roles.0.principal",
            ),
            (
                "[[roles]]\nprincipal = \"a\"\nrole = \"King\"\nscope = \"/subscriptions/x\"\n",
                "roles.0.role",
            ),
        ] {
            write(text);
            let problems = RolesFile::load(&path).expect_err("refused").to_string();
            assert!(problems.contains(key), "{problems}");
        }
    }
}
