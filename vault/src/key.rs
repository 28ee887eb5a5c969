//! Keys. Each incarnation has one *data key*; *key-encryption keys* (KEKs), which the operator keeps
//! as files, wrap it (DESIGN §3.14, RELIABILITY §4.4). Everything else is derived from the data key.
//!
//! A wrap is bound to its incarnation and KEK version: a wrapped key that was moved to another
//! server's place does not open. Rotation adds a wrap; it never rewrites data.

mod stored;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use aws_lc_rs::{aead, hkdf};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use holdfast_domain::IncarnationId;
use holdfast_domain::job::WrappedKey;
use secrecy::zeroize::Zeroizing;

pub use stored::{establish_data_key, find_data_key, load_wrapped_keys, put_wrapped_key};

use crate::{Error, Result, layout};

pub(crate) const KEY_BYTES: usize = 32;
pub(crate) const SALT_BYTES: usize = 32;

const WRAP_FORMAT: u8 = 1;
/// More than a key file is; whatever is longer is none.
const KEY_FILE_BYTES: u64 = 4096;
const WRAP_BYTES: usize = 1 + SALT_BYTES + KEY_BYTES + 16;

/// The key of one incarnation. Its bytes leave this type only wrapped or derived.
#[derive(Clone)]
pub struct DataKey {
    secret: Zeroizing<[u8; KEY_BYTES]>,
    id: [u8; 8],
}

impl DataKey {
    /// A new key from the system's randomness.
    pub fn generate() -> Result<Self> {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        random(&mut secret[..])?;
        Ok(Self::from_secret(secret))
    }

    fn from_secret(secret: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let mut id = [0; 8];
        expand(&secret, &[], &[b"holdfast data key id v1"], &mut id);
        Self { secret, id }
    }

    /// Tells data keys apart without giving anything away: part of every object's header.
    #[must_use]
    pub fn id(&self) -> [u8; 8] {
        self.id
    }

    /// The AES-256-GCM key for one salt and purpose.
    pub(crate) fn aead(
        &self,
        salt: &[u8; SALT_BYTES],
        purpose: &[u8],
    ) -> Result<aead::LessSafeKey> {
        let mut derived = Zeroizing::new([0; KEY_BYTES]);
        expand(&self.secret, salt, &[purpose], &mut derived[..]);
        cipher(&derived)
    }

    /// The key of the page hashes. Keyed, so that an object store cannot learn by comparing hashes
    /// that two servers hold the same page.
    pub(crate) fn page_hash_key(&self) -> Zeroizing<[u8; KEY_BYTES]> {
        let mut derived = Zeroizing::new([0; KEY_BYTES]);
        expand(
            &self.secret,
            &[],
            &[b"holdfast page hash v1"],
            &mut derived[..],
        );
        derived
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

/// The key-encryption keys that this process may use, by version. The newest wraps.
#[derive(Clone, Default)]
pub struct KeyRing {
    keys: BTreeMap<String, Zeroizing<[u8; KEY_BYTES]>>,
    /// A key whose version is not known: it is tried where a version's own key is not at hand.
    of_any_version: Option<Zeroizing<[u8; KEY_BYTES]>>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

impl KeyRing {
    /// Reads every `{version}.key` of a directory: 32 bytes as base64 or hexadecimal text.
    /// The newest version wraps: the largest number, or the last text if they are not all numbers.
    pub fn load(dir: &Path) -> Result<Self> {
        let read = |what: &str| {
            let what = what.to_owned();
            move |error| Error::io(what, error)
        };
        let mut ring = Self::default();
        for entry in std::fs::read_dir(dir).map_err(read("the key directory cannot be read"))? {
            let path = entry
                .map_err(read("the key directory cannot be read"))?
                .path();
            let Some(version) = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".key"))
            else {
                continue;
            };
            layout::check_kek_version(version)?;
            ring.keys.insert(version.to_owned(), read_key(&path)?);
        }
        Ok(ring)
    }

    /// Reads one key file, whatever it is called: somebody who kept a copy of a key may have given it
    /// another name. It is tried for every version; a wrap opens under its own key and version only.
    pub fn load_file(path: &Path) -> Result<Self> {
        Ok(Self {
            of_any_version: Some(read_key(path)?),
            ..Self::default()
        })
    }

    /// Makes a new key-encryption key file that only its owner can read, and returns the ring with
    /// it. An existing file of this version is kept and used.
    pub fn create(dir: &Path, version: &str) -> Result<Self> {
        layout::check_kek_version(version)?;
        let failed = |error| Error::io(format!("key file {version}.key cannot be written"), error);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed)?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        random(&mut key[..])?;
        let text = Zeroizing::new(BASE64_STANDARD.encode(&key[..]));
        // Written beside and linked into place: a key that exists is complete and is never replaced.
        let mut beside = tempfile_beside(dir, version).map_err(failed)?;
        let written = writeln!(beside.file, "{}", *text).and_then(|()| beside.file.sync_all());
        let linked = written.and_then(|()| {
            match std::fs::hard_link(&beside.path, dir.join(format!("{version}.key"))) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        });
        std::fs::remove_file(&beside.path).map_err(failed)?;
        linked
            .and_then(|()| std::fs::File::open(dir)?.sync_all())
            .map_err(failed)?;
        Self::load(dir)
    }

    /// A ring of keys that somebody else keeps.
    pub fn from_keys(keys: impl IntoIterator<Item = (String, [u8; KEY_BYTES])>) -> Result<Self> {
        let mut ring = Self::default();
        for (version, key) in keys {
            layout::check_kek_version(&version)?;
            ring.keys.insert(version, Zeroizing::new(key));
        }
        Ok(ring)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.of_any_version.is_none()
    }

    pub fn versions(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    fn newest(&self) -> Option<(&String, &Zeroizing<[u8; KEY_BYTES]>)> {
        let number = |version: &str| version.parse::<u64>().ok();
        self.keys
            .iter()
            .max_by(|(a, _), (b, _)| match (number(a), number(b)) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.cmp(b),
            })
    }

    /// Wraps under the newest key.
    pub fn wrap(&self, key: &DataKey, incarnation: IncarnationId) -> Result<WrappedKey> {
        let (version, kek) = self.newest().ok_or_else(|| Error::KeyUnavailable {
            version: "any".to_owned(),
        })?;
        let mut wrapped = Vec::with_capacity(WRAP_BYTES);
        wrapped.push(WRAP_FORMAT);
        let mut salt = [0; SALT_BYTES];
        random(&mut salt)?;
        wrapped.extend_from_slice(&salt);
        let mut sealed = Zeroizing::new(*key.secret);
        let tag = wrap_cipher(kek, &salt)?
            .seal_in_place_separate_tag(
                only_nonce(),
                wrap_aad(incarnation, version),
                &mut sealed[..],
            )
            .map_err(|_| crypto_failed())?;
        wrapped.extend_from_slice(&sealed[..]);
        wrapped.extend_from_slice(tag.as_ref());
        Ok(WrappedKey {
            kek_version: version.clone(),
            wrapped: BASE64_STANDARD.encode(wrapped),
        })
    }

    /// Opens a wrap. Anything that does not open is `KeyUnavailable`: from outside, a wrong key and
    /// a damaged wrap look alike, and the cure for both is another wrap or the right key.
    pub fn unwrap(&self, wrapped: &WrappedKey, incarnation: IncarnationId) -> Result<DataKey> {
        let unavailable = || Error::KeyUnavailable {
            version: wrapped.kek_version.chars().take(64).collect(),
        };
        let kek = self
            .keys
            .get(&wrapped.kek_version)
            .or(self.of_any_version.as_ref())
            .ok_or_else(unavailable)?;
        let bytes = BASE64_STANDARD
            .decode(&wrapped.wrapped)
            .map_err(|_| unavailable())?;
        if bytes.len() != WRAP_BYTES || bytes[0] != WRAP_FORMAT {
            return Err(unavailable());
        }
        let (salt, sealed) = bytes[1..].split_at(SALT_BYTES);
        let salt: [u8; SALT_BYTES] = salt.try_into().map_err(|_| unavailable())?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let opened = wrap_cipher(kek, &salt)?
            .open_in_place(
                only_nonce(),
                wrap_aad(incarnation, &wrapped.kek_version),
                &mut sealed,
            )
            .map_err(|_| unavailable())?;
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        secret.copy_from_slice(opened);
        Ok(DataKey::from_secret(secret))
    }
}

struct Beside {
    file: std::fs::File,
    path: std::path::PathBuf,
}

fn tempfile_beside(dir: &Path, version: &str) -> std::io::Result<Beside> {
    let path = dir.join(format!(".{version}.{}", uuid::Uuid::new_v4()));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    Ok(Beside { file, path })
}

fn read_key(path: &Path) -> Result<Zeroizing<[u8; KEY_BYTES]>> {
    let name = path.file_name().unwrap_or_default().display().to_string();
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)
        .and_then(|file| file.take(KEY_FILE_BYTES).read_to_string(&mut text))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => not_a_key(&name),
            _ => Error::io(format!("key file {name} cannot be read"), error),
        })?;
    parse_key(text.trim()).ok_or_else(|| not_a_key(&name))
}

fn not_a_key(name: &str) -> Error {
    Error::refused(format!(
        "key file {name} must hold 32 bytes as base64 or 64 hexadecimal digits"
    ))
}

fn parse_key(text: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if text.len() == 2 * KEY_BYTES {
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |b: u8| (b as char).to_digit(16);
            *byte = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
        }
        return Some(key);
    }
    let bytes = Zeroizing::new(BASE64_STANDARD.decode(text).ok()?);
    (bytes.len() == KEY_BYTES).then(|| key.copy_from_slice(&bytes))?;
    Some(key)
}

fn wrap_cipher(kek: &[u8; KEY_BYTES], salt: &[u8; SALT_BYTES]) -> Result<aead::LessSafeKey> {
    let mut derived = Zeroizing::new([0; KEY_BYTES]);
    expand(kek, salt, &[b"holdfast wrap v1"], &mut derived[..]);
    cipher(&derived)
}

fn wrap_aad(incarnation: IncarnationId, kek_version: &str) -> aead::Aad<Vec<u8>> {
    let mut aad = b"holdfast wrap v1".to_vec();
    aad.extend_from_slice(incarnation.0.as_bytes());
    aad.extend_from_slice(kek_version.as_bytes());
    aead::Aad::from(aad)
}

/// The key is derived from a fresh salt and used for one message: the nonce may be a constant.
fn only_nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
}

fn cipher(key: &[u8; KEY_BYTES]) -> Result<aead::LessSafeKey> {
    aead::UnboundKey::new(&aead::AES_256_GCM, key)
        .map(aead::LessSafeKey::new)
        .map_err(|_| crypto_failed())
}

/// HKDF-SHA256.
fn expand(secret: &[u8; KEY_BYTES], salt: &[u8], info: &[&[u8]], out: &mut [u8]) {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(info, Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("HKDF-SHA256 gives up to 8160 bytes and is asked for at most 32");
}

pub(crate) fn random(out: &mut [u8]) -> Result<()> {
    aws_lc_rs::rand::fill(out).map_err(|_| crypto_failed())
}

pub(crate) fn crypto_failed() -> Error {
    Error::io(
        "the system's cryptography does not work",
        std::io::Error::other("AWS-LC refused"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(versions: &[(&str, u8)]) -> KeyRing {
        KeyRing::from_keys(
            versions
                .iter()
                .map(|(v, byte)| ((*v).to_owned(), [*byte; 32])),
        )
        .unwrap()
    }

    #[test]
    fn a_wrapped_key_opens_with_its_own_key_for_its_own_incarnation_only() {
        let incarnation = IncarnationId::new();
        let key = DataKey::generate().unwrap();
        let wrapped = ring(&[("1", 1)]).wrap(&key, incarnation).unwrap();
        assert_eq!(
            ring(&[("1", 1), ("2", 2)])
                .unwrap(&wrapped, incarnation)
                .unwrap()
                .id(),
            key.id()
        );

        let refused = |ring: KeyRing, wrapped: &WrappedKey, incarnation| matches!(ring.unwrap(wrapped, incarnation), Err(Error::KeyUnavailable { version }) if version == wrapped.kek_version);
        assert!(
            refused(ring(&[("1", 9)]), &wrapped, incarnation),
            "another key"
        );
        assert!(
            refused(ring(&[("2", 1)]), &wrapped, incarnation),
            "no such version"
        );
        assert!(
            refused(ring(&[("1", 1)]), &wrapped, IncarnationId::new()),
            "another server's"
        );
        let renamed = WrappedKey {
            kek_version: "2".into(),
            ..wrapped.clone()
        };
        assert!(
            refused(ring(&[("2", 1)]), &renamed, incarnation),
            "another version's name"
        );
        let garbage = WrappedKey {
            wrapped: "AAAA".into(),
            ..wrapped
        };
        assert!(refused(ring(&[("1", 1)]), &garbage, incarnation));
    }

    #[test]
    fn rotation_adds_a_wrap_and_the_old_one_goes_on_opening() {
        let incarnation = IncarnationId::new();
        let key = DataKey::generate().unwrap();
        let both = ring(&[("2026-01", 1), ("2026-02", 2)]);
        let old = ring(&[("2026-01", 1)]).wrap(&key, incarnation).unwrap();
        let new = both.wrap(&key, incarnation).unwrap();
        assert_eq!(new.kek_version, "2026-02");
        let tenth = ring(&[("9", 1), ("10", 2)])
            .wrap(&key, incarnation)
            .unwrap();
        assert_eq!(tenth.kek_version, "10", "numbers are compared as numbers");
        for wrapped in [old, new] {
            assert_eq!(both.unwrap(&wrapped, incarnation).unwrap().id(), key.id());
        }
    }

    #[test]
    fn a_key_file_is_made_once_and_read_as_base64_or_hexadecimal() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let incarnation = IncarnationId::new();
        let data_key = DataKey::generate().unwrap();
        let wrapped = KeyRing::create(&keys, "1")
            .unwrap()
            .wrap(&data_key, incarnation)
            .unwrap();
        let again = KeyRing::create(&keys, "1").unwrap();
        assert_eq!(
            again.unwrap(&wrapped, incarnation).unwrap().id(),
            data_key.id()
        );
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&keys), mode(&keys.join("1.key"))), (0o700, 0o600));
        assert_eq!(
            std::fs::read_dir(&keys).unwrap().count(),
            1,
            "nothing is left beside it"
        );

        std::fs::write(keys.join("2.key"), "ab".repeat(32)).unwrap();
        let both = KeyRing::load(&keys).unwrap();
        assert_eq!(both.versions().collect::<Vec<_>>(), ["1", "2"]);
        std::fs::write(keys.join("3.key"), "short").unwrap();
        assert!(matches!(KeyRing::load(&keys), Err(Error::Refused { .. })));

        // A copy under another name opens what it wrapped, and nothing else.
        let copy = dir.path().join("from the safe.txt");
        std::fs::copy(keys.join("1.key"), &copy).unwrap();
        let alone = KeyRing::load_file(&copy).unwrap();
        let opened = alone.unwrap(&wrapped, incarnation).unwrap();
        assert_eq!(opened.id(), data_key.id());
        let wrong = KeyRing::load_file(&keys.join("2.key")).unwrap();
        assert!(matches!(
            wrong.unwrap(&wrapped, incarnation),
            Err(Error::KeyUnavailable { .. })
        ));
        for no_key in [&b"short"[..], b"", &[0xFF; 32], &[b'A'; 1 << 20]] {
            std::fs::write(&copy, no_key).unwrap();
            let read = KeyRing::load_file(&copy);
            assert!(matches!(read, Err(Error::Refused { .. })), "{read:?}");
        }
    }

    #[test]
    fn a_key_never_shows_in_debug_output() {
        let ring = ring(&[("1", 0x41)]);
        assert_eq!(format!("{ring:?}"), "{\"1\"}");
        assert_eq!(format!("{:?}", DataKey::generate().unwrap()), "DataKey(…)");
    }
}
