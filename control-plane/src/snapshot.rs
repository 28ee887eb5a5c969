//! Duty.
use crate::{ControlPlane, Error, Result};

impl ControlPlane {
    /// Looks at the whole state, decides, writes, and answers how much it did.
    pub async fn schedule_snapshots(&self) -> Result<usize> { Err(Error::Corrupt("not yet".into())) }
}
