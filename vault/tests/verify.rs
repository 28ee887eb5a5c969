//! Reading through a vault finds what a restore would trip over, whatever happened to the bytes. The vault
//! is the golden one (`tests/golden/README.md`), whose log does not begin early enough for its backups.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use holdfast_domain::{BackupId, IncarnationId, Lsn, Timeline};
use holdfast_vault::key::find_data_key;
use holdfast_vault::rescan::listing::VaultListing;
use holdfast_vault::rescan::scan::{Extent, Scan, timelines};
use holdfast_vault::verify::incarnation::{Verification, Verified};
use holdfast_vault::verify::{Damage, Finding};
use holdfast_vault::wal::survey::list_wal;
use holdfast_vault::{Error, KeyRing, Store};

const INCARNATION: &str = "01a213c7-1d8a-72ef-888c-233230264456";
const BACKUPS: [&str; 3] = [
    "01a213c7-1dbb-701f-93fd-d440a4110dcf",
    "01a213c7-1e00-7070-bcd3-450a9832d4fc",
    "01a213c7-1e18-756c-bb2c-177b01483974",
];
const PACKS: [&str; 3] = [
    "packs/01a213c7-1d8a-72ef-888c-233230264456/01a213c7-1dbb-701f-93fd-d441d79571a3.1/0",
    "packs/01a213c7-1d8a-72ef-888c-233230264456/01a213c7-1e00-7070-bcd3-450b0fcdbd89.1/0",
    "packs/01a213c7-1d8a-72ef-888c-233230264456/01a213c7-1e18-756c-bb2c-177cdd11d413.1/0",
];
const WAL: [&str; 3] = [
    "wal/01a213c7-1d8a-72ef-888c-233230264456/00000001/0000000000200000-0000000000200064",
    "wal/01a213c7-1d8a-72ef-888c-233230264456/00000001/0000000000200064-0000000000300000",
    "wal/01a213c7-1d8a-72ef-888c-233230264456/00000001/0000000000300000-0000000000300050",
];

/// A copy of the golden vault that can be damaged.
struct Copy {
    root: tempfile::TempDir,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/v1")
}

fn incarnation() -> IncarnationId {
    INCARNATION.parse().expect("an id")
}

fn backups(which: impl IntoIterator<Item = usize>) -> BTreeSet<BackupId> {
    let id = |index: usize| BACKUPS[index].parse().expect("an id");
    which.into_iter().map(id).collect()
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_tree(&entry.path(), &to),
            false => {
                std::fs::copy(entry.path(), to).expect("copied");
            }
        }
    }
}

impl Copy {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        copy_tree(&golden().join("vault"), root.path());
        Self { root }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.path().join(key)
    }

    fn change(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(key)).expect("there");
        change(&mut bytes);
        std::fs::write(self.path(key), bytes).expect("written");
    }

    fn remove(&self, key: &str) {
        std::fs::remove_file(self.path(key)).expect("there");
    }

    async fn verify(&self, only: Option<BackupId>) -> Verified {
        let url = url::Url::from_directory_path(self.root.path()).expect("absolute");
        let store = Store::open(url.as_str()).expect("opens");
        let ring = KeyRing::load_file(&golden().join("keys/golden-1.key")).expect("the key");
        let stores = std::slice::from_ref(&store);
        let (data_key, _) = find_data_key(stores, &ring, incarnation())
            .await
            .expect("opens");
        let mut listing = VaultListing::of(&store).await.expect("a list");
        let mut listing = listing.incarnations.remove(&incarnation()).expect("there");
        let scan = Scan::of(&store, &data_key, incarnation(), &mut listing)
            .await
            .expect("scanned");
        let verification = Verification {
            store: &store,
            data_key: &data_key,
            incarnation: incarnation(),
            listing: &listing,
            scan: &scan,
            only,
        };
        verification.run(&|_| {}).await.expect("read through")
    }

    /// What is found beyond what is wrong with the golden vault itself.
    async fn findings(&self) -> Vec<Finding> {
        let mut found = self.verify(None).await.findings;
        found.retain(|found| {
            found.damage != Damage::WalGap || !found.what.contains("from 0/100000 ")
        });
        found
    }

    /// The one thing that is found: its code, key, and the backups that need it.
    async fn finding(&self) -> (&'static str, String, BTreeSet<BackupId>) {
        let mut found = self.findings().await;
        assert_eq!(found.len(), 1, "{found:#?}");
        let found = found.remove(0);
        (found.damage.code(), found.key, found.backups)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_golden_vault_reads_through_and_only_its_missing_log_is_named() {
    let verified = Copy::new().verify(None).await;
    // Three manifests, three packs, three leaf objects, four ranges of log, one history.
    assert_eq!(verified.objects, 14);
    let [gap] = &verified.findings[..] else {
        panic!("{:#?}", verified.findings);
    };
    assert_eq!(gap.damage.code(), "WalGap");
    assert_eq!(gap.key, format!("wal/{INCARNATION}/00000001/"));
    assert!(
        gap.what.ends_with("from 0/100000 to 0/200000"),
        "{}",
        gap.what
    );
    assert_eq!(gap.backups, backups(0..3));
    assert_eq!(verified.backups, backups(0..3));
    assert!(verified.good_backups().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn any_flipped_byte_is_found_in_the_object_where_it_is() {
    let copy = Copy::new();
    let needed = [(PACKS[0], 0..3), (PACKS[1], 1..3), (PACKS[2], 2..3)];
    for (key, by) in needed.clone() {
        let length = std::fs::metadata(copy.path(key)).expect("there").len() as usize;
        for at in [90, length / 2, length - 1] {
            copy.change(key, |bytes| bytes[at] ^= 1);
            let expected = ("ObjectDamaged", key.to_owned(), backups(by.clone()));
            assert_eq!(copy.finding().await, expected, "byte {at}");
            copy.change(key, |bytes| bytes[at] ^= 1);
        }
    }
    // A leaf object has leaves of every file; in the manifests' order the first is the first backup's.
    for (key, by) in needed {
        let leaves = key.replace("packs/", "leaves/");
        copy.change(&leaves, |bytes| {
            *bytes.last_mut().expect("not empty") ^= 0x80
        });
        let (code, found, needed_by) = copy.finding().await;
        assert_eq!((code, &found), ("ObjectDamaged", &leaves));
        assert!(
            needed_by.contains(backups(by).first().expect("one")),
            "{needed_by:?}"
        );
        copy.change(&leaves, |bytes| {
            *bytes.last_mut().expect("not empty") ^= 0x80
        });
    }
    for key in WAL {
        copy.change(key, |bytes| *bytes.last_mut().expect("not empty") ^= 1);
        let (code, found, by) = copy.finding().await;
        assert_eq!((code, found.as_str()), ("ObjectDamaged", key));
        assert_eq!(by, backups([]), "it lies after the backups");
        copy.change(key, |bytes| *bytes.last_mut().expect("not empty") ^= 1);
    }
    let history = format!("wal/{INCARNATION}/00000002.history");
    copy.change(&history, |bytes| bytes[100] ^= 1);
    let (code, found, _) = copy.finding().await;
    assert_eq!((code, found), ("ObjectDamaged", history.clone()));
    copy.change(&history, |bytes| bytes[100] ^= 1);
    let manifest = format!("backups/{INCARNATION}/{}/manifest.1", BACKUPS[1]);
    copy.change(&manifest, |bytes| bytes[100] ^= 1);
    let expected = ("ObjectDamaged", manifest.clone(), backups([1]));
    assert_eq!(copy.finding().await, expected);
    copy.change(&manifest, |bytes| bytes[100] ^= 1);
    assert_eq!(copy.findings().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_cut_off_or_in_anothers_place_has_its_own_code() {
    let copy = Copy::new();
    copy.remove(PACKS[1]);
    let expected = ("ObjectMissing", PACKS[1].to_owned(), backups(1..3));
    assert_eq!(copy.finding().await, expected);

    let copy = Copy::new();
    let leaves = PACKS[2].replace("packs/", "leaves/");
    copy.remove(&leaves);
    assert_eq!(
        copy.finding().await,
        ("ObjectMissing", leaves, backups([2]))
    );

    let copy = Copy::new();
    copy.change(PACKS[0], |bytes| bytes.truncate(bytes.len() - 1));
    let expected = ("ObjectDamaged", PACKS[0].to_owned(), backups(0..3));
    assert_eq!(copy.finding().await, expected);

    // Another attempt's pack of the same length; then one under another data key.
    let copy = Copy::new();
    std::fs::copy(copy.path(PACKS[1]), copy.path(PACKS[2])).expect("copied");
    let expected = ("ObjectForeign", PACKS[2].to_owned(), backups([2]));
    assert_eq!(copy.finding().await, expected);
    for key in [PACKS[2], WAL[2]] {
        let copy = Copy::new();
        copy.change(key, |bytes| bytes[40] ^= 1);
        let (code, found, _) = copy.finding().await;
        assert_eq!((code, found.as_str()), ("ObjectForeign", key));
    }

    // Log that nothing names is missed where it was; on a timeline's end nobody can tell.
    let copy = Copy::new();
    copy.remove(WAL[1]);
    let found = copy.findings().await;
    let [gap] = &found[..] else {
        panic!("{found:#?}")
    };
    assert_eq!(gap.damage, Damage::WalGap);
    assert!(
        gap.what.ends_with("from 0/200064 to 0/300000"),
        "{}",
        gap.what
    );

    let copy = Copy::new();
    let history = format!("wal/{INCARNATION}/00000002.history");
    copy.remove(&history);
    let (code, found, _) = copy.finding().await;
    assert_eq!((code, found), ("ObjectMissing", history));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backup_alone_is_read_without_the_others() {
    let copy = Copy::new();
    copy.remove(PACKS[1]);
    copy.remove(WAL[2]);
    let first = copy.verify(backups([0]).pop_first()).await;
    // Its manifest, its pack, its leaf object, the histories; no log of the golden vault is its own.
    assert_eq!((first.objects, first.backups), (4, backups([0])));
    assert_eq!(first.findings.len(), 1, "{:#?}", first.findings);
    let third = copy.verify(backups([2]).pop_first()).await;
    let missing = third.findings.iter().find(|found| found.key == PACKS[1]);
    assert_eq!(
        missing.map(|found| found.backups.clone()),
        Some(backups([2]))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_golden_vault_tells_what_it_holds_and_a_wrong_key_is_named() {
    let copy = Copy::new();
    let url = url::Url::from_directory_path(copy.root.path()).expect("absolute");
    let store = Store::open(url.as_str()).expect("opens");
    std::fs::create_dir_all(copy.path("probe")).expect("made");
    std::fs::write(copy.path("probe/x"), "left").expect("written");
    let unfinished = format!("{}1", PACKS[2].trim_end_matches('0'));
    std::fs::write(copy.path(&unfinished), [0; 100]).expect("written");

    let mut vault = VaultListing::of(&store).await.expect("a list");
    assert_eq!(vault.strangers.len(), 1);
    let mut listing = vault.incarnations.remove(&incarnation()).expect("there");
    assert!(vault.incarnations.is_empty());
    assert!(listing.kek_versions.contains("golden-1"));
    let stretches = listing.stretches();
    assert_eq!(stretches[&Timeline(1)][0].end, Lsn(0x30_0050));
    assert_eq!(stretches[&Timeline(2)][0].start, Lsn(0x30_0000));

    let key_dir = tempfile::tempdir().expect("a directory");
    let other = KeyRing::create(key_dir.path(), "golden-1").expect("a key");
    let stores = std::slice::from_ref(&store);
    let refused = find_data_key(stores, &other, incarnation())
        .await
        .map(|_| ());
    assert!(
        matches!(&refused, Err(Error::KeyUnavailable { version }) if version == "golden-1"),
        "{refused:?}"
    );

    let ring = KeyRing::load(&golden().join("keys")).expect("the key");
    let (data_key, _) = find_data_key(stores, &ring, incarnation())
        .await
        .expect("opens");
    let scan = Scan::of(&store, &data_key, incarnation(), &mut listing)
        .await
        .expect("scanned");
    assert!(scan.unopened.is_empty());
    let extents: Vec<_> = scan.backups.iter().map(|found| found.extent).collect();
    assert_eq!(
        extents,
        [Extent::Full, Extent::Differential, Extent::Differential]
    );
    assert!(scan.backups.iter().all(|found| found.missing.is_empty()));
    let unnamed: Vec<_> = listing
        .packed
        .iter()
        .filter(|(_, it)| !it.is_named)
        .collect();
    assert_eq!(unnamed.len(), 1, "{unnamed:?}");
    assert_eq!(unnamed[0].0, &unfinished);

    let read = timelines(&store, &data_key, incarnation(), &listing)
        .await
        .expect("read");
    let wal = list_wal(&store, &data_key, incarnation(), None)
        .await
        .expect("listed");
    let catalogue = scan
        .catalogue(incarnation(), wal, read.starts)
        .expect("backups");
    assert_eq!(
        (catalogue.head, catalogue.durable),
        (Timeline(2), Lsn(0x40_0000))
    );
    let lineage = catalogue.lineage(catalogue.head);
    assert_eq!(lineage.len(), 2);
    assert_eq!(
        (lineage[1].parent, lineage[1].switch),
        (Some(Timeline(1)), Lsn(0x30_0050))
    );
    assert_eq!(catalogue.server_name, "golden");
}
