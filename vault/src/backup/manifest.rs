//! The manifest: everything that one backup is. It is written last and, once written, never changed
//! (DESIGN §3.1, §3.4); a vault with a manifest has all that the manifest names.
//!
//! Inside its seal it is JSON, so that a person with the key can read it. Bytes:
//! `docs/VAULT-FORMAT.md` §6.

mod find;
mod rewrite;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use holdfast_domain::job::{ManifestRef, ObjectRef, WrappedKey};
use holdfast_domain::{BackupId, IncarnationId, JobId, Lsn, ServerId, Timeline};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use find::find_manifest;
pub(crate) use rewrite::Rewriting;

use super::leaf::PackId;
use super::pack::Stored;
use super::path::{check, check_distinct, in_tablespace};
use super::{Attempt, PAGE_BYTES, PAGES_PER_LEAF};
use crate::key::{DataKey, SALT_BYTES};
use crate::seal::frame::{MAX_PACK_BYTES, Origin};
use crate::seal::{self, Class};
use crate::store::{Store, get_anywhere};
use crate::{Error, Result, layout};

const FORMAT: u32 = 1;
/// What a leaf object has before its first leaf: its header.
const LEAVES_BEGIN: u64 = 80;

type KeyOf = fn(IncarnationId, JobId, i64, u32) -> String;

/// What is known of a backup beside its files. The agent fills it in when PostgreSQL has ended the
/// backup (RELIABILITY §5.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestMeta {
    pub server: ServerId,
    /// For people who hold only a vault and a key. Names identify nothing.
    pub server_name: String,
    /// `15.18`.
    pub pg_version: String,
    pub system_identifier: u64,
    pub timeline: Timeline,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    pub completed_time: DateTime<Utc>,
    /// When a backup of this line last read every page instead of what the log said had changed.
    pub all_read_at: DateTime<Utc>,
    /// Byte-exact what `pg_backup_stop` returned; a restore writes it as `backup_label`.
    #[serde(with = "base64_bytes")]
    pub backup_label: Vec<u8>,
    #[serde(with = "base64_optional")]
    pub tablespace_map: Option<Vec<u8>>,
    /// The current wrap of the data key: vault and key-encryption key suffice (DESIGN §3.14).
    pub wrapped_key: WrappedKey,
    pub wal_segment_bytes: u64,
    pub data_checksums: bool,
    /// `path:page` of pages that failed their checksum though WAL does not repair them.
    pub corrupt_pages: Vec<String>,
}

/// Where a tablespace was. A restore puts it elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    pub oid: u32,
    pub location: String,
}

/// One file of the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub path: String,
    pub bytes: u64,
    /// One for each begun GiB, none for an empty file.
    pub(crate) leaves: Vec<LeafAt>,
}

/// Where a leaf lies: object (index into `leaf_objects`), offset, sealed length, content length, and
/// the frame's number within its origin. An array in JSON, since there is one for each file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeafAt(pub u32, pub u32, pub u32, pub u32, pub u64);

/// Where a frame lies in an object that is named beside it: offset, sealed length, content length, and
/// the frame's number within its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FrameIn(pub u32, pub u32, pub u32, pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct StoredOrigin {
    job: JobId,
    epoch: i64,
    #[serde(with = "salt")]
    salt: [u8; SALT_BYTES],
}

impl From<Origin> for StoredOrigin {
    fn from(origin: Origin) -> Self {
        Self {
            job: origin.job,
            epoch: origin.epoch,
            salt: origin.salt,
        }
    }
}

impl From<StoredOrigin> for Origin {
    fn from(stored: StoredOrigin) -> Self {
        Self {
            job: stored.job,
            epoch: stored.epoch,
            salt: stored.salt,
        }
    }
}

/// A pack or leaf object and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredPack {
    /// Index into `origins`.
    pub origin: u32,
    pub number: u32,
    pub bytes: u64,
    /// Where a pack's index lies. Leaf objects have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<FrameIn>,
    /// What is needed of a pack. Not there in leaf objects and in manifests from before it was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<PagesOf>,
}

/// How many pages of a pack this backup names, and how many are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PagesOf(pub u32, pub u32);

/// A pack that a backup names, and how many pages of it, where that is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NamedPack {
    pub id: PackId,
    pub stored: Stored,
    pub used: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    pub incarnation: IncarnationId,
    pub backup: BackupId,
    pub generation: u32,
    /// The attempt that made this generation.
    pub job: JobId,
    pub epoch: i64,
    pub(crate) page_bytes: u32,
    pub meta: ManifestMeta,
    pub logical_bytes: u64,
    /// Bytes that this backup added to its vault, the manifest not counted.
    pub stored_bytes: u64,
    pub(crate) origins: Vec<StoredOrigin>,
    pub(crate) packs: Vec<StoredPack>,
    pub(crate) leaf_objects: Vec<StoredPack>,
    pub tablespaces: Vec<Tablespace>,
    pub directories: Vec<String>,
    pub(crate) files: Vec<FileEntry>,
}

/// What a writer has gathered when everything but the manifest is durable.
pub(crate) struct Contents {
    pub packs: Vec<NamedPack>,
    pub leaf_objects: Vec<(PackId, Stored)>,
    pub tablespaces: Vec<Tablespace>,
    pub directories: Vec<String>,
    /// Each file with its leaves, whose object is an index into `leaf_objects`.
    pub files: Vec<FileEntry>,
    pub stored_bytes: u64,
}

impl Manifest {
    pub(crate) fn new(attempt: Attempt, meta: ManifestMeta, contents: Contents) -> Self {
        let (origins, packs, leaf_objects) = tables(&contents.packs, &contents.leaf_objects);
        Self {
            format: FORMAT,
            incarnation: attempt.incarnation,
            backup: attempt.backup,
            generation: 1,
            job: attempt.job,
            epoch: attempt.epoch,
            page_bytes: PAGE_BYTES as u32,
            meta,
            logical_bytes: contents.files.iter().map(|file| file.bytes).sum(),
            stored_bytes: contents.stored_bytes,
            origins,
            packs,
            leaf_objects,
            tablespaces: contents.tablespaces,
            directories: contents.directories,
            files: contents.files,
        }
    }

    /// Reads a manifest from the first vault whose copy is exactly the one that was named.
    pub async fn load(
        stores: &[Store],
        data_key: &DataKey,
        incarnation: IncarnationId,
        named: &ManifestRef,
    ) -> Result<Self> {
        if named.key != layout::manifest(incarnation, named.backup, named.generation) {
            return Err(Error::corrupted(
                &named.key,
                "the key is not that of this backup's manifest",
            ));
        }
        get_anywhere(stores, &named.key, |bytes| {
            if blake3::hash(&bytes).to_hex().as_str() != named.hash {
                return Err(Error::corrupted(
                    &named.key,
                    "its hash is not the one that was recorded",
                ));
            }
            Self::open(
                data_key,
                incarnation,
                named.backup,
                named.generation,
                &bytes,
            )
        })
        .await
    }

    pub(crate) fn open(
        data_key: &DataKey,
        incarnation: IncarnationId,
        backup: BackupId,
        generation: u32,
        sealed: &[u8],
    ) -> Result<Self> {
        let key = layout::manifest(incarnation, backup, generation);
        let json = seal::open(data_key, Class::Manifest, &key, sealed)?;
        let manifest: Self = serde_json::from_slice(&json)
            .map_err(|error| Error::corrupted(&key, format!("its JSON cannot be read: {error}")))?;
        if (manifest.incarnation, manifest.backup, manifest.generation)
            != (incarnation, backup, generation)
        {
            return Err(Error::corrupted(
                &key,
                "it is the manifest of something else",
            ));
        }
        manifest.validate(&key)?;
        Ok(manifest)
    }

    /// Seals, ready to be put, with the reference that names exactly these bytes.
    pub(crate) fn seal(&self, data_key: &DataKey) -> Result<(ManifestRef, Bytes)> {
        let key = self.key();
        self.validate(&key)?;
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::io("a manifest cannot be written as JSON", error.into()))?;
        let sealed = seal::seal(data_key, Class::Manifest, &key, &json)?;
        let named = self.reference(&sealed);
        Ok((named, sealed))
    }

    pub(crate) fn reference(&self, sealed: &[u8]) -> ManifestRef {
        ManifestRef {
            backup: self.backup,
            generation: self.generation,
            key: self.key(),
            hash: blake3::hash(sealed).to_hex().to_string(),
        }
    }

    fn key(&self) -> String {
        layout::manifest(self.incarnation, self.backup, self.generation)
    }

    #[must_use]
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// Every pack and leaf object that this backup needs, those of earlier backups included.
    #[must_use]
    pub fn objects(&self) -> Vec<ObjectRef> {
        let mut leaves = vec![LEAVES_BEGIN; self.leaf_objects.len()];
        for leaf in self.files.iter().flat_map(|file| &file.leaves) {
            leaves[leaf.0 as usize] += u64::from(leaf.2);
        }
        let packs = self.packs.iter().map(|pack| {
            let living = pack
                .pages
                .map(|PagesOf(used, of)| pack.bytes * u64::from(used) / u64::from(of.max(1)));
            (layout::pack as KeyOf, pack, living)
        });
        let leaf_objects = self
            .leaf_objects
            .iter()
            .zip(leaves)
            .map(|(object, living)| (layout::leaves as KeyOf, object, Some(living)));
        let mut objects: Vec<_> = packs
            .chain(leaf_objects)
            .map(|(key, stored, living)| {
                let origin = self.origins[stored.origin as usize];
                ObjectRef {
                    key: key(self.incarnation, origin.job, origin.epoch, stored.number),
                    bytes: stored.bytes,
                    living: living.map(|living| living.min(stored.bytes)),
                }
            })
            .collect();
        objects.sort();
        objects
    }

    /// Whether everything that it needs was written by its own attempt.
    pub(crate) fn stands_alone(&self) -> bool {
        self.packs.iter().chain(&self.leaf_objects).all(|object| {
            let origin = self.origins[object.origin as usize];
            (origin.job, origin.epoch) == (self.job, self.epoch)
        })
    }

    pub(crate) fn stored_packs(&self) -> impl Iterator<Item = (PackId, Stored)> + '_ {
        self.packs.iter().map(|pack| self.stored(pack))
    }

    pub(crate) fn named_packs(&self) -> impl Iterator<Item = NamedPack> + '_ {
        self.packs.iter().map(|pack| NamedPack {
            id: self.pack_id(pack),
            stored: self.stored(pack).1,
            used: pack.pages.map(|PagesOf(used, _)| used),
        })
    }

    pub(crate) fn stored_leaf_objects(&self) -> impl Iterator<Item = (PackId, Stored)> + '_ {
        self.leaf_objects.iter().map(|object| self.stored(object))
    }

    fn stored(&self, object: &StoredPack) -> (PackId, Stored) {
        let StoredPack {
            bytes,
            index,
            pages,
            ..
        } = *object;
        let stored = Stored {
            bytes,
            index,
            pages: pages.map(|PagesOf(_, of)| of),
        };
        (self.pack_id(object), stored)
    }

    /// The object of a leaf. `validate` has seen to it that it is there.
    pub(crate) fn leaf_object(&self, leaf: LeafAt) -> PackId {
        self.pack_id(&self.leaf_objects[leaf.0 as usize])
    }

    fn pack_id(&self, stored: &StoredPack) -> PackId {
        PackId {
            origin: self.origins[stored.origin as usize].into(),
            number: stored.number,
        }
    }

    /// Everything that code beyond this point relies on.
    fn validate(&self, key: &str) -> Result<()> {
        let corrupted = |what: &str| Err(Error::corrupted(key, what));
        if self.format != FORMAT {
            return corrupted("it has a format version that is not known here");
        }
        if self.page_bytes as usize != PAGE_BYTES {
            return corrupted("its pages have a size that is not known here");
        }
        let segment = self.meta.wal_segment_bytes;
        if !segment.is_power_of_two() || !(1 << 20..=1 << 30).contains(&segment) {
            return corrupted("WAL segments cannot have the size that it says");
        }
        let objects = || self.packs.iter().chain(&self.leaf_objects);
        if objects().any(|object| {
            object.origin as usize >= self.origins.len() || object.bytes > MAX_PACK_BYTES
        }) {
            return corrupted("it names an object that cannot be");
        }
        let has_index = |pack: &StoredPack| {
            pack.index
                .is_some_and(|at| u64::from(at.0) + u64::from(at.1) <= pack.bytes)
        };
        if !self.packs.iter().all(has_index) {
            return corrupted("it names a pack without saying where its index is");
        }
        if objects().any(|object| object.pages.is_some_and(|PagesOf(used, of)| used > of)) {
            return corrupted("it names more pages of a pack than are in it");
        }
        check_distinct(
            self.files.iter().map(|file| file.path.as_str()),
            self.directories.iter().map(String::as_str),
        )?;
        let known = |path: &str| match in_tablespace(path) {
            Some((oid, _)) => self
                .tablespaces
                .iter()
                .any(|tablespace| tablespace.oid == oid),
            None => !path.starts_with("pg_tblspc/"),
        };
        for file in &self.files {
            check(&file.path)?;
            if file.leaves.len() as u64 != file.bytes.div_ceil((PAGE_BYTES * PAGES_PER_LEAF) as u64)
            {
                return corrupted("a file's length and its leaves disagree");
            }
            let inside = |leaf: &LeafAt| {
                self.leaf_objects
                    .get(leaf.0 as usize)
                    .is_some_and(|object| u64::from(leaf.1) + u64::from(leaf.2) <= object.bytes)
            };
            if !file.leaves.iter().all(inside) {
                return corrupted("a file's leaf lies outside its object");
            }
        }
        if !self
            .files
            .iter()
            .map(|file| &file.path)
            .chain(&self.directories)
            .all(|path| known(path))
        {
            return corrupted("a path lies in a tablespace that is not named");
        }
        Ok(())
    }
}

/// The tables of what a manifest names. Indexes into them are positions in these lists.
fn tables(
    packs: &[NamedPack],
    leaf_objects: &[(PackId, Stored)],
) -> (Vec<StoredOrigin>, Vec<StoredPack>, Vec<StoredPack>) {
    let ids = packs.iter().map(|pack| &pack.id);
    let mut origins: Vec<StoredOrigin> = ids
        .chain(leaf_objects.iter().map(|(object, _)| object))
        .map(|id| id.origin.into())
        .collect();
    origins.sort_unstable();
    origins.dedup();
    let stored = |id: PackId, stored: Stored, used: Option<u32>| StoredPack {
        origin: origins
            .binary_search(&id.origin.into())
            .expect("the table was made of these very origins") as u32,
        number: id.number,
        bytes: stored.bytes,
        index: stored.index,
        pages: used
            .zip(stored.pages)
            .map(|(used, of)| PagesOf(used.min(of), of)),
    };
    let packs = packs
        .iter()
        .map(|pack| stored(pack.id, pack.stored, pack.used))
        .collect();
    let leaf_objects = leaf_objects
        .iter()
        .map(|(object, put)| stored(*object, *put, None))
        .collect();
    (origins, packs, leaf_objects)
}

mod base64_bytes {
    use super::{BASE64_STANDARD, Deserialize, Deserializer, Engine, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD
            .decode(text)
            .map_err(serde::de::Error::custom)
    }
}

mod base64_optional {
    use super::{BASE64_STANDARD, Deserialize, Deserializer, Engine, Serialize, Serializer};

    pub fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bytes
            .as_ref()
            .map(|bytes| BASE64_STANDARD.encode(bytes))
            .serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| {
                BASE64_STANDARD
                    .decode(text)
                    .map_err(serde::de::Error::custom)
            })
            .transpose()
    }
}

mod salt {
    use super::{BASE64_STANDARD, Deserialize, Deserializer, Engine, SALT_BYTES, Serializer};

    pub fn serialize<S: Serializer>(
        salt: &[u8; SALT_BYTES],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(salt))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; SALT_BYTES], D::Error> {
        use serde::de::Error;
        let bytes = BASE64_STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(Error::custom)?;
        bytes
            .try_into()
            .map_err(|_| Error::custom("a salt has 32 bytes"))
    }
}
