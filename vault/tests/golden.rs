//! A vault that was written once, by format version 1, and has to be readable for ever
//! (`tests/golden/README.md`). Whoever changes the format may add a golden vault, never replace one.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use holdfast_domain::wal::{Stamp, Stamps, TimelineStart};
use holdfast_domain::{BackupId, IncarnationId, JobId, Lsn, ServerId, Timeline};
use holdfast_vault::backup::{
    Attempt, BackupWriter, BaseIndex, Changes, FinishedBackup, Manifest, ManifestMeta, RestoreInto,
    TablespaceRoot, restore_to,
};
use holdfast_vault::key::{establish_data_key, load_wrapped_keys};
use holdfast_vault::rescan::listing::VaultListing;
use holdfast_vault::rescan::scan::Scan;
use holdfast_vault::wal::survey::{list_histories, list_wal};
use holdfast_vault::wal::target::{Search, Target, Until, resolve};
use holdfast_vault::wal::{WalRange, get_wal, history, put_wal};
use holdfast_vault::{Courtesy, DataKey, KeyRing, Store};
use serde::{Deserialize, Serialize};

const SEGMENT: u64 = 1 << 20;
const SYSTEM: u64 = 7_300_000_000_000_000_001;
const MAP: &[u8] = b"16385 /srv/fast\n";
const HISTORY: &[u8] = b"1\t0/300050\tafter LSN 0/300028\n";

/// What the golden vault is known to hold.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sums {
    incarnation: IncarnationId,
    /// In the order in which they were made; BLAKE3 of each file of each.
    backups: Vec<(BackupId, BTreeMap<String, String>)>,
    /// BLAKE3 of the bytes of each range, and of each history file, by key.
    wal: BTreeMap<String, String>,
    histories: BTreeMap<u32, String>,
    /// Where a recovery to the fifteenth second ends, and one to the latest state.
    targets: [Lsn; 2],
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/v1")
}

fn store(root: &Path) -> Store {
    let vault = root.join("vault").canonicalize().expect("a vault");
    Store::open(&format!("file://{}", vault.display())).expect("opens")
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Everything that a reader who has the vault and the key finds in it.
async fn read(root: &Path, incarnation: IncarnationId) -> Sums {
    let stores = [store(root)];
    let ring = KeyRing::load(&root.join("keys")).expect("the key");
    let wraps = load_wrapped_keys(&stores, incarnation)
        .await
        .expect("wraps");
    let data_key = ring.unwrap(&wraps[0], incarnation).expect("opens");

    let mut vault = VaultListing::of(&stores[0]).await.expect("a listing");
    let listing = vault
        .incarnations
        .get_mut(&incarnation)
        .expect("it is there");
    let found = Scan::of(&stores[0], &data_key, incarnation, listing)
        .await
        .expect("manifests");
    let mut backups = Vec::new();
    for named in found.whole().map(|found| &found.named) {
        let manifest = Manifest::load(&stores, &data_key, incarnation, named).await;
        let manifest = manifest.expect("the manifest that was named");
        assert_eq!(
            manifest.meta.backup_label,
            b"START WAL LOCATION: 0/200028\n\xff"
        );
        assert_eq!(manifest.meta.tablespace_map.as_deref(), Some(MAP));
        backups.push((named.backup, restore(&stores, &data_key, &manifest).await));
    }

    let objects = list_wal(&stores[0], &data_key, incarnation, None)
        .await
        .expect("WAL");
    let mut wal = BTreeMap::new();
    for object in &objects {
        let opened = get_wal(&stores, &data_key, object).await.expect("opens");
        wal.insert(object.key.clone(), hash(&opened.bytes));
    }
    let mut histories = BTreeMap::new();
    let mut lineage: Vec<TimelineStart> = Vec::new();
    for timeline in list_histories(&stores[0], incarnation)
        .await
        .expect("a list")
    {
        let text = history::get_history(&stores, &data_key, incarnation, timeline).await;
        let text = text.expect("opens");
        let parsed = history::parse(timeline, &text).expect("a history");
        lineage.push(parsed.start(incarnation, true));
        histories.insert(timeline.0, hash(&text));
    }
    let mut targets = [Lsn::ZERO; 2];
    for (target, until) in targets.iter_mut().zip([Until::At(at(15)), Until::Latest]) {
        let search = Search {
            objects: &objects,
            lineage: &lineage,
            timeline: Timeline(2),
            backup_timeline: Timeline(1),
            backup_stop: Lsn(2 * SEGMENT),
            until,
        };
        let found = resolve(&search, |object| {
            let (stores, data_key) = (stores.clone(), data_key.clone());
            async move { get_wal(&stores, &data_key, &object).await }.boxed()
        });
        let Target::Lsn { target: lsn, .. } = found.await.expect("resolves") else {
            panic!("there are commits");
        };
        *target = lsn;
    }
    Sums {
        incarnation,
        backups,
        wal,
        histories,
        targets,
    }
}

async fn restore(
    stores: &[Store],
    data_key: &DataKey,
    manifest: &Manifest,
) -> BTreeMap<String, String> {
    let root = tempfile::tempdir().expect("a directory");
    let (dir, spaces) = (root.path().join("data"), root.path().join("spaces"));
    std::fs::create_dir(&dir).expect("made");
    let into = RestoreInto {
        dir: &dir,
        tablespaces: Some(TablespaceRoot {
            write_below: &spaces,
            link_to: &spaces,
        }),
        owner: None,
    };
    let restored = restore_to(into, manifest, stores, data_key, |_| true, |_, _| {})
        .await
        .expect("restores");
    let mut sums = BTreeMap::from([("global/pg_control".to_owned(), hash(&restored.pg_control))]);
    for file in manifest.files() {
        if file.path != "global/pg_control" {
            let content = std::fs::read(dir.join(&file.path)).expect("restored");
            sums.insert(file.path.clone(), hash(&content));
        }
    }
    assert!(dir.join("pg_wal").is_dir(), "empty directories come back");
    sums
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_of_format_version_1_reads_as_it_was_written() {
    let root = golden();
    let sums = std::fs::read(root.join("sums.json")).expect("the sums");
    let sums: Sums = serde_json::from_slice(&sums).expect("sums");
    assert_eq!((sums.backups.len(), sums.wal.len()), (3, 4));
    assert_eq!(read(&root, sums.incarnation).await, sums);
}

/// Makes `tests/golden/v1` when it is not there. See `tests/golden/README.md`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes a new golden vault: only for a new version of the format"]
async fn make() {
    let root = golden();
    assert!(!root.exists(), "a golden vault is never replaced");
    std::fs::create_dir_all(root.join("vault")).expect("made");
    let stores = [store(&root)];
    let ring = KeyRing::create(&root.join("keys"), "golden-1").expect("a key");
    let incarnation = IncarnationId::new();
    let (data_key, wrapped_key) = establish_data_key(&stores, &ring, incarnation)
        .await
        .expect("a data key");

    // A full backup and two differentials.
    let mut files = files();
    let mut finished: Vec<FinishedBackup> = Vec::new();
    let mut written = Vec::new();
    for round in 0..3_u8 {
        let base = match finished.last() {
            Some(last) => BaseIndex::load(&stores, &data_key, incarnation, &last.manifest)
                .await
                .expect("a base"),
            None => None,
        };
        let attempt = Attempt {
            incarnation,
            backup: BackupId::new(),
            job: JobId::new(),
            epoch: 1,
        };
        let writer = BackupWriter::new(
            stores.to_vec(),
            data_key.clone(),
            attempt,
            base,
            Courtesy::default(),
        )
        .expect("a writer");
        writer.add_tablespace(16385, "/srv/fast");
        for dir in ["pg_wal", "base/5", "pg_tblspc/16385/PG_15_202209061/5"] {
            writer.add_dir(dir).expect("a path");
        }
        for (path, content) in &files {
            let on_disk = root.join("content");
            std::fs::write(&on_disk, content).expect("written");
            let file = File::open(&on_disk).expect("opened");
            let added = writer.add_relation_segment(
                path,
                file,
                content.len() as u64,
                None,
                Changes::Unknown,
            );
            added.await.expect("added");
            writer.settle().await.expect("read");
            std::fs::remove_file(&on_disk).expect("removed");
        }
        let meta = ManifestMeta {
            server: ServerId::from(uuid::Uuid::nil()),
            server_name: "golden".to_owned(),
            pg_version: "15.18".to_owned(),
            system_identifier: SYSTEM,
            timeline: Timeline(1),
            start_lsn: Lsn(SEGMENT * 2 - 100),
            stop_lsn: Lsn(SEGMENT * 2),
            completed_time: at(i64::from(round)),
            all_read_at: at(i64::from(round)),
            backup_label: b"START WAL LOCATION: 0/200028\n\xff".to_vec(),
            tablespace_map: Some(MAP.to_vec()),
            wrapped_key: wrapped_key.clone(),
            wal_segment_bytes: SEGMENT,
            data_checksums: true,
            corrupt_pages: Vec::new(),
        };
        finished.push(writer.finish(meta).await.expect("published"));
        let hashed = files
            .iter()
            .map(|(path, content)| (path.clone(), hash(content)));
        written.push((attempt.backup, hashed.collect::<BTreeMap<_, _>>()));
        // The second page of one relation changes, another grows.
        files.get_mut("base/5/1259").expect("there")[8192..16384].fill(round + 1);
        let grown = noise(100 + u64::from(round), 8192);
        files.get_mut("base/5/16400").expect("there").extend(grown);
    }

    // Two ranges of one segment, cut inside a record; the next segment; and another timeline's first.
    let put = |range: WalRange, bytes: Vec<u8>| {
        let (stores, data_key) = (&stores, &data_key);
        async move {
            put_wal(stores, data_key, range, Bytes::from(bytes))
                .await
                .expect("put");
        }
    };
    let wal = Wal::new(2 * SEGMENT, Timeline(1), &[10, 20]);
    let cut = wal.stamps[1].lsn + 20;
    let at_cut = cut.bytes_since(Lsn(2 * SEGMENT)) as usize;
    let (first, second) = wal.bytes.split_at(at_cut);
    let range = |timeline, start, end, first_record, stamps: &[Stamp]| WalRange {
        incarnation,
        timeline,
        start,
        end,
        system_identifier: SYSTEM,
        wal_segment_bytes: SEGMENT,
        page_magic: Some(0xD110),
        first_record,
        stamps: stamps.first().map(|first| {
            let mut all = Stamps::of(*first);
            stamps[1..].iter().for_each(|stamp| all.push(*stamp));
            all
        }),
        last_counting: None,
        clock_anomaly: None,
        unreadable_from: None,
    };
    let (start, end) = (Lsn(2 * SEGMENT), Lsn(3 * SEGMENT));
    let whole = Lsn(start.0 + 40);
    let one = Timeline(1);
    put(
        range(one, start, cut, Some(whole), &wal.stamps[..1]),
        first.to_vec(),
    )
    .await;
    put(
        range(one, cut, end, Some(wal.end), &wal.stamps[1..]),
        second.to_vec(),
    )
    .await;
    let wal = Wal::new(3 * SEGMENT, one, &[30]);
    let (start, end) = (Lsn(3 * SEGMENT), Lsn(3 * SEGMENT + 0x50));
    let bytes = wal.bytes[..0x50].to_vec();
    put(
        range(one, start, end, Some(Lsn(start.0 + 40)), &wal.stamps),
        bytes,
    )
    .await;
    history::put_history(&stores, &data_key, incarnation, Timeline(2), HISTORY)
        .await
        .expect("put");
    let wal = Wal::new(3 * SEGMENT, Timeline(2), &[30, 40]);
    let (end, first) = (Lsn(4 * SEGMENT), Lsn(start.0 + 40));
    put(
        range(Timeline(2), start, end, Some(first), &wal.stamps),
        wal.bytes,
    )
    .await;

    let sums = read(&root, incarnation).await;
    assert_eq!(sums.backups, written, "it restores what went in");
    let json = serde_json::to_vec_pretty(&sums).expect("JSON");
    std::fs::write(root.join("sums.json"), json).expect("written");
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + seconds, 123_456_000).expect("this century")
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Something like a cluster: text that compresses, noise that does not, zeros, an empty file, one that
/// ends inside a page, and a tablespace.
fn files() -> BTreeMap<String, Vec<u8>> {
    let text = b"a row of a table; ".repeat(8192 * 4 / 18 + 1)[..8192 * 4].to_vec();
    [
        ("PG_VERSION", b"15\n".to_vec()),
        ("global/pg_control", noise(1, 8192)),
        ("base/5/1259", text),
        ("base/5/16400", noise(2, 3 * 8192)),
        ("base/5/16401", Vec::new()),
        (
            "base/5/16402",
            [noise(3, 8192), vec![0; 3 * 8192], noise(4, 100)].concat(),
        ),
        ("pg_xact/0000", vec![0; 8192]),
        (
            "pg_tblspc/16385/PG_15_202209061/5/16500",
            noise(5, 2 * 8192),
        ),
    ]
    .map(|(path, content)| (path.to_owned(), content))
    .into()
}

/// One segment: commits of these seconds, and zeros after them.
struct Wal {
    bytes: Vec<u8>,
    stamps: Vec<Stamp>,
    end: Lsn,
}

impl Wal {
    fn new(start: u64, timeline: Timeline, seconds: &[i64]) -> Self {
        let mut bytes = Vec::new();
        bytes.extend(0xD110_u16.to_le_bytes());
        bytes.extend(2_u16.to_le_bytes());
        bytes.extend(timeline.0.to_le_bytes());
        bytes.extend(start.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(SYSTEM.to_le_bytes());
        bytes.extend((SEGMENT as u32).to_le_bytes());
        bytes.extend(8192_u32.to_le_bytes());
        let mut previous = start - 40;
        let mut stamps = Vec::new();
        for second in seconds {
            let lsn = start + bytes.len() as u64;
            let mut body = vec![255, 8];
            body.extend(holdfast_vault::wal::record::to_postgres_time(at(*second)).to_le_bytes());
            let mut record = Vec::new();
            record.extend((24 + body.len() as u32).to_le_bytes());
            record.extend(700_u32.to_le_bytes());
            record.extend(previous.to_le_bytes());
            // A commit of the transaction manager.
            record.extend([0, 1, 0, 0]);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &record);
            record.extend(crc.to_le_bytes());
            record.extend(body);
            bytes.extend(record);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            previous = lsn;
            stamps.push(Stamp {
                at: at(*second),
                lsn: Lsn(lsn),
                end: Lsn(start + bytes.len() as u64),
            });
        }
        let end = Lsn(start + bytes.len() as u64);
        bytes.resize(SEGMENT as usize, 0);
        Self { bytes, stamps, end }
    }
}
