//! Made-up histories for the property tests: what a server, its stream and its backups could have
//! left in a catalogue.

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

use crate::backup::{BackupKind, CompleteBackup};
use crate::catalogue::Catalogue;
use crate::job::ManifestRef;
use crate::wal::{Stamp, Stamps, TimelineStart, WalObject};
use crate::{BackupId, IncarnationId, Lsn, Timeline};

/// Small segments make many boundaries.
pub const SEGMENT: u64 = 4096;

/// One thing that happens on the server.
#[derive(Debug, Clone)]
pub enum Event {
    /// A transaction; the stamp may lag the clock a little, as real ones do.
    Commit {
        bytes: u64,
        lag_us: i64,
    },
    /// WAL without a commit.
    Noise {
        bytes: u64,
    },
    Pass {
        minutes: i64,
    },
    BackupStart,
    /// The oldest running backup ends; `damaged` pages were found.
    BackupStop {
        damaged: bool,
    },
    /// The oldest running backup dies.
    BackupFail,
    /// What has been streamed so far becomes an object.
    Seal,
    /// A failover: the next timeline branches off here.
    Promote,
}

pub fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (60u64..3000, 0i64..400).prop_map(|(bytes, lag_us)| Event::Commit { bytes, lag_us }),
        3 => (60u64..6000).prop_map(|bytes| Event::Noise { bytes }),
        5 => (1i64..2000).prop_map(|minutes| Event::Pass { minutes }),
        3 => Just(Event::BackupStart),
        3 => prop::bool::weighted(0.1).prop_map(|damaged| Event::BackupStop { damaged }),
        1 => Just(Event::BackupFail),
        6 => Just(Event::Seal),
        1 => Just(Event::Promote),
    ];
    prop::collection::vec(event, 20..160)
}

/// A catalogue and what really happened.
#[derive(Debug, Clone)]
pub struct History {
    pub catalogue: Catalogue,
    /// Every commit in the order of the log.
    pub commits: Vec<Stamp>,
    pub now: DateTime<Utc>,
}

pub fn play(events: &[Event]) -> History {
    let mut now = DateTime::from_timestamp(1_790_000_000, 0).expect("valid");
    let mut lsn = Lsn(SEGMENT * 3);
    let mut sealed = lsn;
    let mut timeline = Timeline::FIRST;
    let mut pending: Option<Stamps> = None;
    let mut largest: Option<DateTime<Utc>> = None;
    let mut commits = Vec::new();
    let mut running: Vec<(BackupId, Timeline, Lsn)> = Vec::new();
    let mut catalogue = Catalogue {
        server_name: "pg1".to_owned(),
        incarnation: IncarnationId::new(),
        wal_segment_bytes: SEGMENT,
        backups: Vec::new(),
        wal: Vec::new(),
        timelines: vec![TimelineStart {
            timeline,
            parent: None,
            switch: Lsn::ZERO,
            history_key: None,
        }],
        head: timeline,
        durable: lsn,
        caught_up_at: None,
        gaps: Vec::new(),
    };
    let seal = |catalogue: &mut Catalogue,
                sealed: &mut Lsn,
                lsn: Lsn,
                pending: &mut Option<Stamps>,
                timeline: Timeline| {
        if lsn > *sealed {
            catalogue.wal.push(WalObject {
                timeline,
                start: *sealed,
                end: lsn,
                key: format!(
                    "wal/{}/{}-{}",
                    timeline.0,
                    sealed.sortable(),
                    lsn.sortable()
                ),
                plaintext_hash: String::new(),
                stored_bytes: lsn.bytes_since(*sealed),
                stamps: pending.take(),
                last_counting: None,
                clock_anomaly: None,
            });
            *sealed = lsn;
            catalogue.durable = lsn;
        }
    };
    let mut sealed_in_timeline = false;
    for event in events {
        // Nothing happens in no time at all.
        now += TimeDelta::milliseconds(3);
        match *event {
            Event::Commit { bytes, lag_us } => {
                let stamp = Stamp {
                    at: now - TimeDelta::microseconds(lag_us),
                    lsn,
                    end: lsn + bytes,
                };
                lsn = lsn + bytes;
                commits.push(stamp);
                largest = largest.max(Some(stamp.at));
                match &mut pending {
                    Some(stamps) => stamps.push(stamp),
                    None => pending = Some(Stamps::of(stamp)),
                }
            }
            Event::Noise { bytes } => lsn = lsn + bytes,
            Event::Pass { minutes } => now += TimeDelta::minutes(minutes),
            Event::BackupStart => running.push((BackupId::new(), timeline, lsn)),
            Event::BackupFail => {
                if !running.is_empty() {
                    running.remove(0);
                }
            }
            Event::BackupStop { damaged } => {
                if running.is_empty() {
                    continue;
                }
                let (id, started_on, start) = running.remove(0);
                // A backup does not live through a failover.
                if started_on != timeline {
                    continue;
                }
                lsn = lsn + 120;
                seal(&mut catalogue, &mut sealed, lsn, &mut pending, timeline);
                catalogue.backups.push(CompleteBackup {
                    id,
                    name: format!("backup_{}", catalogue.backups.len()),
                    kind: BackupKind::Automatic,
                    timeline,
                    start,
                    stop: lsn,
                    completed_time: largest.map_or(now, |largest| largest.max(now)),
                    manifest: ManifestRef {
                        backup: id,
                        generation: 0,
                        key: String::new(),
                        hash: String::new(),
                    },
                    damaged,
                });
            }
            Event::Seal => {
                seal(&mut catalogue, &mut sealed, lsn, &mut pending, timeline);
                sealed_in_timeline = true;
                catalogue.caught_up_at = Some(now);
            }
            Event::Promote => {
                if !sealed_in_timeline {
                    continue;
                }
                seal(&mut catalogue, &mut sealed, lsn, &mut pending, timeline);
                let next = Timeline(timeline.0 + 1);
                catalogue.timelines.push(TimelineStart {
                    timeline: next,
                    parent: Some(timeline),
                    switch: lsn,
                    history_key: Some(next.history_file_name()),
                });
                timeline = next;
                catalogue.head = next;
                sealed_in_timeline = false;
                // The new timeline's stream begins at its first segment's start.
                sealed = lsn.segment_start(SEGMENT);
            }
        }
    }
    seal(&mut catalogue, &mut sealed, lsn, &mut pending, timeline);
    catalogue.durable = lsn;
    catalogue.caught_up_at = Some(now);
    History {
        catalogue,
        commits,
        now,
    }
}

impl History {
    /// Instants worth asking for: around every commit and every backup, and in between.
    pub fn instants(&self) -> Vec<DateTime<Utc>> {
        let us = TimeDelta::microseconds(1);
        let mut instants: Vec<DateTime<Utc>> = self
            .commits
            .iter()
            .map(|commit| commit.at)
            .chain(
                self.catalogue
                    .backups
                    .iter()
                    .map(|backup| backup.completed_time),
            )
            .flat_map(|at| [at - us, at, at + us, at + TimeDelta::hours(5)])
            .chain([self.now])
            .collect();
        instants.sort();
        instants.dedup();
        instants
    }
}
