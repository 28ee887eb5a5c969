//! Frames: the pieces of a pack. Each is compressed and sealed by itself and opens from its own byte
//! range, so that a restore reads only what it needs (DESIGN §3.1).
//!
//! All frames of one attempt share a salt and so a key; a frame's number, given once, is its nonce.
//! A frame in the place of another has another number and does not open.
//! Byte-exact description: `docs/VAULT-FORMAT.md` §4.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead;
use bytes::Bytes;
use holdfast_domain::{IncarnationId, JobId};

use super::compressor::Compressor;
use super::{Class, Encoding, Header, TAG_BYTES};
use crate::key::{DataKey, SALT_BYTES, crypto_failed, random};
use crate::{Error, Result};

pub const FRAME_HEADER_BYTES: usize = 24;
/// The largest frame is the leaf of a full 1 GiB segment every page of which lies elsewhere.
pub const MAX_FRAME_CONTENT: usize = 16 << 20;
/// No pack is larger, so that it goes up in one request (DESIGN §3.4).
pub const MAX_PACK_BYTES: u64 = 64 << 20;
/// What a frame's bytes are more than its payload.
pub const FRAME_OVERHEAD: usize = FRAME_HEADER_BYTES + TAG_BYTES;

const PURPOSE: &[u8] = b"holdfast frame v1";

/// Whose frames they are: one attempt of one job, with the salt it drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    pub job: JobId,
    pub epoch: i64,
    pub salt: [u8; SALT_BYTES],
}

/// What sealing needs and may keep from frame to frame: one for each worker.
pub struct Sealer {
    compressor: Compressor,
    sealed: Vec<u8>,
}

impl Sealer {
    pub fn new() -> Result<Self> {
        Ok(Self {
            compressor: Compressor::new()?,
            sealed: Vec::new(),
        })
    }
}

/// What opening needs and may keep from frame to frame.
pub struct Opener {
    zstd: zstd::bulk::Decompressor<'static>,
    payload: Vec<u8>,
    content: Vec<u8>,
}

impl Opener {
    pub fn new() -> Result<Self> {
        let zstd = zstd::bulk::Decompressor::new()
            .map_err(|error| Error::io("decompression cannot be set up", error))?;
        Ok(Self {
            zstd,
            payload: Vec::new(),
            content: Vec::new(),
        })
    }
}

/// Seals and opens the frames of one origin and class.
pub struct FrameCipher {
    origin: Origin,
    header: Header,
    cipher: aead::LessSafeKey,
    /// What is authenticated beside each frame's own header.
    aad: Vec<u8>,
    next: AtomicU64,
}

impl FrameCipher {
    /// For writing: draws a salt.
    pub fn create(
        data_key: &DataKey,
        class: Class,
        incarnation: IncarnationId,
        job: JobId,
        epoch: i64,
    ) -> Result<Self> {
        let mut salt = [0; SALT_BYTES];
        random(&mut salt)?;
        Self::new(data_key, class, incarnation, Origin { job, epoch, salt })
    }

    /// For reading what the origin wrote.
    pub fn new(
        data_key: &DataKey,
        class: Class,
        incarnation: IncarnationId,
        origin: Origin,
    ) -> Result<Self> {
        let header = Header::of_pack(data_key, class, origin.salt);
        let mut aad = header.encode().to_vec();
        aad.extend_from_slice(incarnation.0.as_bytes());
        aad.extend_from_slice(origin.job.0.as_bytes());
        aad.extend_from_slice(&origin.epoch.to_le_bytes());
        Ok(Self {
            origin,
            cipher: data_key.aead(&origin.salt, PURPOSE)?,
            header,
            aad,
            next: AtomicU64::new(0),
        })
    }

    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The first bytes of each pack of this origin.
    #[must_use]
    pub fn pack_header(&self) -> Bytes {
        Bytes::copy_from_slice(&self.header.encode())
    }

    /// Compresses and seals one frame, and says its number. The bytes are the sealer's until its next frame.
    pub fn seal<'a>(&self, sealer: &'a mut Sealer, content: &[u8]) -> Result<(u64, &'a [u8])> {
        if content.is_empty() || content.len() > MAX_FRAME_CONTENT {
            return Err(Error::refused("a frame has between one byte and 16 MiB"));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let room = FRAME_OVERHEAD + content.len();
        if sealer.sealed.len() < room {
            sealer.sealed.resize(room, 0);
        }
        let payload = &mut sealer.sealed[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + content.len()];
        let (encoding, length) = match sealer.compressor.compress(content, payload) {
            Some(length) => (Encoding::Zstd, length),
            None => {
                payload.copy_from_slice(content);
                (Encoding::Raw, content.len())
            }
        };
        let header = frame_header(number, content.len(), length, encoding);
        let (tag_at, end) = (FRAME_HEADER_BYTES + length, FRAME_OVERHEAD + length);
        sealer.sealed[..FRAME_HEADER_BYTES].copy_from_slice(&header);
        let tag = self
            .cipher
            .seal_in_place_separate_tag(
                nonce(number),
                self.frame_aad(&header),
                &mut sealer.sealed[FRAME_HEADER_BYTES..tag_at],
            )
            .map_err(|_| crypto_failed())?;
        sealer.sealed[tag_at..end].copy_from_slice(tag.as_ref());
        Ok((number, &sealer.sealed[..end]))
    }

    /// Opens the frame that these bytes are. `number` and `content_len` are what the leaf or the
    /// manifest says; what the pack says must agree. The content is the opener's until its next frame.
    pub fn open<'a>(
        &self,
        opener: &'a mut Opener,
        number: u64,
        content_len: usize,
        sealed: &[u8],
        key: &str,
    ) -> Result<&'a [u8]> {
        let Some((header, rest)) = sealed.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(Error::corrupted(key, "a frame is shorter than its header"));
        };
        let encoding = Encoding::from_byte(header[16]).ok_or_else(|| {
            Error::corrupted(key, "a frame has an encoding that is not known here")
        })?;
        if content_len > MAX_FRAME_CONTENT
            || rest.len() < TAG_BYTES
            || *header != frame_header(number, content_len, rest.len() - TAG_BYTES, encoding)
        {
            return Err(Error::corrupted(
                key,
                "a frame is not the one that was named",
            ));
        }
        opener.payload.clear();
        opener.payload.extend_from_slice(rest);
        let opened = self
            .cipher
            .open_in_place(
                nonce(number),
                self.frame_aad(header),
                &mut opener.payload[..],
            )
            .map_err(|_| Error::corrupted(key, "a frame's authentication tag does not match"))?
            .len();
        let payload = &opener.payload[..opened];
        match encoding {
            // Never beyond `content_len`, whatever the compressed bytes would expand to.
            Encoding::Zstd => {
                if opener.content.len() < content_len {
                    opener.content.resize(content_len, 0);
                }
                let content = &mut opener.content[..content_len];
                match opener.zstd.decompress_to_buffer(payload, content) {
                    Ok(length) if length == content_len => Ok(content),
                    _ => Err(Error::corrupted(
                        key,
                        "a frame does not decompress to what its header says",
                    )),
                }
            }
            Encoding::Raw if payload.len() == content_len => Ok(payload),
            Encoding::Raw => Err(Error::corrupted(
                key,
                "a frame has another length than was named",
            )),
        }
    }

    fn frame_aad(&self, header: &[u8; FRAME_HEADER_BYTES]) -> aead::Aad<Vec<u8>> {
        let mut aad = Vec::with_capacity(self.aad.len() + FRAME_HEADER_BYTES);
        aad.extend_from_slice(&self.aad);
        aad.extend_from_slice(header);
        aead::Aad::from(aad)
    }
}

fn frame_header(
    number: u64,
    content_len: usize,
    payload_len: usize,
    encoding: Encoding,
) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = [0; FRAME_HEADER_BYTES];
    header[0..8].copy_from_slice(&number.to_le_bytes());
    header[8..12].copy_from_slice(&(content_len as u32).to_le_bytes());
    header[12..16].copy_from_slice(&(payload_len as u32).to_le_bytes());
    header[16] = encoding as u8;
    header
}

fn nonce(number: u64) -> aead::Nonce {
    let mut nonce = [0; aead::NONCE_LEN];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    aead::Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "packs/a/b.1/0";

    #[test]
    fn a_frame_opens_only_as_itself() {
        let data_key = DataKey::generate().unwrap();
        let (incarnation, job) = (IncarnationId::new(), JobId::new());
        let writer = FrameCipher::create(&data_key, Class::Pack, incarnation, job, 3).unwrap();
        let mut sealer = Sealer::new().unwrap();
        let mut seal = |content: &[u8]| {
            let (number, sealed) = writer.seal(&mut sealer, content).unwrap();
            (number, sealed.to_vec())
        };
        let (first, a) = seal(&[1; 8192]);
        let (second, b) = seal(&[2; 8192]);
        assert_ne!(first, second);

        let reader =
            FrameCipher::new(&data_key, Class::Pack, incarnation, writer.origin()).unwrap();
        let mut opener = Opener::new().unwrap();
        let open = |cipher: &FrameCipher, opener: &mut Opener, length, sealed: &[u8]| {
            cipher
                .open(opener, first, length, sealed, KEY)
                .map(<[u8]>::to_vec)
        };
        assert_eq!(open(&reader, &mut opener, 8192, &a).unwrap(), [1; 8192]);
        let corrupted = |result: Result<Vec<u8>>| matches!(result, Err(Error::Corrupted { .. }));
        assert!(
            corrupted(open(&reader, &mut opener, 8192, &b)),
            "another frame in its place"
        );
        assert!(
            corrupted(open(&reader, &mut opener, 4096, &a)),
            "another length than named"
        );
        for at in 0..a.len() {
            let mut flipped = a.clone();
            flipped[at] ^= 0x10;
            assert!(
                corrupted(open(&reader, &mut opener, 8192, &flipped)),
                "bit at {at}"
            );
            assert!(
                corrupted(open(&reader, &mut opener, 8192, &a[..at])),
                "cut at {at}"
            );
        }
        let elsewhere = FrameCipher::new(
            &data_key,
            Class::Pack,
            IncarnationId::new(),
            writer.origin(),
        )
        .unwrap();
        assert!(
            corrupted(open(&elsewhere, &mut opener, 8192, &a)),
            "another server's pack"
        );
        let leaves =
            FrameCipher::new(&data_key, Class::Leaves, incarnation, writer.origin()).unwrap();
        assert!(
            corrupted(open(&leaves, &mut opener, 8192, &a)),
            "another class"
        );
    }
}
