//! Our own issuer, for installations without an identity provider and for tests.
//!
//! One Ed25519 key. The private half is a PKCS #8 file that only its owner reads; the public half is
//! the JWKS file that the API watches. Tokens live for a day at most.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::json;
use uuid::Uuid;

use crate::error::Error;

/// No token is accepted for longer (RELIABILITY §4.1).
pub const LONGEST_LIFE: TimeDelta = TimeDelta::hours(24);

pub struct Issuer {
    pair: KeyPair,
    kid: String,
}

/// What a token says.
#[derive(Debug, Clone)]
pub struct Mint {
    pub issuer: String,
    pub audience: String,
    pub tenant: String,
    /// Object id; roles are assigned to it.
    pub principal: String,
    pub name: String,
    pub groups: Vec<String>,
    /// Cut to 24 hours.
    pub valid_for: TimeDelta,
}

impl Issuer {
    /// # Errors
    /// When the cryptographic library cannot make a key.
    pub fn generate() -> Result<Self, Error> {
        KeyPair::generate_for(&PKCS_ED25519)
            .map(Self::of)
            .map_err(Error::Key)
    }

    /// # Errors
    /// When the text is not an Ed25519 private key in PKCS #8.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ED25519)
            .map(Self::of)
            .map_err(Error::Key)
    }

    /// Opens the key file, or makes it, and writes the JWKS file beside it when that is missing.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::File`].
    pub fn load_or_create(key_file: &Path, jwks_file: &Path) -> Result<Self, Error> {
        let issuer = match std::fs::read_to_string(key_file) {
            Ok(pem) => Self::from_pem(&pem)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let issuer = Self::generate()?;
                write_new(key_file, &issuer.pem(), 0o600)?;
                issuer
            }
            Err(error) => {
                return Err(Error::File {
                    path: key_file.to_owned(),
                    source: error,
                });
            }
        };
        if !jwks_file.exists() {
            write_new(jwks_file, &issuer.jwks(), 0o644)?;
        }
        Ok(issuer)
    }

    fn of(pair: KeyPair) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, pair.public_key_raw());
        let kid = URL_SAFE_NO_PAD.encode(&digest.as_ref()[..12]);
        Self { pair, kid }
    }

    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The private key. Keep it where only its owner reads it.
    #[must_use]
    pub fn pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// The public half as a JWKS document.
    #[must_use]
    pub fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key_raw());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": x}]})
            .to_string()
    }

    pub(crate) fn encoding_key(&self) -> EncodingKey {
        EncodingKey::from_ed_der(self.pair.serialized_der())
    }

    /// # Errors
    /// [`Error::Mint`] when the cryptographic library fails.
    pub fn mint(&self, wanted: &Mint, now: DateTime<Utc>) -> Result<String, Error> {
        let mut head = Header::new(Algorithm::EdDSA);
        head.kid = Some(self.kid.clone());
        let expires = now + wanted.valid_for.min(LONGEST_LIFE);
        let claims = json!({
            "iss": wanted.issuer,
            "aud": wanted.audience,
            "tid": wanted.tenant,
            "oid": wanted.principal,
            "sub": wanted.principal,
            "appid": wanted.principal,
            "idtyp": "app",
            "ver": "1.0",
            "name": wanted.name,
            "groups": wanted.groups,
            "iat": now.timestamp(),
            "nbf": now.timestamp(),
            "exp": expires.timestamp(),
            "uti": Uuid::new_v4().simple().to_string(),
        });
        jsonwebtoken::encode(&head, &claims, &self.encoding_key()).map_err(Error::Mint)
    }
}

/// Written beside and renamed, so that a crash leaves all of it or nothing.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let beside = path.with_extension(format!("new-{}", Uuid::new_v4().simple()));
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}
