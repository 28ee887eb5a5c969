//! Finding a manifest that is already there: an attempt that died between publishing and reporting
//! is adopted by the next one instead of being repeated.

use holdfast_domain::{BackupId, IncarnationId};

use super::Manifest;
use crate::backup::FinishedBackup;
use crate::key::DataKey;
use crate::store::{Store, put_everywhere};
use crate::verify::verify_objects;
use crate::{Error, Result, layout};

/// The newest generation of a backup that any vault has, made durable in all of them; `None` when
/// none has one. Every object that it names is asked for: the attempt that wrote it is dead, and what
/// it left may have been pruned since.
pub async fn find_manifest(
    stores: &[Store],
    data_key: &DataKey,
    incarnation: IncarnationId,
    backup: BackupId,
) -> Result<Option<FinishedBackup>> {
    let mut found: Option<(u32, bytes::Bytes, Manifest)> = None;
    let mut damaged = None;
    for store in stores {
        for object in store
            .list(&layout::manifests_of(incarnation, backup))
            .await?
        {
            let Some((_, _, generation)) = layout::parse_manifest(&object.key) else {
                continue;
            };
            if found
                .as_ref()
                .is_some_and(|(newest, ..)| *newest >= generation)
            {
                continue;
            }
            let opened = store.get(&object.key).await.and_then(|bytes| {
                Manifest::open(data_key, incarnation, backup, generation, &bytes)
                    .map(|manifest| (bytes, manifest))
            });
            match opened {
                Ok((bytes, manifest)) => found = Some((generation, bytes, manifest)),
                // Deleted between listing and reading.
                Err(Error::NotFound { .. }) => {}
                // Another vault's copy may be good.
                Err(error @ Error::Corrupted { .. }) => damaged = Some(error),
                Err(error) => return Err(error),
            }
        }
    }
    let Some((_, bytes, manifest)) = found else {
        return damaged.map_or(Ok(None), Err);
    };
    let named = manifest.reference(&bytes);
    let manifest_bytes = bytes.len() as u64;
    verify_objects(stores, &manifest.objects()).await?;
    put_everywhere(stores, &named.key, bytes).await?;
    Ok(Some(FinishedBackup {
        manifest: named,
        objects: manifest.objects(),
        logical_bytes: manifest.logical_bytes,
        stored_bytes: manifest.stored_bytes + manifest_bytes,
        meta: manifest.meta,
    }))
}
