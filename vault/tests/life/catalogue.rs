//! One server's life in a vault, as its catalogue sees it: backups, what retention unlinks, what compaction
//! replaces, what attempts in vain left, and when each of them goes. The bytes are written, rewritten and deleted by
//! the code that nodes run; what decides is `domain`'s; what a job's report changes follows the control plane's
//! `compaction.rs`, `prune.rs` and `store/superseded.rs`.

#![allow(dead_code, reason = "tests and the bench each use a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::backup::{BackupKind, CompleteBackup};
use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::compaction::{ObjectUse, choose};
use holdfast_domain::job::{CompactOutcome, ManifestRef, ObjectRef, WrappedKey};
use holdfast_domain::leavings::{EndedAttempts, Leavings};
use holdfast_domain::retention::{RetentionWindow, sweep};
use holdfast_domain::wal::TimelineStart;
use holdfast_domain::{BackupId, IncarnationId, JobId, Lsn, ServerId, Timeline};
use holdfast_vault::backup::{
    Attempt, BackupWriter, BaseIndex, Changes, Compaction, FinishedBackup, Manifest, ManifestMeta,
    PAGE_BYTES, PG_CONTROL, RestoreInto, ToRewrite, compact, find_manifest, restore_to,
};
use holdfast_vault::prune::delete_keys;
use holdfast_vault::{Courtesy, DataKey, Result, Store};
use tokio_util::sync::CancellationToken;

use super::content::{Content, Disk, Files, changed, half_text, read_tree};

/// Between unlinking and deleting, and between the end of an attempt in vain and deleting what it left.
const GRACE: TimeDelta = TimeDelta::days(1);
/// Attempts of a compaction; each has a manifest generation of its own.
const ATTEMPTS: u32 = 3;

/// A backup that the catalogue has. `delete_after`: it was unlinked, and goes then.
#[derive(Clone)]
pub struct Kept {
    pub backup: CompleteBackup,
    pub objects: Vec<ObjectRef>,
    pub content: Arc<Content>,
    pub delete_after: Option<DateTime<Utc>>,
    /// Its manifest is on the list of a prune that has begun.
    pub going: bool,
}

/// Something that no backup needs any more, and the job that made it so.
#[derive(Clone)]
struct Waiting {
    delete_after: DateTime<Utc>,
    job: JobId,
}

/// A job that has ended, of which some attempt was in vain.
#[derive(Clone)]
struct Ended {
    attempts: EndedAttempts,
    at: DateTime<Utc>,
}

#[derive(Clone)]
pub struct Snapshot {
    job: JobId,
    epoch: i64,
    backup: BackupId,
    content: Arc<Content>,
}

#[derive(Clone)]
pub struct Rewriting {
    pub job: JobId,
    pub epoch: i64,
    /// With the generation of the first attempt.
    pub backups: Vec<(ManifestRef, u32)>,
    pub objects: BTreeSet<String>,
}

#[derive(Clone)]
pub struct Prune {
    keys: Vec<String>,
    leavings: Leavings,
}

/// Manifests by which everything was restored and found right, and what lay in the store then. Objects are never changed,
/// so that holds for as long as none of them is gone.
#[derive(Clone, Default)]
pub struct Proven {
    pub manifests: BTreeSet<String>,
    objects: BTreeMap<String, u64>,
}

impl Proven {
    /// Forgets everything when something is gone.
    pub async fn look_again(&mut self, store: &Store) {
        let found = store.list("").await.unwrap();
        let found: BTreeMap<String, u64> = found
            .into_iter()
            .map(|object| (object.key, object.bytes))
            .collect();
        let mut before = self.objects.iter();
        if !before.all(|(key, bytes)| found.get(key) == Some(bytes)) {
            self.manifests.clear();
        }
        self.objects = found;
    }
}

#[derive(Clone)]
pub struct Life {
    pub store: Store,
    pub key: DataKey,
    pub incarnation: IncarnationId,
    pub window: RetentionWindow,
    pub now: DateTime<Utc>,
    pub kept: Vec<Kept>,
    /// What every backup ever begun was to hold, those given up included.
    pub ever: BTreeMap<BackupId, Arc<Content>>,
    /// Whether backups are told what changed; else they read everything.
    pub by_map: bool,
    disk: Disk,
    pub proven: Proven,
    starts: u64,
    superseded: BTreeMap<String, Waiting>,
    ended: Vec<Ended>,
    /// The newest generation that was set aside for each backup.
    generations: BTreeMap<BackupId, u32>,
    /// Manifests that restores under way read by; while there is one, nothing that was replaced goes.
    pub reading: Vec<ManifestRef>,
}

impl Life {
    pub fn new(store: Store, key: DataKey, window: i64, page: fn(u64) -> Vec<u8>) -> Self {
        Self {
            store,
            key,
            incarnation: IncarnationId::new(),
            window: RetentionWindow::new(window).unwrap(),
            now: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
            kept: Vec::new(),
            ever: BTreeMap::new(),
            by_map: false,
            disk: Disk::of(page),
            proven: Proven::default(),
            starts: 0,
            superseded: BTreeMap::new(),
            ended: Vec::new(),
            generations: BTreeMap::new(),
            reading: Vec::new(),
        }
    }

    fn stores(&self) -> Vec<Store> {
        vec![self.store.clone()]
    }

    /// Backups that nobody unlinked, oldest first.
    pub fn complete(&self) -> impl Iterator<Item = &Kept> {
        self.kept.iter().filter(|kept| kept.delete_after.is_none())
    }

    pub fn files(&self, content: &Content) -> Files {
        self.disk.files(content)
    }

    // ---------------------------------------------------------------------------- snapshots

    pub fn plan_snapshot(&mut self, content: &Content) -> Snapshot {
        let backup = BackupId::new();
        let content = Arc::new(content.clone());
        self.ever.insert(backup, Arc::clone(&content));
        Snapshot {
            job: JobId::new(),
            epoch: 0,
            backup,
            content,
        }
    }

    /// One attempt. When an earlier one has published, that is the backup.
    pub async fn snapshot(&mut self, job: &mut Snapshot) -> Result<()> {
        job.epoch += 1;
        let published =
            find_manifest(&self.stores(), &self.key, self.incarnation, job.backup).await?;
        let made = match published {
            Some(published) => published,
            None => self.write(job).await?,
        };
        self.starts += 1;
        let start = Lsn(0x0100_0000 * self.starts);
        self.kept.push(Kept {
            backup: CompleteBackup {
                id: job.backup,
                name: self.now.to_string(),
                kind: BackupKind::Automatic,
                timeline: Timeline(1),
                start,
                stop: start + 0x100,
                completed_time: self.now,
                manifest: made.manifest,
                damaged: false,
            },
            objects: made.objects,
            content: Arc::clone(&job.content),
            delete_after: None,
            going: false,
        });
        if job.epoch > 1 {
            self.has_ended(job.job, job.epoch, None);
        }
        Ok(())
    }

    pub fn give_up_snapshot(&mut self, job: &Snapshot) {
        self.has_ended(job.job, job.epoch, Some(job.backup));
    }

    fn has_ended(&mut self, job: JobId, epoch: i64, failed_backup: Option<BackupId>) {
        let attempts = EndedAttempts {
            job,
            epoch,
            failed_backup,
        };
        let at = self.now;
        self.ended.push(Ended { attempts, at });
    }

    async fn write(&self, job: &Snapshot) -> Result<FinishedBackup> {
        let newest = self.complete().last();
        let base = match newest {
            Some(kept) => {
                let named = &kept.backup.manifest;
                BaseIndex::load(&self.stores(), &self.key, self.incarnation, named).await?
            }
            None => None,
        };
        let attempt = Attempt {
            incarnation: self.incarnation,
            backup: job.backup,
            job: job.job,
            epoch: job.epoch,
        };
        let known = newest.filter(|_| self.by_map && base.is_some());
        let writer = BackupWriter::new(
            self.stores(),
            self.key.clone(),
            attempt,
            base,
            Courtesy::default(),
        )?;
        writer.add_dir("global")?;
        let control = Bytes::from(half_text(1));
        writer.add_bytes(PG_CONTROL, control).await?;
        for (path, seeds) in &*job.content {
            if let Some((parent, _)) = path.rsplit_once('/') {
                writer.add_dir(parent)?;
            }
            let bytes = (seeds.len() * PAGE_BYTES) as u64;
            let before = known.and_then(|kept| kept.content.get(path));
            let changes = before.map_or(Changes::Unknown, |before| changed(before, seeds));
            let file = self.disk.file(path, seeds);
            writer
                .add_relation_segment(path, file, bytes, None, changes)
                .await?;
        }
        writer.finish(self.meta()).await
    }

    fn meta(&self) -> ManifestMeta {
        ManifestMeta {
            server: ServerId::from(uuid::Uuid::nil()),
            server_name: "pg1".to_owned(),
            pg_version: "15.18".to_owned(),
            system_identifier: 7_300_000_000_000_000_001,
            timeline: Timeline(1),
            start_lsn: Lsn(0x0100_0000 * (self.starts + 1)),
            stop_lsn: Lsn(0x0100_0000 * (self.starts + 1) + 0x100),
            completed_time: self.now,
            all_read_at: self.now,
            backup_label: b"START WAL LOCATION: 0/2000028\n".to_vec(),
            tablespace_map: None,
            wrapped_key: WrappedKey {
                kek_version: "1".to_owned(),
                wrapped: "AAAA".to_owned(),
            },
            wal_segment_bytes: 16 << 20,
            data_checksums: true,
            corrupt_pages: Vec::new(),
        }
    }

    // ---------------------------------------------------------------------------- retention

    pub fn sweep(&mut self) {
        let catalogue = Catalogue {
            server_name: "pg1".to_owned(),
            incarnation: self.incarnation,
            wal_segment_bytes: 16 << 20,
            backups: self.complete().map(|kept| kept.backup.clone()).collect(),
            wal: Vec::new(),
            timelines: vec![TimelineStart {
                timeline: Timeline(1),
                parent: None,
                switch: Lsn(0),
                history_key: None,
            }],
            head: Timeline(1),
            durable: Lsn(u64::MAX),
            caught_up_at: None,
            gaps: Vec::new(),
        };
        let swept = sweep(&catalogue, self.window.start(self.now), &[]);
        for kept in &mut self.kept {
            if swept.expire.contains(&kept.backup.id) {
                kept.delete_after = Some(self.now + GRACE);
            }
        }
    }

    // ---------------------------------------------------------------------------- compaction

    pub fn usage(&self) -> Vec<ObjectUse> {
        let mut usage = BTreeMap::<&str, ObjectUse>::new();
        for object in self.complete().flat_map(|kept| &kept.objects) {
            let one = usage.entry(&object.key).or_insert_with(|| ObjectUse {
                key: object.key.clone(),
                bytes: object.bytes,
                living: 0,
            });
            one.living = one.living.max(object.living.unwrap_or(object.bytes));
        }
        usage.into_values().collect()
    }

    /// What the control plane would queue today, if anything is worth it.
    pub fn plan_compaction(&mut self) -> Option<Rewriting> {
        let usage = self.usage();
        let objects: BTreeSet<String> = choose(&usage)
            .into_iter()
            .map(|one| one.key.clone())
            .collect();
        (!objects.is_empty()).then(|| self.plan_rewriting(objects))
    }

    pub fn plan_rewriting(&mut self, objects: BTreeSet<String>) -> Rewriting {
        let manifests: Vec<ManifestRef> = self
            .complete()
            .map(|kept| kept.backup.manifest.clone())
            .collect();
        let generations = &mut self.generations;
        let backups = manifests.into_iter().map(|manifest| {
            let newest = generations.entry(manifest.backup).or_default();
            let first = manifest.generation.max(*newest) + 1;
            *newest = first + ATTEMPTS - 1;
            (manifest, first)
        });
        Rewriting {
            backups: backups.collect(),
            job: JobId::new(),
            epoch: 0,
            objects,
        }
    }

    /// What an attempt is told.
    pub fn compaction(&self, job: &Rewriting) -> Compaction {
        let later = (job.epoch - 1) as u32;
        Compaction {
            stores: self.stores(),
            data_key: self.key.clone(),
            incarnation: self.incarnation,
            job: job.job,
            epoch: job.epoch,
            backups: job
                .backups
                .iter()
                .map(|(manifest, first)| ToRewrite {
                    manifest: manifest.clone(),
                    generation: first + later,
                })
                .collect(),
            objects: job.objects.clone(),
            stop: CancellationToken::new(),
            courtesy: Courtesy::default(),
        }
    }

    /// One attempt, and when it succeeds what its report changes.
    pub async fn compact(&mut self, job: &mut Rewriting) -> Result<CompactOutcome> {
        job.epoch += 1;
        let done = compact(self.compaction(job)).await?;
        self.take_in(job, &done);
        Ok(done)
    }

    pub fn take_in(&mut self, job: &Rewriting, done: &CompactOutcome) {
        let mut replaced = Vec::new();
        for rewritten in &done.backups {
            let asked = |(from, _): &&(ManifestRef, u32)| from.backup == rewritten.manifest.backup;
            let (from, _) = job.backups.iter().find(asked).expect("it was asked for");
            let kept = self
                .kept
                .iter_mut()
                .find(|kept| kept.backup.manifest == *from);
            let kept = kept.expect("nobody unlinked it meanwhile");
            replaced.extend(rewritten.dropped.iter().cloned());
            replaced.push(from.key.clone());
            kept.objects
                .retain(|object| !rewritten.dropped.contains(&object.key));
            kept.objects.extend(rewritten.added.iter().cloned());
            kept.backup.manifest = rewritten.manifest.clone();
        }
        replaced.extend(self.written_by(job, 1..job.epoch));
        self.supersede(job.job, replaced);
        if job.epoch > 1 {
            self.has_ended(job.job, job.epoch, None);
        }
    }

    pub fn give_up_compaction(&mut self, job: &Rewriting) {
        let in_vain = self.written_by(job, 1..job.epoch + 1);
        self.supersede(job.job, in_vain);
        self.has_ended(job.job, job.epoch, None);
    }

    fn written_by(&self, job: &Rewriting, epochs: std::ops::Range<i64>) -> Vec<String> {
        let of = |epoch: i64| {
            job.backups.iter().map(move |(from, first)| {
                let generation = first + (epoch - 1) as u32;
                holdfast_vault::layout::manifest(self.incarnation, from.backup, generation)
            })
        };
        epochs.flat_map(of).collect()
    }

    fn supersede(&mut self, job: JobId, keys: Vec<String>) {
        let delete_after = self.now + GRACE;
        let waiting = Waiting { delete_after, job };
        self.superseded
            .extend(keys.into_iter().map(|key| (key, waiting.clone())));
    }

    // ---------------------------------------------------------------------------- pruning

    /// Every key that a backup names whose bytes are not gone.
    pub fn named(&self) -> BTreeSet<&str> {
        let objects = self.kept.iter().flat_map(|kept| &kept.objects);
        let manifests = self.kept.iter().map(|kept| &kept.backup.manifest.key);
        objects
            .map(|object| &*object.key)
            .chain(manifests.map(|key| &**key))
            .collect()
    }

    pub fn plan_prune(&mut self) -> Prune {
        let now = self.now;
        let over = |kept: &Kept| kept.delete_after.is_some_and(|after| after <= now);
        let read = |kept: &Kept| {
            let by = |named: &ManifestRef| named.backup == kept.backup.id;
            self.reading.iter().any(by)
        };
        let (gone, staying): (Vec<&Kept>, Vec<&Kept>) =
            self.kept.iter().partition(|kept| over(kept) && !read(kept));
        let needed: BTreeSet<&str> = staying
            .iter()
            .flat_map(|kept| kept.objects.iter().map(|object| &*object.key))
            .collect();
        let named = self.named();
        let due = self.superseded.iter().filter(|(key, waiting)| {
            waiting.delete_after <= now && self.reading.is_empty() && !named.contains(key.as_str())
        });
        let (manifests, packs): (Vec<String>, Vec<String>) = due
            .map(|(key, _)| key.clone())
            .partition(|key| key.starts_with("backups/"));
        let mut keys: Vec<String> = gone
            .iter()
            .map(|kept| kept.backup.manifest.key.clone())
            .collect();
        keys.extend(manifests);
        let exclusive = gone.iter().flat_map(|kept| &kept.objects);
        let exclusive: BTreeSet<&String> = exclusive
            .map(|object| &object.key)
            .filter(|key| !needed.contains(key.as_str()) && !self.superseded.contains_key(*key))
            .collect();
        keys.extend(exclusive.into_iter().cloned());
        keys.extend(packs);
        let is_published = |job: JobId| {
            let mut waiting = self.superseded.iter();
            waiting.any(|(key, waiting)| waiting.job == job && key.starts_with("backups/"))
        };
        let ended = self
            .ended
            .iter()
            .filter(|ended| ended.at + GRACE <= now && !is_published(ended.attempts.job));
        let leavings = Leavings::Attempts(ended.map(|ended| ended.attempts.clone()).collect());
        for kept in &mut self.kept {
            kept.going |= keys.contains(&kept.backup.manifest.key);
        }
        Prune { keys, leavings }
    }

    /// As a node does it: leavings are looked for and go when nobody names them, then the list in its order.
    /// A report that is not made changes nothing in the catalogue.
    pub async fn prune(&mut self, prune: &Prune) -> Result<()> {
        for prefix in prune.leavings.prefixes(self.incarnation) {
            let found = self.store.list(&prefix).await?;
            let named = self.named();
            let going: Vec<String> = found
                .into_iter()
                .map(|object| object.key)
                .filter(|key| !named.contains(key.as_str()) && !prune.keys.contains(key))
                .collect();
            delete_keys(&self.store, &going).await?;
        }
        delete_keys(&self.store, &prune.keys).await?;
        let gone: BTreeSet<&String> = prune.keys.iter().collect();
        self.kept
            .retain(|kept| !gone.contains(&kept.backup.manifest.key));
        self.superseded.retain(|key, _| !gone.contains(key));
        if let Leavings::Attempts(attempts) = &prune.leavings {
            self.ended
                .retain(|ended| !attempts.contains(&ended.attempts));
        }
        Ok(())
    }

    /// Nothing waits for its time any more. What a backup names that began before it was superseded waits for that backup's end.
    pub fn is_tidy(&self) -> bool {
        let named = self.named();
        self.superseded
            .keys()
            .all(|key| named.contains(key.as_str()))
            && self.ended.is_empty()
            && self.kept.iter().all(|kept| kept.delete_after.is_none())
    }

    // ---------------------------------------------------------------------------- looking at it

    pub async fn restore(&self, named: &ManifestRef) -> Result<Files> {
        let manifest = Manifest::load(&self.stores(), &self.key, self.incarnation, named).await?;
        // In memory where that can be had: a restore ends with a syncfs, which waits for what others write, too.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let root = root.unwrap();
        let dir = root.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        let into = RestoreInto {
            dir: &dir,
            tablespaces: None,
            owner: None,
        };
        let restored = restore_to(
            into,
            &manifest,
            &self.stores(),
            &self.key,
            |_| true,
            |_, _| {},
        )
        .await?;
        let mut files = Files::new();
        read_tree(&dir, "", &mut files);
        files.insert(PG_CONTROL.to_owned(), restored.pg_control.to_vec());
        Ok(files)
    }

    /// Bytes of the objects below a prefix.
    pub async fn stored(&self, prefix: &str) -> u64 {
        let found = self.store.list(prefix).await.unwrap();
        found.iter().map(|object| object.bytes).sum()
    }

    /// What the page versions that complete backups hold take when the same code stores each of them once in a
    /// vault of its own: the least that can be stored.
    pub async fn minimum(&self, empty: Store) -> Life {
        let versions: BTreeSet<u64> = self
            .complete()
            .flat_map(|kept| kept.content.values().flatten())
            .copied()
            .collect();
        let pages = Content::from([("base/5/16400".to_owned(), Vec::from_iter(versions))]);
        let mut other = Life::new(empty, self.key.clone(), 7, self.disk.page);
        let mut job = other.plan_snapshot(&pages);
        other.snapshot(&mut job).await.unwrap();
        other
    }
}
