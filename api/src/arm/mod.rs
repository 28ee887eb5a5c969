//! Resource Manager's habits: paths, versions, headers, errors, bodies, long-running operations.
//!
//! Everything here is the same for every resource type; what a resource looks like is in
//! [`crate::wire`], what may be done to it in [`mod@crate::routes`].

pub mod api_version;
pub mod body;
pub mod call;
pub mod error;
pub mod filter;
pub mod headers;
pub mod operation_url;
pub mod page;
pub mod path;

pub use api_version::ApiVersion;
pub use call::Call;
pub use error::{ArmError, Result};
