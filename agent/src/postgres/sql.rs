//! Text that becomes part of an SQL statement. Role names cannot be parameters of a statement, so
//! they are quoted here and nowhere else (RELIABILITY §4.5).

use crate::error::{Error, Result};

/// `"name"`, for a name of up to 63 bytes: PostgreSQL would cut a longer one silently.
pub fn identifier(name: &str) -> Result<String> {
    if name.is_empty() || name.len() > 63 || name.contains('\0') {
        return Err(Error::Unquotable { what: "a name" });
    }
    Ok(postgres_protocol::escape::escape_identifier(name))
}

/// `'text'`, with the E prefix when it holds backslashes.
pub fn literal(text: &str) -> Result<String> {
    if text.contains('\0') {
        return Err(Error::Unquotable { what: "a text" });
    }
    Ok(postgres_protocol::escape::escape_literal(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_stay_inside() {
        assert_eq!(
            identifier("a\"; DROP ROLE x").expect("quotable"),
            "\"a\"\"; DROP ROLE x\""
        );
        assert_eq!(literal("it's").expect("quotable"), "'it''s'");
        assert_eq!(
            literal("a\\'b").expect("quotable").trim_start(),
            "E'a\\\\''b'"
        );
        assert!(identifier("").is_err());
        assert!(identifier(&"x".repeat(64)).is_err());
        assert!(literal("a\0b").is_err());
    }
}
