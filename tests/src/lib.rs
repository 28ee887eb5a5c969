//! What the integration and end-to-end suites share.

pub mod ledger;
pub mod site;
