//! The backup that a differential compares with. Its leaves say where every page lies, its packs'
//! indexes what the page's hash was; whatever has the same content is named there again (DESIGN §3.1).

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_domain::IncarnationId;
use holdfast_domain::job::ManifestRef;

use super::index::PackIndex;
use super::leaf::{Leaf, PackId};
use super::manifest::{LeafAt, Manifest, ManifestMeta};
use super::pack::Stored;
use super::read::LeafReader;
use crate::key::DataKey;
use crate::store::Store;
use crate::verify::verify_objects;
use crate::{Error, Result};

pub struct BaseIndex {
    manifest: Manifest,
    /// File index by path.
    files: HashMap<String, usize>,
    packs: HashMap<PackId, Stored>,
    leaf_objects: HashMap<PackId, Stored>,
    reader: LeafReader,
}

impl BaseIndex {
    /// Opens a backup as a base and makes sure that every vault has all that it names.
    /// `None`: it cannot serve – gone, damaged, incomplete in a vault, sealed otherwise – and the next
    /// backup stores everything. Only a store that does not answer is an error.
    pub async fn load(
        stores: &[Store],
        data_key: &DataKey,
        incarnation: IncarnationId,
        named: &ManifestRef,
    ) -> Result<Option<Self>> {
        let unusable = |error: Error| match error {
            Error::Corrupted { .. } | Error::NotFound { .. } | Error::Refused { .. } => {
                tracing::warn!(error = %error, manifest.key = named.key, "backup.base.unusable");
                Ok(None)
            }
            other => Err(other),
        };
        let manifest = match Manifest::load(stores, data_key, incarnation, named).await {
            Ok(manifest) => manifest,
            Err(error) => return unusable(error),
        };
        if let Err(error) = verify_objects(stores, &manifest.objects()).await {
            return unusable(error);
        }
        let files = manifest
            .files()
            .iter()
            .enumerate()
            .map(|(index, file)| (file.path.clone(), index))
            .collect();
        Ok(Some(Self {
            files,
            packs: manifest.stored_packs().collect(),
            leaf_objects: manifest.stored_leaf_objects().collect(),
            reader: LeafReader::new(stores.to_vec(), data_key.clone(), incarnation),
            manifest,
        }))
    }

    /// The leaf of one GiB of a file, or `None` when the base has none or its copies are damaged:
    /// then that GiB is stored anew.
    pub(crate) async fn leaf(&self, path: &str, part: usize) -> Result<Option<BaseLeaf>> {
        let Some(at) = self
            .files
            .get(path)
            .and_then(|index| self.manifest.files()[*index].leaves.get(part))
        else {
            return Ok(None);
        };
        match self.reader.leaf(&self.manifest, *at).await {
            Ok(leaf)
                if leaf
                    .frames
                    .iter()
                    .all(|frame| self.packs.contains_key(&frame.pack)) =>
            {
                Ok(Some(BaseLeaf {
                    leaf,
                    object: self.manifest.leaf_object(*at),
                    at: *at,
                }))
            }
            Ok(_) => {
                tracing::warn!(path, "backup.base.leaf.names_unknown_pack");
                Ok(None)
            }
            Err(error @ (Error::Corrupted { .. } | Error::NotFound { .. })) => {
                tracing::warn!(path, error = %error, "backup.base.leaf.unusable");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The index of a pack that one of the base's leaves names. `None`: no copy of it can be read, and
    /// the pages in that pack count as changed.
    pub(crate) async fn index(&self, pack: PackId) -> Result<Option<Arc<PackIndex>>> {
        let Some(at) = self.packs.get(&pack).and_then(|stored| stored.index) else {
            return Ok(None);
        };
        match self.reader.index(pack, at).await {
            Ok(index) => Ok(Some(index)),
            Err(error @ (Error::Corrupted { .. } | Error::NotFound { .. })) => {
                tracing::warn!(error = %error, "backup.base.index.unusable");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    #[must_use]
    pub fn meta(&self) -> &ManifestMeta {
        &self.manifest.meta
    }

    pub(crate) fn pack(&self, pack: &PackId) -> Option<Stored> {
        self.packs.get(pack).copied()
    }

    pub(crate) fn leaf_object(&self, object: &PackId) -> Option<Stored> {
        self.leaf_objects.get(object).copied()
    }
}

pub(crate) struct BaseLeaf {
    pub leaf: Leaf,
    pub object: PackId,
    pub at: LeafAt,
}
