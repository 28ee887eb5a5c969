//! What WAL an incarnation has in a store, found by listing.
//!
//! Listing finds and never deletes (DESIGN §3.9). Two ask: an agent that starts and wants to know how far
//! its stream was durable, and the restore of a source whose agent fell silent before it reported.

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use holdfast_domain::job::ObjectRef;
use holdfast_domain::wal::WalObject;
use holdfast_domain::{IncarnationId, Lsn, Timeline};

use super::object::{LARGEST_OBJECT_BYTES, WalHeader, read_header};
use crate::{DataKey, Error, Result, Store, layout};

/// Header fetches under way at once.
const WIDTH: usize = 16;

/// One object that a survey found.
#[derive(Debug, Clone)]
pub struct Found {
    pub object: WalObject,
    pub header: WalHeader,
}

/// Objects of the incarnation that reach beyond `from`, in the order of timeline and start. An object whose
/// header cannot be opened is as good as missing; it is named in the log.
pub async fn survey(
    store: &Store,
    data_key: &DataKey,
    incarnation: IncarnationId,
    from: Option<(Timeline, Lsn)>,
) -> Result<Vec<Found>> {
    let prefix = layout::wal_prefix(incarnation, None);
    let listed = match from {
        None => store.list(&prefix).await?,
        Some((timeline, lsn)) => {
            // The object that holds `lsn` begins at most one object's length before it.
            let earliest = Lsn(lsn.0.saturating_sub(LARGEST_OBJECT_BYTES));
            let after = layout::wal(incarnation, timeline, earliest, earliest);
            store.list_after(&prefix, &after).await?
        }
    };
    let mut readings = Vec::new();
    for entry in listed {
        let Some((_, timeline, _, end)) = layout::parse_wal(&entry.key) else {
            continue;
        };
        let beyond = from.is_none_or(|(from_timeline, lsn)| {
            timeline > from_timeline || timeline == from_timeline && end > lsn
        });
        if beyond {
            readings.push(read(store, data_key, entry).boxed());
        }
    }
    let read: Vec<Option<Found>> = stream::iter(readings)
        .buffer_unordered(WIDTH)
        .try_collect()
        .await?;
    let mut found: Vec<Found> = read.into_iter().flatten().collect();
    found.sort_by_key(|found| (found.object.timeline, found.object.start, found.object.end));
    Ok(found)
}

async fn read(store: &Store, data_key: &DataKey, entry: ObjectRef) -> Result<Option<Found>> {
    match read_header(store, data_key, &entry.key, entry.bytes).await {
        Ok(header) => Ok(Some(Found {
            object: header.describe(entry.key, entry.bytes),
            header,
        })),
        // Pruned between listing and reading, or damaged.
        Err(error @ (Error::Corrupted { .. } | Error::NotFound { .. })) => {
            tracing::warn!(object.key = entry.key, %error, "a WAL object cannot be read");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// [`survey`] without the headers.
pub async fn list_wal(
    store: &Store,
    data_key: &DataKey,
    incarnation: IncarnationId,
    from: Option<(Timeline, Lsn)>,
) -> Result<Vec<WalObject>> {
    let found = survey(store, data_key, incarnation, from).await?;
    Ok(found.into_iter().map(|found| found.object).collect())
}

/// Timelines whose history file is in the store.
pub async fn list_histories(store: &Store, incarnation: IncarnationId) -> Result<Vec<Timeline>> {
    let listed = store.list(&layout::wal_prefix(incarnation, None)).await?;
    Ok(listed
        .iter()
        .filter_map(|entry| layout::parse_history(&entry.key))
        .map(|(_, timeline)| timeline)
        .collect())
}

/// Keys of objects that another one of the list covers completely: tails that a whole segment replaced.
#[must_use]
pub fn superseded(objects: &[WalObject]) -> Vec<String> {
    let mut sorted: Vec<&WalObject> = objects.iter().collect();
    sorted.sort_by_key(|object| (object.timeline, object.start, std::cmp::Reverse(object.end)));
    let mut covered = Vec::new();
    let mut widest: Option<&WalObject> = None;
    for object in sorted {
        match widest {
            Some(wide) if wide.timeline == object.timeline && object.end <= wide.end => {
                covered.push(object.key.clone());
            }
            _ => widest = Some(object),
        }
    }
    covered
}
