//! What a user asked for and polls.
use holdfast_domain::operation::Operation;
use holdfast_domain::{OperationId, SubscriptionId};

use crate::{ControlPlane, Error, Result};

/// The answer to whoever asked for an operation.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub operation: Operation,
    /// The same request came before: this is its answer again.
    pub replayed: bool,
}

impl ControlPlane {
    pub async fn get_operation(&self, _subscription: SubscriptionId, _region: &str, _id: OperationId) -> Result<Operation> { Err(Error::Corrupt("not yet".into())) }
}
