//! Lists in portions: `nextLink` with a sealed `$skipToken`.
//!
//! A token says where the page before ended. It is sealed (AES-256-GCM) and bound to the caller and
//! to the query, so that it can be neither read, edited nor lent (RELIABILITY §4.2, §4.9 row 27).

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_control_plane::PageRequest;

use super::error::{ArmError, Result};

pub const SIZE: u32 = 200;

/// Seals positions. All API processes of an installation need the same key, or a list that is
/// continued at another process begins anew with an error.
pub struct Seal(RandomizedNonceKey);

impl Seal {
    /// # Errors
    /// Only when the cryptographic library refuses the key.
    pub fn new(key: &[u8; 32]) -> std::result::Result<Self, aws_lc_rs::error::Unspecified> {
        RandomizedNonceKey::new(&AES_256_GCM, key).map(Self)
    }

    /// What a token is bound to: the caller, the path, and every other part of the query.
    fn bound(principal: &str, path: &str, query: &[(String, String)]) -> Vec<u8> {
        let mut parts: Vec<String> = query
            .iter()
            .filter(|(key, _)| !is_token(key) && !key.eq_ignore_ascii_case("api-version"))
            .map(|(key, value)| format!("{}={value}", key.to_ascii_lowercase()))
            .collect();
        parts.sort_unstable();
        let mut bound = format!("{principal}\0{}", path.to_ascii_lowercase());
        for part in parts {
            bound.push('\0');
            bound.push_str(&part);
        }
        bound.into_bytes()
    }

    fn seal(&self, position: &str, bound: &[u8]) -> Result<String> {
        let mut sealed = position.as_bytes().to_vec();
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(bound), &mut sealed)
            .map_err(|error| ArmError::internal(&error))?;
        let mut token = nonce.as_ref().to_vec();
        token.append(&mut sealed);
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    fn open(&self, token: &str, bound: &[u8]) -> Option<String> {
        if token.len() > 4_096 {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let nonce = Nonce::try_assume_unique_for_key(bytes.get(..NONCE_LEN)?).ok()?;
        let sealed = bytes.get_mut(NONCE_LEN..)?;
        let opened = self.0.open_in_place(nonce, Aad::from(bound), sealed).ok()?;
        String::from_utf8(opened.to_vec()).ok()
    }

    /// Where to begin.
    ///
    /// # Errors
    /// 400 for a token that is not ours, another caller's, or another query's.
    pub fn request(
        &self,
        principal: &str,
        path: &str,
        query: &[(String, String)],
    ) -> Result<PageRequest> {
        let Some((_, token)) = query.iter().find(|(key, _)| is_token(key)) else {
            return Ok(PageRequest {
                after: None,
                limit: SIZE,
            });
        };
        let after = self
            .open(token, &Self::bound(principal, path, query))
            .ok_or_else(|| {
                ArmError::bad_request(
                    "InvalidSkipToken",
                    "The $skipToken is not one that this list gave you. Follow nextLink as it is, or begin again without it.",
                )
                .at("$skipToken")
            })?;
        Ok(PageRequest {
            after: Some(after),
            limit: SIZE,
        })
    }

    /// The absolute address of the next page.
    ///
    /// # Errors
    /// Only when the cryptographic library fails.
    pub fn next_link(
        &self,
        public_url: &str,
        principal: &str,
        path: &str,
        query: &[(String, String)],
        next: Option<&str>,
    ) -> Result<Option<String>> {
        let Some(next) = next else { return Ok(None) };
        let token = self.seal(next, &Self::bound(principal, path, query))?;
        let mut link = url::form_urlencoded::Serializer::new(format!("{public_url}{path}?"));
        for (key, value) in query.iter().filter(|(key, _)| !is_token(key)) {
            link.append_pair(key, value);
        }
        link.append_pair("$skipToken", &token);
        Ok(Some(link.finish().replacen("?&", "?", 1)))
    }
}

fn is_token(key: &str) -> bool {
    key.eq_ignore_ascii_case("$skiptoken")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn a_token_continues_its_own_list_only() {
        // RELIABILITY §4.9 row 27
        let seal = Seal::new(&[7; 32]).expect("a key");
        let query = pairs(&[("api-version", "2026-10-01"), ("$filter", "a b")]);
        let link = seal
            .next_link(
                "https://localhost:8443",
                "me",
                "/subscriptions/s/x",
                &query,
                Some("pg1"),
            )
            .expect("sealed")
            .expect("a next page");
        let url = url::Url::parse(&link).expect("absolute");
        assert_eq!(url.path(), "/subscriptions/s/x");
        let followed: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        assert_eq!(followed[..2], query[..]);
        assert_eq!(
            seal.request("me", "/subscriptions/S/x", &followed)
                .expect("mine")
                .after
                .as_deref(),
            Some("pg1")
        );
        assert!(
            seal.request("you", "/subscriptions/s/x", &followed)
                .is_err()
        );
        assert!(seal.request("me", "/subscriptions/s/y", &followed).is_err());
        let mut other = followed.clone();
        other[1].1 = "c".into();
        assert!(seal.request("me", "/subscriptions/s/x", &other).is_err());
        for edited in ["", "AAAA", &"A".repeat(60), &"A".repeat(9_000)] {
            let mut edited_query = query.clone();
            edited_query.push(("$skiptoken".into(), edited.to_owned()));
            assert!(
                seal.request("me", "/subscriptions/s/x", &edited_query)
                    .is_err()
            );
        }
    }
}
