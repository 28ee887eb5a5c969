//! Wrapped keys in the vault, beside the data that needs them: with the key-encryption key they are
//! enough to read everything (DESIGN §3.14). Create-only, like every object.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_domain::IncarnationId;
use holdfast_domain::job::WrappedKey;
use serde::{Deserialize, Serialize};

use super::{DataKey, KeyRing};
use crate::store::{Store, put_everywhere};
use crate::{Error, Result, layout};

/// What `keys/{incarnation}/{kek version}` holds, as JSON. Not sealed: a wrap needs no other secrecy.
#[derive(Serialize, Deserialize)]
struct StoredWrap {
    format: u32,
    incarnation: IncarnationId,
    kek_version: String,
    wrapped: String,
}

/// The data key of an incarnation: the one that its wraps in the vaults hold, else a new one whose
/// wrap is durable in every vault before this returns. May run any number of times, or half: there
/// is never a second data key for one incarnation.
pub async fn establish_data_key(
    stores: &[Store],
    ring: &KeyRing,
    incarnation: IncarnationId,
) -> Result<(DataKey, WrappedKey)> {
    let mut wraps = load_wrapped_keys(stores, incarnation).await?;
    if wraps.is_empty() {
        let wrapped = ring.wrap(&DataKey::generate()?, incarnation)?;
        match put_wrapped_key(stores, incarnation, &wrapped).await {
            // Somebody else was first, or an earlier attempt of ours got as far as the first vault.
            Ok(()) | Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
        wraps = load_wrapped_keys(stores, incarnation).await?;
    }
    let (key, wrapped) = unwrap_any(wraps, ring, incarnation)?;
    put_wrapped_key(stores, incarnation, &wrapped).await?;
    Ok((key, wrapped))
}

/// The data key of an incarnation for somebody who reads: nothing is written.
///
/// # Errors
/// [`Error::KeyUnavailable`] when no wrap opens under a key of the ring, or none is there.
pub async fn find_data_key(
    stores: &[Store],
    ring: &KeyRing,
    incarnation: IncarnationId,
) -> Result<(DataKey, WrappedKey)> {
    let wraps = load_wrapped_keys(stores, incarnation).await?;
    unwrap_any(wraps, ring, incarnation)
}

fn unwrap_any(
    wraps: Vec<WrappedKey>,
    ring: &KeyRing,
    incarnation: IncarnationId,
) -> Result<(DataKey, WrappedKey)> {
    let mut refused = Error::KeyUnavailable {
        version: "any".to_owned(),
    };
    for wrapped in wraps.into_iter().rev() {
        match ring.unwrap(&wrapped, incarnation) {
            Ok(key) => return Ok((key, wrapped)),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Makes a wrap durable beside the data that needs it. Each version is written once: another wrap
/// under the same version is a `Conflict`, and the first one stays.
pub async fn put_wrapped_key(
    stores: &[Store],
    incarnation: IncarnationId,
    wrapped: &WrappedKey,
) -> Result<()> {
    let key = layout::wrapped_key(incarnation, &wrapped.kek_version)?;
    let stored = StoredWrap {
        format: 1,
        incarnation,
        kek_version: wrapped.kek_version.clone(),
        wrapped: wrapped.wrapped.clone(),
    };
    let json = serde_json::to_vec(&stored)
        .map_err(|error| Error::io("a wrapped key cannot be written as JSON", error.into()))?;
    put_everywhere(stores, &key, Bytes::from(json)).await
}

/// Every wrap of an incarnation that any of the vaults has.
pub async fn load_wrapped_keys(
    stores: &[Store],
    incarnation: IncarnationId,
) -> Result<Vec<WrappedKey>> {
    let mut wraps: BTreeMap<String, WrappedKey> = BTreeMap::new();
    let mut last_error = None;
    for store in stores {
        match load_from(store, incarnation).await {
            Ok(found) => wraps.extend(
                found
                    .into_iter()
                    .map(|wrap| (wrap.kek_version.clone(), wrap)),
            ),
            Err(error) => last_error = Some(error),
        }
    }
    match last_error {
        Some(error) if wraps.is_empty() => Err(error),
        _ => Ok(wraps.into_values().collect()),
    }
}

async fn load_from(store: &Store, incarnation: IncarnationId) -> Result<Vec<WrappedKey>> {
    let mut wraps = Vec::new();
    for object in store
        .list(&layout::wrapped_keys_prefix(incarnation))
        .await?
    {
        let bytes = store.get(&object.key).await?;
        let stored: StoredWrap = serde_json::from_slice(&bytes)
            .map_err(|_| Error::corrupted(&object.key, "not a wrapped key"))?;
        if stored.format != 1 || stored.incarnation != incarnation {
            return Err(Error::corrupted(
                &object.key,
                "a wrapped key of something else",
            ));
        }
        wraps.push(WrappedKey {
            kek_version: stored.kek_version,
            wrapped: stored.wrapped,
        });
    }
    Ok(wraps)
}
