//! Who was given which role where.
use holdfast_domain::role::RoleAssignment;

use crate::{ControlPlane, Error, Result};

impl ControlPlane {
    pub async fn assign_role(&self, _assignment: &RoleAssignment) -> Result<()> { Err(Error::Corrupt("not yet".into())) }
    /// Those of a caller and of its groups.
    pub async fn assignments_of(&self, _principals: &[String]) -> Result<Vec<RoleAssignment>> { Err(Error::Corrupt("not yet".into())) }
}
