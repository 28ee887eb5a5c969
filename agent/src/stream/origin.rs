//! Where a stream goes on: what the stores say, not what this process remembers (RELIABILITY §5.3.3).
//!
//! Durable is what *every* store has. An object that only some have – the agent died between two puts, a
//! store was added – is copied to the others first. An agent may also have died, or given up, between a
//! put and its proof: objects that such a put can have left are opened, and one that does not open is
//! as good as missing.

use std::collections::BTreeMap;
use std::path::Path;

use holdfast_domain::wal::WalObject;
use holdfast_domain::{IncarnationId, Lsn, Timeline};
use holdfast_vault::wal::object::LARGEST_OBJECT_BYTES;
use holdfast_vault::wal::survey::survey;
use holdfast_vault::wal::target::cover;
use holdfast_vault::wal::{Walker, get_wal, put_wal};
use holdfast_vault::{DataKey, Store};

use super::cutter::Lineage;
use super::error::Result;
use super::ledger::Acknowledged;

/// How far before the newest object one may end whose put was not proven: a few puts are under way at
/// once, none of a larger object than this format knows.
const UNPROVEN_BYTES: u64 = 8 * LARGEST_OBJECT_BYTES;

/// What an incarnation has in its stores.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub timeline: Timeline,
    pub durable: Lsn,
    /// Found in every store and without a hole up to `durable`, covered ones before what covers them.
    pub objects: Vec<WalObject>,
    /// Behind a hole.
    pub stranded: Vec<WalObject>,
}

/// `None` when no store has anything and nothing was ever acknowledged.
pub(super) async fn find(
    stores: &[Store],
    data_key: &DataKey,
    incarnation: IncarnationId,
    state_dir: &Path,
    unit_bytes: u64,
) -> Result<Option<Origin>> {
    let acknowledged = Acknowledged::load(state_dir, incarnation);
    // From the last byte before the unit on: the objects of the unit and the one before them.
    let from = acknowledged.map(|known| {
        let unit = known.durable.segment_start(unit_bytes);
        (known.timeline, Lsn(unit.0.saturating_sub(1)))
    });
    // Key → object and the number of stores that have it.
    let mut found: BTreeMap<String, (WalObject, usize)> = BTreeMap::new();
    for store in stores {
        let surveyed = survey(store, data_key, incarnation, from).await?;
        let newest = surveyed
            .iter()
            .map(|one| (one.object.timeline, one.object.end))
            .max();
        for one in surveyed {
            let object = &one.object;
            let is_proven = acknowledged.is_some_and(|known| {
                (object.timeline, object.end) <= (known.timeline, known.durable)
            }) || newest.is_some_and(|(timeline, end)| {
                object.timeline < timeline || object.end + UNPROVEN_BYTES < end
            });
            if !is_proven && !opens(store, data_key, object).await? {
                continue;
            }
            let entry = found
                .entry(one.object.key.clone())
                .or_insert((one.object, 0));
            entry.1 += 1;
        }
    }
    let all: Vec<WalObject> = found.values().map(|(object, _)| object.clone()).collect();
    let newest = all.iter().map(|object| object.timeline).max();
    let Some(timeline) = newest.max(acknowledged.map(|known| known.timeline)) else {
        return Ok(None);
    };
    let of_timeline = || all.iter().filter(|object| object.timeline == timeline);
    let base = acknowledged
        .filter(|known| known.timeline == timeline)
        .map(|known| known.durable)
        .or_else(|| of_timeline().map(|object| object.start).min())
        .unwrap_or(Lsn::ZERO);
    let (covering, reached) = cover(&all, timeline, base);
    for object in &covering {
        if found
            .get(&object.key)
            .is_some_and(|(_, copies)| *copies < stores.len())
        {
            let opened = get_wal(stores, data_key, object).await?;
            put_wal(stores, data_key, opened.header.range, opened.bytes).await?;
        }
    }
    let (mut objects, stranded): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|object| object.timeline < timeline || object.end <= reached);
    objects.retain(|object| {
        covering.iter().any(|needed| needed.key == object.key)
            || found
                .get(&object.key)
                .is_some_and(|(_, copies)| *copies == stores.len())
    });
    objects.sort_by_key(|object| (object.timeline, object.end, std::cmp::Reverse(object.start)));
    Ok(Some(Origin {
        timeline,
        durable: reached,
        objects,
        stranded,
    }))
}

async fn opens(store: &Store, data_key: &DataKey, object: &WalObject) -> Result<bool> {
    match get_wal(std::slice::from_ref(store), data_key, object).await {
        Ok(_) => Ok(true),
        // Pruned since it was listed, or damaged.
        Err(
            error @ (holdfast_vault::Error::Corrupted { .. }
            | holdfast_vault::Error::NotFound { .. }),
        ) => {
            tracing::error!(object.key = object.key, %error, "a WAL object cannot be read and does not count");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// A walker that has read what lies before the unit, when a record crosses into it whose end is not in
/// the stores yet. `first_page` is the beginning of the unit's first page.
pub(super) async fn prime(
    stores: &[Store],
    data_key: &DataKey,
    lineage: &Lineage,
    origin: &Origin,
    first_page: &[u8],
) -> Option<Walker> {
    let unit = lineage.unit_start(origin.durable);
    let flags = u16::from_le_bytes([*first_page.get(2)?, *first_page.get(3)?]);
    if flags & 1 == 0 {
        return None;
    }
    let left = u32::from_le_bytes(first_page.get(16..20)?.try_into().ok()?);
    // Pages have headers too, so the record ends somewhat later than this: fetching once too often is cheap.
    if unit + u64::from(left) < origin.durable && !origin.durable.0.is_multiple_of(8192) {
        return None;
    }
    let before = origin
        .objects
        .iter()
        .find(|object| object.timeline == lineage.timeline && object.end == unit)?;
    let opened = match get_wal(stores, data_key, before).await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(object.key = before.key, %error, "the WAL before a stream cannot be read");
            return None;
        }
    };
    let range = &opened.header.range;
    let first = range.first_record?;
    let mut walker = Walker::at_record(first, lineage.segment_bytes, range.dialect()?)
        .of_cluster(lineage.system_identifier);
    let skip = usize::try_from(first.bytes_since(range.start)).ok()?;
    walker.feed(opened.bytes.get(skip..)?, |_| {}).ok()?;
    Some(walker)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use holdfast_vault::wal::WalRange;

    use super::*;

    #[tokio::test]
    async fn a_stream_goes_on_from_what_can_be_read_not_from_what_is_there() {
        let root = tempfile::tempdir().expect("a directory");
        let vault = root.path().join("vault");
        let stores = [Store::open(&format!("file://{}", vault.display())).expect("a store")];
        let data_key = DataKey::generate().expect("a key");
        let incarnation = IncarnationId::new();
        let mut keys = Vec::new();
        for start in [0, 1000, 2000] {
            let range = WalRange {
                incarnation,
                timeline: Timeline(1),
                start: Lsn(start),
                end: Lsn(start + 1000),
                system_identifier: 1,
                wal_segment_bytes: 1 << 20,
                page_magic: None,
                first_record: None,
                stamps: None,
                last_counting: None,
                clock_anomaly: None,
                unreadable_from: None,
            };
            let put = put_wal(&stores, &data_key, range, Bytes::from(vec![3; 1000])).await;
            keys.push(put.expect("put").key);
        }
        let find = || find(&stores, &data_key, incarnation, root.path(), 1 << 20);
        let origin = find().await.expect("found").expect("an origin");
        assert_eq!(origin.durable, Lsn(3000));

        let newest = vault.join(&keys[2]);
        let mut bytes = std::fs::read(&newest).expect("there");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&newest, bytes).expect("damaged");
        let origin = find().await.expect("found").expect("an origin");
        assert_eq!(origin.durable, Lsn(2000));
        assert!(origin.objects.iter().all(|object| object.key != keys[2]));
    }
}
