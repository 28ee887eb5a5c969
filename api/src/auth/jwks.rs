//! The issuer's public keys, from a file that may be replaced at any time.
//!
//! A key is pinned to exactly one algorithm, derived from the key and never from a token: that is what
//! keeps a public key from being used as an HMAC secret. Symmetric keys are dropped when loading. A key
//! that leaves the file is refused with the next request; a file that cannot be read leaves the last
//! good set in force (RELIABILITY §4.1).

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;

const LARGEST_FILE: u64 = 256 * 1024;
const LONGEST_KID: usize = 256;

/// A key and the one algorithm it verifies.
#[derive(Clone)]
pub struct PinnedKey {
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

/// Keys by `kid`.
#[derive(Default)]
pub struct KeySet(HashMap<String, PinnedKey>);

impl KeySet {
    #[must_use]
    pub fn get(&self, kid: &str) -> Option<&PinnedKey> {
        self.0.get(kid)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads a JWKS document. Entries that cannot be pinned are left out.
    ///
    /// # Errors
    /// When it is no JWKS document, or two keys have one `kid`.
    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<Value>,
        }
        let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut keys = HashMap::new();
        for jwk in document.keys {
            let Some((kid, pinned)) = pin(&jwk) else {
                continue;
            };
            if keys.insert(kid.clone(), pinned).is_some() {
                return Err(format!("two keys are called '{}'", kid.escape_default()));
            }
        }
        Ok(Self(keys))
    }
}

fn pin(jwk: &Value) -> Option<(String, PinnedKey)> {
    let text = |member: &str| jwk.get(member).and_then(Value::as_str);
    let kid = text("kid").filter(|kid| (1..=LONGEST_KID).contains(&kid.len()))?;
    if !matches!(text("use"), None | Some("sig")) {
        return None;
    }
    let (algorithm, name, key) = match (text("kty")?, text("crv")) {
        // RFC 7518 §3.3 wants 2048 bits at least: 342 characters of base64url.
        ("RSA", _) if text("n")?.len() >= 342 => (
            Algorithm::RS256,
            "RS256",
            DecodingKey::from_rsa_components(text("n")?, text("e")?).ok()?,
        ),
        ("EC", Some("P-256")) => (
            Algorithm::ES256,
            "ES256",
            DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?,
        ),
        ("OKP", Some("Ed25519")) => (
            Algorithm::EdDSA,
            "EdDSA",
            DecodingKey::from_ed_components(text("x")?).ok()?,
        ),
        _ => return None,
    };
    // A key made for another algorithm of its family is not ours to reinterpret.
    if !text("alg").is_none_or(|alg| alg == name || (name == "EdDSA" && alg == "Ed25519")) {
        return None;
    }
    Some((kid.to_owned(), PinnedKey { algorithm, key }))
}

/// The file and what was last read from it.
pub struct Jwks {
    path: PathBuf,
    loaded: RwLock<Loaded>,
}

struct Loaded {
    version: Version,
    keys: Arc<KeySet>,
}

/// Tells one state of the file from another without reading it.
type Version = (u64, u64, i64, i64, i64, i64);

fn version(meta: &Metadata) -> Version {
    (
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    )
}

impl Jwks {
    /// # Errors
    /// [`Error::Jwks`] when the file cannot be read or has no key that can be used.
    pub fn open(path: PathBuf) -> Result<Self, Error> {
        let failed = |reason: String| Error::Jwks {
            path: path.clone(),
            reason,
        };
        let meta = std::fs::metadata(&path).map_err(|error| failed(error.to_string()))?;
        let keys = read(&path, &meta).map_err(failed)?;
        Ok(Self {
            loaded: RwLock::new(Loaded {
                version: version(&meta),
                keys: Arc::new(keys),
            }),
            path,
        })
    }

    /// The keys of now. Asks the file system on each call, which costs about a microsecond, and reads
    /// the file only when it is another one.
    #[must_use]
    pub fn keys(&self) -> Arc<KeySet> {
        let meta = std::fs::metadata(&self.path);
        {
            let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
            match &meta {
                Ok(meta) if version(meta) != loaded.version => {}
                _ => return Arc::clone(&loaded.keys),
            }
        }
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(meta) = meta
            && version(&meta) != loaded.version
        {
            match read(&self.path, &meta) {
                Ok(keys) => {
                    tracing::info!(path = %self.path.display(), keys = keys.0.len(), "token keys were replaced");
                    loaded.keys = Arc::new(keys);
                }
                Err(reason) => {
                    tracing::error!(path = %self.path.display(), reason, "token keys cannot be read; the last good ones stay in force");
                }
            }
            loaded.version = version(&meta);
        }
        Arc::clone(&loaded.keys)
    }
}

fn read(path: &std::path::Path, meta: &Metadata) -> Result<KeySet, String> {
    if meta.size() > LARGEST_FILE {
        return Err("it is larger than 256 KiB".to_owned());
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let keys = KeySet::parse(&text)?;
    if keys.is_empty() {
        return Err("it has no RS256, ES256 or EdDSA signature key".to_owned());
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"ed","use":"sig","alg":"EdDSA"}"#;

    #[test]
    fn symmetric_and_misfitting_keys_are_dropped() {
        let set = KeySet::parse(&format!(
            r#"{{"keys":[{ED},{{"kty":"oct","k":"c2VjcmV0","kid":"oct","alg":"HS256"}},
               {{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"enc","use":"enc"}},
               {{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}},
               {{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"short"}},
               {{"kty":"RSA","n":"{}","e":"AQAB","kid":"pss","alg":"PS256"}}]}}"#,
            "A".repeat(342)
        ))
        .expect("a document");
        assert!(set.get("ed").is_some());
        for dropped in ["oct", "enc", "short", "pss"] {
            assert!(set.get(dropped).is_none(), "{dropped}");
        }
        assert!(KeySet::parse(&format!(r#"{{"keys":[{ED},{ED}]}}"#)).is_err());
    }
}
