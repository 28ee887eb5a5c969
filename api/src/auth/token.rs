//! Bearer tokens: what is accepted, and nothing else (RELIABILITY §4.1, §4.9 rows 1 to 8).
//!
//! The header of a token chooses a key by `kid` and must name that key's own algorithm; everything
//! else that a header can carry (`jwk`, `jku`, `x5u`, `x5c`) is never read. Time is an argument:
//! the library's own checks read the wall clock and are switched off.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use http::{HeaderMap, header};
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde_json::Value;

use super::AuthConfig;
use super::jwks::KeySet;

const LONGEST: usize = 8 * 1024;
/// Clocks may differ by this much (DESIGN preamble).
const SKEW_S: i64 = 30;
const LONGEST_LIFE_S: i64 = 24 * 3_600;

/// Who calls, as the token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `oid`: what roles are assigned to.
    pub principal: String,
    pub name: String,
    /// The application that acts.
    pub app: String,
    pub tenant: String,
    /// Object ids of groups; roles are assigned to these as well.
    pub groups: Vec<String>,
}

/// Why there is no identity. The texts go to the caller and say nothing about keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "Authentication failed. The 'Authorization' header is missing or is not one 'Bearer' token."
    )]
    Missing,
    #[error("The access token is invalid.")]
    Invalid,
    #[error("The access token has expired.")]
    Expired,
}

impl Denied {
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "AuthenticationFailed",
            Self::Invalid => "InvalidAuthenticationToken",
            Self::Expired => "ExpiredAuthenticationToken",
        }
    }
}

#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: i64,
    nbf: i64,
    iat: i64,
    oid: Option<String>,
    sub: Option<String>,
    tid: Option<String>,
    appid: Option<String>,
    azp: Option<String>,
    upn: Option<String>,
    unique_name: Option<String>,
    name: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// The one bearer token of a request.
///
/// # Errors
/// [`Denied::Missing`] without a header, with several, or with another scheme.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Denied> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else {
        return Err(Denied::Missing);
    };
    let text = value.to_str().map_err(|_| Denied::Missing)?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(token.trim_start_matches(' '))
        }
        _ => Err(Denied::Missing),
    }
}

/// Checks a token and says who calls.
///
/// # Errors
/// [`Denied::Invalid`], [`Denied::Expired`].
pub fn check(
    token: &str,
    keys: &KeySet,
    config: &AuthConfig,
    now: DateTime<Utc>,
) -> Result<Identity, Denied> {
    if token.len() > LONGEST {
        return Err(Denied::Invalid);
    }
    let head = head(token)?;
    if head.crit.is_some()
        || !head
            .typ
            .as_deref()
            .is_none_or(|typ| typ.eq_ignore_ascii_case("JWT") || typ.eq_ignore_ascii_case("at+jwt"))
    {
        return Err(Denied::Invalid);
    }
    let pinned = head
        .kid
        .as_deref()
        .and_then(|kid| keys.get(kid))
        .ok_or(Denied::Invalid)?;
    if head.alg != algorithm_name(pinned.algorithm) {
        return Err(Denied::Invalid);
    }
    let mut signature_only = Validation::new(pinned.algorithm);
    signature_only.validate_exp = false;
    signature_only.validate_nbf = false;
    signature_only.validate_aud = false;
    signature_only.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<Claims>(token, &pinned.key, &signature_only)
        .map_err(|_| Denied::Invalid)?
        .claims;
    judge(claims, config, now.timestamp())
}

fn judge(claims: Claims, config: &AuthConfig, now: i64) -> Result<Identity, Denied> {
    let ours = |audience: &str| {
        config
            .audiences
            .iter()
            .any(|ours| ours.trim_end_matches('/') == audience.trim_end_matches('/'))
    };
    let for_us = match &claims.aud {
        Audience::One(audience) => ours(audience),
        Audience::Several(audiences) => audiences.iter().any(|audience| ours(audience)),
    };
    if claims.iss != config.issuer || !for_us {
        return Err(Denied::Invalid);
    }
    if config
        .tenant
        .as_ref()
        .is_some_and(|tenant| claims.tid.as_ref() != Some(tenant))
    {
        return Err(Denied::Invalid);
    }
    let life = claims.exp.checked_sub(claims.iat).ok_or(Denied::Invalid)?;
    if claims.iat > now + SKEW_S || claims.nbf > now + SKEW_S || life > LONGEST_LIFE_S {
        return Err(Denied::Invalid);
    }
    if claims.exp.saturating_add(SKEW_S) < now {
        return Err(Denied::Expired);
    }
    let principal = claims
        .oid
        .or(claims.sub)
        .filter(|principal| !principal.is_empty() && principal.len() <= 256 && printable(principal))
        .ok_or(Denied::Invalid)?;
    let app = claims.appid.or(claims.azp).unwrap_or_default();
    let name = [
        claims.upn,
        claims.unique_name,
        claims.name,
        Some(app.clone()),
    ]
    .into_iter()
    .flatten()
    .find(|name| !name.is_empty() && printable(name))
    .unwrap_or_else(|| principal.clone());
    Ok(Identity {
        name,
        app,
        tenant: claims.tid.unwrap_or_default(),
        groups: claims
            .groups
            .into_iter()
            .filter(|group| printable(group))
            .collect(),
        principal,
    })
}

/// What is looked up in the store and written into its log; PostgreSQL's text holds no NUL.
fn printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn head(token: &str) -> Result<Head, Denied> {
    let mut parts = token.split('.');
    let (Some(head), Some(_), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Denied::Invalid);
    };
    if signature.is_empty() {
        return Err(Denied::Invalid);
    }
    let bytes = URL_SAFE_NO_PAD.decode(head).map_err(|_| Denied::Invalid)?;
    serde_json::from_slice(&bytes).map_err(|_| Denied::Invalid)
}

fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RS256 => "RS256",
        Algorithm::ES256 => "ES256",
        Algorithm::EdDSA => "EdDSA",
        // No other one is ever pinned, and no token has this name.
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use http::HeaderValue;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    use super::*;
    use crate::auth::issuer::Issuer;

    fn now() -> DateTime<Utc> {
        "2026-11-20T10:00:00Z".parse().expect("valid")
    }

    fn config() -> AuthConfig {
        AuthConfig {
            issuer: "https://holdfast.test/t".into(),
            audiences: vec!["https://holdfast.test/".into()],
            tenant: Some("t".into()),
            jwks_file: "unused".into(),
        }
    }

    fn claims() -> Value {
        let now = now().timestamp();
        json!({"iss": "https://holdfast.test/t", "aud": "https://holdfast.test", "tid": "t", "oid": "o-1", "appid": "a-1",
               "iat": now, "nbf": now, "exp": now + 3600, "groups": ["g"]})
    }

    /// A token of any header and claims, signed by the issuer's own key.
    fn signed(issuer: &Issuer, head: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(head), part(claims));
        let signature = jsonwebtoken::crypto::sign(
            message.as_bytes(),
            &issuer.encoding_key(),
            Algorithm::EdDSA,
        )
        .expect("signs");
        format!("{message}.{signature}")
    }

    struct Bench {
        issuer: Issuer,
        keys: KeySet,
    }

    impl Bench {
        fn new() -> Self {
            let issuer = Issuer::generate().expect("a key");
            let keys = KeySet::parse(&issuer.jwks()).expect("a document");
            Self { issuer, keys }
        }

        fn head(&self) -> Value {
            json!({"alg": "EdDSA", "typ": "JWT", "kid": self.issuer.kid()})
        }

        fn with(&self, change: impl FnOnce(&mut Value, &mut Value)) -> Result<Identity, Denied> {
            let (mut head, mut claims) = (self.head(), claims());
            change(&mut head, &mut claims);
            check(
                &signed(&self.issuer, &head, &claims),
                &self.keys,
                &config(),
                now(),
            )
        }
    }

    #[test]
    fn a_good_token_says_who_calls() {
        let identity = Bench::new().with(|_, _| {}).expect("good");
        assert_eq!(
            (identity.principal.as_str(), identity.app.as_str()),
            ("o-1", "a-1")
        );
        assert_eq!(identity.groups, ["g"]);
    }

    #[test]
    fn anything_but_one_bearer_token_is_missing() {
        // RELIABILITY §4.9 rows 1 and 2
        let headers = |values: &[&'static str]| {
            values
                .iter()
                .map(|v| (header::AUTHORIZATION, HeaderValue::from_static(v)))
                .collect::<HeaderMap>()
        };
        for wrong in [
            &[][..],
            &["Basic eA=="],
            &["Bearer"],
            &["a.b.c"],
            &["Bearer a", "Bearer a"],
        ] {
            assert_eq!(bearer(&headers(wrong)), Err(Denied::Missing), "{wrong:?}");
        }
        assert_eq!(bearer(&headers(&["bearer a.b.c"])), Ok("a.b.c"));
        let bench = Bench::new();
        let long = format!("a.{}.c", "b".repeat(9 * 1024));
        for wrong in ["a.b.c", "", "a.b", "a.b.c.d", &long] {
            assert_eq!(
                check(wrong, &bench.keys, &config(), now()),
                Err(Denied::Invalid)
            );
        }
    }

    #[test]
    fn a_token_cannot_choose_how_it_is_checked() {
        // RELIABILITY §4.9 rows 3, 5 and 6
        let bench = Bench::new();
        for alg in ["none", "None", "nOnE", "HS256", "RS256", "ES256", ""] {
            assert_eq!(
                bench.with(|head, _| head["alg"] = json!(alg)),
                Err(Denied::Invalid),
                "{alg}"
            );
        }
        let (head, claims) = (json!({"alg": "none", "kid": bench.issuer.kid()}), claims());
        let unsigned = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(head.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        assert_eq!(
            check(&unsigned, &bench.keys, &config(), now()),
            Err(Denied::Invalid)
        );
        for kid in [
            json!("../../etc/passwd"),
            json!("' or ''='"),
            json!("k".repeat(65_536)),
            json!(null),
            json!(1),
        ] {
            assert_eq!(
                bench.with(|head, _| head["kid"] = kid),
                Err(Denied::Invalid)
            );
        }
        assert_eq!(
            bench.with(|head, _| head["crit"] = json!(["exp"])),
            Err(Denied::Invalid)
        );
        assert_eq!(
            bench.with(|head, _| head["typ"] = json!("dpop+jwt")),
            Err(Denied::Invalid)
        );
        // Its own key in the header does not help a forger: the header's key is never read.
        let forger = Issuer::generate().expect("a key");
        let mut head = bench.head();
        head["jwk"] =
            serde_json::from_str::<Value>(&forger.jwks()).expect("JSON")["keys"][0].clone();
        head["jku"] = json!("http://127.0.0.1:9/");
        assert_eq!(
            check(
                &signed(&forger, &head, &claims),
                &bench.keys,
                &config(),
                now()
            ),
            Err(Denied::Invalid)
        );
    }

    #[test]
    fn a_public_key_is_no_secret() {
        // RELIABILITY §4.9 row 4
        let bench = Bench::new();
        let jwk: Value = serde_json::from_str(&bench.issuer.jwks()).expect("JSON");
        let x = jwk["keys"][0]["x"].as_str().expect("text").to_owned();
        let raw = URL_SAFE_NO_PAD.decode(&x).expect("base64");
        for secret in [x.into_bytes(), raw, jwk["keys"][0].to_string().into_bytes()] {
            let mut head = Header::new(Algorithm::HS256);
            head.kid = Some(bench.issuer.kid().to_owned());
            let token = jsonwebtoken::encode(&head, &claims(), &EncodingKey::from_secret(&secret))
                .expect("signs");
            assert_eq!(
                check(&token, &bench.keys, &config(), now()),
                Err(Denied::Invalid)
            );
        }
    }

    #[test]
    fn times_and_names_must_fit() {
        // RELIABILITY §4.9 row 7
        let bench = Bench::new();
        let at = now().timestamp();
        let with = |change: fn(&mut Value, i64)| bench.with(|_, claims| change(claims, at));
        assert_eq!(
            with(|c, at| {
                c["iat"] = json!(at - 3600);
                c["exp"] = json!(at - 31);
            }),
            Err(Denied::Expired)
        );
        assert!(
            with(|c, at| {
                c["iat"] = json!(at - 3600);
                c["exp"] = json!(at - 30);
            })
            .is_ok()
        );
        assert_eq!(
            with(|c, at| c["nbf"] = json!(at + 31)),
            Err(Denied::Invalid)
        );
        assert!(with(|c, at| c["nbf"] = json!(at + 30)).is_ok());
        assert_eq!(
            with(|c, at| c["iat"] = json!(at + 31)),
            Err(Denied::Invalid)
        );
        assert_eq!(
            with(|c, at| c["exp"] = json!(at + 24 * 3600 + 1)),
            Err(Denied::Invalid)
        );
        for missing in ["exp", "nbf", "iss", "aud", "iat"] {
            let denied = bench.with(|_, claims| {
                claims.as_object_mut().expect("an object").remove(missing);
            });
            assert_eq!(denied, Err(Denied::Invalid), "{missing}");
        }
        assert_eq!(
            with(|c, _| c["aud"] = json!(["https://a", "https://b"])),
            Err(Denied::Invalid)
        );
        assert!(with(|c, _| c["aud"] = json!(["https://a", "https://holdfast.test/"])).is_ok());
        assert_eq!(
            with(|c, _| c["iss"] = json!("https://holdfast.test/t/")),
            Err(Denied::Invalid)
        );
        assert_eq!(with(|c, _| c["tid"] = json!("u")), Err(Denied::Invalid));
        assert_eq!(
            with(|c, _| c["exp"] = json!(i64::MAX)),
            Err(Denied::Invalid)
        );
        assert_eq!(
            with(|c, _| c["iat"] = json!(i64::MIN)),
            Err(Denied::Invalid)
        );
    }

    #[test]
    fn a_retired_key_is_refused_with_the_next_request() {
        // RELIABILITY §4.9 row 8
        let (old, new) = (
            Issuer::generate().expect("a key"),
            Issuer::generate().expect("a key"),
        );
        let dir = std::env::temp_dir().join(format!("holdfast-jwks-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&dir).expect("a directory");
        let file = dir.join("jwks.json");
        let replace = |text: &str| {
            std::fs::write(dir.join("new"), text).expect("writes");
            std::fs::rename(dir.join("new"), &file).expect("renames");
        };
        replace(&old.jwks());
        let jwks = super::super::jwks::Jwks::open(file.clone()).expect("opens");
        let token = signed(&old, &json!({"alg": "EdDSA", "kid": old.kid()}), &claims());
        assert!(check(&token, &jwks.keys(), &config(), now()).is_ok());
        replace("{ broken");
        assert!(check(&token, &jwks.keys(), &config(), now()).is_ok());
        replace(&new.jwks());
        assert_eq!(
            check(&token, &jwks.keys(), &config(), now()),
            Err(Denied::Invalid)
        );
        let token = signed(&new, &json!({"alg": "EdDSA", "kid": new.kid()}), &claims());
        assert!(check(&token, &jwks.keys(), &config(), now()).is_ok());
        std::fs::remove_dir_all(&dir).expect("removes");
    }

    #[test]
    fn what_the_issuer_mints_is_accepted_for_a_day_at_most() {
        let bench = Bench::new();
        let wanted = crate::auth::issuer::Mint {
            issuer: config().issuer,
            audience: "https://holdfast.test/".into(),
            tenant: "t".into(),
            principal: "o-1".into(),
            name: "admin".into(),
            groups: vec![],
            valid_for: TimeDelta::days(365),
        };
        let token = bench.issuer.mint(&wanted, now()).expect("signs");
        assert_eq!(
            check(&token, &bench.keys, &config(), now())
                .map(|i| i.name)
                .as_deref(),
            Ok("admin")
        );
        let later = now() + TimeDelta::hours(24) + TimeDelta::seconds(31);
        assert_eq!(
            check(&token, &bench.keys, &config(), later),
            Err(Denied::Expired)
        );
    }
}
