//! Sealing: compress, then encrypt, so that any change to an object, and any object in another's
//! place, is noticed (RELIABILITY §4.4). Byte-exact description: `docs/VAULT-FORMAT.md` §3 and §4.
//!
//! A *section* is a whole object or a part of one: an 80-byte header and AES-256-GCM chunks in a
//! STREAM construction – counter and last-flag in the nonce; header and object key as additional
//! data – under a key of its own. Truncation, reordering and swapping do not survive opening.
//! *Frames* (see [`frame`]) are the pieces of packs, each of which opens by itself.

mod compressor;
pub mod frame;
mod header;

use aws_lc_rs::aead;
use bytes::Bytes;

pub use header::Class;
pub(crate) use header::{Encoding, HEADER_BYTES, Header};

use crate::key::{DataKey, crypto_failed};
use crate::{Error, Result};

/// What one AEAD chunk carries, but for the last.
const CHUNK_BYTES: usize = 256 << 10;
pub(crate) const TAG_BYTES: usize = 16;
/// Nothing that is sealed whole is larger; a header that claims more is refused before allocation.
pub const MAX_CONTENT_BYTES: u64 = 256 << 20;
/// How much is done for a small object. What is written reads the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Effort {
    /// Fast enough to keep up with two cores' disks, PERFORMANCE.md "floors": zstd 1.
    #[default]
    Usual,
    /// When time is short: zstd -1, of which pages in the write-ahead log become a tenth larger in three
    /// quarters of the time.
    Light,
}

impl Effort {
    fn level(self) -> i32 {
        match self {
            Self::Usual => 1,
            Self::Light => -1,
        }
    }
}

/// Seals one section of the object `key`.
pub fn seal(data_key: &DataKey, class: Class, key: &str, content: &[u8]) -> Result<Bytes> {
    seal_with(data_key, class, key, content, Effort::Usual)
}

pub(crate) fn seal_with(
    data_key: &DataKey,
    class: Class,
    key: &str,
    content: &[u8],
    effort: Effort,
) -> Result<Bytes> {
    if content.len() as u64 > MAX_CONTENT_BYTES {
        return Err(Error::refused(
            "an object of more than 256 MiB cannot be sealed whole",
        ));
    }
    let (encoding, payload) = compress(content, effort)?;
    let payload = payload.as_deref().unwrap_or(content);
    let header = Header::new(
        data_key,
        class,
        encoding,
        payload.len() as u64,
        content.len() as u64,
    )?;
    let chunks = chunk_count(payload.len() as u64);
    let mut sealed = Vec::with_capacity(
        HEADER_BYTES + payload.len() + usize::try_from(chunks).unwrap_or(0) * TAG_BYTES,
    );
    sealed.extend_from_slice(&header.encode());
    let cipher = data_key.aead(&header.salt, PURPOSE)?;
    let aad = section_aad(&header, key);
    for counter in 0..chunks {
        let start = counter as usize * CHUNK_BYTES;
        let chunk = &payload[start..payload.len().min(start + CHUNK_BYTES)];
        let at = sealed.len();
        sealed.extend_from_slice(chunk);
        let tag = cipher
            .seal_in_place_separate_tag(
                nonce(counter, chunks),
                aead::Aad::from(&aad),
                &mut sealed[at..],
            )
            .map_err(|_| crypto_failed())?;
        sealed.extend_from_slice(tag.as_ref());
    }
    Ok(Bytes::from(sealed))
}

/// Opens an object that is one section.
pub fn open(data_key: &DataKey, class: Class, key: &str, sealed: &[u8]) -> Result<Bytes> {
    let (content, consumed) = open_first(data_key, class, key, sealed)?;
    if consumed != sealed.len() {
        return Err(Error::corrupted(key, "bytes follow its end"));
    }
    Ok(content)
}

/// Opens the section at the front and says how many bytes it took; further sections may follow.
pub fn open_first(
    data_key: &DataKey,
    class: Class,
    key: &str,
    sealed: &[u8],
) -> Result<(Bytes, usize)> {
    let header = Header::decode(sealed, key)?;
    header.check(data_key, class, key)?;
    let length = section_len(&header, key)?;
    let Some(mut rest) = sealed.get(HEADER_BYTES..length) else {
        return Err(Error::corrupted(key, "it is shorter than its header says"));
    };
    let cipher = data_key.aead(&header.salt, PURPOSE)?;
    let aad = section_aad(&header, key);
    let chunks = chunk_count(header.payload_len);
    let mut payload = Vec::with_capacity(rest.len());
    for counter in 0..chunks {
        let (chunk, after) = rest.split_at(rest.len().min(CHUNK_BYTES + TAG_BYTES));
        rest = after;
        let at = payload.len();
        payload.extend_from_slice(chunk);
        let opened = cipher
            .open_in_place(
                nonce(counter, chunks),
                aead::Aad::from(&aad),
                &mut payload[at..],
            )
            .map_err(|_| Error::corrupted(key, "its authentication tag does not match"))?
            .len();
        payload.truncate(at + opened);
    }
    let content = match header.encoding {
        Encoding::Raw => payload,
        Encoding::Zstd => decompress(&payload, header.content_len as usize, key)?,
    };
    Ok((Bytes::from(content), length))
}

/// How long the section is that starts with these bytes, of which at least 80 are needed.
pub fn sealed_len(key: &str, first: &[u8]) -> Result<u64> {
    section_len(&Header::decode(first, key)?, key).map(|length| length as u64)
}

/// How many bytes of a section must be at hand for [`sealed_len`].
pub const SEALED_LEN_NEEDS: usize = HEADER_BYTES;

fn section_len(header: &Header, key: &str) -> Result<usize> {
    if header.payload_len > MAX_CONTENT_BYTES || header.content_len > MAX_CONTENT_BYTES {
        return Err(Error::corrupted(
            key,
            "its header claims more than any object holds",
        ));
    }
    Ok(HEADER_BYTES
        + header.payload_len as usize
        + chunk_count(header.payload_len) as usize * TAG_BYTES)
}

const PURPOSE: &[u8] = b"holdfast section v1";

/// An empty payload still has one chunk, so that even nothing is authenticated.
fn chunk_count(payload_len: u64) -> u64 {
    payload_len.div_ceil(CHUNK_BYTES as u64).max(1)
}

/// Seven zero bytes, the chunk's number, and whether it is the last. The key is the section's own,
/// so nothing else ever uses these nonces.
fn nonce(counter: u64, chunks: u64) -> aead::Nonce {
    let mut nonce = [0; aead::NONCE_LEN];
    nonce[7..11].copy_from_slice(&(counter as u32).to_be_bytes());
    nonce[11] = u8::from(counter + 1 == chunks);
    aead::Nonce::assume_unique_for_key(nonce)
}

fn section_aad(header: &Header, key: &str) -> Vec<u8> {
    let mut aad = header.encode().to_vec();
    aad.extend_from_slice(key.as_bytes());
    aad
}

/// Compressed bytes, or `None` when compressing saves less than a sixteenth.
fn compress(content: &[u8], effort: Effort) -> Result<(Encoding, Option<Vec<u8>>)> {
    if content.len() < 64 {
        return Ok((Encoding::Raw, None));
    }
    let packed = zstd::bulk::compress(content, effort.level())
        .map_err(|error| Error::io("an object cannot be compressed", error))?;
    Ok(if packed.len() + content.len() / 16 < content.len() {
        (Encoding::Zstd, Some(packed))
    } else {
        (Encoding::Raw, None)
    })
}

/// Never writes beyond `content_len`, whatever the compressed bytes would expand to.
fn decompress(payload: &[u8], content_len: usize, key: &str) -> Result<Vec<u8>> {
    let content = zstd::bulk::decompress(payload, content_len)
        .map_err(|_| Error::corrupted(key, "it does not decompress to what its header says"))?;
    if content.len() != content_len {
        return Err(Error::corrupted(
            key,
            "it decompresses to less than its header says",
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "backups/a/b/manifest.1";

    fn data_key() -> DataKey {
        DataKey::generate().unwrap()
    }

    fn is_corrupted<T>(result: Result<T>) -> bool {
        matches!(result, Err(Error::Corrupted { .. }))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_sealed_opens_and_any_flipped_bit_or_cut_is_noticed(
            unit in proptest::collection::vec(any::<u8>(), 0..300),
            times in 0usize..3000,
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let content = unit.repeat(times);
            let data_key = data_key();
            let sealed = seal(&data_key, Class::Manifest, KEY, &content).unwrap();
            prop_assert_eq!(sealed_len(KEY, &sealed).unwrap(), sealed.len() as u64);
            prop_assert_eq!(&open(&data_key, Class::Manifest, KEY, &sealed).unwrap()[..], &content[..]);

            let at = at.index(sealed.len());
            let mut flipped = sealed.to_vec();
            flipped[at] ^= 1 << bit;
            prop_assert!(is_corrupted(open(&data_key, Class::Manifest, KEY, &flipped)));
            prop_assert!(is_corrupted(open(&data_key, Class::Manifest, KEY, &sealed[..at])));
        }

        #[test]
        fn hostile_bytes_are_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            with_magic in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if with_magic && bytes.len() >= 16 {
                let real = seal(&data_key(), Class::Wal, KEY, b"x").unwrap();
                bytes[..12].copy_from_slice(&real[..12]);
            }
            prop_assert!(is_corrupted(open(&data_key(), Class::Wal, KEY, &bytes)));
        }
    }

    #[test]
    fn an_object_in_the_place_of_another_is_noticed() {
        let (ours, theirs) = (data_key(), data_key());
        let sealed = seal(&ours, Class::Wal, KEY, b"rows").unwrap();
        assert!(
            is_corrupted(open(&theirs, Class::Wal, KEY, &sealed)),
            "another server's"
        );
        assert!(
            is_corrupted(open(&ours, Class::Wal, "backups/a/b/manifest.2", &sealed)),
            "another key"
        );
        assert!(
            is_corrupted(open(&ours, Class::History, KEY, &sealed)),
            "another class"
        );
        let longer = [&sealed[..], b"x"].concat();
        assert!(
            is_corrupted(open(&ours, Class::Wal, KEY, &longer)),
            "something follows"
        );
    }

    #[test]
    fn chunks_cannot_change_places_or_be_dropped() {
        let data_key = data_key();
        let mut noise = vec![0; 3 * CHUNK_BYTES];
        crate::key::random(&mut noise).unwrap();
        let sealed = seal(&data_key, Class::Wal, KEY, &noise).unwrap();
        let chunk = CHUNK_BYTES + TAG_BYTES;
        let at = |n: usize| HEADER_BYTES + n * chunk..HEADER_BYTES + (n + 1) * chunk;
        let swapped = [
            &sealed[..HEADER_BYTES],
            &sealed[at(1)],
            &sealed[at(0)],
            &sealed[at(2)],
        ]
        .concat();
        assert!(is_corrupted(open(&data_key, Class::Wal, KEY, &swapped)));
        let dropped = [&sealed[..HEADER_BYTES], &sealed[at(0)], &sealed[at(2)]].concat();
        assert!(is_corrupted(open(&data_key, Class::Wal, KEY, &dropped)));
    }

    #[test]
    fn a_compression_bomb_expands_to_no_more_than_its_header_says() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        assert!(bomb.len() < 16 << 10);
        assert!(is_corrupted(decompress(&bomb, 8192, KEY)));
        let data_key = data_key();
        let mut sealed = seal(&data_key, Class::Wal, KEY, b"x").unwrap().to_vec();
        sealed[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(
            is_corrupted(open(&data_key, Class::Wal, KEY, &sealed)),
            "claims 2^64 bytes"
        );
    }

    #[test]
    fn sections_follow_each_other_in_one_object() {
        let data_key = data_key();
        let head = seal(&data_key, Class::WalHeader, KEY, b"head").unwrap();
        let body = seal(&data_key, Class::Wal, KEY, &[7; 1000]).unwrap();
        let object = [head, body].concat();
        let (content, consumed) = open_first(&data_key, Class::WalHeader, KEY, &object).unwrap();
        assert_eq!(&content[..], b"head");
        assert_eq!(
            &open(&data_key, Class::Wal, KEY, &object[consumed..]).unwrap()[..],
            [7; 1000]
        );
    }

    // FLX-010
    #[test]
    fn no_plaintext_is_found_in_a_sealed_object() {
        let marker = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let sealed = seal(&data_key(), Class::Wal, KEY, marker).unwrap();
        assert!(
            !sealed
                .windows(8)
                .any(|window| marker.windows(8).any(|part| part == window))
        );
    }
}
