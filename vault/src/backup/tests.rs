//! Whole stories: a data directory goes into vaults and comes back, whole, changed, damaged, half.

mod compaction;
mod courtesy;
mod damage;
mod differential;
mod history;
mod round_trip;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use holdfast_domain::job::{ManifestRef, WrappedKey};
use holdfast_domain::{BackupId, IncarnationId, JobId, Lsn, ServerId, Timeline};

use super::*;
use crate::rescan::listing::VaultListing;
use crate::rescan::scan::Scan;
use crate::store::faults::FaultyStore;
use crate::{Courtesy, DataKey, Error, Pace, Result, Store};

/// A data directory as a map from path to content; what a backup must give back.
type Files = BTreeMap<String, Vec<u8>>;

/// Two vaults, a key, and the means to back up and restore with them.
struct Site {
    stores: Vec<Store>,
    faulty: Vec<Arc<FaultyStore>>,
    key: DataKey,
    incarnation: IncarnationId,
    epoch: std::cell::Cell<i64>,
}

impl Site {
    fn new(vaults: usize) -> Self {
        let (stores, faulty) = (0..vaults).map(|_| FaultyStore::new()).unzip();
        Self {
            stores,
            faulty,
            key: DataKey::generate().unwrap(),
            incarnation: IncarnationId::new(),
            epoch: std::cell::Cell::new(0),
        }
    }

    fn attempt(&self) -> Attempt {
        self.epoch.set(self.epoch.get() + 1);
        Attempt {
            incarnation: self.incarnation,
            backup: BackupId::new(),
            job: JobId::new(),
            epoch: self.epoch.get(),
        }
    }

    /// What somebody who has the vault and the key finds in the first store.
    async fn listed(&self) -> Vec<ManifestRef> {
        let store = &self.stores[0];
        let mut vault = VaultListing::of(store).await.unwrap();
        let mut listing = vault
            .incarnations
            .remove(&self.incarnation)
            .unwrap_or_default();
        let scan = Scan::of(store, &self.key, self.incarnation, &mut listing);
        let scan = scan.await.unwrap();
        scan.whole().map(|found| found.named.clone()).collect()
    }

    async fn base(&self, named: &ManifestRef) -> Option<BaseIndex> {
        BaseIndex::load(&self.stores, &self.key, self.incarnation, named)
            .await
            .unwrap()
    }

    async fn back_up(&self, files: &Files, base: Option<&ManifestRef>) -> Result<FinishedBackup> {
        let base = match base {
            Some(named) => self.base(named).await,
            None => None,
        };
        self.back_up_as(self.attempt(), files, base, |_| Changes::Unknown)
            .await
    }

    /// With what is known of the changes since the base.
    async fn back_up_knowing(
        &self,
        files: &Files,
        base: &ManifestRef,
        changes: impl Fn(&str) -> Changes,
    ) -> FinishedBackup {
        let base = self.base(base).await;
        self.back_up_as(self.attempt(), files, base, changes)
            .await
            .unwrap()
    }

    async fn back_up_as(
        &self,
        attempt: Attempt,
        files: &Files,
        base: Option<BaseIndex>,
        changes: impl Fn(&str) -> Changes,
    ) -> Result<FinishedBackup> {
        let writer = BackupWriter::new(
            self.stores.clone(),
            self.key.clone(),
            attempt,
            base,
            Courtesy::default(),
        )?;
        for (path, content) in files {
            if let Some((parent, _)) = path.rsplit_once('/') {
                writer.add_dir(parent)?;
            }
            if path.starts_with("pg_tblspc/16385/") {
                writer.add_tablespace(16385, "/somewhere/else");
            }
            if path.starts_with("base/") {
                writer
                    .add_relation_segment(
                        path,
                        on_disk(content),
                        content.len() as u64,
                        None,
                        changes(path),
                    )
                    .await?;
            } else {
                writer.add_bytes(path, Bytes::from(content.clone())).await?;
            }
        }
        writer.add_dir("pg_wal")?;
        writer.finish(meta()).await
    }

    async fn load(&self, named: &ManifestRef) -> Result<Manifest> {
        Manifest::load(&self.stores, &self.key, self.incarnation, named).await
    }

    /// Restores and reads everything back, `global/pg_control` included.
    async fn restore(&self, named: &ManifestRef) -> Result<Files> {
        let manifest = self.load(named).await?;
        let dir = tempfile::tempdir().unwrap();
        let (data, spaces) = (dir.path().join("data"), dir.path().join("spaces"));
        std::fs::create_dir(&data).unwrap();
        let into = RestoreInto {
            dir: &data,
            tablespaces: Some(TablespaceRoot {
                write_below: &spaces,
                link_to: &spaces,
            }),
            owner: None,
        };
        let restored = restore_to(
            into,
            &manifest,
            &self.stores,
            &self.key,
            |_| true,
            |_, _| {},
        )
        .await?;
        let mut files = Files::new();
        read_tree(&data, "", &mut files);
        assert!(
            !files.contains_key(PG_CONTROL),
            "the control file is the caller's to write"
        );
        files.insert(PG_CONTROL.to_owned(), restored.pg_control.to_vec());
        assert_eq!(
            restored.bytes,
            files
                .values()
                .map(|content| content.len() as u64)
                .sum::<u64>()
        );
        Ok(files)
    }

    /// Keys of all objects of the first vault that begin so.
    async fn keys(&self, prefix: &str) -> Vec<String> {
        let found = self.stores[0].list(prefix).await.unwrap();
        found.into_iter().map(|object| object.key).collect()
    }
}

fn read_tree(dir: &Path, below: &str, files: &mut Files) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        // Through the link of a tablespace, as PostgreSQL goes.
        if entry.path().is_dir() {
            read_tree(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
}

fn on_disk(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

/// A page that no other call makes: half text that compresses, half noise that does not.
fn page(seed: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE_BYTES);
    while page.len() < PAGE_BYTES / 2 {
        page.extend_from_slice(format!("row {seed} of a table; ").as_bytes());
    }
    page.truncate(PAGE_BYTES / 2);
    let mut noise = vec![0; PAGE_BYTES / 2];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .read_exact(&mut noise)
        .unwrap();
    page.extend_from_slice(&noise);
    page
}

fn relation(first_seed: u64, pages: u64) -> Vec<u8> {
    (first_seed..first_seed + pages).flat_map(page).collect()
}

/// Something like a small cluster.
fn cluster() -> Files {
    let mut files = Files::from([
        ("PG_VERSION".to_owned(), b"15\n".to_vec()),
        (PG_CONTROL.to_owned(), page(1)),
        ("base/5/1259".to_owned(), relation(1000, 700)),
        (
            "base/5/2619".to_owned(),
            [
                relation(5000, 3),
                vec![0; 5 * PAGE_BYTES],
                relation(6000, 200),
            ]
            .concat(),
        ),
        ("base/5/16400".to_owned(), Vec::new()),
        (
            "base/5/16401".to_owned(),
            [relation(7000, 2), vec![7; 100]].concat(),
        ),
        ("pg_xact/0000".to_owned(), vec![0; 3 * PAGE_BYTES]),
        (
            "pg_tblspc/16385/PG_15_202209061/5/16500".to_owned(),
            relation(8000, 10),
        ),
    ]);
    for number in 0..40 {
        files.insert(
            format!("base/1/{number}"),
            relation(100_000 + number * 10, 1 + number % 4),
        );
    }
    files
}

fn meta() -> ManifestMeta {
    ManifestMeta {
        server: ServerId::from(uuid::Uuid::nil()),
        server_name: "pg1".to_owned(),
        pg_version: "15.18".to_owned(),
        system_identifier: 7_300_000_000_000_000_001,
        timeline: Timeline(1),
        start_lsn: Lsn(0x0200_0028),
        stop_lsn: Lsn(0x0200_0100),
        completed_time: DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(),
        all_read_at: DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(),
        backup_label: b"START WAL LOCATION: 0/2000028\n\xff".to_vec(),
        tablespace_map: Some(b"16385 /somewhere/else\n".to_vec()),
        wrapped_key: WrappedKey {
            kek_version: "1".to_owned(),
            wrapped: "AAAA".to_owned(),
        },
        wal_segment_bytes: 16 << 20,
        data_checksums: true,
        corrupt_pages: vec!["base/5/1259:3".to_owned()],
    }
}

fn is_corrupted<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Corrupted { .. }))
}
