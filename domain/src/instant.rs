//! Instants as callers write and read them.
//!
//! In: RFC 3339 with an offset, and Go's `2022-08-23 07:14:24 +0000 UTC`; nothing else, the word
//! `now` included (DESIGN §3.6, XC-004). Out: microseconds and a seventh digit that is always 0,
//! because clients that keep microseconds cut the seventh off (contract, fact 13).

use chrono::{DateTime, NaiveDate, SubsecRound, TimeDelta, Utc};

/// `2026-03-31T22:02:13.8769570+00:00`, as the wire shows times.
#[must_use]
pub fn wire(at: DateTime<Utc>) -> String {
    format!("{}0+00:00", at.format("%Y-%m-%dT%H:%M:%S%.6f"))
}

/// Reads an instant; `None` for whatever is not one of the two forms.
///
/// Digits beyond microseconds are cut: PostgreSQL's stamps have no more.
#[must_use]
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    if text.len() > 64 || !text.is_ascii() {
        return None;
    }
    let rfc3339 = go_style(text).unwrap_or_else(|| text.to_owned());
    let bytes = rfc3339.as_bytes();
    // chrono is lenient about the separator and about second 60; the contract is not.
    if bytes.len() < 20 || !matches!(bytes[10], b'T' | b't') || &bytes[17..19] == b"60" {
        return None;
    }
    let year: i32 = rfc3339.get(0..4)?.parse().ok()?;
    NaiveDate::from_ymd_opt(year, 1, 1)?;
    if !(1..=9999).contains(&year) {
        return None;
    }
    let at = DateTime::parse_from_rfc3339(&rfc3339).ok()?;
    Some(at.with_timezone(&Utc).trunc_subsecs(6))
}

/// `2022-08-23 07:14:24[.fraction] +0000 UTC` → RFC 3339.
fn go_style(text: &str) -> Option<String> {
    let mut parts = text.split(' ');
    let (date, time, offset, zone) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || zone != "UTC" || !matches!(offset, "+0000" | "-0000") {
        return None;
    }
    Some(format!("{date}T{time}Z"))
}

/// .NET ticks (100 ns since 0001-01-01): what automatic backups are named after.
#[must_use]
pub fn ticks(at: DateTime<Utc>) -> i64 {
    const UNIX_EPOCH_TICKS: i64 = 621_355_968_000_000_000;
    UNIX_EPOCH_TICKS + at.timestamp_micros() * 10
}

/// Whether `asked` is `at`, or `at` cut to milliseconds or to whole seconds: clients do both.
#[must_use]
pub fn names(asked: DateTime<Utc>, at: DateTime<Utc>) -> bool {
    asked == at || asked == at.trunc_subsecs(3) || asked == at.trunc_subsecs(0)
}

/// `now` and a caller's clock count as the same within this (DESIGN §3.6).
pub const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_accepted_forms_mean_the_same_instant() {
        // FLX-062, XC-004
        let expected = "2022-08-23T07:14:24Z".parse::<DateTime<Utc>>().ok();
        for text in [
            "2022-08-23T07:14:24Z",
            "2022-08-23T07:14:24.000Z",
            "2022-08-23t12:44:24.0000000+05:30",
            "2022-08-23 07:14:24 +0000 UTC",
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let long = "2".repeat(10_000);
        for text in [
            "2026-11-20 10:00",
            "2026-11-20T10:00:00",
            "2026-11-20 10:00:00Z",
            "20261120",
            "2026-02-30T00:00:00Z",
            "2026-11-20T24:00:00Z",
            "2026-11-20T23:59:60Z",
            "2026-11-20T10:00:00+99:00",
            "0000-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "infinity",
            "now",
            "epoch",
            "'; DROP TABLE--",
            "2026-11-20T10:00:00Z\nrestore_command=x",
            "2022-08-23 07:14:24 +0100 CET",
            "",
            &long,
        ] {
            assert_eq!(parse(text), None, "{text:.40}");
        }
    }

    #[test]
    fn the_seventh_digit_is_always_zero() {
        let at = parse("2026-03-31T22:02:13.876957Z").expect("valid");
        assert_eq!(wire(at), "2026-03-31T22:02:13.8769570+00:00");
        assert_eq!(parse(&wire(at)), Some(at));
        assert_eq!(ticks(at), 639_105_913_338_769_570);
    }
}
