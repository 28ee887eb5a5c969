//! A differential that reads what the log names restores byte for byte to what one restores to that reads everything
//! (ADR 15), whatever a server went through since the base: random statements of all kinds, crashes, a restart of the
//! agent, a point-in-time restore before.
//!
//! The files are copied once, between start and stop of a backup and while others write. From that copy both
//! differentials are taken, so that they have the same to read; each base is the last differential by the map, so that
//! what it missed once would be missing for good.
//!
//! `HOLDFAST_MAP_SEEDS=20` tries more seeds than usual, `HOLDFAST_MAP_SEED=7` begins with that one, and
//! `HOLDFAST_MAP_ROUNDS=10` takes more differentials of each server.

mod workload;

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use holdfast_domain::job::ManifestRef;
use holdfast_domain::restore::RestoreTarget;
use holdfast_domain::{BackupId, JobId};
use holdfast_vault::Courtesy;
use holdfast_vault::backup::{
    Attempt, BackupWriter, BaseIndex, FinishedBackup, Manifest, ManifestMeta, RestoreInto,
    TablespaceRoot, restore_to,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::control_file::{CONTROL_FILE, ControlFile};
use super::copy::{Files, Suspects, copy};
use super::reading::{Earlier, Reading, unexplained};
use super::session::{BackupSession, Stopped};
use super::walk::{Entry, Walk};
use crate::postgres::cluster_fixture::majors;
use crate::restore::test_site::{Known, Site};
use crate::stream::change_map;
use workload::{Workload, crash};

/// Differentials of one server, each on top of the last.
const ROUNDS: u64 = 3;
const SOON: Duration = Duration::from_secs(60);

/// Content by path below the data directory.
type Pages = BTreeMap<String, Vec<u8>>;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The seeds of this run: so many by default, one after the other.
fn seeds(usual: u64) -> Range<u64> {
    let first = number("HOLDFAST_MAP_SEED").unwrap_or(1);
    first..first + number("HOLDFAST_MAP_SEEDS").unwrap_or(usual)
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_map_a_backup_restores_to_the_same_bytes_as_by_reading_all() {
    for seed in seeds(3) {
        live(15, seed).await;
    }
}

/// And where PostgreSQL's own summaries tell what the agent did not see.
#[tokio::test(flavor = "multi_thread")]
async fn on_newer_majors_too() {
    for major in majors().await.into_iter().filter(|major| *major > 15) {
        for seed in seeds(1) {
            live(major, seed).await;
        }
    }
}

async fn live(major: u16, seed: u64) {
    eprintln!("PostgreSQL {major}, HOLDFAST_MAP_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let spaces = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o711))
        .tempdir()
        .expect("a directory");
    let site = Site::open_major(major).await;
    let mut known = site.provision("pg1").await;
    let mut workload = Workload::new(&site, spaces.path());
    workload.begin(&known).await;
    if random.random_bool(0.5) {
        eprintln!("  restored to an instant first");
        known = as_it_was(&site, known, &mut workload).await;
    }
    for _ in 0..random.random_range(0..5) {
        workload.step(&known, &mut random).await;
    }
    let base = site.snapshot(&known, None).await;
    let mut differential = Differential {
        site: &site,
        base: base.manifest,
        all_read_at: base.completed_time,
    };
    let mut mattered = 0;
    for round in 0..number("HOLDFAST_MAP_ROUNDS").unwrap_or(ROUNDS) {
        let statements = random.random_range(4..10);
        for _ in 0..statements {
            workload.step(&known, &mut random).await;
        }
        match random.random_range(0..4) {
            0 | 1 => crash(&known, &mut random).await,
            // The agent's map is gone with it.
            2 if major >= 17 && round > 0 => restart_agent(&known).await,
            _ => {}
        }
        let table = workload.some_table(&mut random);
        let compared = differential.compare(&known, &table).await;
        mattered += u32::from(compared == Compared::Both { mattered: true });
    }
    assert!(
        mattered > 0,
        "nothing was compared that the map had a say in"
    );
    workload.report();
    site.close().await;
}

/// A copy of the server as it was in the middle of what it did.
async fn as_it_was(site: &Site, known: Known, workload: &mut Workload) -> Known {
    let backup = site.snapshot(&known, None).await;
    let session = known.server.connect().await.expect("connected");
    // A commit on each side of the instant.
    let counted = "INSERT INTO public.t0 (v) VALUES ('counted')";
    session.batch_execute(counted).await.expect("written");
    let sql = "SELECT clock_timestamp()";
    let row = session.query_one(sql, &[]).await.expect("a row");
    let at: DateTime<Utc> = row.get(0);
    session.batch_execute(counted).await.expect("written");
    drop(session);
    let source = site.source(&known, &backup).await;
    let (copy, _) = site.restore(&source, RestoreTarget::At(at)).await;
    site.node
        .stop_server(known.placement.incarnation)
        .await
        .expect("stopped");
    workload.is_a_copy(&copy).await;
    copy
}

async fn restart_agent(known: &Known) {
    eprintln!("  the agent restarts");
    known.server.kill().await.expect("ended");
    known.server.start().await.expect("started");
}

/// What became of a comparison.
#[derive(PartialEq)]
enum Compared {
    /// Nobody knew what had changed, and everything was read.
    Not,
    /// `mattered`: a map that says nothing would have been found out.
    Both { mattered: bool },
}

struct Differential<'a> {
    site: &'a Site,
    base: ManifestRef,
    all_read_at: DateTime<Utc>,
}

/// What was copied from under a running server.
struct Copied {
    root: tempfile::TempDir,
    major: u16,
    control: ControlFile,
}

impl Copied {
    fn of(data_dir: &Path, major: u16) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let at = |path: &str| root.path().join("data").join(path);
        std::fs::create_dir_all(at("pg_tblspc")).expect("made");
        let control = ControlFile::read(&data_dir.join(CONTROL_FILE)).expect("a control file");
        for entry in Walk::new(data_dir, major, control.catalog_version()) {
            match entry.expect("walks") {
                Entry::Directory { path } => std::fs::create_dir_all(at(&path)).expect("made"),
                Entry::Tablespace { oid, .. } => {
                    let space = root.path().join(oid.to_string());
                    std::fs::create_dir(&space).expect("made");
                    std::os::unix::fs::symlink(space, at(&format!("pg_tblspc/{oid}")))
                        .expect("linked");
                }
                Entry::File { path, source, .. } => match std::fs::copy(&source, at(&path)) {
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => panic!("{path}: {error}"),
                },
            }
        }
        Self {
            root,
            major,
            control,
        }
    }

    fn walk(&self) -> Walk {
        Walk::new(
            &self.root.path().join("data"),
            self.major,
            self.control.catalog_version(),
        )
    }

    /// All that a backup of it holds.
    fn pages(&self) -> Pages {
        let mut pages = Pages::new();
        for entry in self.walk() {
            if let Entry::File { path, source, .. } = entry.expect("walks") {
                pages.insert(path, std::fs::read(source).expect("read"));
            }
        }
        pages.remove(CONTROL_FILE);
        pages
    }
}

impl Differential<'_> {
    async fn compare(&mut self, known: &Known, table: &str) -> Compared {
        let stream = known.server.stream().expect("it streams");
        // After a crash the stream's connections are gone, and it has to hear of it first.
        let flushed = async {
            while let Err(error) = stream.flush().await {
                eprintln!("  {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(SOON, flushed).await.expect("durable");
        let base = self.base_index(known).await;
        let since = base.meta().start_lsn;
        let backup = BackupId::new();
        let connection = known.server.connect().await.expect("connected");
        let session = BackupSession::start(connection, backup)
            .await
            .expect("begun");
        let (start, timeline, began_at) = (session.start, session.timeline, session.began_at);
        let facts = session.facts.clone();
        let earlier = Earlier::of(&stream, &session, since).await.expect("asked");
        let summarized = earlier.is_some();
        let (data_dir, major) = (known.server.data_dir(), facts.major);
        let (writer, stop) = workload::write_all_the_time(known, table);
        let copied = tokio::task::spawn_blocking(move || Copied::of(&data_dir, major))
            .await
            .expect("copied");
        stop.cancel();
        writer.await.expect("it wrote");
        let stopped = session.stop().await.expect("ended");
        stream.wait_durable(stopped.stop).await.expect("durable");

        let of = (timeline, start);
        let reading = Reading::of(
            Some(base.meta()),
            &stream,
            of,
            facts.data_checksums,
            began_at,
            earlier,
        );
        let reading = reading.await.expect("asked");
        let meta = |stopped: &Stopped| ManifestMeta {
            start_lsn: start,
            stop_lsn: stopped.stop,
            completed_time: stopped.clock,
            all_read_at: self.all_read_at,
            backup_label: stopped.label.clone(),
            tablespace_map: stopped.tablespace_map.clone(),
            ..base.meta().clone()
        };
        let Reading::Changed(changes) = &reading else {
            eprintln!("  what changed is not known");
            let meta = meta(&stopped);
            let made = self
                .back_up(known, &copied, &Reading::All, backup, meta)
                .await;
            self.base = made.made.manifest;
            return Compared::Not;
        };
        if summarized {
            eprintln!("  with what PostgreSQL's summaries say");
        }
        let changes = Arc::clone(changes);
        let by_map = self
            .back_up(known, &copied, &reading, backup, meta(&stopped))
            .await;
        let remembering = Reading::AllAndRemember;
        let by_scan = self
            .back_up(
                known,
                &copied,
                &remembering,
                BackupId::new(),
                meta(&stopped),
            )
            .await;
        assert_eq!(by_scan.unexplained(&changes), Vec::<String>::new());
        let wanted = copied.pages();
        assert_same(
            &self.restore(known, &by_scan.made.manifest).await,
            &wanted,
            "by reading all",
        );
        let restored = self.restore(known, &by_map.made.manifest).await;
        assert_same(&restored, &wanted, "by the map");
        assert!(by_map.bytes_read <= by_scan.bytes_read);
        // Whether a map that says too little would have been found out.
        let blind = Reading::Changed(Arc::new(change_map::Changes::default()));
        let blind = self
            .back_up(known, &copied, &blind, BackupId::new(), meta(&stopped))
            .await;
        let restored = self.restore(known, &blind.made.manifest).await;
        let mattered = restored != wanted;
        eprintln!(
            "  by the map {} MB were read, by reading all {}",
            by_map.bytes_read >> 20,
            by_scan.bytes_read >> 20
        );
        self.base = by_map.made.manifest;
        Compared::Both { mattered }
    }

    async fn base_index(&self, known: &Known) -> BaseIndex {
        let (stores, key) = self.vault(known);
        let incarnation = known.placement.incarnation;
        BaseIndex::load(&stores, &key, incarnation, &self.base)
            .await
            .expect("readable")
            .expect("there")
    }

    fn vault(&self, known: &Known) -> (Vec<holdfast_vault::Store>, holdfast_vault::DataKey) {
        let node = &self.site.node;
        let stores = node.stores(&known.placement.vaults).expect("a store");
        let key = node.data_key(&known.placement, &known.wrapped_key);
        (stores, key.expect("a key"))
    }

    async fn back_up(
        &self,
        known: &Known,
        copied: &Copied,
        reading: &Reading,
        backup: BackupId,
        meta: ManifestMeta,
    ) -> Made {
        let (stores, key) = self.vault(known);
        let attempt = Attempt {
            incarnation: known.placement.incarnation,
            backup,
            job: JobId::new(),
            epoch: 1,
        };
        let base = self.base_index(known).await;
        let writer = BackupWriter::new(stores, key, attempt, Some(base), Courtesy::default())
            .expect("a writer");
        let suspects = Arc::new(Suspects::since(meta.start_lsn));
        let walk = copied.walk();
        copy(walk, Files::Frozen, &writer, true, &suspects, reading)
            .await
            .expect("read");
        let control = copied.control.bytes().to_vec();
        writer
            .add_bytes(CONTROL_FILE, control.into())
            .await
            .expect("taken");
        let bytes_read = writer.progress().bytes_read;
        let differing = writer.take_changed();
        let made = writer.finish(meta).await.expect("published");
        Made {
            made,
            bytes_read,
            differing,
        }
    }

    async fn restore(&self, known: &Known, named: &ManifestRef) -> Pages {
        let (stores, key) = self.vault(known);
        let incarnation = known.placement.incarnation;
        let manifest = Manifest::load(&stores, &key, incarnation, named)
            .await
            .expect("readable");
        let root = tempfile::tempdir().expect("a directory");
        let at = |name: &str| -> PathBuf { root.path().join(name) };
        std::fs::create_dir(at("data")).expect("made");
        let into = RestoreInto {
            dir: &at("data"),
            tablespaces: Some(TablespaceRoot {
                write_below: &at("spaces"),
                link_to: &at("spaces"),
            }),
            owner: None,
        };
        restore_to(into, &manifest, &stores, &key, |_| true, |_, _| {})
            .await
            .expect("restored");
        let read = |path: &str| std::fs::read(at("data").join(path)).expect("restored");
        let files = manifest.files().iter().map(|file| file.path.clone());
        let files = files.filter(|path| path != CONTROL_FILE);
        files.map(|path| (path.clone(), read(&path))).collect()
    }
}

struct Made {
    made: FinishedBackup,
    bytes_read: u64,
    differing: std::collections::HashMap<Arc<str>, roaring::RoaringBitmap>,
}

impl Made {
    fn unexplained(&self, changes: &change_map::Changes) -> Vec<String> {
        unexplained(&self.differing, changes)
    }
}

fn assert_same(restored: &Pages, wanted: &Pages, how: &str) {
    let names = |pages: &Pages| pages.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(restored), names(wanted), "{how}");
    for (path, wanted) in wanted {
        let restored = &restored[path];
        assert_eq!(restored.len(), wanted.len(), "{how}: {path}");
        let pages = restored.chunks(8192).zip(wanted.chunks(8192));
        let differing: Vec<usize> = pages
            .enumerate()
            .filter(|(_, (restored, wanted))| restored != wanted)
            .map(|(page, _)| page)
            .collect();
        assert!(differing.is_empty(), "{how}: {path}, pages {differing:?}");
    }
}
