//! What a vault shows without a key: which incarnations it has, and of each the keys of its objects
//! (`docs/VAULT-FORMAT.md` §1). Everything else is sealed.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_domain::job::ObjectRef;
use holdfast_domain::wal::WalObject;
use holdfast_domain::{BackupId, IncarnationId, Lsn, Timeline};

use crate::store::Store;
use crate::{Result, layout};

/// The whole vault, by incarnation.
#[derive(Debug, Clone, Default)]
pub struct VaultListing {
    pub incarnations: BTreeMap<IncarnationId, Listing>,
    /// Objects of no incarnation: what probes that died have left, and what is not Holdfast's.
    pub strangers: Vec<ObjectRef>,
}

/// The objects of one incarnation.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Versions of the key-encryption keys under which its data key is wrapped.
    pub kek_versions: BTreeSet<String>,
    /// The generations of each backup's manifest, and their bytes.
    pub manifests: BTreeMap<BackupId, BTreeMap<u32, u64>>,
    /// Packs and leaf objects.
    pub packed: BTreeMap<String, Packed>,
    /// In the order of their keys, which is that of timeline and log.
    pub wal: Vec<WalListed>,
    pub histories: BTreeMap<Timeline, u64>,
    /// Below the incarnation's prefixes, and nothing that this format puts there.
    pub strangers: Vec<ObjectRef>,
}

/// A pack or leaf object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    pub bytes: u64,
    /// Set by whoever opens the manifests: one of them needs it.
    pub is_named: bool,
}

/// A WAL object, as its key describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalListed {
    pub timeline: Timeline,
    pub start: Lsn,
    pub end: Lsn,
    pub stored: ObjectRef,
}

/// WAL of one timeline without a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub start: Lsn,
    /// The first byte after it.
    pub end: Lsn,
}

impl WalListed {
    /// The object as far as its key tells: where it lies in the log, and nothing of what is in it.
    pub(crate) fn without_header(&self) -> WalObject {
        WalObject {
            timeline: self.timeline,
            start: self.start,
            end: self.end,
            key: self.stored.key.clone(),
            plaintext_hash: String::new(),
            stored_bytes: self.stored.bytes,
            stamps: None,
            last_counting: None,
            clock_anomaly: None,
        }
    }
}

impl VaultListing {
    pub async fn of(store: &Store) -> Result<Self> {
        let mut vault = Self::default();
        for object in store.list("").await? {
            vault.sort_in(object);
        }
        Ok(vault)
    }

    fn sort_in(&mut self, object: ObjectRef) {
        let mut parts = object.key.splitn(3, '/');
        let (kind, second) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let ours = ["keys", "backups", "packs", "leaves", "wal"].contains(&kind);
        match second.parse::<IncarnationId>() {
            // As our keys are written; another spelling of the same id is another key.
            Ok(incarnation) if ours && incarnation.to_string() == second => {
                let listing = self.incarnations.entry(incarnation).or_default();
                listing.sort_in(incarnation, object);
            }
            _ => self.strangers.push(object),
        }
    }
}

impl Listing {
    fn sort_in(&mut self, incarnation: IncarnationId, object: ObjectRef) {
        let bytes = object.bytes;
        if let Some((_, backup, generation)) = layout::parse_manifest(&object.key) {
            let generations = self.manifests.entry(backup).or_default();
            generations.insert(generation, bytes);
        } else if let Some((_, timeline, start, end)) = layout::parse_wal(&object.key) {
            self.wal.push(WalListed {
                timeline,
                start,
                end,
                stored: object,
            });
        } else if let Some((_, timeline)) = layout::parse_history(&object.key) {
            self.histories.insert(timeline, bytes);
        } else if layout::is_packed(&object.key) {
            let packed = Packed {
                bytes,
                is_named: false,
            };
            self.packed.insert(object.key, packed);
        } else {
            let prefix = layout::wrapped_keys_prefix(incarnation);
            match object.key.strip_prefix(&prefix) {
                Some(version) if layout::check_kek_version(version).is_ok() => {
                    self.kek_versions.insert(version.to_owned());
                }
                _ => self.strangers.push(object),
            }
        }
    }

    /// Of each timeline the stretches without a hole, in order.
    #[must_use]
    pub fn stretches(&self) -> BTreeMap<Timeline, Vec<Stretch>> {
        let mut sorted: Vec<&WalListed> = self.wal.iter().collect();
        sorted.sort_by_key(|object| (object.timeline, object.start, object.end));
        let mut all: BTreeMap<Timeline, Vec<Stretch>> = BTreeMap::new();
        for WalListed {
            timeline,
            start,
            end,
            ..
        } in sorted
        {
            let stretches = all.entry(*timeline).or_default();
            match stretches.last_mut() {
                Some(last) if *start <= last.end => last.end = last.end.max(*end),
                _ => stretches.push(Stretch {
                    start: *start,
                    end: *end,
                }),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use holdfast_domain::JobId;

    use super::*;

    fn object(key: String) -> ObjectRef {
        ObjectRef {
            key,
            bytes: 10,
            living: None,
        }
    }

    #[test]
    fn every_key_finds_its_place_and_no_stranger_is_taken_for_ours() {
        let (life, backup, job) = (IncarnationId::new(), BackupId::new(), JobId::new());
        let mut vault = VaultListing::default();
        let wal = |start, end| layout::wal(life, Timeline(1), Lsn(start), Lsn(end));
        let ours = [
            layout::wrapped_key(life, "2026-1").expect("a version"),
            layout::manifest(life, backup, 2),
            layout::pack(life, job, 3, 0),
            layout::leaves(life, job, 3, 0),
            wal(0x100, 0x200),
            wal(0x300, 0x400),
            wal(0x180, 0x280),
            layout::history(life, Timeline(2)),
        ];
        let below = [
            format!("packs/{life}/{job}.3/00"),
            format!("packs/{life}/x.3/0"),
            format!("wal/{life}/00000001/notes"),
            format!("keys/{life}/a/b"),
            format!("backups/{life}/{backup}/manifest.02"),
        ];
        let beside = [
            "probe/x".to_owned(),
            "README".to_owned(),
            format!("other/{life}/1"),
            format!("packs/{}/{job}.3/0", life.to_string().to_uppercase()),
        ];
        for key in ours.iter().chain(&below).chain(&beside) {
            vault.sort_in(object(key.clone()));
        }
        let keys =
            |objects: &[ObjectRef]| objects.iter().map(|it| it.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&vault.strangers), beside);
        let listing = &vault.incarnations[&life];
        assert_eq!(keys(&listing.strangers), below);
        assert!(listing.kek_versions.contains("2026-1"));
        assert_eq!(listing.manifests[&backup], BTreeMap::from([(2, 10)]));
        assert_eq!(listing.packed.len(), 2);
        assert_eq!(listing.histories.keys().next(), Some(&Timeline(2)));
        let stretch = |start, end| Stretch {
            start: Lsn(start),
            end: Lsn(end),
        };
        assert_eq!(
            listing.stretches()[&Timeline(1)],
            [stretch(0x100, 0x280), stretch(0x300, 0x400)]
        );
    }
}
