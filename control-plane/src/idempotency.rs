//! A repeated request gets the first answer again (contract, fact 9).

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
