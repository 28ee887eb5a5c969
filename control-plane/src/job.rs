//! What a node may say about jobs: the agents' gateway.
use holdfast_domain::job::{JobResult, LeaseRef, LeasedJob, ProgressResponse, WalReport};
use holdfast_domain::{BootId, NodeId};
use holdfast_domain::job::Progress;

use crate::{ControlPlane, Error, Result};

impl ControlPlane {
    pub async fn lease(&self, _node: NodeId, _boot: BootId, _capacity: u32) -> Result<Vec<LeasedJob>> { Err(Error::Corrupt("not yet".into())) }
    pub async fn progress(&self, _node: NodeId, _lease: LeaseRef, _progress: Option<&Progress>) -> Result<ProgressResponse> { Err(Error::Corrupt("not yet".into())) }
    pub async fn report(&self, _node: NodeId, _lease: LeaseRef, _result: &JobResult) -> Result<()> { Err(Error::Corrupt("not yet".into())) }
    /// The keys that may be deleted.
    pub async fn validate(&self, _node: NodeId, _lease: LeaseRef, _keys: &[String]) -> Result<Vec<String>> { Err(Error::Corrupt("not yet".into())) }
    pub async fn wal_report(&self, _node: NodeId, _boot: BootId, _reports: &[WalReport]) -> Result<()> { Err(Error::Corrupt("not yet".into())) }
}
