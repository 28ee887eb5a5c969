//! A WAL object: a contiguous byte range of one timeline, sealed, written once.
//!
//! Two sealed sections in one object: a small header that says what ends in the range, then the bytes.
//! The header alone can be fetched, so that a survey of a silent source costs a few kilobytes an
//! object. Every sealing has a salt of its own; whether two objects are the same is decided by the
//! hash of their plaintext (RELIABILITY §0.5, §5.3.7). Bytes: `docs/VAULT-FORMAT.md`.

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::try_join_all;
use holdfast_domain::wal::{ClockAnomaly, Stamps, WalObject};
use holdfast_domain::{IncarnationId, Lsn, Timeline};
use serde::{Deserialize, Serialize};

use super::page::{self, Dialect, PAGE_BYTES};
use crate::seal::{self, Class, Effort};
use crate::{DataKey, Error, Result, Store, get_anywhere, layout};

/// Larger segments are sealed in pieces: an object goes up in one create-if-absent PUT (DESIGN §3.4).
pub const LARGEST_OBJECT_BYTES: u64 = 64 << 20;
const FORMAT: u16 = 1;
/// Holds every header there is; one that is longer costs a second request.
const HEADER_GUESS_BYTES: u64 = 2048;
/// What [`seal::sealed_len`] wants to see.
const SEAL_PREFIX_BYTES: usize = 80;

/// What a range of WAL is and what ends in it. A record belongs to the range that holds its last byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    pub incarnation: IncarnationId,
    pub timeline: Timeline,
    pub start: Lsn,
    pub end: Lsn,
    pub system_identifier: u64,
    pub wal_segment_bytes: u64,
    /// The WAL format's version; `None` when nothing in the range could be read as records.
    pub page_magic: Option<u16>,
    /// Where the first record begins that begins in this range.
    pub first_record: Option<Lsn>,
    pub stamps: Option<Stamps>,
    /// Equal to `start` when some of the range is unreadable, so that a catalogue, which keeps this and
    /// not `unreadable_from`, knows which objects to open.
    pub last_counting: Option<Lsn>,
    pub clock_anomaly: Option<ClockAnomaly>,
    /// From here to the end nothing could be read as records: what ends there is not known.
    #[serde(default)]
    pub unreadable_from: Option<Lsn>,
}

impl WalRange {
    #[must_use]
    pub fn key(&self) -> String {
        layout::wal(self.incarnation, self.timeline, self.start, self.end)
    }

    #[must_use]
    pub fn dialect(&self) -> Option<Dialect> {
        self.page_magic.and_then(Dialect::from_magic)
    }

    /// Whether the range begins inside a record, which then can only be read together with the range before.
    #[must_use]
    pub fn begins_inside_a_record(&self) -> bool {
        let first_possible = if self.start.0.is_multiple_of(PAGE_BYTES) {
            self.start + page::header_bytes(self.start, self.wal_segment_bytes) as u64
        } else {
            self.start
        };
        self.first_record != Some(first_possible)
    }
}

/// The first section of a WAL object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalHeader {
    pub format: u16,
    /// BLAKE3 of the plaintext, 64 hexadecimal digits.
    pub plaintext_hash: String,
    #[serde(flatten)]
    pub range: WalRange,
}

impl WalHeader {
    /// The object as the catalogue keeps it.
    #[must_use]
    pub fn describe(&self, key: String, stored_bytes: u64) -> WalObject {
        WalObject {
            timeline: self.range.timeline,
            start: self.range.start,
            end: self.range.end,
            key,
            plaintext_hash: self.plaintext_hash.clone(),
            stored_bytes,
            stamps: self.range.stamps,
            last_counting: self.range.last_counting,
            clock_anomaly: self.range.clock_anomaly,
        }
    }
}

/// A WAL object, opened and verified.
#[derive(Debug, Clone)]
pub struct OpenedWal {
    pub header: WalHeader,
    /// The plaintext `[start, end)`.
    pub bytes: Bytes,
}

/// A WAL object that no store has yet. As small as it will be there: whoever waits for a store waits with
/// this, and not with the plaintext.
#[derive(Debug, Clone)]
pub struct SealedWal {
    pub key: String,
    header: WalHeader,
    parts: [Bytes; 2],
}

impl SealedWal {
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    #[must_use]
    pub fn range(&self) -> &WalRange {
        &self.header.range
    }

    /// The plaintext again.
    ///
    /// # Errors
    /// None but for another key.
    pub fn open(&self, data_key: &DataKey) -> Result<OpenedWal> {
        open_wal(data_key, &self.key, &self.parts.concat())
    }

    /// Makes it durable in every store.
    ///
    /// A store that has the same plaintext under this key already counts as done; one that has another
    /// plaintext is an [`Error::Conflict`] and stays as it is.
    pub async fn put(&self, stores: &[Store], data_key: &DataKey) -> Result<WalObject> {
        let puts = stores
            .iter()
            .map(|store| put_one(store, data_key, &self.key, &self.header, &self.parts).boxed());
        let stored_bytes = try_join_all(puts).await?.into_iter().max().unwrap_or(0);
        Ok(self.header.describe(self.key.clone(), stored_bytes))
    }
}

/// Seals the range on a thread of its own and gives the plaintext back, whose memory may be of use. `hash`:
/// when it was taken already, while the bytes came by.
///
/// # Errors
/// [`Error::Refused`] for bytes that are not the range's.
pub async fn seal_wal(
    data_key: &DataKey,
    range: WalRange,
    bytes: Bytes,
    hash: Option<blake3::Hash>,
    effort: Effort,
) -> Result<(SealedWal, Bytes)> {
    let length = range.end.bytes_since(range.start);
    if length == 0 || length != bytes.len() as u64 || length > LARGEST_OBJECT_BYTES {
        return Err(Error::refused(format!(
            "a WAL object {} to {} cannot hold {} bytes",
            range.start,
            range.end,
            bytes.len()
        )));
    }
    let data_key = data_key.clone();
    let sealing = move || seal_range(&data_key, range, &bytes, hash, effort).map(|it| (it, bytes));
    tokio::task::spawn_blocking(sealing)
        .await
        .map_err(|_| Error::Stopped)?
}

/// Seals the range and makes it durable in every store, see [`SealedWal::put`].
pub async fn put_wal(
    stores: &[Store],
    data_key: &DataKey,
    range: WalRange,
    bytes: Bytes,
) -> Result<WalObject> {
    let (sealed, _) = seal_wal(data_key, range, bytes, None, Effort::Usual).await?;
    sealed.put(stores, data_key).await
}

async fn put_one(
    store: &Store,
    data_key: &DataKey,
    key: &str,
    header: &WalHeader,
    sealed: &[Bytes; 2],
) -> Result<u64> {
    let stored = sealed.iter().map(|part| part.len() as u64).sum();
    match store.put_new_parts(key, sealed.to_vec()).await {
        Ok(()) => Ok(stored),
        Err(Error::Conflict { .. }) => adopt(store, data_key, key, header).await,
        Err(error) => Err(error),
    }
}

fn seal_range(
    data_key: &DataKey,
    range: WalRange,
    bytes: &[u8],
    hash: Option<blake3::Hash>,
    effort: Effort,
) -> Result<SealedWal> {
    let key = range.key();
    let header = WalHeader {
        format: FORMAT,
        plaintext_hash: hash
            .unwrap_or_else(|| blake3::hash(bytes))
            .to_hex()
            .to_string(),
        range,
    };
    let json = serde_json::to_vec(&header)
        .map_err(|error| Error::refused(format!("a WAL header cannot be written: {error}")))?;
    let head = seal::seal(data_key, Class::WalHeader, &key, &json)?;
    let body = seal::seal_with(data_key, Class::Wal, &key, bytes, effort)?;
    Ok(SealedWal {
        key,
        header,
        parts: [head, body],
    })
}

/// The key exists: fine when it holds the same plaintext, all of which is read. It may be what an
/// earlier put left that could not prove itself, and its header says nothing of the bytes behind it.
async fn adopt(store: &Store, data_key: &DataKey, key: &str, ours: &WalHeader) -> Result<u64> {
    let stored = store.get(key).await?;
    let stored_bytes = stored.len() as u64;
    let (data_key, name) = (data_key.clone(), key.to_owned());
    let opened = tokio::task::spawn_blocking(move || open_wal(&data_key, &name, &stored));
    let theirs = opened.await.map_err(|_| Error::Stopped)??.header;
    if theirs.plaintext_hash == ours.plaintext_hash
        && theirs.range.system_identifier == ours.range.system_identifier
    {
        store.settle(key).await?;
        Ok(stored_bytes)
    } else {
        Err(Error::Conflict {
            key: key.to_owned(),
        })
    }
}

/// Fetches and opens the header of the object alone, and sees to it that the object is as long as its
/// two sections are. Whether the second one opens only [`open_wal`] knows.
pub async fn read_header(
    store: &Store,
    data_key: &DataKey,
    key: &str,
    stored_bytes: u64,
) -> Result<WalHeader> {
    let mut start = store
        .get_range(key, 0..stored_bytes.min(HEADER_GUESS_BYTES))
        .await?;
    if start.len() < SEAL_PREFIX_BYTES {
        return Err(Error::corrupted(key, "it is shorter than any WAL object"));
    }
    let header_bytes = seal::sealed_len(key, &start)?;
    // The header and the front of the section behind it, which says how long that is.
    let needed = header_bytes + SEAL_PREFIX_BYTES as u64;
    if needed > stored_bytes {
        return Err(Error::corrupted(key, "it ends inside its header"));
    }
    if needed > start.len() as u64 {
        start = store.get_range(key, 0..needed).await?;
    }
    let (json, consumed) = seal::open_first(data_key, Class::WalHeader, key, &start)?;
    let body_bytes = seal::sealed_len(key, &start[consumed..])?;
    if header_bytes + body_bytes != stored_bytes {
        return Err(Error::corrupted(
            key,
            "it is not as long as its sections say",
        ));
    }
    parse_header(key, &json)
}

fn parse_header(key: &str, json: &[u8]) -> Result<WalHeader> {
    #[derive(Deserialize)]
    struct Version {
        format: u16,
    }
    let bad = |error: serde_json::Error| Error::corrupted(key, format!("WAL header: {error}"));
    let version: Version = serde_json::from_slice(json).map_err(bad)?;
    if version.format != FORMAT {
        return Err(Error::corrupted(
            key,
            format!("WAL format {} is not known here", version.format),
        ));
    }
    let header: WalHeader = serde_json::from_slice(json).map_err(bad)?;
    if header.range.key() != key {
        return Err(Error::corrupted(key, "its header describes another object"));
    }
    let segment = header.range.wal_segment_bytes;
    if !segment.is_power_of_two() || !(1 << 20..=1 << 30).contains(&segment) {
        return Err(Error::corrupted(
            key,
            format!("WAL segments of {segment} bytes"),
        ));
    }
    Ok(header)
}

/// Fetches, opens and verifies an object; a copy that is missing or damaged is replaced by the next store's.
pub async fn get_wal(
    stores: &[Store],
    data_key: &DataKey,
    object: &WalObject,
) -> Result<OpenedWal> {
    get_anywhere(stores, &object.key, |stored| {
        let opened = open_wal(data_key, &object.key, &stored)?;
        if opened.header.plaintext_hash != object.plaintext_hash {
            return Err(Error::corrupted(
                &object.key,
                "its content is not what the catalogue knows",
            ));
        }
        Ok(opened)
    })
    .await
}

/// Opens both sections and compares them with each other.
pub fn open_wal(data_key: &DataKey, key: &str, stored: &[u8]) -> Result<OpenedWal> {
    let (json, consumed) = seal::open_first(data_key, Class::WalHeader, key, stored)?;
    let header = parse_header(key, &json)?;
    let bytes = seal::open(data_key, Class::Wal, key, &stored[consumed..])?;
    let length = header.range.end.bytes_since(header.range.start);
    if bytes.len() as u64 != length
        || blake3::hash(&bytes).to_hex().as_str() != header.plaintext_hash
    {
        return Err(Error::corrupted(
            key,
            "its bytes are not those its header describes",
        ));
    }
    Ok(OpenedWal { header, bytes })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering::SeqCst;

    use object_store::memory::InMemory;

    use super::*;
    use crate::store::faults::FaultyStore;
    use crate::wal::survey::{list_wal, superseded};

    fn store() -> Store {
        Store::from_object_store(Arc::new(InMemory::new()))
    }

    fn range(incarnation: IncarnationId, start: u64, end: u64) -> WalRange {
        WalRange {
            incarnation,
            timeline: Timeline(1),
            start: Lsn(start),
            end: Lsn(end),
            system_identifier: 42,
            wal_segment_bytes: 16 << 20,
            page_magic: Some(0xD110),
            first_record: Some(Lsn(start)),
            stamps: None,
            last_counting: None,
            clock_anomaly: None,
            unreadable_from: None,
        }
    }

    #[tokio::test]
    async fn the_same_range_again_is_fine_and_another_content_is_a_conflict() {
        let (stores, key) = ([store(), store()], DataKey::generate().expect("a key"));
        let range = range(IncarnationId::new(), 0, 4096);
        let bytes = Bytes::from(vec![3; 4096]);
        let first = put_wal(&stores, &key, range.clone(), bytes.clone())
            .await
            .expect("put");
        let again = put_wal(&stores, &key, range.clone(), bytes.clone())
            .await
            .expect("put again");
        assert_eq!(first, again);
        let other = put_wal(&stores, &key, range, Bytes::from(vec![4; 4096])).await;
        assert!(matches!(other, Err(Error::Conflict { .. })));
        let opened = get_wal(&stores, &key, &first).await.expect("untouched");
        assert_eq!(opened.bytes, bytes);
    }

    #[tokio::test]
    async fn what_cannot_be_read_back_is_never_taken_for_durable() {
        let (store, faulty) = FaultyStore::new();
        let stores = [store.with_read_back(true)];
        let key = DataKey::generate().expect("a key");
        let range = range(IncarnationId::new(), 0, 4096);
        let bytes = Bytes::from(vec![3; 4096]);
        faulty.damage.store(1, SeqCst);
        for _ in 0..3 {
            let put = put_wal(&stores, &key, range.clone(), bytes.clone()).await;
            assert!(matches!(put, Err(Error::Corrupted { .. })), "{put:?}");
        }
        // The header alone does not show it; the survey that a stream goes on from has to look further.
        let found = list_wal(&stores[0], &key, range.incarnation, None).await;
        let object = found.expect("a list").remove(0);
        assert!(get_wal(&stores, &key, &object).await.is_err());
        let tail = put_wal(
            &stores,
            &key,
            WalRange {
                start: Lsn(1),
                ..range
            },
            bytes.slice(1..),
        );
        let tail = tail.await.expect("the store has recovered");
        let opened = get_wal(&stores, &key, &tail).await.expect("readable");
        assert_eq!(opened.bytes, bytes.slice(1..));
    }

    #[tokio::test]
    async fn a_header_does_not_speak_for_an_object_that_was_cut_off() {
        let (store, faulty) = FaultyStore::new();
        let key = DataKey::generate().expect("a key");
        let range = range(IncarnationId::new(), 0, 4096);
        let noise: Vec<u8> = (0..1024_u32)
            .flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..4].to_vec())
            .collect();
        let object = put_wal(std::slice::from_ref(&store), &key, range, noise.into());
        let object = object.await.expect("put");
        let read = |bytes| read_header(&store, &key, &object.key, bytes);
        assert!(read(object.stored_bytes).await.is_ok());
        for cut in [1, 1000, object.stored_bytes as usize - 100] {
            faulty
                .tamper(&object.key, |bytes| bytes.truncate(bytes.len() - cut))
                .await;
            let left = store.head(&object.key).await.expect("there");
            let read = read(left).await;
            assert!(matches!(read, Err(Error::Corrupted { .. })), "{left}");
            faulty
                .tamper(&object.key, |bytes| {
                    bytes.resize(object.stored_bytes as usize, 0)
                })
                .await;
        }
    }

    #[tokio::test]
    async fn a_copy_that_is_damaged_or_missing_is_replaced_by_the_other_stores() {
        let (stores, key) = ([store(), store()], DataKey::generate().expect("a key"));
        let bytes = Bytes::from(
            (0..200_000_u32)
                .flat_map(u32::to_le_bytes)
                .collect::<Vec<_>>(),
        );
        let range = range(IncarnationId::new(), 0, 800_000);
        let object = put_wal(&stores, &key, range, bytes.clone())
            .await
            .expect("put");
        assert!(stores[0].delete(&object.key).await.expect("deleted"));
        assert_eq!(
            get_wal(&stores, &key, &object)
                .await
                .expect("second copy")
                .bytes,
            bytes
        );

        let stored = stores[1].get(&object.key).await.expect("stored");
        for at in [10, 100, stored.len() / 2, stored.len() - 1] {
            let mut damaged = stored.to_vec();
            damaged[at] ^= 1;
            assert!(
                open_wal(&key, &object.key, &damaged).is_err(),
                "a flipped bit at {at}"
            );
        }
        assert!(open_wal(&key, &object.key, &stored[..stored.len() - 1]).is_err());
        let elsewhere = object.key.replace("0000000000000000-", "0000000000000001-");
        assert!(
            open_wal(&key, &elsewhere, &stored).is_err(),
            "under another key"
        );
        let foreign = DataKey::generate().expect("a key");
        assert!(
            open_wal(&foreign, &object.key, &stored).is_err(),
            "of another server"
        );
    }

    #[tokio::test]
    async fn a_survey_finds_what_reaches_beyond_a_position_and_names_what_is_covered() {
        let (stores, key) = ([store()], DataKey::generate().expect("a key"));
        let incarnation = IncarnationId::new();
        for (start, end) in [(0, 100), (100, 200), (200, 300), (0, 300)] {
            let bytes = Bytes::from(vec![1; (end - start) as usize]);
            put_wal(&stores, &key, range(incarnation, start, end), bytes)
                .await
                .expect("put");
        }
        let all = list_wal(&stores[0], &key, incarnation, None)
            .await
            .expect("a list");
        assert_eq!(all.len(), 4);
        let ends = |objects: &[WalObject]| objects.iter().map(|o| o.end.0).collect::<Vec<_>>();
        let later = list_wal(&stores[0], &key, incarnation, Some((Timeline(1), Lsn(200)))).await;
        assert_eq!(ends(&later.expect("a list")), [300, 300]);
        assert_eq!(superseded(&all).len(), 3);
        let nobody = list_wal(&stores[0], &key, IncarnationId::new(), None).await;
        assert_eq!(nobody.expect("a list"), []);
    }
}
