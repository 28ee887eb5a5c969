//! Who calls, and what they may do (RELIABILITY §4.1, §4.2).
//!
//! [`token`] checks a bearer token against [`jwks`]; [`authorize`] decides from the path alone,
//! before anything is looked up; [`issuer`] makes tokens for installations without an identity
//! provider of their own.

pub mod authorize;
pub mod issuer;
pub mod jwks;
pub mod token;

use std::path::PathBuf;

pub use authorize::Rights;
pub use issuer::Issuer;
pub use token::Identity;

/// Whose tokens are accepted.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Exactly `iss`.
    pub issuer: String,
    /// Any of `aud`, compared without trailing slashes.
    pub audiences: Vec<String>,
    /// Exactly `tid`, when given.
    pub tenant: Option<String>,
    /// The keys, in a file that may be replaced at any time.
    pub jwks_file: PathBuf,
}
