//! The inner loops of a vault: sealing and opening frames, hashing pages, and whole backups and restores of
//! a directory that compresses well and of one that hardly does, on a local store with fsync.
//!
//!     cargo bench -p holdfast-vault

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_domain::job::{ManifestRef, WrappedKey};
use holdfast_domain::{BackupId, IncarnationId, JobId, Lsn, ServerId, Timeline};
use holdfast_vault::backup::{
    Attempt, BackupWriter, BaseIndex, Changes, Manifest, ManifestMeta, PAGE_BYTES, PG_CONTROL,
    RestoreInto, restore_to,
};
use holdfast_vault::{Courtesy, DataKey, Store};
use rand::{RngCore, SeedableRng};

/// Two relation segments of this many pages: 256 MiB each.
const PAGES: usize = 32_768;
const SEGMENTS: [&str; 2] = ["base/5/16384", "base/5/16385"];

struct Site {
    root: tempfile::TempDir,
    store: Store,
    key: DataKey,
    incarnation: IncarnationId,
    runtime: tokio::runtime::Runtime,
}

impl Site {
    fn new(noise: bool) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        for (number, path) in SEGMENTS.iter().enumerate() {
            let path = root.path().join("data").join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            let file = File::create(&path).expect("made");
            let mut random = rand::rngs::StdRng::seed_from_u64(number as u64);
            for page in 0..PAGES {
                file.write_all_at(
                    &content(&mut random, noise, page),
                    (page * PAGE_BYTES) as u64,
                )
                .expect("written");
            }
        }
        let url = format!("file://{}/vault", root.path().display());
        Self {
            store: Store::open(&url).expect("a store"),
            root,
            key: DataKey::generate().expect("a key"),
            incarnation: IncarnationId::new(),
            runtime: tokio::runtime::Runtime::new().expect("a runtime"),
        }
    }

    /// Changes one page in fifty, evenly spread.
    fn change(&self, round: u64, noise: bool) {
        let mut random = rand::rngs::StdRng::seed_from_u64(1000 + round);
        for path in SEGMENTS {
            let path = self.root.path().join("data").join(path);
            let file = File::options().write(true).open(path).expect("opened");
            for page in (round as usize % 50..PAGES).step_by(50) {
                file.write_all_at(
                    &content(&mut random, noise, page),
                    (page * PAGE_BYTES) as u64,
                )
                .expect("written");
            }
        }
    }

    fn back_up(&self, base: Option<&ManifestRef>) -> ManifestRef {
        self.runtime.block_on(async {
            let stores = vec![self.store.clone()];
            let base = match base {
                Some(base) => BaseIndex::load(&stores, &self.key, self.incarnation, base)
                    .await
                    .expect("a base"),
                None => None,
            };
            let attempt = Attempt {
                incarnation: self.incarnation,
                backup: BackupId::new(),
                job: JobId::new(),
                epoch: 1,
            };
            let writer =
                BackupWriter::new(stores, self.key.clone(), attempt, base, Courtesy::default())
                    .expect("a writer");
            for path in SEGMENTS {
                let file = File::open(self.root.path().join("data").join(path)).expect("opened");
                let bytes = (PAGES * PAGE_BYTES) as u64;
                writer
                    .add_relation_segment(path, file, bytes, None, Changes::Unknown)
                    .await
                    .expect("added");
            }
            writer
                .add_bytes(PG_CONTROL, Bytes::from(vec![7; PAGE_BYTES]))
                .await
                .expect("added");
            writer.finish(meta()).await.expect("finished").manifest
        })
    }

    fn restore(&self, named: &ManifestRef, into: &Path) {
        self.runtime.block_on(async {
            let stores = [self.store.clone()];
            let manifest = Manifest::load(&stores, &self.key, self.incarnation, named)
                .await
                .expect("a manifest");
            let into = RestoreInto {
                dir: into,
                tablespaces: None,
                owner: None,
            };
            restore_to(into, &manifest, &stores, &self.key, |_| true, |_, _| {})
                .await
                .expect("restored");
        });
    }
}

/// A page as pgbench fills them, or one that saves an eighth when compressed.
fn content(random: &mut impl RngCore, noise: bool, number: usize) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    if noise {
        random.fill_bytes(&mut page[..PAGE_BYTES * 7 / 8]);
        return page;
    }
    for (row, bytes) in page.chunks_mut(128).enumerate() {
        let id = (number * 64 + row) as u32;
        bytes[..4].copy_from_slice(&id.to_le_bytes());
        bytes[4..8].copy_from_slice(&(random.next_u32() % 1000).to_le_bytes());
        bytes[24..].fill(b' ');
    }
    page
}

fn meta() -> ManifestMeta {
    ManifestMeta {
        server: ServerId::new(),
        server_name: "bench".into(),
        pg_version: "15.0".into(),
        system_identifier: 1,
        timeline: Timeline(1),
        start_lsn: Lsn(1),
        stop_lsn: Lsn(2),
        completed_time: DateTime::UNIX_EPOCH,
        all_read_at: DateTime::UNIX_EPOCH,
        backup_label: Vec::new(),
        tablespace_map: None,
        wrapped_key: WrappedKey {
            kek_version: "1".into(),
            wrapped: String::new(),
        },
        wal_segment_bytes: 16 << 20,
        data_checksums: true,
        corrupt_pages: Vec::new(),
    }
}

fn whole_backups(criterion: &mut Criterion) {
    for (name, noise) in [("compressible", false), ("noise", true)] {
        let site = Site::new(noise);
        let mut group = criterion.benchmark_group(name);
        group
            .sample_size(10)
            .warm_up_time(Duration::from_secs(1))
            .throughput(Throughput::Bytes((2 * PAGES * PAGE_BYTES) as u64));
        group.bench_function("full", |bencher| bencher.iter(|| site.back_up(None)));
        let full = site.back_up(None);
        let mut round = 0;
        group.bench_function("differential", |bencher| {
            bencher.iter_batched(
                || {
                    round += 1;
                    site.change(round, noise);
                },
                |()| site.back_up(Some(&full)),
                BatchSize::PerIteration,
            );
        });
        group.bench_function("restore", |bencher| {
            bencher.iter_batched(
                || tempfile::tempdir_in(site.root.path()).expect("a folder"),
                |into| {
                    site.restore(&full, into.path());
                    into
                },
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, whole_backups);
criterion_main!(benches);
