//! `?api-version=`: any date, with or without `-preview` (DESIGN preamble, "Settled").
//!
//! The newest shape is the type of [`crate::wire`]; what older clients expect differently is asked
//! here, by name, so that a reader finds every difference in one file.

use chrono::NaiveDate;

use super::error::ArmError;

/// The version that an SDK released today sends (contract §1).
pub const NEWEST: &str = "2026-10-01";
/// The version of what is ours.
pub const OURS: &str = "2026-11-01";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiVersion {
    date: NaiveDate,
    text: String,
}

impl ApiVersion {
    /// Reads the one `api-version` of a query.
    ///
    /// # Errors
    /// 400 `MissingApiVersionParameter` and `InvalidApiVersionParameter` (RELIABILITY §4.9 row 20).
    pub fn from_query(query: &[(String, String)]) -> Result<Self, ArmError> {
        let mut given = query
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case("api-version"))
            .map(|(_, value)| value.as_str());
        match (given.next(), given.next()) {
            (None | Some(""), None) => Err(ArmError::bad_request(
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required for all requests.",
            )),
            (Some(text), None) => Self::parse(text).ok_or_else(|| invalid(text)),
            (first, Some(second)) => {
                Err(invalid(&format!("{}, {second}", first.unwrap_or_default())))
            }
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let date = lower.strip_suffix("-preview").unwrap_or(&lower);
        let digits = |range: std::ops::Range<usize>| {
            date.get(range)
                .is_some_and(|part| part.bytes().all(|b| b.is_ascii_digit()))
        };
        if date.len() != 10 || !digits(0..4) || !digits(5..7) || !digits(8..10) {
            return None;
        }
        NaiveDate::parse_from_str(date, "%Y-%m-%d")
            .ok()
            .map(|date| Self { date, text: lower })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Clients of 2024-08-01 and before say `geoRedundantBackup: "Disabled"` without being asked
    /// to (contract, fact 11).
    #[must_use]
    pub fn client_defaults_geo(&self) -> bool {
        self.before(2025, 1)
    }

    /// `Provisioning` is a server state only from 2025 on; before, it reads `Updating` (contract §5).
    #[must_use]
    pub fn knows_provisioning(&self) -> bool {
        !self.before(2025, 1)
    }

    fn before(&self, year: i32, month: u32) -> bool {
        NaiveDate::from_ymd_opt(year, month, 1).is_some_and(|date| self.date < date)
    }
}

fn invalid(text: &str) -> ArmError {
    let shown: String = text
        .chars()
        .take(64)
        .flat_map(char::escape_default)
        .collect();
    ArmError::bad_request(
        "InvalidApiVersionParameter",
        format!(
            "The api-version '{shown}' is invalid. Give one date of the form YYYY-MM-DD or YYYY-MM-DD-preview, such as {NEWEST}."
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<String, &'static str> {
        let query: Vec<_> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        ApiVersion::from_query(&query)
            .map(|v| v.as_str().to_owned())
            .map_err(|e| e.code())
    }

    #[test]
    fn any_date_is_served_and_nothing_else() {
        // RELIABILITY §4.9 row 20
        for fine in [
            "2026-10-01",
            "2025-08-01",
            "2024-08-01",
            "2026-01-01-preview",
            "2021-06-01",
        ] {
            assert_eq!(read(&[("api-version", fine)]).as_deref(), Ok(fine));
        }
        assert_eq!(
            read(&[("API-Version", "2026-01-01-PREVIEW")]).as_deref(),
            Ok("2026-01-01-preview")
        );
        for bad in [
            "latest",
            "2026-13-01",
            "2026-02-30",
            "2026-1-1",
            "+026-10-01",
            "2026-10-01-beta",
            "2026-10-01 ",
        ] {
            assert_eq!(
                read(&[("api-version", bad)]),
                Err("InvalidApiVersionParameter"),
                "{bad}"
            );
        }
        assert_eq!(read(&[]), Err("MissingApiVersionParameter"));
        assert_eq!(
            read(&[("api-version", "")]),
            Err("MissingApiVersionParameter")
        );
        assert_eq!(
            read(&[("api-version", "2026-10-01"), ("Api-Version", "2026-10-01")]),
            Err("InvalidApiVersionParameter")
        );
    }

    #[test]
    fn old_clients_are_known_by_their_version() {
        let old = ApiVersion::parse("2024-08-01").expect("valid");
        let new = ApiVersion::parse("2025-08-01").expect("valid");
        assert!(old.client_defaults_geo() && !old.knows_provisioning());
        assert!(!new.client_defaults_geo() && new.knows_provisioning());
    }
}
