//! Deleting an explicit list, in its order: manifests first, then what only they named (DESIGN §3.9).
//! The catalogue decided it, key by key; nothing here looks around for more.

use crate::Result;
use crate::store::Store;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Every key of the list that is gone now, whether or not it was there before.
    pub deleted: Vec<String>,
    pub bytes: u64,
}

/// Deletes one object after the other. One that is gone counts as deleted, so a batch that died
/// half-way is simply run again. An error stops it, so that the order holds.
pub async fn delete_keys(store: &Store, keys: &[String]) -> Result<Deleted> {
    let mut result = Deleted::default();
    for key in keys {
        let bytes = match store.head(key).await {
            Ok(bytes) => bytes,
            Err(crate::Error::NotFound { .. }) => 0,
            Err(error) => return Err(error),
        };
        if store.delete(key).await? {
            result.bytes += bytes;
        }
        result.deleted.push(key.clone());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn deleting_twice_is_deleting_once() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Store::open(url::Url::from_directory_path(dir.path()).unwrap().as_str()).unwrap();
        for key in ["packs/a", "packs/b"] {
            store
                .put_new(key, Bytes::from_static(b"12345"))
                .await
                .unwrap();
        }
        let keys: Vec<String> = ["packs/a", "packs/never", "packs/b"]
            .map(String::from)
            .into();
        let first = delete_keys(&store, &keys).await.unwrap();
        assert_eq!(
            first,
            Deleted {
                deleted: keys.clone(),
                bytes: 10
            }
        );
        let second = delete_keys(&store, &keys).await.unwrap();
        assert_eq!(
            second,
            Deleted {
                deleted: keys,
                bytes: 0
            }
        );
    }
}
