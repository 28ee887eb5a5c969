//! Is what an agent says possible at all? Numbers that no database column holds, ranges that run
//! backwards, keys that leave their incarnation: all 400 before anything is looked at
//! (RELIABILITY §4.9 rows 37–40, F70). Whether the agent *may* say it – its job, its epoch, its
//! server, its incarnation – is for the control plane, which has the rows.

mod outcome;
mod wal;

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::job::{HelloRequest, NodeInventory, Progress};
use holdfast_domain::{IncarnationId, Lsn, Timeline};

pub use self::outcome::result;
pub use self::wal::{idle_until, wal};

/// A clock may be wrong; by more than this it is nonsense.
const FUTURE: TimeDelta = TimeDelta::days(1);
const MAX_KEY: usize = 512;
/// No path of a Unix socket is longer (DESIGN §6).
const MAX_SOCKET: usize = 107;
const MAX_TEXT: usize = 4096;
const MAX_LIST: usize = 10_000;
/// Packs and leaves of one backup: 64 TiB in packs of 64 MiB.
const MAX_OBJECTS: usize = 1 << 20;

/// Why a message is impossible, for the agent's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Absurd(String);

type Checked = Result<(), Absurd>;

fn ensure(fine: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if fine {
        Ok(())
    } else {
        Err(Absurd(otherwise()))
    }
}

fn text(what: &str, text: &str, most: usize) -> Checked {
    ensure(text.len() <= most && !text.contains('\0'), || {
        format!("{what} is longer than {most} bytes or holds a NUL")
    })
}

/// Counts and positions are `bigint` in the catalogue.
fn count(what: &str, value: u64) -> Checked {
    ensure(i64::try_from(value).is_ok(), || {
        format!("{what} is absurdly large")
    })
}

fn position(what: &str, lsn: Lsn) -> Checked {
    count(what, lsn.0)
}

fn timeline(timeline: Timeline) -> Checked {
    ensure(
        timeline >= Timeline::FIRST && i32::try_from(timeline.0).is_ok(),
        || format!("{timeline} is no timeline"),
    )
}

fn not_future(what: &str, at: DateTime<Utc>, now: DateTime<Utc>) -> Checked {
    ensure(at <= now + FUTURE, || format!("{what} lies in the future"))
}

fn hash(what: &str, digits: &str) -> Checked {
    let fine = digits.len() == 64
        && digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    ensure(fine, || {
        format!("{what} is not 64 lower-case hexadecimal digits")
    })
}

/// An object key: plain segments, no way up or out.
fn key(key: &str) -> Checked {
    let segment = |s: &str| {
        !s.is_empty()
            && !s.starts_with('.')
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    };
    ensure(key.len() <= MAX_KEY && key.split('/').all(segment), || {
        "an object key has a segment that keys do not have".to_owned()
    })
}

/// A key below one of the incarnation's own prefixes.
fn key_of(given: &str, kinds: &[&str], incarnation: IncarnationId) -> Checked {
    key(given)?;
    let below = given
        .split_once('/')
        .filter(|(kind, _)| kinds.contains(kind))
        .and_then(|(_, rest)| rest.strip_prefix(&incarnation.to_string()));
    ensure(below.is_some_and(|rest| rest.starts_with('/')), || {
        format!("an object key is outside the prefixes of incarnation {incarnation}")
    })
}

pub fn inventory(inventory: &NodeInventory) -> Checked {
    text("inventory.name", &inventory.name, 128)?;
    text("inventory.region", &inventory.region, 64)?;
    text(
        "inventory.zone",
        inventory.zone.as_deref().unwrap_or_default(),
        16,
    )?;
    text("inventory.host", &inventory.host, 255)?;
    text(
        "inventory.socketRoot",
        inventory.socket_root.as_deref().unwrap_or_default(),
        MAX_SOCKET,
    )?;
    count("inventory.freeBytes", inventory.free_bytes)?;
    let (first, last) = inventory.port_range;
    ensure(first > 0 && first <= last, || {
        "the port range is empty".to_owned()
    })?;
    for (major, minor) in &inventory.majors {
        text("a minor version", minor, 32)?;
        ensure((9..=99).contains(major), || {
            format!("there is no PostgreSQL {major}")
        })?;
    }
    Ok(())
}

pub fn hello(request: &HelloRequest) -> Checked {
    inventory(&request.inventory)?;
    ensure(request.servers.len() <= MAX_LIST, || {
        "too many servers".to_owned()
    })?;
    for server in &request.servers {
        count("dataBytes", server.data_bytes.unwrap_or(0))?;
        text(
            "problem",
            server.problem.as_deref().unwrap_or_default(),
            MAX_TEXT,
        )?;
    }
    Ok(())
}

pub fn progress(progress: &Progress) -> Checked {
    text("phase", &progress.phase, 64)?;
    ensure((0.0..=100.0).contains(&progress.percent), || {
        "percent is not between 0 and 100".to_owned()
    })?;
    count("bytesDone", progress.bytes_done)?;
    count("bytesTotal", progress.bytes_total.unwrap_or(0))?;
    count("walBytesDone", progress.wal_bytes_done)?;
    count("walBytesTotal", progress.wal_bytes_total.unwrap_or(0))
}

/// Keys that an agent asks to delete.
pub fn keys(keys: &[String]) -> Checked {
    ensure(keys.len() <= MAX_LIST, || {
        "too many keys at once".to_owned()
    })?;
    keys.iter().try_for_each(|given| key(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_a_percentage() {
        let at = |percent| Progress {
            percent,
            ..Progress::default()
        };
        assert!(progress(&at(0.0)).is_ok() && progress(&at(100.0)).is_ok());
        for bad in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert!(progress(&at(bad)).is_err(), "{bad}");
        }
    }
}
