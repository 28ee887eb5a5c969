//! What may go, what must stay, and why (DESIGN §3.10; RELIABILITY §5.6).

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::catalogue::Catalogue;
use crate::refusal::Refusal;
use crate::{BackupId, Lsn, Timeline};

/// The promise "any instant in here is restorable": 7 to 35 days, 7 unless said otherwise
/// (FLX-007, FLX-008, FLX-009).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RetentionWindow(u16);

impl RetentionWindow {
    pub const MIN_DAYS: u16 = 7;
    pub const MAX_DAYS: u16 = 35;

    /// # Errors
    /// [`Refusal::InvalidParameterValue`] outside 7 to 35, pointing to long-term retention (FLX-131).
    pub fn new(days: i64) -> Result<Self, Refusal> {
        u16::try_from(days)
            .ok()
            .filter(|days| (Self::MIN_DAYS..=Self::MAX_DAYS).contains(days))
            .map(Self)
            .ok_or_else(|| {
                Refusal::invalid(
                    "properties.backup.backupRetentionDays",
                    format!(
                        "Give a whole number of days from {} to {}; {days} was given. To keep backups longer, use long-term retention.",
                        Self::MIN_DAYS,
                        Self::MAX_DAYS
                    ),
                )
            })
    }

    #[must_use]
    pub fn days(self) -> u16 {
        self.0
    }

    /// Where the window that ends at `end` begins.
    #[must_use]
    pub fn start(self, end: DateTime<Utc>) -> DateTime<Utc> {
        end - TimeDelta::days(i64::from(self.0))
    }
}

impl TryFrom<i64> for RetentionWindow {
    type Error = Refusal;
    fn try_from(days: i64) -> Result<Self, Refusal> {
        Self::new(days)
    }
}

/// Why a backup stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// It ended inside the window.
    InWindow,
    /// The window's first instants are reached from it.
    Floor,
    /// The newest complete backup stays whatever its age: later ones may be failing.
    Newest,
    /// Newer ones have damaged pages.
    NewestClean,
    /// A running restore reads it.
    Pinned,
    /// WAL after it is lost; nothing older than a hole is tidied away.
    BeforeGap,
}

/// What a running restore holds: a backup, and with it all WAL from there on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub backup: BackupId,
}

/// The sweep's answer; everything not in `expire` or `wal` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sweep {
    pub expire: Vec<BackupId>,
    pub keep: BTreeMap<BackupId, Keep>,
    /// Keys of WAL objects that nothing kept can need.
    pub wal: Vec<String>,
}

/// Decides what a catalogue no longer needs for the window that begins at `window_start`.
///
/// Never loses an instant of the window: the property test restores them all.
#[must_use]
pub fn sweep(catalogue: &Catalogue, window_start: DateTime<Utc>, held: &[Held]) -> Sweep {
    let mut keep: BTreeMap<BackupId, Keep> = BTreeMap::new();
    let backups = &catalogue.backups;
    let before_window = || {
        backups
            .iter()
            .filter(|backup| backup.completed_time < window_start)
    };
    for backup in backups {
        if backup.completed_time >= window_start {
            keep.insert(backup.id, Keep::InWindow);
        } else if held.iter().any(|held| held.backup == backup.id) {
            keep.insert(backup.id, Keep::Pinned);
        }
    }
    // Timelines on which nothing may be lost: the head's lineage. Each has its own floor, so that
    // a window that reaches back over a failover is still whole.
    let on_head: BTreeSet<Timeline> = catalogue
        .lineage(catalogue.head)
        .iter()
        .map(|step| step.timeline)
        .collect();
    let floor = |clean: bool| {
        before_window()
            .filter(|backup| on_head.contains(&backup.timeline) && !(clean && backup.damaged))
            .max_by_key(|backup| (backup.start, backup.completed_time))
    };
    if let Some(floor) = floor(false) {
        keep.entry(floor.id).or_insert(Keep::Floor);
    }
    let newest = |clean: bool| {
        backups
            .iter()
            .filter(|backup| !(clean && backup.damaged))
            .max_by_key(|backup| (backup.completed_time, backup.stop))
    };
    if let Some(newest) = newest(false) {
        keep.entry(newest.id).or_insert(Keep::Newest);
    }
    if backups
        .iter()
        .any(|backup| backup.damaged && keep.contains_key(&backup.id))
    {
        for clean in [floor(true), newest(true)].into_iter().flatten() {
            keep.entry(clean.id).or_insert(Keep::NewestClean);
        }
    }
    // Around a hole everything older stays: what lies before it may be all that is left.
    let first_kept = |keep: &BTreeMap<BackupId, Keep>| {
        backups
            .iter()
            .filter(|backup| keep.contains_key(&backup.id))
            .map(|backup| backup.start.segment_start(catalogue.wal_segment_bytes))
            .min()
    };
    if let Some(first) = first_kept(&keep)
        && catalogue.gaps.iter().any(|gap| gap.end > first)
    {
        for backup in backups {
            keep.entry(backup.id).or_insert(Keep::BeforeGap);
        }
    }
    let expire: Vec<BackupId> = backups
        .iter()
        .map(|backup| backup.id)
        .filter(|id| !keep.contains_key(id))
        .collect();
    let wal = match first_kept(&keep) {
        Some(cut) => wal_before(catalogue, cut, &on_head),
        // No complete backup: the first one may be under way and needs what is there.
        None => Vec::new(),
    };
    Sweep { expire, keep, wal }
}

/// WAL of the head's lineage that ends at or before `cut`. LSNs only grow along a lineage, so one
/// comparison serves ancestors and head; WAL of other timelines is left alone.
fn wal_before(catalogue: &Catalogue, cut: Lsn, on_head: &BTreeSet<Timeline>) -> Vec<String> {
    let mut objects: Vec<_> = catalogue
        .wal
        .iter()
        .filter(|object| on_head.contains(&object.timeline) && object.end <= cut)
        .collect();
    objects.sort_by_key(|object| (object.timeline, object.start, object.end));
    objects
        .into_iter()
        .map(|object| object.key.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::history::{History, events, play};
    use crate::restore::{RestoreTarget, choose};

    /// The catalogue as it is when what the sweep named is gone.
    fn swept(catalogue: &Catalogue, sweep: &Sweep) -> Catalogue {
        let mut left = catalogue.clone();
        left.backups
            .retain(|backup| !sweep.expire.contains(&backup.id));
        left.wal.retain(|object| !sweep.wal.contains(&object.key));
        left
    }

    /// A stopped server's window ends when it was stopped; here at an arbitrary earlier moment.
    fn window(history: &History, days: i64, stopped_for_h: i64) -> DateTime<Utc> {
        history.now - TimeDelta::hours(stopped_for_h) - TimeDelta::days(days)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(192))]

        // FLX-006, FLX-040, FLX-041, FLX-042, FLX-146
        #[test]
        fn no_sweep_takes_away_an_instant_of_the_window(
            events in events(), days in 1i64..20, stopped_for_h in 0i64..100
        ) {
            let history = play(&events);
            let before = &history.catalogue;
            let start = window(&history, days, stopped_for_h);
            let after = swept(before, &sweep(before, start, &[]));
            for at in history.instants().into_iter().filter(|at| *at >= start) {
                if let Ok(was) = choose(before, RestoreTarget::At(at)) {
                    let is = choose(&after, RestoreTarget::At(at));
                    prop_assert_eq!(Ok(was), is, "{}", at);
                }
            }
            prop_assert_eq!(before.latest_restorable(), after.latest_restorable());
        }

        #[test]
        fn the_newest_backup_and_the_newest_clean_one_always_stay(events in events(), days in 0i64..3) {
            let history = play(&events);
            let catalogue = &history.catalogue;
            let after = swept(catalogue, &sweep(catalogue, history.now + TimeDelta::days(days), &[]));
            let newest = |catalogue: &Catalogue, clean: bool| catalogue.backups.iter()
                .filter(|backup| !(clean && backup.damaged))
                .max_by_key(|backup| (backup.completed_time, backup.stop)).map(|backup| backup.id);
            prop_assert_eq!(newest(catalogue, false), newest(&after, false));
            if catalogue.backups.iter().any(|backup| backup.damaged && after.backups.iter().any(|left| left.id == backup.id)) {
                prop_assert_eq!(newest(catalogue, true), newest(&after, true));
            }
        }

        #[test]
        fn sweeping_twice_takes_nothing_more(events in events(), days in 1i64..10) {
            let history = play(&events);
            let start = window(&history, days, 0);
            let once = swept(&history.catalogue, &sweep(&history.catalogue, start, &[]));
            let again = sweep(&once, start, &[]);
            prop_assert!(again.expire.is_empty() && again.wal.is_empty(), "{:?}", again);
        }

        // F50
        #[test]
        fn a_pin_keeps_its_backup_and_all_wal_after_it(events in events(), which in any::<prop::sample::Index>()) {
            let history = play(&events);
            let catalogue = &history.catalogue;
            prop_assume!(!catalogue.backups.is_empty());
            let pinned = which.get(&catalogue.backups);
            let free = sweep(catalogue, history.now, &[]);
            let held = sweep(catalogue, history.now, &[Held { backup: pinned.id }]);
            prop_assert!(!held.expire.contains(&pinned.id));
            prop_assert!(held.expire.iter().all(|id| free.expire.contains(id)));
            prop_assert!(held.wal.iter().all(|key| free.wal.contains(key)));
            let after = swept(catalogue, &held);
            prop_assert_eq!(
                choose(catalogue, RestoreTarget::Backup(pinned.id)),
                choose(&after, RestoreTarget::Backup(pinned.id))
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(192))]

        // RELIABILITY §5.6: never clean up around a hole.
        #[test]
        fn nothing_older_than_a_hole_is_tidied_away(events in events(), days in 0i64..20, which in any::<prop::sample::Index>()) {
            let mut history = play(&events);
            prop_assume!(!history.commits.is_empty());
            let lost = *which.get(&history.commits);
            history.catalogue.gaps.push(crate::job::WalGap {
                timeline: history.catalogue.head,
                start: lost.lsn,
                end: lost.end,
            });
            let catalogue = &history.catalogue;
            let answer = sweep(catalogue, window(&history, days, 0), &[]);
            let before_hole = catalogue.backups.iter().filter(|backup| backup.stop <= lost.lsn);
            if before_hole.clone().any(|backup| answer.keep.get(&backup.id).is_some_and(|keep| *keep != Keep::BeforeGap)) {
                prop_assert!(answer.expire.is_empty(), "{:?}", answer);
                let first = catalogue.backups.iter().map(|backup| backup.start).min();
                for object in catalogue.wal.iter().filter(|object| answer.wal.contains(&object.key)) {
                    prop_assert!(Some(object.end) <= first, "{:?}", object);
                }
            }
        }
    }

    #[test]
    fn a_hole_keeps_what_would_have_gone_without_it() {
        use crate::history::Event;
        let day = || {
            [
                Event::BackupStart,
                Event::Commit {
                    bytes: 500,
                    lag_us: 0,
                },
                Event::BackupStop { damaged: false },
                Event::Pass { minutes: 24 * 60 },
                Event::Seal,
            ]
        };
        let mut history = play(
            &std::iter::repeat_with(day)
                .take(12)
                .flatten()
                .collect::<Vec<_>>(),
        );
        let start = window(&history, 7, 0);
        let free = sweep(&history.catalogue, start, &[]);
        assert!(free.expire.len() >= 3, "{free:?}");
        // In the window, and so after a backup that is kept.
        let lost = history.commits[10];
        history.catalogue.gaps.push(crate::job::WalGap {
            timeline: history.catalogue.head,
            start: lost.lsn,
            end: lost.end,
        });
        let careful = sweep(&history.catalogue, start, &[]);
        assert!(
            careful.expire.is_empty() && careful.wal.is_empty(),
            "{careful:?}"
        );
        for id in free.expire {
            assert_eq!(careful.keep.get(&id), Some(&Keep::BeforeGap));
        }
    }

    #[test]
    fn the_range_is_seven_to_thirty_five_days() {
        // FLX-008, FLX-009, FLX-131
        for days in [7, 35] {
            assert!(RetentionWindow::new(days).is_ok());
        }
        for days in [-1, 0, 6, 36, i64::MAX] {
            let refusal = RetentionWindow::new(days).expect_err("out of range");
            assert!(
                refusal.to_string().contains("long-term retention"),
                "{refusal}"
            );
        }
    }
}
