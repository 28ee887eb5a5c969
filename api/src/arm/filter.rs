//! `$filter` of the activity log: a conjunction of comparisons and nothing else.
//!
//! ```text
//! filter := term (" and " term)*      term := name SP op SP value
//! name   := eventTimestamp (ge | le) | resourceGroupName | resourceUri | resourceId
//!         | resourceProvider | correlationId | status | caller | eventChannels | levels (eq)
//! value  := 'quoted' | bare-until-space
//! ```
//! (contract, other-apis §1; RELIABILITY §4.9 row 28). Values only ever become parameters.

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_control_plane::activity::ActivityFilter;
use holdfast_domain::activity::ActivityStatus;
use holdfast_domain::{SubscriptionId, instant};

use super::error::{ArmError, Result};

const LONGEST: usize = 4_096;
/// How far back the log goes, and a day for clients that count from their own clock.
const DAYS_BACK: i64 = 91;

/// # Errors
/// 400 `BadRequest` that says what to write instead.
pub fn activity(
    text: Option<&str>,
    subscription: SubscriptionId,
    now: DateTime<Utc>,
) -> Result<ActivityFilter> {
    let text = text.ok_or_else(|| bad("$filter is required"))?;
    if text.len() > LONGEST {
        return Err(bad("it is too long"));
    }
    let mut from = None;
    let mut filter = ActivityFilter {
        subscription,
        from: now,
        to: None,
        group: None,
        resource_id: None,
        provider: None,
        correlation_id: None,
        status: None,
        caller: None,
    };
    let mut rest = text.trim();
    loop {
        let (name, after) = word(rest)?;
        let (op, after) = word(after)?;
        let (value, after) = value(after)?;
        if value.chars().any(char::is_control) {
            return Err(bad("a value has a control character in it"));
        }
        term(&mut filter, &mut from, name, op, &value)?;
        let after = after.trim_start();
        if after.is_empty() {
            break;
        }
        let (and, after) = word(after)?;
        if !and.eq_ignore_ascii_case("and") {
            return Err(bad("terms are joined by 'and'"));
        }
        rest = after;
    }
    filter.from = from.ok_or_else(|| bad("it needs eventTimestamp ge '<time>'"))?;
    if filter.from < now - TimeDelta::days(DAYS_BACK) {
        return Err(bad("eventTimestamp can be at most 90 days back"));
    }
    Ok(filter)
}

fn term(
    filter: &mut ActivityFilter,
    from: &mut Option<DateTime<Utc>>,
    name: &str,
    op: &str,
    value: &str,
) -> Result<()> {
    let op = op.to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    match (name.as_str(), op.as_str()) {
        ("eventtimestamp", "ge") => return once(from, time(value)?),
        ("eventtimestamp", "le") => return once(&mut filter.to, time(value)?),
        ("eventtimestamp", _) => return Err(bad("eventTimestamp is compared by ge and le")),
        (_, "eq") => {}
        _ => {
            return Err(bad(
                "the operators are eq and, for eventTimestamp, ge and le",
            ));
        }
    }
    let text = value.to_owned();
    match name.as_str() {
        "resourcegroupname" => once(&mut filter.group, text),
        "resourceuri" | "resourceid" => once(&mut filter.resource_id, text),
        "resourceprovider" => once(&mut filter.provider, text),
        "correlationid" => once(&mut filter.correlation_id, text),
        "caller" => once(&mut filter.caller, text),
        "status" => {
            let status = [
                ActivityStatus::Started,
                ActivityStatus::Accepted,
                ActivityStatus::Succeeded,
                ActivityStatus::Failed,
            ]
            .into_iter()
            .find(|status| crate::wire::activity::status_word(*status).eq_ignore_ascii_case(value))
            .ok_or_else(|| bad("status is Started, Accepted, Succeeded or Failed"))?;
            once(&mut filter.status, status)
        }
        // Portals send these; every event of ours is of that channel, and levels are not told apart.
        "eventchannels" | "levels" => Ok(()),
        _ => Err(bad(
            "the names are eventTimestamp, resourceGroupName, resourceUri, resourceProvider, correlationId, status and caller",
        )),
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(bad("a name is given twice"));
    }
    Ok(())
}

fn word(text: &str) -> Result<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(' ').unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    if word.is_empty() || !word.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(bad("a term is a name, an operator and a value"));
    }
    Ok((word, rest))
}

/// Quoted, with `''` for a quote inside, or bare until the next space.
fn value(text: &str) -> Result<(String, &str)> {
    let text = text.trim_start();
    let Some(quoted) = text.strip_prefix('\'') else {
        let end = text.find(' ').unwrap_or(text.len());
        let (bare, rest) = text.split_at(end);
        if bare.is_empty() || bare.contains(['\'', '(', ')']) {
            return Err(bad(
                "a value is quoted, or bare without quotes and parentheses",
            ));
        }
        return Ok((bare.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices().peekable();
    while let Some((index, c)) = chars.next() {
        if c != '\'' {
            value.push(c);
        } else if chars.next_if(|(_, next)| *next == '\'').is_some() {
            value.push('\'');
        } else {
            let rest = &quoted[index + 1..];
            if !rest.is_empty() && !rest.starts_with(' ') {
                return Err(bad("a quoted value ends at a space"));
            }
            return Ok((value, rest));
        }
    }
    Err(bad("a quote is not closed"))
}

/// No zone means UTC here, and `T` may be a space: the CLI and portals write both.
fn time(text: &str) -> Result<DateTime<Utc>> {
    let with_t = text.replacen(' ', "T", 1);
    let day = format!("{text}T00:00:00Z");
    instant::parse(text)
        .or_else(|| instant::parse(&with_t))
        .or_else(|| instant::parse(&format!("{with_t}Z")))
        .or_else(|| instant::parse(&day))
        .ok_or_else(|| bad("eventTimestamp is compared with a time such as '2026-11-20T09:30:00Z'"))
}

fn bad(what: &str) -> ArmError {
    ArmError::bad_request(
        "BadRequest",
        format!("The $filter is not valid: {what}. Example: eventTimestamp ge '2026-11-20T00:00:00Z' and resourceGroupName eq 'rg1'."),
    )
    .at("$filter")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ActivityFilter> {
        activity(
            Some(text),
            SubscriptionId::new(),
            "2026-11-20T10:00:00Z".parse().expect("valid"),
        )
    }

    #[test]
    fn what_clients_write_is_understood() {
        // az: no quotes, no zone; SDK: quoted
        let filter = read("eventTimestamp ge 2026-11-20T08:55:41.035699 and eventTimestamp le 2026-11-20T09:55:41.035699 and resourceId eq /subscriptions/x/y and status eq Succeeded").expect("valid");
        assert_eq!(
            Some(filter.from),
            instant::parse("2026-11-20T08:55:41.035699Z")
        );
        assert_eq!(filter.to, instant::parse("2026-11-20T09:55:41.035699Z"));
        assert_eq!(filter.resource_id.as_deref(), Some("/subscriptions/x/y"));
        assert_eq!(filter.status, Some(ActivityStatus::Succeeded));
        let filter = read("EVENTTIMESTAMP GE '2026-11-19' AND resourceUri eq '/a b' and caller eq 'o''neill' and resourceProvider eq 'Microsoft.DBforPostgreSQL'").expect("valid");
        assert_eq!(
            (filter.resource_id.as_deref(), filter.caller.as_deref()),
            (Some("/a b"), Some("o'neill"))
        );
    }

    #[test]
    fn anything_else_is_refused() {
        // RELIABILITY §4.9 row 28
        let long = format!(
            "eventTimestamp ge '2026-11-20T00:00:00Z' and caller eq '{}'",
            "x".repeat(1 << 20)
        );
        for bad in [
            "",
            "resourceGroupName eq 'rg1'",
            "eventTimestamp ge ''",
            "eventTimestamp ge 'yesterday'",
            "eventTimestamp gt '2026-11-20T00:00:00Z'",
            "eventTimestamp ge '2026-11-20T00:00:00Z' or caller eq 'x'",
            "(eventTimestamp ge '2026-11-20T00:00:00Z')",
            "eventTimestamp ge '2026-11-20T00:00:00Z' and caller eq '' or 1=1",
            "eventTimestamp ge '2026-11-20T00:00:00Z' and caller eq 'x' or 1=1 --'",
            "eventTimestamp ge '2026-11-20T00:00:00Z' and caller ne 'x'",
            "eventTimestamp ge '2026-11-20T00:00:00Z' and colour eq 'x'",
            "eventTimestamp ge '2026-11-20T00:00:00Z' and",
            "eventTimestamp ge '2026-11-20T00:00:00Z",
            "eventTimestamp ge '2026-08-01T00:00:00Z'",
            "eventTimestamp ge '2026-11-20T00:00:00Z' and eventTimestamp ge '2026-11-20T00:00:00Z'",
            "eventTimestamp ge '2026-11-20T00:00:00Z' and status eq 'Fine'",
            &long,
        ] {
            let error = read(bad).map(|_| ()).expect_err("refused");
            assert_eq!(
                (error.status().as_u16(), error.target()),
                (400, Some("$filter")),
                "{bad:.80}"
            );
        }
        assert!(activity(None, SubscriptionId::new(), DateTime::UNIX_EPOCH).is_err());
    }
}
