//! Reads every object that a restore of one incarnation, or of one of its backups, would read: manifests,
//! packs, leaf objects, the write-ahead log and its histories. What a restore could trip over is found
//! here, each with a code; nothing is written and nothing is stopped by what is found.
//!
//! Only a restore proves that PostgreSQL starts from it (RELIABILITY §1.2); this proves the bytes.

use std::collections::BTreeSet;

use futures::StreamExt;
use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::{BackupId, IncarnationId, Lsn, Timeline};

use super::{Damage, Finding};
use crate::backup::{Audit, Manifest, needed_by};
use crate::key::DataKey;
use crate::rescan::listing::{Listing, WalListed};
use crate::rescan::scan::{Scan, ScannedBackup, Timelines, timelines};
use crate::seal::{self, Class};
use crate::store::Store;
use crate::wal::object::open_wal;
use crate::{Error, Result, layout};

/// WAL objects have at most 64 MiB; so many are in memory at a time.
const WAL_AT_A_TIME: usize = 3;

/// What reading through came to.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Objects that were read and are good, and their bytes.
    pub objects: u64,
    pub bytes: u64,
    pub findings: Vec<Finding>,
    /// Backups that were looked at.
    pub backups: BTreeSet<BackupId>,
}

impl Verified {
    /// Backups that nothing was found to stand in the way of.
    #[must_use]
    pub fn good_backups(&self) -> BTreeSet<BackupId> {
        let bad = |id: &BackupId| self.findings.iter().any(|found| found.backups.contains(id));
        self.backups.iter().copied().filter(|id| !bad(id)).collect()
    }

    fn good(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// Whose objects are read, and where.
pub struct Verification<'a> {
    pub store: &'a Store,
    pub data_key: &'a DataKey,
    pub incarnation: IncarnationId,
    pub listing: &'a Listing,
    pub scan: &'a Scan,
    /// This backup and the WAL that belongs to it, or everything.
    pub only: Option<BackupId>,
}

impl Verification<'_> {
    /// `each` hears how many bytes of objects were gone through.
    ///
    /// # Errors
    /// [`Error::StoreUnavailable`]; whatever is wrong with single objects is a finding.
    pub async fn run(&self, each: &(dyn Fn(u64) + Send + Sync)) -> Result<Verified> {
        let mut verified = Verified::default();
        self.manifests(&mut verified);
        let timelines =
            timelines(self.store, self.data_key, self.incarnation, self.listing).await?;
        self.histories(&timelines, &mut verified).await;
        self.wal(&mut verified, each).await?;
        self.holes(&timelines, &mut verified);
        self.backups(&mut verified, each).await?;
        verified.findings = merged(verified.findings);
        Ok(verified)
    }

    fn is_wanted(&self, backup: BackupId) -> bool {
        self.only.is_none_or(|only| only == backup)
    }

    fn wanted(&self) -> impl Iterator<Item = &ScannedBackup> {
        self.scan
            .backups
            .iter()
            .filter(|found| self.is_wanted(found.named.backup))
    }

    fn manifests(&self, verified: &mut Verified) {
        for unopened in &self.scan.unopened {
            if !self.is_wanted(unopened.backup) {
                continue;
            }
            let key = layout::manifest(self.incarnation, unopened.backup, unopened.generation);
            let what = match &unopened.error {
                Error::Corrupted { what, .. } => what.clone(),
                other => other.to_string(),
            };
            let mut finding = Finding::new(unopened.damage, key, what);
            finding.backups.insert(unopened.backup);
            verified.backups.insert(unopened.backup);
            verified.findings.push(finding);
        }
        for found in self.wanted() {
            verified.backups.insert(found.named.backup);
            let bytes = self.listing.manifests[&found.named.backup]
                .get(&found.named.generation)
                .copied();
            verified.good(bytes.unwrap_or(0));
        }
    }

    async fn histories(&self, timelines: &Timelines, verified: &mut Verified) {
        for (timeline, bytes) in &self.listing.histories {
            let key = layout::history(self.incarnation, *timeline);
            let Some((_, error)) = timelines.unread.iter().find(|(of, _)| of == timeline) else {
                verified.good(*bytes);
                continue;
            };
            let first = self.store.get(&key).await.unwrap_or_default();
            let mut finding = Finding::of(&key, error, &first, self.data_key);
            finding.backups = self.backups_on(*timeline);
            verified.findings.push(finding);
        }
        // Every timeline but the first has a history, and recovery cannot go there without it.
        let with_wal: BTreeSet<Timeline> = self.listing.wal.iter().map(|it| it.timeline).collect();
        for timeline in with_wal {
            if timeline != Timeline::FIRST && !self.listing.histories.contains_key(&timeline) {
                let mut finding = Finding::new(
                    Damage::Missing,
                    layout::history(self.incarnation, timeline),
                    "the history file of a timeline whose log is here is not there",
                );
                finding.backups = self.backups_on(timeline);
                verified.findings.push(finding);
            }
        }
    }

    fn backups_on(&self, timeline: Timeline) -> BTreeSet<BackupId> {
        self.wanted()
            .filter(|found| found.meta.timeline == timeline)
            .map(|found| found.named.backup)
            .collect()
    }

    /// Whether a restore that is asked about may read this object.
    fn reads(&self, object: &WalListed) -> bool {
        self.only.is_none() || self.wanted().any(|backup| needs(backup, object))
    }

    async fn wal(&self, verified: &mut Verified, each: &(dyn Fn(u64) + Send + Sync)) -> Result<()> {
        let objects: Vec<&WalListed> = self
            .listing
            .wal
            .iter()
            .filter(|it| self.reads(it))
            .collect();
        let mut reading = futures::stream::iter(objects)
            .map(|object| async move { (object, self.read_wal(object).await) })
            .buffer_unordered(WAL_AT_A_TIME);
        while let Some((object, read)) = reading.next().await {
            match read? {
                Ok(()) => verified.good(object.stored.bytes),
                Err(mut finding) => {
                    finding.backups = self
                        .wanted()
                        .filter(|backup| needs(backup, object))
                        .map(|backup| backup.named.backup)
                        .collect();
                    verified.findings.push(finding);
                }
            }
            each(object.stored.bytes);
        }
        Ok(())
    }

    async fn read_wal(&self, object: &WalListed) -> Result<Result<(), Finding>> {
        let key = object.stored.key.clone();
        let bytes = match self.store.get(&key).await {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(Finding::of(&key, &error, &[], self.data_key))),
        };
        let data_key = self.data_key.clone();
        tokio::task::spawn_blocking(move || match open_wal(&data_key, &key, &bytes) {
            Ok(_) => Ok(()),
            Err(error) => {
                let mut finding = Finding::of(&key, &error, &bytes, &data_key);
                if is_of_another_class(&bytes, Class::WalHeader) {
                    finding.damage = Damage::Foreign;
                }
                Err(finding)
            }
        })
        .await
        .map_err(|_| Error::Stopped)
    }

    /// Where log is missing that a restore goes through: after the oldest backup nothing is ever taken
    /// away from the middle (DESIGN §3.10).
    fn holes(&self, timelines: &Timelines, verified: &mut Verified) {
        let wal = self
            .listing
            .wal
            .iter()
            .map(WalListed::without_header)
            .collect();
        let starts = timelines.starts.clone();
        let Some(catalogue) = self.scan.catalogue(self.incarnation, wal, starts) else {
            return;
        };
        // Of each backup by itself.
        for backup in &catalogue.backups {
            if !self.is_wanted(backup.id) {
                continue;
            }
            let lineage = catalogue.lineage(backup.timeline);
            let coverage = catalogue.coverage_of(&lineage, backup);
            if coverage.reached < backup.stop {
                let mut hole = self.hole(backup.timeline, coverage.reached, backup.stop);
                hole.backups.insert(backup.id);
                verified.findings.push(hole);
            }
        }
        if self.only.is_none() {
            for (timeline, from, to) in between(&catalogue) {
                let known = |found: &Finding| {
                    found.damage == Damage::WalGap
                        && found.key == layout::wal_prefix(self.incarnation, Some(timeline))
                        && found.what.contains(&format!("from {from} "))
                };
                if !verified.findings.iter().any(known) {
                    verified.findings.push(self.hole(timeline, from, to));
                }
            }
        }
    }

    fn hole(&self, timeline: Timeline, from: Lsn, to: Lsn) -> Finding {
        Finding::new(
            Damage::WalGap,
            layout::wal_prefix(self.incarnation, Some(timeline)),
            format!("the write-ahead log of timeline {timeline} is missing from {from} to {to}"),
        )
    }

    async fn backups(
        &self,
        verified: &mut Verified,
        each: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<()> {
        let stores = std::slice::from_ref(self.store);
        let mut audit = Audit::new(self.store.clone(), self.data_key.clone(), self.incarnation);
        let mut found = Vec::new();
        for backup in self.wanted() {
            let manifest =
                Manifest::load(stores, self.data_key, self.incarnation, &backup.named).await?;
            for mut finding in audit.add(&manifest) {
                finding.backups.insert(manifest.backup);
                found.push(finding);
            }
        }
        let mut audited = audit.run(each).await?;
        if !audited.findings.is_empty() {
            for backup in self.wanted() {
                let manifest =
                    Manifest::load(stores, self.data_key, self.incarnation, &backup.named).await?;
                needed_by(&manifest, &mut audited.findings);
            }
        }
        verified.objects += audited.objects;
        verified.bytes += audited.bytes;
        verified.findings.extend(found);
        verified.findings.extend(audited.findings);
        Ok(())
    }
}

/// In the order of keys, each once, with all the backups that it stands in the way of.
fn merged(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by(|a, b| (&a.key, a.damage, &a.what).cmp(&(&b.key, b.damage, &b.what)));
    findings.dedup_by(|next, kept| {
        let same = (&next.key, next.damage, &next.what) == (&kept.key, kept.damage, &kept.what);
        if same {
            kept.backups.append(&mut next.backups);
        }
        same
    });
    findings
}

/// Whether a recovery that ends with the backup reads this object.
fn needs(backup: &ScannedBackup, object: &WalListed) -> bool {
    object.timeline == backup.meta.timeline
        && object.start < backup.meta.stop_lsn
        && object.end > backup.wal_begin()
}

fn is_of_another_class(bytes: &[u8], class: Class) -> bool {
    seal::Header::decode(bytes, "").is_ok_and(|header| header.class != class as u8)
}

/// The holes on the way from the oldest backup to the newest log, each with its timeline.
#[must_use]
pub fn between(catalogue: &Catalogue) -> Vec<(Timeline, Lsn, Lsn)> {
    let lineage = catalogue.lineage(catalogue.head);
    let Some(oldest) = catalogue
        .backups_on(&lineage)
        .into_iter()
        .min_by_key(|backup| backup.start)
        .cloned()
    else {
        return Vec::new();
    };
    let segment = catalogue.wal_segment_bytes;
    let mut holes = Vec::new();
    let (mut timeline, mut from) = (oldest.timeline, oldest.start.segment_start(segment));
    loop {
        let coverage = catalogue.coverage(&lineage, timeline, from);
        let at = (coverage.timeline, coverage.reached);
        // What comes next on the way, wherever that begins.
        let mut rest = lineage.iter().skip_while(|step| step.timeline != at.0);
        let next = rest.find_map(|step| {
            let of_it = catalogue
                .wal
                .iter()
                .filter(|it| it.timeline == step.timeline);
            let later = of_it.filter(|it| it.start > at.1);
            let first = later.map(|it| it.start).min();
            first.map(|start| (step.timeline, start))
        });
        let Some((next_timeline, start)) = next else {
            return holes;
        };
        holes.push((at.0, at.1, start));
        (timeline, from) = (next_timeline, start);
    }
}
