//! Who was given which role where.

use holdfast_domain::role::RoleAssignment;

use crate::{ControlPlane, Result, store};

impl ControlPlane {
    /// Gives a principal a role on a scope. Any number of times.
    pub async fn assign_role(&self, assignment: &RoleAssignment) -> Result<()> {
        let mut conn = self.pool().acquire().await?;
        store::lock::assign(&mut conn, assignment).await
    }

    /// Those of a caller and of its groups.
    pub async fn assignments_of(&self, principals: &[String]) -> Result<Vec<RoleAssignment>> {
        let mut conn = self.pool().acquire().await?;
        store::lock::assignments_of(&mut conn, principals).await
    }
}
