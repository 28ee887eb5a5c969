//! Whoever can write to a bucket can change every byte of it, and a bug could seal a lie. Golden objects are
//! flipped, cut, spliced and lengthened – outside the seal and under it – and every decoder answers with an
//! error, or with something harmless: no panic, and no memory beyond a bound (RELIABILITY §4.5).

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use holdfast_domain::job::ManifestRef;
use holdfast_domain::{BackupId, IncarnationId, Lsn, Timeline};
use holdfast_vault::backup::Manifest;
use holdfast_vault::key::{find_data_key, load_wrapped_keys};
use holdfast_vault::rescan::listing::VaultListing;
use holdfast_vault::rescan::scan::Scan;
use holdfast_vault::seal::{self, Class};
use holdfast_vault::verify::incarnation::{Verification, Verified};
use holdfast_vault::wal::object::open_wal;
use holdfast_vault::wal::{Walker, history};
use holdfast_vault::{DataKey, Error, KeyRing, Store, layout};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use proptest::prelude::*;
use tokio::runtime::Runtime;

/// Counts what is allocated at a time. Each test of this file runs in a process of its own (nextest) or
/// measures only what it adds.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[expect(
    unsafe_code,
    reason = "an allocator that counts cannot be written without"
)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` needed at most beyond what was allocated before it.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let done = work();
    (done, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

/// An object of the golden vault has at most 58,098 bytes. Decoding one may take its ciphertext, its
/// plaintext and what it describes: never what it only claims.
const ONE_OBJECT: usize = 4 << 20;
/// Reading all of the vault through, with caches, decompressors and the few objects at a time.
const WHOLE_VAULT: usize = 64 << 20;

const INCARNATION: &str = "01a213c7-1d8a-72ef-888c-233230264456";

fn incarnation() -> IncarnationId {
    INCARNATION.parse().expect("an id")
}

/// The golden vault in memory, with its data key.
struct Golden {
    runtime: Runtime,
    objects: BTreeMap<String, Vec<u8>>,
    data_key: DataKey,
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/v1")
}

impl Golden {
    fn load() -> Self {
        let root = golden_dir().join("vault");
        let mut objects = BTreeMap::new();
        let mut open = vec![root.clone()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let key = path
                        .strip_prefix(&root)
                        .expect("below")
                        .display()
                        .to_string();
                    objects.insert(key, std::fs::read(path).expect("a file"));
                }
            }
        }
        let runtime = Runtime::new().expect("a runtime");
        let ring = KeyRing::load(&golden_dir().join("keys")).expect("the key");
        let store = runtime.block_on(filled(&objects));
        let found = find_data_key(std::slice::from_ref(&store), &ring, incarnation());
        let (data_key, _) = runtime.block_on(found).expect("opens");
        Self {
            runtime,
            objects,
            data_key,
        }
    }

    fn keys(&self, kind: &str) -> Vec<String> {
        let of_it = |key: &&String| key.starts_with(kind);
        self.objects.keys().filter(of_it).cloned().collect()
    }

    /// The store with these bytes under the key.
    fn with(&self, key: &str, bytes: &[u8]) -> Store {
        let mut objects = self.objects.clone();
        objects.insert(key.to_owned(), bytes.to_vec());
        self.runtime.block_on(filled(&objects))
    }

    /// Opens one object alone, by the way that a reader would.
    fn open(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        if let Some((_, backup, generation)) = layout::parse_manifest(key) {
            return self.load_manifest(key, backup, generation, bytes).map(drop);
        }
        if layout::parse_wal(key).is_some() {
            return open_wal(&self.data_key, key, bytes).map(drop);
        }
        if let Some((_, timeline)) = layout::parse_history(key) {
            let text = seal::open(&self.data_key, Class::History, key, bytes)?;
            return history::parse(timeline, &text).map(drop);
        }
        panic!("{key} is opened by what names it");
    }

    fn load_manifest(
        &self,
        key: &str,
        backup: BackupId,
        generation: u32,
        bytes: &[u8],
    ) -> Result<Manifest, Error> {
        let named = ManifestRef {
            backup,
            generation,
            key: key.to_owned(),
            hash: blake3::hash(bytes).to_hex().to_string(),
        };
        let store = Store::from_object_store(Arc::new(InMemory::new()));
        let content = Bytes::copy_from_slice(bytes);
        self.runtime.block_on(async {
            store.put_new(key, content).await?;
            Manifest::load(&[store], &self.data_key, incarnation(), &named).await
        })
    }

    fn verify(&self, store: &Store) -> Result<Verified, Error> {
        self.runtime.block_on(async {
            let mut vault = VaultListing::of(store).await?;
            let mut listing = vault.incarnations.remove(&incarnation()).expect("there");
            let scan = Scan::of(store, &self.data_key, incarnation(), &mut listing).await?;
            let verification = Verification {
                store,
                data_key: &self.data_key,
                incarnation: incarnation(),
                listing: &listing,
                scan: &scan,
                only: None,
            };
            verification.run(&|_| {}).await
        })
    }
}

async fn filled(objects: &BTreeMap<String, Vec<u8>>) -> Store {
    let memory = InMemory::new();
    for (key, bytes) in objects {
        let payload = PutPayload::from(bytes.clone());
        memory
            .put(&ObjectPath::from(key.as_str()), payload)
            .await
            .expect("memory takes it");
    }
    let objects: Arc<dyn ObjectStore> = Arc::new(memory);
    Store::from_object_store(objects)
}

/// What happens to bytes.
#[derive(Debug, Clone)]
enum Change {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Lengthen(Vec<u8>),
    /// Eight bytes become a number that promises much.
    Claim(prop::sample::Index, u64),
    /// A stretch is repeated over another.
    Splice(prop::sample::Index, prop::sample::Index, usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match self {
            Self::Flip(at, bit) => bytes[at.index(length)] ^= 1 << (bit % 8),
            Self::Cut(at) => bytes.truncate(at.index(length)),
            Self::Lengthen(more) => bytes.extend_from_slice(more),
            Self::Claim(at, number) => {
                let at = at.index(length);
                let end = length.min(at + 8);
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            Self::Splice(from, to, count) => {
                let (from, to) = (from.index(length), to.index(length));
                let count = (*count).min(length - from).min(length - to);
                let stretch = bytes[from..from + count].to_vec();
                bytes[to..to + count].copy_from_slice(&stretch);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => index().prop_map(Change::Cut),
        1 => proptest::collection::vec(any::<u8>(), 1..64).prop_map(Change::Lengthen),
        2 => (index(), prop_oneof![Just(u64::MAX), Just(u64::from(u32::MAX)), Just(0), Just(1 << 40), any::<u64>()])
            .prop_map(|(at, number)| Change::Claim(at, number)),
        1 => (index(), index(), 1usize..512).prop_map(|(from, to, count)| Change::Splice(from, to, count)),
    ]
}

fn changed(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes {
        change.apply(&mut bytes);
    }
    bytes
}

fn run(cases: u32, test: impl Fn(prop::sample::Index, Vec<Change>) -> Result<(), TestCaseError>) {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    };
    let strategy = (
        any::<prop::sample::Index>(),
        proptest::collection::vec(change(), 1..5),
    );
    let ran = proptest::test_runner::TestRunner::new(config)
        .run(&strategy, |(which, changes)| test(which, changes));
    if let Err(error) = ran {
        panic!("{error}");
    }
}

#[test]
fn no_changed_object_opens() {
    let golden = Golden::load();
    let keys: Vec<String> = ["backups/", "wal/"]
        .into_iter()
        .flat_map(|it| golden.keys(it))
        .collect();
    run(1500, |which, changes| {
        let key = which.get(&keys);
        let was = &golden.objects[key];
        let bytes = changed(was, &changes);
        prop_assume!(bytes != *was);
        let (opened, peak) = peak_of(|| golden.open(key, &bytes));
        prop_assert!(opened.is_err(), "{key} opens");
        prop_assert!(peak < ONE_OBJECT, "{key}: {peak} bytes");
        Ok(())
    });
}

#[test]
fn no_changed_pack_or_leaf_object_is_taken_for_good() {
    let golden = Golden::load();
    let keys: Vec<String> = ["packs/", "leaves/"]
        .into_iter()
        .flat_map(|it| golden.keys(it))
        .collect();
    run(150, |which, changes| {
        let key = which.get(&keys);
        let was = &golden.objects[key];
        let bytes = changed(was, &changes);
        prop_assume!(bytes != *was);
        let store = golden.with(key, &bytes);
        let (verified, peak) = peak_of(|| golden.verify(&store));
        let verified = verified.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(
            verified.findings.iter().any(|it| it.key == *key),
            "{key} passes"
        );
        prop_assert!(peak < WHOLE_VAULT, "{key}: {peak} bytes");
        Ok(())
    });
}

/// The seal is right and what is under it is not: a bug, or somebody who has the key.
#[test]
fn a_lie_under_the_seal_is_refused_or_harmless() {
    let golden = Golden::load();
    let manifests = golden.keys("backups/");
    run(600, |which, changes| {
        let key = which.get(&manifests);
        let (_, backup, generation) = layout::parse_manifest(key).expect("a manifest");
        let json = seal::open(&golden.data_key, Class::Manifest, key, &golden.objects[key])
            .expect("golden");
        let lie = seal::seal(
            &golden.data_key,
            Class::Manifest,
            key,
            &changed(&json, &changes),
        )
        .expect("sealed");
        let (loaded, peak) = peak_of(|| golden.load_manifest(key, backup, generation, &lie));
        prop_assert!(peak < ONE_OBJECT, "{peak} bytes");
        if loaded.is_ok() {
            // It reads as a manifest: then everything that goes by it stays in its bounds.
            let store = golden.with(key, &lie);
            let (verified, peak) = peak_of(|| golden.verify(&store));
            prop_assert!(verified.is_ok(), "{:?}", verified.err());
            prop_assert!(peak < WHOLE_VAULT, "{peak} bytes");
        }
        Ok(())
    });
}

#[test]
fn numbers_under_the_seal_are_not_believed() {
    let golden = Golden::load();
    let key = golden.keys("backups/").remove(0);
    let (_, backup, generation) = layout::parse_manifest(&key).expect("a manifest");
    let json = seal::open(
        &golden.data_key,
        Class::Manifest,
        &key,
        &golden.objects[&key],
    )
    .expect("golden");
    let manifest: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let many = [0, 1, u64::from(u32::MAX), u64::MAX];
    let mut pointers = Vec::new();
    numbers(&manifest, "", &mut pointers);
    assert!(pointers.len() > 40, "{pointers:?}");
    for pointer in pointers {
        for number in many {
            let mut lie = manifest.clone();
            *lie.pointer_mut(&pointer).expect("there") = number.into();
            let text = serde_json::to_vec(&lie).expect("JSON");
            let lie = seal::seal(&golden.data_key, Class::Manifest, &key, &text).expect("sealed");
            let (loaded, peak) = peak_of(|| golden.load_manifest(&key, backup, generation, &lie));
            assert!(peak < ONE_OBJECT, "{pointer} = {number}: {peak} bytes");
            if loaded.is_ok() {
                let store = golden.with(&key, &lie);
                let (verified, peak) = peak_of(|| golden.verify(&store));
                assert!(
                    verified.is_ok(),
                    "{pointer} = {number}: {:?}",
                    verified.err()
                );
                assert!(peak < WHOLE_VAULT, "{pointer} = {number}: {peak} bytes");
            }
        }
    }
}

/// Where numbers stand in a document.
fn numbers(value: &serde_json::Value, at: &str, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Number(_) => found.push(at.to_owned()),
        serde_json::Value::Array(all) => {
            for (index, one) in all.iter().enumerate() {
                numbers(one, &format!("{at}/{index}"), found);
            }
        }
        serde_json::Value::Object(members) => {
            for (name, one) in members {
                numbers(one, &format!("{at}/{name}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn a_log_headers_lie_is_refused_or_harmless() {
    let golden = Golden::load();
    let keys: Vec<String> = golden
        .keys("wal/")
        .into_iter()
        .filter(|key| layout::parse_wal(key).is_some())
        .collect();
    run(800, |which, changes| {
        let key = which.get(&keys);
        let sealed = &golden.objects[key];
        let (json, consumed) =
            seal::open_first(&golden.data_key, Class::WalHeader, key, sealed).expect("golden");
        let lie = seal::seal(
            &golden.data_key,
            Class::WalHeader,
            key,
            &changed(&json, &changes),
        )
        .expect("sealed");
        let object = [&lie[..], &sealed[consumed..]].concat();
        let (opened, peak) = peak_of(|| open_wal(&golden.data_key, key, &object));
        // A range of one segment is decompressed: that much, and its copy.
        prop_assert!(peak < ONE_OBJECT, "{peak} bytes");
        if let Ok(opened) = opened {
            prop_assert_eq!(opened.header.range.key(), key.as_str());
        }
        Ok(())
    });
}

#[test]
fn the_walker_ends_at_the_first_byte_that_cannot_be_right() {
    let golden = Golden::load();
    let key = layout::wal(incarnation(), Timeline(2), Lsn(0x30_0000), Lsn(0x40_0000));
    let log = open_wal(&golden.data_key, &key, &golden.objects[&key])
        .expect("golden")
        .bytes;
    let whole = records(&log);
    assert_eq!(whole.len(), 2);
    // Nothing lies behind the records; changes there would prove nothing.
    let log = &log[..256];
    run(3000, |piece, changes| {
        let lie = changed(log, &changes);
        let mut walker = Walker::at_page(Lsn(0x30_0000), 1 << 20);
        let mut found = Vec::new();
        let (_, peak) = peak_of(|| {
            for piece in lie.chunks(1 + piece.index(100)) {
                let fed = walker.feed_with_heads(piece, |record, head| {
                    let _ = head.blocks(|_| {});
                    let _ = head.data();
                    found.push(record.start);
                });
                if fed.is_err() {
                    break;
                }
            }
        });
        prop_assert!(peak < 64 << 10, "{peak} bytes");
        prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
        // A record that is still whole is found where it was, or not at all.
        let same = lie.iter().zip(log).take_while(|(a, b)| a == b).count() as u64;
        for start in &found {
            prop_assert!(whole.contains(start) || start.0 >= 0x30_0000 + same.saturating_sub(64));
        }
        Ok(())
    });
}

fn records(log: &[u8]) -> Vec<Lsn> {
    let mut walker = Walker::at_page(Lsn(0x30_0000), 1 << 20);
    let mut found = Vec::new();
    walker
        .feed(log, |record| found.push(record.start))
        .expect("golden");
    found
}

#[test]
fn no_key_file_and_no_wrap_does_harm() {
    let golden = Golden::load();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("1.key");
    let key = std::fs::read(golden_dir().join("keys/golden-1.key")).expect("the key");
    let wrap = golden.keys("keys/").remove(0);
    let right = KeyRing::load_file(&golden_dir().join("keys/golden-1.key")).expect("the key");
    run(500, |_, changes| {
        std::fs::write(&file, changed(&key, &changes)).expect("written");
        let (ring, peak) = peak_of(|| KeyRing::load_file(&file));
        prop_assert!(peak < 64 << 10, "{peak} bytes");
        let store = golden.with("probe/none", b"");
        let stores = [store];
        if let Ok(ring) = ring {
            let found = golden
                .runtime
                .block_on(find_data_key(&stores, &ring, incarnation()));
            // White space may have changed, or the case of nothing: then it is the key.
            if let Ok((found, _)) = found {
                prop_assert_eq!(found.id(), golden.data_key.id());
            }
        }
        let lie = changed(&golden.objects[&wrap], &changes);
        let stores = [golden.with(&wrap, &lie)];
        let (found, peak) = peak_of(|| {
            golden.runtime.block_on(async {
                let _ = load_wrapped_keys(&stores, incarnation()).await;
                find_data_key(&stores, &right, incarnation()).await
            })
        });
        prop_assert!(peak < ONE_OBJECT, "{peak} bytes");
        if let Ok((found, _)) = found {
            prop_assert_eq!(found.id(), golden.data_key.id());
        }
        Ok(())
    });
}

#[test]
fn a_history_that_was_changed_under_its_seal_reads_in_order_or_not_at_all() {
    let text = b"1\t0/300050\tafter LSN 0/300028\n2\t0/500000\tno recovery target specified\n";
    run(3000, |_, changes| {
        let lie = changed(text, &changes);
        let (read, peak) = peak_of(|| history::parse(Timeline(3), &lie));
        prop_assert!(peak < 64 << 10, "{peak} bytes");
        if let Ok(read) = read {
            let ordered = |pair: &[history::Ancestor]| {
                pair[0].timeline < pair[1].timeline && pair[0].switch <= pair[1].switch
            };
            prop_assert!(read.ancestors.windows(2).all(ordered));
            prop_assert!(read.ancestors.iter().all(|it| it.timeline < Timeline(3)));
        }
        Ok(())
    });
}

/// A header may claim what it likes: nothing is allocated for it.
#[test]
fn lengths_that_a_header_claims_are_not_allocated() {
    let golden = Golden::load();
    for key in ["backups/", "wal/"]
        .into_iter()
        .flat_map(|it| golden.keys(it))
    {
        for claim in [u64::MAX, 1 << 40, 256 << 20, (256 << 20) + 1, 0] {
            for at in [24, 32] {
                let mut bytes = golden.objects[&key].clone();
                bytes[at..at + 8].copy_from_slice(&claim.to_le_bytes());
                let (opened, peak) = peak_of(|| golden.open(&key, &bytes));
                assert!(opened.is_err(), "{key}: {claim} at {at}");
                assert!(peak < ONE_OBJECT, "{key}: {claim} at {at}: {peak} bytes");
            }
        }
    }
}
