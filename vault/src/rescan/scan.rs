//! What the manifests and headers of one incarnation say, and the catalogue that follows from them:
//! the same that a control plane keeps in its metadata store, so that the same code chooses from it.
//!
//! A manifest can be large, so none is kept: what is asked again later is read again.

use std::collections::BTreeSet;

use holdfast_domain::backup::{BackupKind, CompleteBackup};
use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::job::ManifestRef;
use holdfast_domain::wal::{TimelineStart, WalObject};
use holdfast_domain::{BackupId, IncarnationId, Lsn, Timeline};

use super::listing::Listing;
use crate::backup::{Manifest, ManifestMeta};
use crate::key::DataKey;
use crate::store::Store;
use crate::verify::{Damage, judge};
use crate::wal::history;
use crate::{Error, Result, layout};

/// The manifests of one incarnation, read.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// By completed time.
    pub backups: Vec<ScannedBackup>,
    /// Manifests that do not open: what they named is not known.
    pub unopened: Vec<Unopened>,
}

/// One backup, by the newest generation of its manifest that is whole – or, when none is, that opens.
#[derive(Debug, Clone)]
pub struct ScannedBackup {
    pub named: ManifestRef,
    pub meta: ManifestMeta,
    pub extent: Extent,
    pub logical_bytes: u64,
    /// What it added to the vault.
    pub stored_bytes: u64,
    /// Objects that it names and that are not there, or not in the size that it names.
    pub missing: Vec<String>,
}

/// Whether a backup needs what other attempts than its own wrote: earlier ones, or compactions. The format does
/// not record what an attempt set out to do; this is what it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Full,
    Differential,
}

#[derive(Debug, Clone)]
pub struct Unopened {
    pub backup: BackupId,
    pub generation: u32,
    pub damage: Damage,
    pub error: Error,
}

impl Scan {
    /// Opens every manifest of the listing and marks in it which packs and leaf objects they name.
    pub async fn of(
        store: &Store,
        data_key: &DataKey,
        incarnation: IncarnationId,
        listing: &mut Listing,
    ) -> Result<Self> {
        let mut scan = Self::default();
        let manifests = listing.manifests.clone();
        for (backup, generations) in manifests {
            let mut best: Option<ScannedBackup> = None;
            for generation in generations.into_keys().rev() {
                let key = layout::manifest(incarnation, backup, generation);
                let bytes = match store.get(&key).await {
                    Ok(bytes) => bytes,
                    // Pruned since it was listed.
                    Err(Error::NotFound { .. }) => continue,
                    Err(error @ Error::StoreUnavailable { .. }) => return Err(error),
                    Err(error) => {
                        let damage = judge(&error, &[], data_key);
                        scan.unopened.push(Unopened {
                            backup,
                            generation,
                            damage,
                            error,
                        });
                        continue;
                    }
                };
                match Manifest::open(data_key, incarnation, backup, generation, &bytes) {
                    Ok(manifest) => {
                        let found = look_at(&manifest, &bytes, listing);
                        if best
                            .as_ref()
                            .is_none_or(|best| !best.missing.is_empty() && found.missing.is_empty())
                        {
                            best = Some(found);
                        }
                    }
                    Err(error) => {
                        let damage = judge(&error, &bytes, data_key);
                        scan.unopened.push(Unopened {
                            backup,
                            generation,
                            damage,
                            error,
                        });
                    }
                }
            }
            scan.backups.extend(best);
        }
        scan.backups
            .sort_by_key(|found| (found.meta.completed_time, found.named.backup));
        Ok(scan)
    }

    /// Backups all of whose objects are there.
    pub fn whole(&self) -> impl DoubleEndedIterator<Item = &ScannedBackup> {
        self.backups.iter().filter(|found| found.missing.is_empty())
    }

    #[must_use]
    pub fn backup(&self, id: BackupId) -> Option<&ScannedBackup> {
        self.backups.iter().find(|found| found.named.backup == id)
    }

    /// The newest backup: names and versions as they were last.
    #[must_use]
    pub fn newest(&self) -> Option<&ScannedBackup> {
        self.backups.last()
    }

    /// What can be chosen from: the backups that are whole, and this WAL. `None` when there are none.
    #[must_use]
    pub fn catalogue(
        &self,
        incarnation: IncarnationId,
        wal: Vec<WalObject>,
        timelines: Vec<TimelineStart>,
    ) -> Option<Catalogue> {
        let newest = self.whole().next_back()?;
        let backups: Vec<CompleteBackup> = self.whole().map(ScannedBackup::complete).collect();
        let known = wal
            .iter()
            .map(|object| object.timeline)
            .chain(backups.iter().map(|backup| backup.timeline))
            .chain(timelines.iter().map(|start| start.timeline));
        let head = known.max().unwrap_or(newest.meta.timeline);
        let durable = wal
            .iter()
            .filter(|object| object.timeline == head)
            .map(|object| object.end)
            .max();
        Some(Catalogue {
            server_name: newest.meta.server_name.clone(),
            incarnation,
            wal_segment_bytes: newest.meta.wal_segment_bytes,
            backups,
            wal,
            timelines,
            head,
            durable: durable.unwrap_or(Lsn::ZERO),
            // Known to the control plane alone: a source that was silent and had nothing to say.
            caught_up_at: None,
            gaps: Vec::new(),
        })
    }
}

impl ScannedBackup {
    /// First byte of WAL that a recovery from it reads.
    #[must_use]
    pub fn wal_begin(&self) -> Lsn {
        self.meta
            .start_lsn
            .segment_start(self.meta.wal_segment_bytes)
    }

    fn complete(&self) -> CompleteBackup {
        CompleteBackup {
            id: self.named.backup,
            name: self.named.backup.to_string(),
            kind: BackupKind::Automatic,
            timeline: self.meta.timeline,
            start: self.meta.start_lsn,
            stop: self.meta.stop_lsn,
            completed_time: self.meta.completed_time,
            manifest: self.named.clone(),
            damaged: !self.meta.corrupt_pages.is_empty(),
        }
    }
}

fn look_at(manifest: &Manifest, sealed: &[u8], listing: &mut Listing) -> ScannedBackup {
    let mut missing = Vec::new();
    for object in manifest.objects() {
        match listing.packed.get_mut(&object.key) {
            Some(packed) => {
                packed.is_named = true;
                if packed.bytes != object.bytes {
                    missing.push(object.key);
                }
            }
            None => missing.push(object.key),
        }
    }
    ScannedBackup {
        named: manifest.reference(sealed),
        meta: manifest.meta.clone(),
        extent: match manifest.stands_alone() {
            true => Extent::Full,
            false => Extent::Differential,
        },
        logical_bytes: manifest.logical_bytes,
        stored_bytes: manifest.stored_bytes,
        missing,
    }
}

/// Where timelines began.
#[derive(Debug, Clone, Default)]
pub struct Timelines {
    pub starts: Vec<TimelineStart>,
    /// Those whose history file does not read: nobody can tell what they descend from.
    pub unread: Vec<(Timeline, Error)>,
}

/// Where each timeline of the listing began, from the history files. A parent counts when WAL or
/// history of it lies here: another incarnation's is no parent (RELIABILITY §1.2, wal-g#1390).
pub async fn timelines(
    store: &Store,
    data_key: &DataKey,
    incarnation: IncarnationId,
    listing: &Listing,
) -> Result<Timelines> {
    let stores = std::slice::from_ref(store);
    let with_wal: BTreeSet<Timeline> = listing.wal.iter().map(|object| object.timeline).collect();
    let mut found = Timelines::default();
    if with_wal.contains(&Timeline::FIRST) {
        found.starts.push(TimelineStart {
            timeline: Timeline::FIRST,
            parent: None,
            switch: Lsn::ZERO,
            history_key: None,
        });
    }
    for timeline in listing.histories.keys() {
        let read = history::get_history(stores, data_key, incarnation, *timeline)
            .await
            .and_then(|text| history::parse(*timeline, &text));
        match read {
            Ok(read) => {
                let parent_is_ours = read
                    .ancestors
                    .last()
                    .is_some_and(|parent| with_wal.contains(&parent.timeline));
                found.starts.push(read.start(incarnation, parent_is_ours));
            }
            Err(error @ Error::StoreUnavailable { .. }) => return Err(error),
            Err(error) => found.unread.push((*timeline, error)),
        }
    }
    Ok(found)
}
