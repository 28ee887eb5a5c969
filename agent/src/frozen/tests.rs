//! Frozen copies on file systems that can clone, with real PostgreSQL: what is backed up and what is restored is the same
//! as without them, and a copy that is in doubt is not used.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use holdfast_domain::job::{
    CompactSpec, CompactedBackup, JobOutcome, JobSpec, RestoreSource, SnapshotOutcome,
};
use holdfast_domain::restore::RestoreTarget;
use holdfast_domain::{IncarnationId, JobId};
use tokio_util::sync::CancellationToken;

use super::volume_fixture::Volume;
use super::{FILES, kept_in, unfinished_in};
use crate::reserve::Room;
use crate::restore::test_site::{Known, Site};

const CLONING: [&str; 2] = ["xfs", "btrfs"];

async fn on_volume(volume: &Volume) -> Site {
    Site::open_with(15, volume.path(), |_| ()).await
}

/// A server with a table of fifty megabytes, one in a tablespace, and a ledger.
async fn filled(site: &Site, volume: &Volume) -> Known {
    let known = site.provision("pg1").await;
    let space = volume.path().join("space");
    site.node
        .service_user()
        .create_dir(&space)
        .expect("a directory for a tablespace");
    let session = known.server.connect().await.expect("connected");
    let tablespace = format!("CREATE TABLESPACE fast LOCATION '{}'", space.display());
    for statement in [
        tablespace.as_str(),
        "CREATE TABLE public.spaced TABLESPACE fast AS SELECT n, md5(n::text) AS sum FROM generate_series(1, 20000) n",
        "CREATE TABLE public.filled AS SELECT n, repeat(md5(n::text), 20) AS filler FROM generate_series(1, 60000) n",
        "CREATE UNLOGGED TABLE public.unlogged AS SELECT 1 AS n",
        "CREATE TABLE public.ledger (seq int PRIMARY KEY)",
    ] {
        session.batch_execute(statement).await.expect(statement);
    }
    known
}

/// Everything that must be the same in a copy, as text.
async fn content(known: &Known) -> (i64, String) {
    let session = known.server.connect().await.expect("connected");
    let row = session
        .query_one(
            "SELECT (SELECT count(*) FROM public.ledger),
                    (SELECT md5(string_agg(n || sum, ',' ORDER BY n)) FROM public.spaced)
                    || (SELECT md5(string_agg(n || filler, ',' ORDER BY n)) FROM public.filled)
                    || (SELECT count(*) FROM public.unlogged)",
            &[],
        )
        .await
        .expect("read");
    (row.get(0), row.get(1))
}

/// Writes to the ledger and all over the large table until it is told to stop.
fn writing(known: &Known) -> (tokio::task::JoinHandle<i64>, CancellationToken) {
    let stop = CancellationToken::new();
    let (server, stopped) = (known.server.clone(), stop.clone());
    let task = tokio::spawn(async move {
        let session = server.connect().await.expect("connected");
        let mut seq: i32 = 0;
        while !stopped.is_cancelled() {
            session
                .execute("INSERT INTO public.ledger VALUES ($1)", &[&seq])
                .await
                .expect("written");
            session
                .execute(
                    "UPDATE public.filled SET filler = repeat(md5($1::int::text), 20) WHERE n % 1000 = $1 % 1000",
                    &[&seq],
                )
                .await
                .expect("written");
            seq += 1;
        }
        i64::from(seq)
    });
    (task, stop)
}

fn kept(site: &Site, incarnation: IncarnationId) -> PathBuf {
    kept_in(&site.node.server_dir(incarnation))
}

/// Names in a server's directory that begin like a frozen copy's.
fn frozen_names(site: &Site, incarnation: IncarnationId) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(site.node.server_dir(incarnation))
        .expect("listed")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter(|name| name.starts_with("frozen"))
        .collect();
    names.sort_unstable();
    names
}

/// Takes pages and leaves of backups out of the vault, and puts them back when it is dropped: what is restored
/// meanwhile comes from elsewhere.
struct NoPages([PathBuf; 2]);

impl NoPages {
    fn of(site: &Site) -> Self {
        let hidden = ["packs", "leaves"].map(|class| site.object_file(class));
        for directory in &hidden {
            std::fs::rename(directory, directory.with_extension("hidden")).expect("it was there");
        }
        Self(hidden)
    }
}

impl Drop for NoPages {
    fn drop(&mut self) {
        for directory in &self.0 {
            let _ = std::fs::rename(directory.with_extension("hidden"), directory);
        }
    }
}

async fn restored(site: &Site, facts: &RestoreSource) -> (i64, String) {
    let (copy, _) = site.restore(facts, RestoreTarget::Latest).await;
    let found = content(&copy).await;
    site.node
        .stop_server(copy.placement.incarnation)
        .await
        .expect("stopped");
    found
}

async fn not_restored_without_pages(site: &Site, facts: &RestoreSource) {
    let hidden = NoPages::of(site);
    let (_, error) = site
        .try_restore(facts.clone(), RestoreTarget::Latest)
        .await
        .err()
        .expect("there are no pages");
    drop(hidden);
    assert_eq!(error.code, "BackupCorrupted", "{}", error.message);
}

// FLX-136, FLX-153
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_read_from_a_frozen_copy_and_a_restore_clones_it() {
    for volume in CLONING.iter().filter_map(|kind| Volume::mount(kind)) {
        let site = on_volume(&volume).await;
        let source = filled(&site, &volume).await;
        let incarnation = source.placement.incarnation;

        let (task, stop) = writing(&source);
        let first = site.snapshot(&source, None).await;
        let second = site.snapshot(&source, Some(&first)).await;
        stop.cancel();
        let written = task.await.expect("the writer ends");
        assert!(
            second.corrupt_pages.is_empty(),
            "{:?}",
            second.corrupt_pages
        );
        let expected = content(&source).await;
        assert_eq!(expected.0, written);
        // One at a time, for the agent alone, and nothing that PostgreSQL would start on.
        assert_eq!(frozen_names(&site, incarnation), ["frozen"]);
        let copy = kept(&site, incarnation);
        assert_eq!(mode(&copy), 0o700);
        assert_eq!(mode(&copy.join(FILES).join("PG_VERSION")), 0o400);
        assert!(!copy.join(FILES).join("global/pg_control").exists());

        // From the copy, with nothing of the backup in the vault but its manifest; more than once.
        let facts = site.source(&source, &second).await;
        let hidden = NoPages::of(&site);
        for _ in 0..2 {
            let mut found = restored(&site, &facts).await;
            found.1.truncate(expected.1.len() - 1);
            assert_eq!(found.0, expected.0);
            assert_eq!(
                found.1,
                expected.1[..expected.1.len() - 1],
                "the unlogged table is empty"
            );
        }
        drop(hidden);
        // The first backup's copy was replaced.
        let older = site.source(&source, &first).await;
        not_restored_without_pages(&site, &older).await;
        // What was uploaded was read from the copies, and is as good.
        std::fs::remove_dir_all(&copy).expect("removed");
        for facts in [&facts, &older] {
            assert_eq!(restored(&site, facts).await.0, expected.0);
        }
        site.close().await;
    }
}

fn mode(path: &Path) -> u32 {
    let found = std::fs::metadata(path).expect("it is there");
    found.permissions().mode() & 0o777
}

async fn one_backup(site: &Site, volume: &Volume) -> (Known, SnapshotOutcome, PathBuf) {
    let source = filled(site, volume).await;
    let backup = site.snapshot(&source, None).await;
    let copy = kept(site, source.placement.incarnation);
    (source, backup, copy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_touched_is_not_restored_from() {
    for volume in CLONING.iter().filter_map(|kind| Volume::mount(kind)) {
        let site = on_volume(&volume).await;
        let (source, backup, copy) = one_backup(&site, &volume).await;
        let facts = site.source(&source, &backup).await;
        let expected = content(&source).await.0;
        let session = source.server.connect().await.expect("connected");
        let path: String = session
            .query_one("SELECT pg_relation_filepath('public.filled')", &[])
            .await
            .expect("a path")
            .get(0);
        let file = copy.join(FILES).join(path);

        // One bit, and the time of the last write as it was.
        let modified = std::fs::metadata(&file)
            .and_then(|found| found.modified())
            .expect("a time");
        let mut bytes = std::fs::read(&file).expect("read");
        bytes[100_000] ^= 1;
        let open = std::fs::File::options().write(true).open(&file);
        let open = open.expect("root may");
        std::os::unix::fs::FileExt::write_all_at(&open, &bytes[100_000..100_001], 100_000)
            .expect("written");
        open.set_modified(modified).expect("set");
        drop(open);
        not_restored_without_pages(&site, &facts).await;
        assert_eq!(restored(&site, &facts).await.0, expected);

        // A file that is missing.
        let backup = site.snapshot(&source, Some(&backup)).await;
        let facts = site.source(&source, &backup).await;
        std::fs::remove_file(copy.join(FILES).join("PG_VERSION")).expect("removed");
        not_restored_without_pages(&site, &facts).await;
        assert_eq!(restored(&site, &facts).await.0, expected);

        // A record that says nothing.
        let backup = site.snapshot(&source, Some(&backup)).await;
        let facts = site.source(&source, &backup).await;
        std::fs::write(copy.join("record.json"), "{").expect("written");
        not_restored_without_pages(&site, &facts).await;
        assert_eq!(restored(&site, &facts).await.0, expected);
        site.close().await;
    }
}

// RELIABILITY §5.2.5
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_is_found_in_a_frozen_copy_too() {
    let Some(volume) = Volume::mount("xfs") else {
        return;
    };
    let site = on_volume(&volume).await;
    let source = filled(&site, &volume).await;
    let session = source.server.connect().await.expect("connected");
    let path: String = session
        .query_one("SELECT pg_relation_filepath('public.filled')", &[])
        .await
        .expect("a path")
        .get(0);
    drop(session);
    site.node
        .stop_server(source.placement.incarnation)
        .await
        .expect("stopped");
    let file = source.server.data_dir().join(&path);
    let mut bytes = std::fs::read(&file).expect("the table");
    bytes[2 * 8192 + 4000] ^= 0x40;
    std::fs::write(&file, bytes).expect("damaged");
    site.node
        .start_server(&source.placement, &source.wrapped_key)
        .await
        .expect("started");
    let backup = site.snapshot(&source, None).await;
    assert_eq!(backup.corrupt_pages, [format!("{path}:2")]);
    assert_eq!(
        frozen_names(&site, source.placement.incarnation),
        ["frozen"]
    );
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_when_room_gets_scarce_and_leavings_go_when_the_node_starts() {
    let Some(volume) = Volume::mount("btrfs") else {
        return;
    };
    let site = on_volume(&volume).await;
    let (source, backup, copy) = one_backup(&site, &volume).await;
    let incarnation = source.placement.incarnation;
    // As an agent leaves it that was killed while it froze.
    let server_dir = site.node.server_dir(incarnation);
    let left = unfinished_in(&server_dir, JobId::new(), 7);
    std::fs::create_dir_all(left.join(FILES).join("base/5")).expect("made");
    std::fs::write(left.join(FILES).join("base/5/1259"), "half").expect("written");
    site.node.restore_from_cache().await;
    assert_eq!(frozen_names(&site, incarnation), ["frozen"]);

    site.node.live_with(Room::Enough).await;
    assert!(copy.exists());
    site.node.live_with(Room::Filling).await;
    assert_eq!(frozen_names(&site, incarnation), Vec::<String>::new());
    let facts = site.source(&source, &backup).await;
    assert_eq!(restored(&site, &facts).await.0, 0);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_frozen_where_files_cannot_be_cloned_or_it_is_turned_off() {
    for (kind, frozen_copies) in [("ext4", true), ("xfs", false)] {
        let Some(volume) = Volume::mount(kind) else {
            continue;
        };
        let site = Site::open_with(15, volume.path(), |config| {
            config.frozen_copies = frozen_copies;
        })
        .await;
        let (source, backup, _) = one_backup(&site, &volume).await;
        let incarnation = source.placement.incarnation;
        assert_eq!(frozen_names(&site, incarnation), Vec::<String>::new());
        let expected = content(&source).await.0;
        let facts = site.source(&source, &backup).await;
        assert_eq!(restored(&site, &facts).await.0, expected);
        site.close().await;
    }
}

// ADR 18: the backup has another manifest then, and is the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stays_that_of_its_backup_when_packs_are_rewritten() {
    let Some(volume) = Volume::mount("xfs") else {
        return;
    };
    let site = on_volume(&volume).await;
    let (source, mut backup, _) = one_backup(&site, &volume).await;
    let spec = JobSpec::Compact(CompactSpec {
        placement: source.placement.clone(),
        wrapped_key: source.wrapped_key.clone(),
        backups: vec![CompactedBackup {
            manifest: backup.manifest.clone(),
            next_generation: backup.manifest.generation + 1,
        }],
        objects: backup
            .objects
            .iter()
            .map(|object| object.key.clone())
            .collect(),
    });
    let done = crate::work::run(&site.context(), spec).await;
    let JobOutcome::Compact(done) = done.expect("rewritten") else {
        panic!("a compaction ends as one");
    };
    let manifest = done.backups[0].manifest.clone();
    assert_ne!(manifest.hash, backup.manifest.hash);
    backup.manifest = manifest;
    let facts = site.source(&source, &backup).await;
    let _hidden = NoPages::of(&site);
    let expected = content(&source).await.0;
    assert_eq!(restored(&site, &facts).await.0, expected);
    site.close().await;
}

/// A tablespace on another file system: files cannot be shared across.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_which_a_part_lies_elsewhere_is_read_where_it_is() {
    let (Some(volume), Some(elsewhere)) = (Volume::mount("xfs"), Volume::mount("btrfs")) else {
        return;
    };
    let site = on_volume(&volume).await;
    let source = filled(&site, &elsewhere).await;
    let backup = site.snapshot(&source, None).await;
    let incarnation = source.placement.incarnation;
    assert_eq!(frozen_names(&site, incarnation), Vec::<String>::new());
    let expected = content(&source).await.0;
    let facts = site.source(&source, &backup).await;
    assert_eq!(restored(&site, &facts).await.0, expected);
    site.close().await;
}
