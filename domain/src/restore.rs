//! From what a caller asks to what a restore reads.
//!
//! [`interpret`] is the one rule for times (DESIGN §3.6); [`choose`] picks the backup and the WAL
//! (RELIABILITY §5.4.1, §5.5) or refuses with the bounds. Which record recovery stops at is resolved
//! later, by the agent, from the stamps in the WAL itself.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::backup::CompleteBackup;
use crate::catalogue::Catalogue;
use crate::instant::{TOLERANCE, names};
use crate::job::{RestoreSource, VaultRef, WrappedKey};
use crate::refusal::Refusal;
use crate::retention::RetentionWindow;
use crate::wal::{TimelineStart, WalObject};
use crate::{BackupId, ServerId, Timeline};

/// What the caller of a restore asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreTarget {
    /// Everything that is durable (FLX-060, FLX-061).
    Latest,
    /// Everything durable that was committed by this instant, which nothing durable has passed yet:
    /// the source is asked for its newest WAL first. [`choose`] then turns it into one of the others.
    LatestUntil(DateTime<Utc>),
    /// The state at this instant: the longest WAL prefix without a later commit (FLX-062).
    At(DateTime<Utc>),
    /// This backup and nothing after its end: a fast restore (FLX-064, FLX-065).
    Backup(BackupId),
}

/// The restorable window as callers see it (XC-006).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub earliest: DateTime<Utc>,
    pub latest: DateTime<Utc>,
}

/// `max(first backup, window start)` to the last restorable instant (contract, fact 6; FLX-039).
///
/// `window_end` is now, or when the server was stopped or dropped. `None` before the first backup.
#[must_use]
pub fn bounds(
    catalogue: &Catalogue,
    retention: RetentionWindow,
    window_end: DateTime<Utc>,
) -> Option<Bounds> {
    let first = catalogue.first_restorable()?;
    let latest = catalogue.latest_restorable()?;
    let earliest = first.max(retention.start(window_end));
    // An unmodified or silent server can have its last instant before the window: then that
    // instant is all there is, and it is kept (DESIGN §3.10).
    Some(Bounds {
        earliest: earliest.min(latest),
        latest,
    })
}

/// Turns the caller's instant into a target (DESIGN §3.6). `now` is the database's clock.
///
/// # Errors
/// [`Refusal::NoBackupYet`]; [`Refusal::RestoreTimeOutOfRange`] with both bounds.
pub fn interpret(
    asked: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    bounds: Option<Bounds>,
    catalogue: &Catalogue,
) -> Result<RestoreTarget, Refusal> {
    let bounds = bounds.ok_or_else(|| Refusal::NoBackupYet {
        server: catalogue.server_name.clone(),
    })?;
    let Some(asked) = asked else {
        return Ok(RestoreTarget::Latest);
    };
    let out_of_range = || Refusal::RestoreTimeOutOfRange {
        asked: Some(asked),
        earliest: Some(bounds.earliest),
        latest: Some(bounds.latest),
    };
    if asked > now + TOLERANCE {
        return Err(out_of_range());
    }
    if asked > bounds.latest {
        // Nobody's clock is the database's: just after the latest instant the latest is meant. But
        // what the flush adds may have been committed later than asked (a table dropped a second
        // after the instant to go back to), and that is not wanted.
        return if (asked - now).abs() <= TOLERANCE {
            Ok(RestoreTarget::LatestUntil(asked))
        } else {
            Err(out_of_range())
        };
    }
    if asked < bounds.earliest - TimeDelta::seconds(1) {
        return Err(out_of_range());
    }
    // Clients that cut digits name a backup by an instant up to a second before its completion.
    let newest_named = catalogue
        .backups
        .iter()
        .filter(|backup| {
            backup.completed_time >= bounds.earliest && names(asked, backup.completed_time)
        })
        .max_by_key(|backup| backup.completed_time);
    if let Some(backup) = newest_named {
        return Ok(RestoreTarget::Backup(backup.id));
    }
    let at = asked.max(bounds.earliest);
    match catalogue
        .backups
        .iter()
        .find(|backup| backup.completed_time == at)
    {
        Some(backup) => Ok(RestoreTarget::Backup(backup.id)),
        None => Ok(RestoreTarget::At(at)),
    }
}

/// What a restore reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    pub target: RestoreTarget,
    pub backup: CompleteBackup,
    /// The timeline that the target lies on.
    pub timeline: Timeline,
    /// Ancestors first, ending with `timeline`.
    pub lineage: Vec<TimelineStart>,
    /// From the segment in which the backup starts, without a gap, to the object that shows where
    /// the target lies.
    pub wal: Vec<WalObject>,
}

impl Chosen {
    /// Bytes of WAL that recovery reads at most.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        self.wal
            .iter()
            .map(|object| object.end.bytes_since(object.start))
            .sum()
    }

    /// What whoever restores is told: the choice, and where and under which key the server's objects are.
    #[must_use]
    pub fn source(
        &self,
        catalogue: &Catalogue,
        server: ServerId,
        vaults: Vec<VaultRef>,
        wrapped_key: WrappedKey,
    ) -> RestoreSource {
        RestoreSource {
            server,
            server_name: catalogue.server_name.clone(),
            incarnation: catalogue.incarnation,
            vaults,
            wrapped_key,
            manifest: self.backup.manifest.clone(),
            backup_start: self.backup.start,
            backup_stop: self.backup.stop,
            backup_timeline: self.backup.timeline,
            backup_completed_time: self.backup.completed_time,
            wal_segment_bytes: catalogue.wal_segment_bytes,
            timeline: self.timeline,
            lineage: self.lineage.clone(),
            wal: self.wal.clone(),
        }
    }
}

/// Chooses the newest backup from which the target can be reached, and the WAL on the way
/// (FLX-055, FLX-056).
///
/// # Errors
/// [`Refusal::NoBackupYet`], [`Refusal::RestoreTimeOutOfRange`], [`Refusal::WalGap`] when WAL on the
/// way is lost, [`Refusal::ClockAnomaly`] when the instant names two states.
pub fn choose(catalogue: &Catalogue, target: RestoreTarget) -> Result<Chosen, Refusal> {
    match target {
        RestoreTarget::Backup(id) => fast(catalogue, id),
        RestoreTarget::Latest => latest(catalogue),
        RestoreTarget::LatestUntil(at) => match custom(catalogue, at) {
            // Nothing durable was committed later.
            Err(Refusal::RestoreTimeOutOfRange { .. }) => latest(catalogue),
            answer => answer,
        },
        RestoreTarget::At(at) => custom(catalogue, at),
    }
}

fn no_backup(catalogue: &Catalogue) -> Refusal {
    Refusal::NoBackupYet {
        server: catalogue.server_name.clone(),
    }
}

fn gap(catalogue: &Catalogue, asked: DateTime<Utc>, before: DateTime<Utc>) -> Refusal {
    Refusal::WalGap {
        server: catalogue.server_name.clone(),
        asked,
        before,
    }
}

fn fast(catalogue: &Catalogue, id: BackupId) -> Result<Chosen, Refusal> {
    let backup = catalogue.backup(id).ok_or_else(|| no_backup(catalogue))?;
    let lineage = catalogue.lineage(backup.timeline);
    let coverage = catalogue.coverage_of(&lineage, backup);
    if coverage.reached < backup.stop {
        return Err(gap(catalogue, backup.completed_time, backup.completed_time));
    }
    let wal = coverage
        .objects
        .into_iter()
        .take_while(|object| object.start < backup.stop)
        .cloned()
        .collect();
    Ok(Chosen {
        target: RestoreTarget::Backup(id),
        backup: backup.clone(),
        timeline: backup.timeline,
        lineage,
        wal,
    })
}

fn latest(catalogue: &Catalogue) -> Result<Chosen, Refusal> {
    let lineage = catalogue.lineage(catalogue.head);
    let mut refusal = no_backup(catalogue);
    for backup in catalogue.backups_on(&lineage) {
        let coverage = catalogue.coverage_of(&lineage, backup);
        if coverage.reached < backup.stop {
            refusal = gap(catalogue, backup.completed_time, backup.completed_time);
            continue;
        }
        return Ok(chosen(
            RestoreTarget::Latest,
            backup,
            &lineage,
            coverage.timeline,
            coverage.objects,
        ));
    }
    Err(refusal)
}

fn custom(catalogue: &Catalogue, at: DateTime<Utc>) -> Result<Chosen, Refusal> {
    let lineage = catalogue.lineage(catalogue.head);
    if let Some(anomaly) = catalogue
        .wal
        .iter()
        .filter_map(|object| object.clock_anomaly)
        .find(|anomaly| anomaly.from <= at && at < anomaly.to)
    {
        return Err(Refusal::ClockAnomaly {
            server: catalogue.server_name.clone(),
            asked: at,
            before: anomaly.from - TimeDelta::microseconds(1),
            after: anomaly.to,
        });
    }
    let backups = catalogue.backups_on(&lineage);
    let mut refusal = Refusal::RestoreTimeOutOfRange {
        asked: Some(at),
        earliest: catalogue.first_restorable(),
        latest: catalogue.latest_restorable(),
    };
    for backup in backups
        .into_iter()
        .filter(|backup| backup.completed_time <= at)
    {
        let coverage = catalogue.coverage_of(&lineage, backup);
        if coverage.reached < backup.stop {
            refusal = gap(catalogue, at, backup.completed_time);
            continue;
        }
        let past = coverage
            .objects
            .iter()
            .position(|object| object.stamps.is_some_and(|stamps| stamps.largest.at > at));
        if let Some(past) = past {
            // PostgreSQL reads ahead within a file, never into one that is not needed; the agent
            // cuts the plan to the file of the target. The backup's own WAL is always needed.
            let needed = coverage
                .objects
                .iter()
                .enumerate()
                .take_while(|(index, object)| *index <= past || object.start < backup.stop)
                .map(|(_, object)| *object)
                .collect::<Vec<_>>();
            let timeline = needed
                .last()
                .map_or(backup.timeline, |object| object.timeline);
            return Ok(chosen(
                RestoreTarget::At(at),
                backup,
                &lineage,
                timeline,
                needed,
            ));
        }
        let known_until = [coverage.largest_stamp(), Some(backup.completed_time)]
            .into_iter()
            .flatten()
            .max()
            .unwrap_or(backup.completed_time);
        if catalogue.is_complete(&coverage) {
            let latest = catalogue.latest_restorable().unwrap_or(known_until);
            if at <= latest {
                return Ok(chosen(
                    RestoreTarget::At(at),
                    backup,
                    &lineage,
                    coverage.timeline,
                    coverage.objects,
                ));
            }
            return Err(refusal);
        }
        if at <= known_until {
            return Ok(chosen(
                RestoreTarget::At(at),
                backup,
                &lineage,
                coverage.timeline,
                coverage.objects,
            ));
        }
        return Err(gap(catalogue, at, known_until));
    }
    Err(refusal)
}

fn chosen(
    target: RestoreTarget,
    backup: &CompleteBackup,
    lineage: &[TimelineStart],
    timeline: Timeline,
    wal: Vec<&WalObject>,
) -> Chosen {
    let end = lineage
        .iter()
        .position(|step| step.timeline == timeline)
        .map_or(lineage.len(), |index| index + 1);
    Chosen {
        target,
        backup: backup.clone(),
        timeline,
        lineage: lineage[..end].to_vec(),
        wal: wal.into_iter().cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Lsn;
    use crate::history::{Event, SEGMENT, events, play};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(192))]

        // FLX-006, FLX-055, FLX-062
        #[test]
        fn every_announced_instant_is_reached_without_a_gap(events in events()) {
            let history = play(&events);
            let catalogue = &history.catalogue;
            let (Some(first), Some(latest)) = (catalogue.first_restorable(), catalogue.latest_restorable()) else {
                return Ok(());
            };
            for at in history.instants().into_iter().filter(|at| (first..=latest).contains(at)) {
                let chosen = match choose(catalogue, RestoreTarget::At(at)) {
                    Ok(chosen) => chosen,
                    Err(refusal) => return Err(TestCaseError::fail(format!("{at}: {refusal}"))),
                };
                prop_assert!(chosen.backup.completed_time <= at);
                let mut reached = chosen.backup.start.segment_start(SEGMENT);
                for object in &chosen.wal {
                    prop_assert!(object.start <= reached, "hole at {:?}", reached);
                    reached = reached.max(object.end);
                }
                prop_assert!(reached >= chosen.backup.stop);
                // Every commit of the longest prefix without a later stamp is in the backup or the WAL.
                let wanted = history.commits.iter().take_while(|commit| commit.at <= at).last();
                if let Some(wanted) = wanted {
                    prop_assert!(wanted.end <= reached.max(chosen.backup.start), "{} not reached", wanted.at);
                }
                // And no newer backup could have served.
                prop_assert!(!catalogue.backups.iter().any(|backup|
                    backup.completed_time <= at && backup.stop > chosen.backup.stop
                    && backup.timeline >= chosen.backup.timeline));
            }
        }

        #[test]
        fn every_listed_backup_restores_fast(events in events()) {
            // FLX-064, FLX-065
            let history = play(&events);
            for backup in &history.catalogue.backups {
                let chosen = choose(&history.catalogue, RestoreTarget::Backup(backup.id));
                let chosen = chosen.map_err(|refusal| TestCaseError::fail(refusal.to_string()))?;
                prop_assert!(chosen.wal.iter().all(|object| object.start < backup.stop));
            }
        }
    }

    fn nightly() -> crate::history::History {
        let night = [
            Event::BackupStart,
            Event::Noise { bytes: 500 },
            Event::BackupStop { damaged: false },
        ];
        let day = [
            Event::Pass { minutes: 600 },
            Event::Commit {
                bytes: 900,
                lag_us: 0,
            },
            Event::Seal,
            Event::Noise { bytes: 9000 },
            Event::Seal,
            Event::Pass { minutes: 840 },
        ];
        play(&[&night[..], &day, &night, &day, &night, &day].concat())
    }

    #[test]
    fn the_backup_of_the_night_before_is_chosen() {
        // FLX-056: nightly backups, target next morning at ten
        let history = nightly();
        let backups = &history.catalogue.backups;
        let at = backups[1].completed_time + TimeDelta::hours(11);
        let chosen = choose(&history.catalogue, RestoreTarget::At(at)).expect("in the window");
        assert_eq!(chosen.backup.id, backups[1].id);
    }

    #[test]
    fn times_are_read_by_one_rule() {
        // DESIGN 3.6; FLX-039, FLX-061, FLX-064, XC-006
        let history = nightly();
        let catalogue = &history.catalogue;
        let now = history.now;
        let bounds = bounds(catalogue, RetentionWindow::new(7).expect("valid"), now);
        let earliest = bounds.expect("has backups").earliest;
        let ask = |at| interpret(at, now, bounds, catalogue);
        let ms = TimeDelta::milliseconds;
        assert_eq!(ask(None), Ok(RestoreTarget::Latest));
        assert_eq!(
            ask(Some(now + TimeDelta::minutes(4))),
            Ok(RestoreTarget::LatestUntil(now + TimeDelta::minutes(4)))
        );
        assert!(ask(Some(now + TimeDelta::minutes(6))).is_err());
        let first = catalogue.backups[0].id;
        assert_eq!(ask(Some(earliest)), Ok(RestoreTarget::Backup(first)));
        assert_eq!(
            ask(Some(earliest - ms(999))),
            Ok(RestoreTarget::Backup(first))
        );
        assert!(ask(Some(earliest - ms(1001))).is_err());
        let second = &catalogue.backups[1];
        assert_eq!(
            ask(Some(chrono::SubsecRound::trunc_subsecs(
                second.completed_time,
                0
            ))),
            Ok(RestoreTarget::Backup(second.id))
        );
        let between = second.completed_time + ms(1500);
        assert_eq!(ask(Some(between)), Ok(RestoreTarget::At(between)));
    }

    #[test]
    fn what_was_committed_after_the_instant_does_not_come_back_with_the_flush() {
        // DESIGN 3.6, FLX-062: the instant before a table was dropped, asked for at once
        let catalogue = &nightly().catalogue;
        let commits = catalogue.wal.iter().filter_map(|object| object.stamps);
        let dropped = commits
            .map(|stamps| stamps.largest.at)
            .max()
            .expect("there are commits");
        let before = dropped - TimeDelta::milliseconds(1);
        let target = |at| choose(catalogue, RestoreTarget::LatestUntil(at)).map(|it| it.target);
        assert_eq!(target(before), Ok(RestoreTarget::At(before)));
        let latest = catalogue.latest_restorable().expect("has backups");
        assert_eq!(
            target(latest + TimeDelta::seconds(9)),
            Ok(RestoreTarget::Latest)
        );
    }

    #[test]
    fn a_silent_sources_later_instants_are_refused_with_both_bounds() {
        // DESIGN 3.6: never clamped
        let history = nightly();
        let now = history.now + TimeDelta::hours(3);
        let bounds = bounds(
            &history.catalogue,
            RetentionWindow::new(7).expect("valid"),
            now,
        );
        let asked = history.now + TimeDelta::minutes(30);
        assert_eq!(
            interpret(Some(asked), now, bounds, &history.catalogue),
            Err(Refusal::RestoreTimeOutOfRange {
                asked: Some(asked),
                earliest: bounds.map(|bounds| bounds.earliest),
                latest: bounds.map(|bounds| bounds.latest),
            })
        );
    }

    #[test]
    fn a_hole_in_the_log_is_refused_up_front() {
        // F34
        let history = nightly();
        let mut catalogue = history.catalogue.clone();
        let last_night = catalogue.backups[1].clone();
        let lost = catalogue
            .wal
            .iter()
            .position(|object| object.start >= last_night.stop)
            .expect("there is one");
        let lost = catalogue.wal.remove(lost);
        assert!(lost.end > Lsn::ZERO);
        let at = last_night.completed_time + TimeDelta::hours(12);
        assert!(matches!(
            choose(&catalogue, RestoreTarget::At(at)),
            Err(Refusal::WalGap { .. })
        ));
        // The night after the hole is a new beginning.
        let third = catalogue.backups[2].completed_time;
        assert!(choose(&catalogue, RestoreTarget::At(third + TimeDelta::hours(11))).is_ok());
    }

    #[test]
    fn an_instant_inside_a_clock_jump_names_two_states() {
        // F59
        let history = nightly();
        let mut catalogue = history.catalogue.clone();
        let at = catalogue.backups[1].completed_time + TimeDelta::hours(2);
        catalogue.wal[2].clock_anomaly = Some(crate::wal::ClockAnomaly {
            from: at - TimeDelta::minutes(5),
            to: at + TimeDelta::minutes(5),
            at: Lsn(1),
        });
        let refusal = choose(&catalogue, RestoreTarget::At(at)).expect_err("ambiguous");
        assert!(matches!(refusal, Refusal::ClockAnomaly { .. }), "{refusal}");
    }
}
