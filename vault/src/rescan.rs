//! What a vault says by itself: a catalogue can be rebuilt from it (DESIGN §3.14). [`listing`] is what
//! keys alone show, [`scan`] reads what a data key opens.

pub mod listing;
pub mod scan;

use std::collections::BTreeMap;

use holdfast_domain::job::ManifestRef;
use holdfast_domain::{BackupId, IncarnationId};

use crate::backup::Manifest;
use crate::key::DataKey;
use crate::store::Store;
use crate::verify::verify_objects;
use crate::{Error, Result, layout};

/// The backups of an incarnation that this vault can restore: of each the highest generation all
/// of whose objects exist. A backup none of whose generations is whole is not listed, and logged.
pub async fn list_manifests(
    store: &Store,
    data_key: &DataKey,
    incarnation: IncarnationId,
) -> Result<Vec<(ManifestRef, Manifest)>> {
    let mut generations: BTreeMap<BackupId, Vec<u32>> = BTreeMap::new();
    for object in store.list(&layout::manifests_prefix(incarnation)).await? {
        if let Some((_, backup, generation)) = layout::parse_manifest(&object.key) {
            generations.entry(backup).or_default().push(generation);
        }
    }
    let mut found = Vec::new();
    for (backup, mut generations) in generations {
        generations.sort_unstable();
        for generation in generations.into_iter().rev() {
            match whole(store, data_key, incarnation, backup, generation).await {
                Ok(pair) => {
                    found.push(pair);
                    break;
                }
                Err(
                    error @ (Error::NotFound { .. }
                    | Error::Corrupted { .. }
                    | Error::Refused { .. }),
                ) => {
                    tracing::warn!(backup.id = %backup, generation, error = %error, "vault.rescan.not_whole");
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

async fn whole(
    store: &Store,
    data_key: &DataKey,
    incarnation: IncarnationId,
    backup: BackupId,
    generation: u32,
) -> Result<(ManifestRef, Manifest)> {
    let bytes = store
        .get(&layout::manifest(incarnation, backup, generation))
        .await?;
    let manifest = Manifest::open(data_key, incarnation, backup, generation, &bytes)?;
    verify_objects(std::slice::from_ref(store), &manifest.objects()).await?;
    Ok((manifest.reference(&bytes), manifest))
}
