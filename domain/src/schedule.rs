//! When the next automatic backup is due.
//!
//! The first at once (FLX-013), then one a day (FLX-014) in the server's own slot, none while
//! nothing was modified (FLX-015), and at once when something is after a missed slot (FLX-016).
//! Nobody but the service chooses the time (FLX-132).

use chrono::{DateTime, TimeDelta, Utc};

use crate::{Lsn, ServerId};

/// Spread of the daily slot over a fleet that was made in one go: up to this much earlier than the
/// server's own birthday minute.
const JITTER_S: i64 = 30 * 60;

/// What the decision rests on. Facts of the present incarnation only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFacts {
    pub server: ServerId,
    /// When the incarnation became ready.
    pub since: DateTime<Utc>,
    pub now: DateTime<Utc>,
    /// The newest slot that has its automatic backup. Slots are the scheduler's; when the backup was
    /// completed is told by the managed server's clock, which may be another hour.
    pub last_slot: Option<DateTime<Utc>>,
    /// Where the newest complete backup of any kind started.
    pub last_start: Option<Lsn>,
    /// The newest record that counts as a modification; `None`: none was seen yet.
    pub last_counting: Option<Lsn>,
    /// When the last automatic attempt failed, and how many failed in a row.
    pub last_failure: Option<(DateTime<Utc>, u32)>,
    /// A WAL gap lies after the newest complete backup.
    pub gap: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotDecision {
    /// Take it now, for this slot.
    Due { slot: DateTime<Utc> },
    /// Nothing was modified since the last backup: suspended.
    Suspended,
    /// Look again then.
    NotBefore(DateTime<Utc>),
}

/// The newest daily slot that has begun.
#[must_use]
pub fn slot(server: ServerId, since: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
    let jitter = i64::try_from(server.0.as_u128() % JITTER_S as u128).unwrap_or(0);
    let anchor = since - TimeDelta::seconds(jitter);
    let days = (now - anchor).num_days().max(0);
    anchor + TimeDelta::days(days)
}

#[must_use]
pub fn automatic_snapshot(facts: &SnapshotFacts) -> SnapshotDecision {
    let slot = slot(facts.server, facts.since, facts.now);
    if let Some((at, in_a_row)) = facts.last_failure {
        let wait = TimeDelta::minutes(1) * 2_i32.pow(in_a_row.min(6));
        let retry = at + wait.min(TimeDelta::hours(1));
        if facts.now < retry {
            return SnapshotDecision::NotBefore(retry);
        }
    }
    let Some(last_start) = facts.last_start else {
        return SnapshotDecision::Due { slot };
    };
    if facts.gap {
        return SnapshotDecision::Due { slot };
    }
    if facts.last_slot.is_some_and(|last| last >= slot) {
        return SnapshotDecision::NotBefore(slot + TimeDelta::days(1));
    }
    if facts
        .last_counting
        .is_none_or(|counting| counting < last_start)
    {
        return SnapshotDecision::Suspended;
    }
    SnapshotDecision::Due { slot }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(now_h: i64) -> SnapshotFacts {
        let since = DateTime::from_timestamp(1_800_000_000, 0).expect("valid");
        SnapshotFacts {
            server: ServerId(uuid::Uuid::nil()),
            since,
            now: since + TimeDelta::hours(now_h),
            last_slot: Some(since),
            last_start: Some(Lsn(100)),
            last_counting: Some(Lsn(200)),
            last_failure: None,
            gap: false,
        }
    }

    #[test]
    fn the_first_backup_is_due_at_once() {
        // FLX-013
        let new = SnapshotFacts {
            last_slot: None,
            last_start: None,
            last_counting: None,
            ..facts(0)
        };
        assert!(matches!(
            automatic_snapshot(&new),
            SnapshotDecision::Due { .. }
        ));
    }

    #[test]
    fn a_fleet_made_in_one_go_is_spread_over_half_an_hour() {
        // FLX-014: each has its own slot, and always the same one.
        let since = facts(0).since;
        let early = |n: u128| {
            // Ids are random; these differ everywhere, as random ones do.
            let id =
                uuid::Uuid::from_u128(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            let now = since + TimeDelta::days(5);
            assert_eq!(
                slot(ServerId(id), since, now),
                slot(ServerId(id), since, now + TimeDelta::minutes(7))
            );
            now - slot(ServerId(id), since, now)
        };
        let spread: Vec<TimeDelta> = (1..=100).map(early).collect();
        let bound = TimeDelta::seconds(JITTER_S);
        assert!(
            spread
                .iter()
                .all(|by| (TimeDelta::zero()..bound).contains(by)),
            "{spread:?}"
        );
        // A third of the half hour each: none is left empty, or all of a fleet would come at once.
        for part in 0..3 {
            let third = bound / 3 * part..bound / 3 * (part + 1);
            let here = spread.iter().filter(|by| third.contains(by)).count();
            assert!((15..=60).contains(&here), "{here} in {third:?}");
        }
    }

    #[test]
    fn a_written_server_gets_one_a_day() {
        // FLX-014
        assert!(matches!(
            automatic_snapshot(&facts(23)),
            SnapshotDecision::NotBefore(_)
        ));
        assert!(matches!(
            automatic_snapshot(&facts(24)),
            SnapshotDecision::Due { .. }
        ));
    }

    #[test]
    fn an_unmodified_server_is_suspended_until_the_first_change() {
        // FLX-015, FLX-016
        let idle = SnapshotFacts {
            last_counting: Some(Lsn(90)),
            ..facts(75)
        };
        assert_eq!(automatic_snapshot(&idle), SnapshotDecision::Suspended);
        let touched = SnapshotFacts {
            last_counting: Some(Lsn(300)),
            ..idle
        };
        assert!(matches!(
            automatic_snapshot(&touched),
            SnapshotDecision::Due { .. }
        ));
    }

    #[test]
    fn failures_are_retried_with_growing_patience() {
        let failed = SnapshotFacts {
            last_failure: Some((facts(24).now, 3)),
            ..facts(24)
        };
        assert_eq!(
            automatic_snapshot(&failed),
            SnapshotDecision::NotBefore(facts(24).now + TimeDelta::minutes(8))
        );
    }
}
