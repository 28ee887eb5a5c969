//! The next generation of a manifest: the same backup, some of whose pages and leaves lie elsewhere now.

use std::collections::BTreeMap;

use super::{LeafAt, Manifest, NamedPack, tables};
use crate::backup::leaf::{FrameAt, PackId};
use crate::backup::pack::Stored;
use crate::{Error, Result};
use holdfast_domain::JobId;

/// Who writes the next generation, and what changes.
pub(crate) struct Rewriting<'a> {
    pub job: JobId,
    pub epoch: i64,
    pub generation: u32,
    pub packs: Vec<NamedPack>,
    /// Where a leaf lies now; `None`: where it was.
    pub moved: &'a dyn Fn(&FrameAt) -> Option<FrameAt>,
    /// Leaf objects that are new.
    pub leaf_objects: &'a BTreeMap<PackId, Stored>,
}

impl Manifest {
    /// Where a leaf of this manifest lies, said without its tables.
    pub(crate) fn place_of(&self, leaf: LeafAt) -> FrameAt {
        let LeafAt(_, offset, sealed_len, content_len, number) = leaf;
        FrameAt {
            pack: self.leaf_object(leaf),
            offset,
            sealed_len,
            content_len,
            number,
        }
    }

    /// `stored_bytes` stays what the backup once added: nobody is told that it grew.
    pub(crate) fn rewritten(&self, how: Rewriting<'_>) -> Result<Self> {
        let before: BTreeMap<PackId, Stored> = self.stored_leaf_objects().collect();
        let mut used = BTreeMap::new();
        let mut places = Vec::new();
        for leaf in self.files.iter().flat_map(|file| &file.leaves) {
            let was = self.place_of(*leaf);
            let place = (how.moved)(&was).unwrap_or(was);
            let stored = how
                .leaf_objects
                .get(&place.pack)
                .or_else(|| before.get(&place.pack))
                .ok_or_else(|| Error::refused("a leaf was moved to an object that is not there"))?;
            used.insert(place.pack, *stored);
            places.push(place);
        }
        let leaf_objects: Vec<(PackId, Stored)> = used.into_iter().collect();
        let (origins, packs, objects) = tables(&how.packs, &leaf_objects);
        let mut next = Self {
            generation: how.generation,
            job: how.job,
            epoch: how.epoch,
            origins,
            packs,
            leaf_objects: objects,
            ..self.clone()
        };
        let leaves = next.files.iter_mut().flat_map(|file| &mut file.leaves);
        for (leaf, place) in leaves.zip(places) {
            let object = leaf_objects
                .binary_search_by_key(&place.pack, |(id, _)| *id)
                .expect("the list was made of these very places");
            *leaf = LeafAt(
                object as u32,
                place.offset,
                place.sealed_len,
                place.content_len,
                place.number,
            );
        }
        Ok(next)
    }
}
