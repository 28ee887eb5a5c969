//! The 80 bytes in front of every section and every pack. All numbers are little-endian.
//! Byte-exact description: `docs/VAULT-FORMAT.md` §3.

use crate::key::{DataKey, SALT_BYTES, random};
use crate::{Error, Result};

pub(crate) const HEADER_BYTES: usize = 80;

const MAGIC: &[u8; 8] = b"HOLDFAST";
/// Raised when a reader of today could not read what is written from then on.
const FORMAT_VERSION: u16 = 1;
/// HKDF-SHA256 and AES-256-GCM.
const SUITE: u8 = 1;

/// What an object is. A member of one class never opens as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    Manifest = 1,
    Pack = 2,
    Leaves = 3,
    WalHeader = 4,
    Wal = 5,
    History = 6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Encoding {
    Raw = 0,
    Zstd = 1,
}

impl Encoding {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Raw, Self::Zstd]
            .into_iter()
            .find(|encoding| *encoding as u8 == byte)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub class: u8,
    pub encoding: Encoding,
    /// Bytes under the seal, tags not counted. 0 in packs, whose frames have lengths of their own.
    pub payload_len: u64,
    /// Bytes after decompression.
    pub content_len: u64,
    pub key_id: [u8; 8],
    pub salt: [u8; SALT_BYTES],
}

impl Header {
    /// A header with a fresh salt, and so a key that nothing else uses.
    pub fn new(
        data_key: &DataKey,
        class: Class,
        encoding: Encoding,
        payload_len: u64,
        content_len: u64,
    ) -> Result<Self> {
        let mut salt = [0; SALT_BYTES];
        random(&mut salt)?;
        Ok(Self {
            class: class as u8,
            encoding,
            payload_len,
            content_len,
            key_id: data_key.id(),
            salt,
        })
    }

    /// The header of a pack, whose salt a leaf knows.
    pub fn of_pack(data_key: &DataKey, class: Class, salt: [u8; SALT_BYTES]) -> Self {
        Self {
            class: class as u8,
            encoding: Encoding::Raw,
            payload_len: 0,
            content_len: 0,
            key_id: data_key.id(),
            salt,
        }
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[10] = self.class;
        bytes[11] = SUITE;
        bytes[12] = self.encoding as u8;
        bytes[24..32].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.content_len.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.key_id);
        bytes[48..80].copy_from_slice(&self.salt);
        bytes
    }

    pub fn decode(bytes: &[u8], key: &str) -> Result<Self> {
        let corrupted = |what: &str| Error::corrupted(key, what);
        let bytes: &[u8; HEADER_BYTES] = bytes
            .first_chunk()
            .ok_or_else(|| corrupted("it is shorter than a header"))?;
        if &bytes[0..8] != MAGIC {
            return Err(corrupted("it is not an object of a vault"));
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != FORMAT_VERSION || bytes[11] != SUITE {
            return Err(corrupted("it has a format version that is not known here"));
        }
        let encoding = Encoding::from_byte(bytes[12])
            .ok_or_else(|| corrupted("it has an encoding that is not known here"))?;
        let mut header = Self {
            class: bytes[10],
            encoding,
            payload_len: u64::from_le_bytes(array(&bytes[24..32])),
            content_len: u64::from_le_bytes(array(&bytes[32..40])),
            key_id: [0; 8],
            salt: [0; SALT_BYTES],
        };
        header.key_id.copy_from_slice(&bytes[40..48]);
        header.salt.copy_from_slice(&bytes[48..80]);
        // Decoding drops the reserved bytes; comparing keeps them from being a place to change unseen.
        if header.encode() != *bytes {
            return Err(corrupted("its header has reserved bytes that are not zero"));
        }
        Ok(header)
    }

    pub fn check(&self, data_key: &DataKey, class: Class, key: &str) -> Result<()> {
        if self.class != class as u8 {
            return Err(Error::corrupted(key, "it is an object of another class"));
        }
        if self.key_id != data_key.id() {
            return Err(Error::corrupted(key, "it is sealed under another data key"));
        }
        Ok(())
    }
}

fn array(bytes: &[u8]) -> [u8; 8] {
    bytes.try_into().expect("the callers pass eight bytes")
}
