//! Request bodies, read strictly (RELIABILITY §4.6, §4.9 rows 21 and 22).
//!
//! At most 1 MiB within 30 s, JSON to a depth of 32, arrays to 1,000 items. A key that comes twice is
//! refused: two readers could take different ones. So is whatever stands before or after the value.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::{ArmError, Result};

pub const LIMIT_BYTES: usize = 1 << 20;
const READ_WITHIN: Duration = Duration::from_secs(30);
const DEPTH: usize = 32;
const ITEMS: usize = 1_000;

/// Reads the whole body.
///
/// # Errors
/// 415 for an encoded body, 413 above 1 MiB, 408 when it does not come, 400 when it breaks off.
pub async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(ArmError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "Content-Encoding is not supported on requests; send the body as it is.",
        ));
    }
    match tokio::time::timeout(READ_WITHIN, Limited::new(body, LIMIT_BYTES).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(content("The request body could not be read to its end.")),
        Err(_) => Err(ArmError::new(
            StatusCode::REQUEST_TIMEOUT,
            "RequestTimeout",
            "The request body did not arrive within 30 seconds.",
        )),
    }
}

#[must_use]
pub fn too_large() -> ArmError {
    ArmError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "RequestEntityTooLarge",
        "The request body is larger than 1 MiB.",
    )
}

/// The body as JSON.
///
/// # Errors
/// 415 for another content type, 400 `InvalidRequestContent` for anything but one strict JSON value.
pub fn json(headers: &HeaderMap, bytes: &[u8]) -> Result<Value> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map(http::HeaderValue::as_bytes);
    let essence = kind.map(|kind| {
        let end = kind.iter().position(|b| *b == b';').unwrap_or(kind.len());
        kind[..end].trim_ascii()
    });
    if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case(b"application/json")) {
        return Err(ArmError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "Send the body as application/json.",
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = Strict(DEPTH)
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value))
        // Where and what, without quoting the body: it may hold a password.
        .map_err(|error| {
            let what = match error.classify() {
                serde_json::error::Category::Data => strip_position(&error.to_string()),
                serde_json::error::Category::Eof => "it ends too early".to_owned(),
                _ => "it is not valid JSON".to_owned(),
            };
            content(format!(
                "The request content was invalid and could not be deserialized: {what} (line {}, column {}).",
                error.line(),
                error.column()
            ))
        })?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(content("The request content must be a JSON object."))
    }
}

/// A JSON value as a type of the wire; the first member that does not fit is named by its path.
///
/// # Errors
/// 400 `InvalidParameterValue` with the path as target.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        if path.to_ascii_lowercase().ends_with("password") {
            return ArmError::invalid(path, "Give it as text.");
        }
        let what = error.inner().to_string();
        ArmError::invalid(path, format!("The value does not fit: {what}."))
    })
}

fn content(message: impl Into<String>) -> ArmError {
    ArmError::bad_request("InvalidRequestContent", message)
}

/// Our own messages, without serde's " at line 1 column 2".
fn strip_position(message: &str) -> String {
    message
        .rfind(" at line ")
        .map_or(message, |end| &message[..end])
        .to_owned()
}

/// Builds a value while counting depth and items and refusing repeated keys. The number is how many
/// more levels are allowed.
struct Strict(usize);

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> std::result::Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number is too large"))
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> std::result::Result<Value, E> {
        self.visit_string(v.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, v: String) -> std::result::Result<Value, E> {
        without_nul(&v)?;
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let below = self
            .0
            .checked_sub(1)
            .ok_or_else(|| A::Error::custom("it is nested more than 32 deep"))?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Strict(below))? {
            if items.len() == ITEMS {
                return Err(A::Error::custom("an array has more than 1000 items"));
            }
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let below = self
            .0
            .checked_sub(1)
            .ok_or_else(|| A::Error::custom("it is nested more than 32 deep"))?;
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            without_nul(&key)?;
            let value = map.next_value_seed(Strict(below))?;
            if members.insert(key, value).is_some() {
                return Err(A::Error::custom("a member is given twice"));
            }
        }
        Ok(Value::Object(members))
    }
}

/// Nothing that is kept can hold it: neither PostgreSQL's text nor a C string of its own.
fn without_nul<E: serde::de::Error>(text: &str) -> std::result::Result<(), E> {
    if text.contains('\0') {
        return Err(E::custom("a text has a NUL character in it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(kind: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))])
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Value, (u16, &'static str)> {
        json(&headers("application/json; charset=utf-8"), bytes)
            .map_err(|e| (e.status().as_u16(), e.code()))
    }

    #[test]
    fn only_one_strict_json_object_is_read() {
        // RELIABILITY §4.9 row 21
        let refused = Err((400, "InvalidRequestContent"));
        let deep = |n: usize| format!("{}1{}", "{\"a\":".repeat(n), "}".repeat(n));
        let long = format!("{{\"a\":[{}1]}}", "1,".repeat(1_000));
        for bad in [
            &b"\xef\xbb\xbf{}"[..],
            b"{} x",
            b"{}{}",
            b"{\"a\":1,\"a\":2}",
            b"{\"a\":{\"b\":1,\"b\":2}}",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":",
            b"",
            b"[]",
            b"null",
            b"{'a':1}",
            b"{\"a\":NaN}",
            b"{\"a\":1e999}",
            deep(33).as_bytes(),
            deep(10_000).as_bytes(),
            long.as_bytes(),
        ] {
            assert_eq!(
                parse(bad),
                refused,
                "{:?}",
                String::from_utf8_lossy(&bad[..bad.len().min(40)])
            );
        }
        assert!(parse(deep(32).as_bytes()).is_ok());
        assert_eq!(
            parse(b" {\"a\":[1,2.5,null,\"\\u00e9\"]} \n")
                .map(|v| v.to_string())
                .as_deref(),
            Ok("{\"a\":[1,2.5,null,\"é\"]}")
        );
    }

    #[test]
    fn another_content_type_is_refused() {
        // RELIABILITY §4.9 row 22
        for kind in [
            "text/xml",
            "application/x-www-form-urlencoded",
            "application/jsonx",
            "",
        ] {
            let error = json(&headers(kind), b"{}").expect_err("refused");
            assert_eq!(
                (error.status().as_u16(), error.code()),
                (415, "UnsupportedMediaType")
            );
        }
        assert!(json(&HeaderMap::new(), b"{}").is_err());
        assert!(json(&headers("APPLICATION/JSON;charset=UTF-8"), b"{}").is_ok());
    }

    #[tokio::test]
    async fn encoded_and_oversized_bodies_are_refused_before_they_are_kept() {
        let gzip =
            HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        assert_eq!(
            read(&gzip, Body::from("x"))
                .await
                .map_err(|e| e.status().as_u16()),
            Err(415)
        );
        let large = Body::from(vec![b' '; LIMIT_BYTES + 1]);
        assert_eq!(
            read(&HeaderMap::new(), large)
                .await
                .map_err(|e| e.status().as_u16()),
            Err(413)
        );
        let fits = Body::from(vec![b' '; LIMIT_BYTES]);
        assert!(read(&HeaderMap::new(), fits).await.is_ok());
    }

    #[test]
    fn a_refused_body_is_not_quoted() {
        let error =
            json(&headers("application/json"), b"{\"password\":\"s3cret\",}").expect_err("refused");
        assert!(!error.message().contains("s3cret"));
    }
}
