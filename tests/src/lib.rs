//! What the integration and end-to-end suites share.

pub mod api_client;
pub mod clients;
pub mod harness;
pub mod ledger;
pub mod metadata;
pub mod scripted_node;
pub mod site;
