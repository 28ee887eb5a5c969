//! Who was given which role where.

use holdfast_domain::role::RoleAssignment;

use crate::transaction::Unit;
use crate::{ControlPlane, Result, store};

impl ControlPlane {
    /// Gives a principal a role on a scope. Any number of times.
    pub async fn assign_role(&self, assignment: &RoleAssignment) -> Result<()> {
        let mut conn = self.pool().acquire().await?;
        store::lock::assign(&mut conn, assignment).await
    }

    /// Makes the roles that configuration assigned exactly these. Those of [`Self::assign_role`] stay.
    pub async fn configure_roles(&self, roles: &[RoleAssignment]) -> Result<()> {
        let mut unit = Unit::begin(self).await?;
        store::lock::configure(unit.conn(), roles).await?;
        unit.commit().await
    }

    /// Those of a caller and of its groups.
    pub async fn assignments_of(&self, principals: &[String]) -> Result<Vec<RoleAssignment>> {
        let mut conn = self.pool().acquire().await?;
        store::lock::assignments_of(&mut conn, principals).await
    }
}

#[cfg(test)]
mod tests {
    use holdfast_domain::role::Role;

    use super::*;
    use crate::story::World;

    #[tokio::test]
    async fn configured_roles_are_those_of_the_configuration() {
        let world = World::new().await;
        let it = &world.control_plane;
        let give = |principal: &str, role| RoleAssignment {
            principal: principal.to_owned(),
            role,
            scope: "/subscriptions/S".to_owned(),
        };
        let of = async |principal: &str| {
            let found = it.assignments_of(&[principal.to_owned()]).await;
            let roles = found.expect("read").into_iter();
            roles.map(|assignment| assignment.role).collect::<Vec<_>>()
        };
        let by_hand = give("hand", Role::Reader);
        it.assign_role(&by_hand).await.expect("assigned");
        let first = [give("a", Role::Owner), give("b", Role::BackupOperator)];
        it.configure_roles(&first).await.expect("configured");
        it.configure_roles(&first).await.expect("twice");
        assert_eq!(of("a").await, [Role::Owner]);
        assert_eq!(of("b").await, [Role::BackupOperator]);
        let second = [give("a", Role::Reader)];
        it.configure_roles(&second).await.expect("configured");
        assert_eq!(of("a").await, [Role::Reader], "taken back and given");
        assert_eq!(of("b").await, [], "no longer named");
        assert_eq!(of("hand").await, [Role::Reader]);
    }
}
