//! From an instant to a position in the log (RELIABILITY §5.5, FLX-055, DESIGN §3.5).
//!
//! *State at T* is the longest prefix of the WAL without a commit or abort stamped later than T –
//! PostgreSQL's own rule. The headers of WAL objects say where that prefix ends to within one object; only
//! that one (and the one before, when a record crosses into it) is fetched and walked. The answer is the
//! start of the last commit or abort in the prefix: an inclusive LSN target needs nothing after it, so it
//! works on a server that has been idle ever since.

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use holdfast_domain::wal::{Stamp, TimelineStart, WalObject};
use holdfast_domain::{Lsn, Timeline};

use super::object::OpenedWal;
use super::walker::Walker;
use crate::{Error, Result};

/// How far the caller wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Latest,
    At(DateTime<Utc>),
}

impl Until {
    fn excludes(self, at: DateTime<Utc>) -> bool {
        matches!(self, Self::At(until) if at > until)
    }
}

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// In any order; tails that a segment replaced may be among them.
    pub objects: &'a [WalObject],
    /// The path to `timeline`, ancestors first; may be empty when there are none.
    pub lineage: &'a [TimelineStart],
    pub timeline: Timeline,
    /// The timeline on which the backup was made.
    pub backup_timeline: Timeline,
    /// Where the backup becomes consistent: no target lies before it.
    pub backup_stop: Lsn,
    pub until: Until,
}

/// What to tell PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// No commit after the backup belongs to the state wanted.
    Immediate,
    Lsn {
        /// Start of the last commit or abort in the prefix: `recovery_target_lsn`.
        target: Lsn,
        /// End of that record: the switch LSN that the new history file must show.
        end: Lsn,
        /// The time in that record.
        stamp: DateTime<Utc>,
        /// The timeline the record lies on.
        timeline: Timeline,
    },
}

/// Finds the target; `fetch` brings an object that has to be walked.
pub async fn resolve<'f>(
    search: &Search<'_>,
    fetch: impl Fn(WalObject) -> BoxFuture<'f, Result<OpenedWal>>,
) -> Result<Target> {
    let mut newest: Option<(Stamp, Timeline)> = None;
    'path: for leg in path(search) {
        let covering = leg.cover(search.objects)?;
        for (index, object) in covering.objects.iter().enumerate() {
            let suspect = may_be_unreadable(object);
            let walked = match object.stamps {
                None if !suspect => continue,
                Some(stamps)
                    if !suspect
                        && stamps.first.lsn >= leg.from
                        && stamps.last.lsn < leg.to
                        && !search.until.excludes(stamps.largest.at) =>
                {
                    newest = Some((stamps.last, leg.timeline));
                    continue;
                }
                _ => walk(&covering.objects, index, &fetch).await?,
            };
            for stamp in walked.stamps {
                if stamp.lsn >= leg.to {
                    break;
                }
                if search.until.excludes(stamp.at) {
                    if stamp.lsn < search.backup_stop {
                        return Err(Error::TargetBeforeBackup { stamp: stamp.at });
                    }
                    break 'path;
                }
                if stamp.lsn >= leg.from {
                    newest = Some((stamp, leg.timeline));
                }
            }
            // Every commit from here on is unknown, and PostgreSQL may not get past this place either:
            // to name a position before or behind it would be to lose commits in silence.
            if let Some(lsn) = walked.unreadable_from
                && lsn < leg.to
            {
                return Err(Error::corrupted(
                    &object.key,
                    format!("the write-ahead log in it cannot be read from {lsn} on"),
                ));
            }
        }
        // Nothing in front of the hole was too late, so what the hole swallowed may be wanted.
        if let Some((start, end)) = covering.hole {
            return Err(Error::WalGap {
                timeline: leg.timeline,
                start,
                end,
            });
        }
    }
    Ok(
        newest.map_or(Target::Immediate, |(stamp, timeline)| Target::Lsn {
            target: stamp.lsn,
            end: stamp.end,
            stamp: stamp.at,
            timeline,
        }),
    )
}

/// The smallest set of objects of one timeline that covers it from `from` on without a hole, and how
/// far that reaches (`from` itself when nothing covers it).
#[must_use]
pub fn cover(objects: &[WalObject], timeline: Timeline, from: Lsn) -> (Vec<WalObject>, Lsn) {
    let mut sorted: Vec<&WalObject> = objects
        .iter()
        .filter(|object| object.timeline == timeline && object.end > from)
        .collect();
    sorted.sort_by_key(|object| (object.start, std::cmp::Reverse(object.end)));
    let mut chosen: Vec<WalObject> = Vec::new();
    let mut reached = from;
    let mut next = sorted.into_iter().peekable();
    loop {
        let mut widest: Option<&WalObject> = None;
        while let Some(object) = next.next_if(|object| object.start <= reached) {
            if widest.is_none_or(|widest| object.end > widest.end) {
                widest = Some(object);
            }
        }
        match widest {
            Some(object) if object.end > reached => {
                reached = object.end;
                chosen.push(object.clone());
            }
            // Everything that begins early enough is covered already.
            Some(_) => {}
            None => return (chosen, reached),
        }
    }
}

/// One timeline's part of the path.
#[derive(Debug, Clone, Copy)]
struct Leg {
    timeline: Timeline,
    from: Lsn,
    to: Lsn,
}

struct Covering {
    objects: Vec<WalObject>,
    hole: Option<(Lsn, Lsn)>,
}

impl Leg {
    fn cover(&self, objects: &[WalObject]) -> Result<Covering> {
        let (mut chosen, reached) = cover(objects, self.timeline, self.from);
        chosen.retain(|object| object.start < self.to);
        let next = objects
            .iter()
            .filter(|object| object.timeline == self.timeline && object.start > reached)
            .map(|object| object.start)
            .min();
        let hole = match next {
            Some(next) if reached < self.to.min(next) => Some((reached, next.min(self.to))),
            // The parent's WAL has to reach the branch.
            None if self.to != Lsn(u64::MAX) && reached < self.to => Some((reached, self.to)),
            _ => None,
        };
        Ok(Covering {
            objects: chosen,
            hole,
        })
    }
}

/// The legs from the backup's timeline to the target's.
fn path(search: &Search<'_>) -> Vec<Leg> {
    let mut legs = Vec::new();
    let mut timeline = search.timeline;
    let mut to = Lsn(u64::MAX);
    loop {
        let branch = search
            .lineage
            .iter()
            .find(|start| start.timeline == timeline && timeline != search.backup_timeline);
        let from = branch.map_or(search.backup_stop, |start| {
            start.switch.max(search.backup_stop)
        });
        legs.push(Leg { timeline, from, to });
        let Some((parent, switch)) = branch.and_then(|start| Some((start.parent?, start.switch)))
        else {
            break;
        };
        // A lineage is finite: parents are smaller than their children.
        if parent >= timeline {
            break;
        }
        timeline = parent;
        to = switch;
    }
    legs.reverse();
    legs
}

/// Whether a header may say `unreadable_from`. Objects that could be read are among them now and then.
fn may_be_unreadable(object: &WalObject) -> bool {
    object.last_counting == Some(object.start)
}

/// What one object holds.
struct Walked {
    /// The commits and aborts that end in it, in the order of the log.
    stamps: Vec<Stamp>,
    unreadable_from: Option<Lsn>,
}

/// Reads the records that belong to the object at `index`.
async fn walk<'f>(
    objects: &[WalObject],
    index: usize,
    fetch: &impl Fn(WalObject) -> BoxFuture<'f, Result<OpenedWal>>,
) -> Result<Walked> {
    let own = &objects[index];
    let mut opened = vec![fetch(own.clone()).await?];
    let unreadable_from = opened[0].header.range.unreadable_from;
    let mut walked = Walked {
        stamps: Vec::new(),
        unreadable_from,
    };
    if unreadable_from.is_some_and(|lsn| lsn <= own.start) {
        return Ok(walked);
    }
    // A record that crosses into the object begins in one before it.
    let mut first = index;
    while first > 0 && needs_more(&opened, first == index) {
        first -= 1;
        opened.push(fetch(objects[first].clone()).await?);
    }
    opened.reverse();
    // What began before all of them lies before the backup's end and is no target.
    let Some(begin) = opened
        .iter()
        .position(|piece| piece.header.range.first_record.is_some())
    else {
        // One record fills everything and ends after it.
        return match (
            own.stamps,
            opened.iter().find_map(|p| p.header.range.dialect()),
        ) {
            (None, _) | (Some(_), Some(_)) => Ok(walked),
            (Some(_), None) => Err(no_dialect(own)),
        };
    };
    let opened = &opened[begin..];
    let beginning = &opened[0].header.range;
    let dialect = opened.iter().find_map(|piece| piece.header.range.dialect());
    let (Some(record), Some(dialect)) = (beginning.first_record, dialect) else {
        return Err(no_dialect(own));
    };
    let mut walker = Walker::at_record(record, beginning.wal_segment_bytes, dialect);
    let mut at = record;
    for piece in opened {
        let range = &piece.header.range;
        let readable = match range.unreadable_from {
            Some(lsn) => lsn.bytes_since(range.start) as usize,
            None => piece.bytes.len(),
        };
        let skip = at.bytes_since(range.start) as usize;
        let Some(bytes) = piece.bytes.get(skip..readable) else {
            return Err(Error::corrupted(
                range.key(),
                "its first record or its first unreadable byte lies outside of it",
            ));
        };
        walker
            .feed(bytes, |record| {
                if record.end > own.start
                    && let Some(stamp) = record.stamp()
                {
                    walked.stamps.push(stamp);
                }
            })
            .map_err(|error| Error::corrupted(range.key(), error.to_string()))?;
        at = range.end;
    }
    // The header was written when the bytes came by: to find less in them now is to be wrong.
    if let Some(known) = own.stamps
        && known.last.lsn >= record
        && !walked.stamps.contains(&known.last)
    {
        return Err(Error::corrupted(
            &own.key,
            "its commits are not those its header describes",
        ));
    }
    Ok(walked)
}

fn no_dialect(object: &WalObject) -> Error {
    Error::corrupted(
        &object.key,
        "its header does not say which version's write-ahead log it is",
    )
}

/// Whether what was opened so far does not yet hold a record's beginning to walk from.
fn needs_more(opened: &[OpenedWal], only_own: bool) -> bool {
    opened.last().is_some_and(|last| {
        let range = &last.header.range;
        if only_own {
            range.begins_inside_a_record()
        } else {
            range.first_record.is_none()
        }
    })
}
