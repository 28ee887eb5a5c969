//! Names that callers choose. Parsed here, trusted everywhere else; none of them ever reaches a
//! disk, a shell or an object key (DESIGN §3.13).

use crate::refusal::Refusal;

/// A server's name, as it is stored: lower case (DESIGN preamble; RELIABILITY §4.5).
///
/// # Errors
/// [`Refusal::InvalidResourceName`] for anything but 3 to 63 of `a-z`, `0-9` and inner hyphens.
pub fn new_server(name: &str) -> Result<String, Refusal> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let fine = (3..=63).contains(&bytes.len())
        && bytes.iter().all(|&b| inner(b) || b == b'-')
        && inner(bytes[0])
        && inner(bytes[bytes.len() - 1]);
    fine.then(|| name.to_owned())
        .ok_or_else(|| Refusal::InvalidResourceName {
            what: "server",
            name: name.to_owned(),
            rule: "use 3 to 63 lower-case letters, digits and hyphens, with a letter or digit first and last",
        })
}

/// An on-demand backup's name (contract §4.1; RELIABILITY §4.5).
///
/// # Errors
/// [`Refusal::InvalidResourceName`].
pub fn new_backup(name: &str) -> Result<String, Refusal> {
    let bytes = name.as_bytes();
    let fine = (1..=128).contains(&bytes.len())
        && bytes
            .iter()
            .all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !name.contains("..")
        && name != ".";
    fine.then(|| name.to_owned())
        .ok_or_else(|| Refusal::InvalidResourceName {
            what: "backup",
            name: name.to_owned(),
            rule: "use 1 to 128 letters, digits, '-', '_' and '.', without '..'",
        })
}

/// A resource group's name (contract, other-apis §3).
///
/// # Errors
/// [`Refusal::InvalidResourceName`].
pub fn new_resource_group(name: &str) -> Result<String, Refusal> {
    let bytes = name.as_bytes();
    let fine = (1..=90).contains(&bytes.len())
        && bytes
            .iter()
            .all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'(' | b')'))
        && !name.ends_with('.');
    fine.then(|| name.to_owned())
        .ok_or_else(|| Refusal::InvalidResourceName {
            what: "resource group",
            name: name.to_owned(),
            rule: "use 1 to 90 letters, digits, '-', '_', '.', '(' and ')', without a final '.'",
        })
}

/// An administrator's login that PostgreSQL and our own roles leave free (RELIABILITY §4.9 row 35).
///
/// # Errors
/// [`Refusal::InvalidParameterValue`] at `properties.administratorLogin`.
pub fn new_administrator_login(login: &str) -> Result<String, Refusal> {
    const RESERVED: &[&str] = &[
        "admin",
        "administrator",
        "azure_pg_admin",
        "azure_superuser",
        "guest",
        "holdfast",
        "postgres",
        "public",
        "replication",
        "root",
    ];
    let bytes = login.as_bytes();
    let fine = (1..=63).contains(&bytes.len())
        && bytes[0].is_ascii_alphabetic()
        && bytes
            .iter()
            .all(|&b| b.is_ascii_alphanumeric() || b == b'_')
        && !login.to_ascii_lowercase().starts_with("pg_")
        && !login.to_ascii_lowercase().starts_with("holdfast")
        && !RESERVED.contains(&login.to_ascii_lowercase().as_str());
    fine.then(|| login.to_owned()).ok_or_else(|| {
        Refusal::invalid(
            "properties.administratorLogin",
            "Use 1 to 63 letters, digits and underscores with a letter first; names beginning with pg_ or holdfast and built-in role names are reserved.",
        )
    })
}

/// A password that can be handed to PostgreSQL safely.
///
/// # Errors
/// [`Refusal::InvalidParameterValue`] at `properties.administratorLoginPassword`; never echoes it.
pub fn check_administrator_password(password: &str) -> Result<(), Refusal> {
    let fine =
        (8..=128).contains(&password.chars().count()) && password.chars().all(|c| !c.is_control());
    fine.then_some(()).ok_or_else(|| {
        Refusal::invalid(
            "properties.administratorLoginPassword",
            "Give a password of 8 to 128 characters without control characters.",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_server_names_are_refused() {
        // RELIABILITY §4.9 row 13
        let long = "a".repeat(64);
        for name in [
            "..",
            "a/../../b",
            "a%2f..%2fb",
            "a\0b",
            "A_B",
            "ABC",
            &long,
            "-xx",
            "xx-",
            "😀😀😀",
            "pg1;touch",
            "$(id)",
            "",
            "ab",
        ] {
            assert!(new_server(name).is_err(), "{name:?}");
        }
        for name in ["pg1", "a-b", "0ab", &"a".repeat(63)] {
            assert_eq!(new_server(name).as_deref(), Ok(name));
        }
    }

    #[test]
    fn hostile_backup_names_are_refused() {
        // RELIABILITY §4.9 row 14
        for name in [
            "../../manifest",
            ".",
            "..",
            "a..b",
            &"a".repeat(300),
            "a\r\nb",
            "",
        ] {
            assert!(new_backup(name).is_err(), "{name:?}");
        }
        assert!(new_backup("before.migration_2-1").is_ok());
    }

    #[test]
    fn reserved_logins_are_refused() {
        for login in [
            "postgres",
            "pg_x",
            "azure_superuser",
            "a'b",
            "",
            "1a",
            "HoldFast",
        ] {
            assert!(new_administrator_login(login).is_err(), "{login}");
        }
        assert!(new_administrator_login("hfadmin").is_ok());
    }
}
