//! A repeated request gets the first answer again (contract, fact 9).

use aws_lc_rs::digest::{Context, SHA256};
use holdfast_domain::activity::Caller;
use holdfast_domain::{OperationId, SubscriptionId};

use crate::operation::Accepted;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result};

/// What makes two requests one: the client's request id, the method, the path and the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// `x-ms-client-request-id`. Without one, a repetition is recognised only while the first is
    /// still under way.
    pub client_request_id: Option<String>,
    pub method: &'static str,
    /// Lower-cased.
    pub path: String,
    pub body_hash: [u8; 32],
}

impl Idempotency {
    fn request_hash(&self, caller: &Caller) -> Vec<u8> {
        let mut context = Context::new(&SHA256);
        let id = self.client_request_id.as_deref().unwrap_or_default();
        for part in [
            caller.principal.as_str(),
            id,
            self.method,
            self.path.as_str(),
        ] {
            // Lengths keep the parts apart.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        context.update(&self.body_hash);
        context.finish().as_ref().to_vec()
    }
}

/// The first answer, if this request came before; else its answer is going to be `operation`.
pub(crate) async fn replay(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    caller: &Caller,
    subscription: SubscriptionId,
    request: &Idempotency,
    operation: OperationId,
) -> Result<Option<Accepted>> {
    let now = unit.now();
    let first = store::idempotency::reserve(
        unit.conn(),
        subscription,
        &request.request_hash(caller),
        operation,
        request.client_request_id.is_some(),
        now,
        control_plane.policy().idempotency,
    )
    .await?;
    let Some(first) = first else {
        return Ok(None);
    };
    let record = store::operation::get(unit.conn(), subscription, first, Hold::None)
        .await?
        .ok_or_else(|| Error::corrupt("an answered request has no operation"))?;
    Ok(Some(Accepted {
        operation: record.operation,
        replayed: true,
    }))
}
