//! Where things lie in a vault. Only UUIDs and numbers: a server's name never becomes part of a key
//! (DESIGN §3.13). The whole table of keys is in `docs/VAULT-FORMAT.md` §1.
//!
//! Objects of an attempt carry job and epoch, so that a dead attempt's leavings are told apart from
//! a living one's (DESIGN §3.8). WAL ranges sort in the order of the log.

use holdfast_domain::{BackupId, IncarnationId, JobId, Lsn, Timeline};

use crate::{Error, Result};

/// `keys/{incarnation}/{kek version}`: the data key, wrapped by that key-encryption key.
pub fn wrapped_key(incarnation: IncarnationId, kek_version: &str) -> Result<String> {
    check_kek_version(kek_version)?;
    Ok(format!("keys/{incarnation}/{kek_version}"))
}

#[must_use]
pub fn wrapped_keys_prefix(incarnation: IncarnationId) -> String {
    format!("keys/{incarnation}/")
}

/// A version becomes part of a key and of a file name: letters, digits, `.`, `_`, `-`, at most 64,
/// not beginning with a dot.
pub(crate) fn check_kek_version(version: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if version.is_empty()
        || version.len() > 64
        || version.starts_with('.')
        || !version.bytes().all(allowed)
    {
        return Err(Error::refused(
            "a key version has 1 to 64 of the characters a-z, A-Z, 0-9, '.', '_', '-'",
        ));
    }
    Ok(())
}

/// `backups/{incarnation}/{backup}/manifest.{generation}`.
#[must_use]
pub fn manifest(incarnation: IncarnationId, backup: BackupId, generation: u32) -> String {
    format!("backups/{incarnation}/{backup}/manifest.{generation}")
}

/// All generations of one backup.
#[must_use]
pub fn manifests_of(incarnation: IncarnationId, backup: BackupId) -> String {
    format!("backups/{incarnation}/{backup}/")
}

#[must_use]
pub fn manifests_prefix(incarnation: IncarnationId) -> String {
    format!("backups/{incarnation}/")
}

/// The backup and generation that a manifest's key names.
#[must_use]
pub fn parse_manifest(key: &str) -> Option<(IncarnationId, BackupId, u32)> {
    let mut parts = key.strip_prefix("backups/")?.split('/');
    let incarnation = parts.next()?.parse().ok()?;
    let backup = parts.next()?.parse().ok()?;
    let generation = parts.next()?.strip_prefix("manifest.")?.parse().ok()?;
    let parsed = parts
        .next()
        .is_none()
        .then_some((incarnation, backup, generation))?;
    (manifest(parsed.0, parsed.1, parsed.2) == key).then_some(parsed)
}

/// `packs/{incarnation}/{job}.{epoch}/{n}`: frames of pages.
#[must_use]
pub fn pack(incarnation: IncarnationId, job: JobId, epoch: i64, number: u32) -> String {
    format!("packs/{incarnation}/{job}.{epoch}/{number}")
}

/// `leaves/{incarnation}/{job}.{epoch}/{n}`: frames of leaves.
#[must_use]
pub fn leaves(incarnation: IncarnationId, job: JobId, epoch: i64, number: u32) -> String {
    format!("leaves/{incarnation}/{job}.{epoch}/{number}")
}

/// Whether a key is that of a pack or a leaf object.
#[must_use]
pub fn is_packed(key: &str) -> bool {
    let parsed = || {
        let mut parts = key.split('/');
        let kind: fn(IncarnationId, JobId, i64, u32) -> String = match parts.next()? {
            "packs" => pack,
            "leaves" => leaves,
            _ => return None,
        };
        let incarnation = parts.next()?.parse().ok()?;
        let (job, epoch) = parts.next()?.rsplit_once('.')?;
        let number = parts.next()?.parse().ok()?;
        Some(kind(
            incarnation,
            job.parse().ok()?,
            epoch.parse().ok()?,
            number,
        ))
    };
    parsed().is_some_and(|written| written == key)
}

/// `wal/{incarnation}/{timeline}/{start}-{end}`, all in fixed-width hexadecimal.
#[must_use]
pub fn wal(incarnation: IncarnationId, timeline: Timeline, start: Lsn, end: Lsn) -> String {
    format!(
        "wal/{incarnation}/{:08X}/{}-{}",
        timeline.0,
        start.sortable(),
        end.sortable()
    )
}

/// `wal/{incarnation}/{timeline}.history`.
#[must_use]
pub fn history(incarnation: IncarnationId, timeline: Timeline) -> String {
    format!("wal/{incarnation}/{}", timeline.history_file_name())
}

/// Everything of an incarnation's log, or of one timeline of it.
#[must_use]
pub fn wal_prefix(incarnation: IncarnationId, timeline: Option<Timeline>) -> String {
    match timeline {
        Some(timeline) => format!("wal/{incarnation}/{:08X}/", timeline.0),
        None => format!("wal/{incarnation}/"),
    }
}

/// What a WAL object's key says it is, or `None` for any other key.
#[must_use]
pub fn parse_wal(key: &str) -> Option<(IncarnationId, Timeline, Lsn, Lsn)> {
    let mut parts = key.strip_prefix("wal/")?.split('/');
    let incarnation = parts.next()?.parse().ok()?;
    let timeline = Timeline(u32::from_str_radix(parts.next()?, 16).ok()?);
    let (start, end) = parts.next()?.split_once('-')?;
    let start = Lsn(u64::from_str_radix(start, 16).ok()?);
    let end = Lsn(u64::from_str_radix(end, 16).ok()?);
    (parts.next().is_none() && start < end && wal(incarnation, timeline, start, end) == key)
        .then_some((incarnation, timeline, start, end))
}

/// The timeline whose history a key holds, or `None` for any other key.
#[must_use]
pub fn parse_history(key: &str) -> Option<(IncarnationId, Timeline)> {
    let (incarnation, name) = key.strip_prefix("wal/")?.split_once('/')?;
    let incarnation = incarnation.parse().ok()?;
    let timeline = Timeline(u32::from_str_radix(name.strip_suffix(".history")?, 16).ok()?);
    (history(incarnation, timeline) == key).then_some((incarnation, timeline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_back_to_what_it_names() {
        let incarnation = IncarnationId::new();
        let (start, end) = (Lsn(0x0100_0028), Lsn(0x0200_0000));
        let key = wal(incarnation, Timeline(2), start, end);
        assert!(key.ends_with("/00000002/0000000001000028-0000000002000000"));
        assert_eq!(
            parse_wal(&key),
            Some((incarnation, Timeline(2), start, end))
        );

        let key = history(incarnation, Timeline(0x1F));
        assert_eq!(parse_history(&key), Some((incarnation, Timeline(0x1F))));
        assert_eq!(parse_wal(&key), None);

        let backup = BackupId::new();
        let key = manifest(incarnation, backup, 3);
        assert_eq!(parse_manifest(&key), Some((incarnation, backup, 3)));
        for foreign in [
            format!("{key}#1"),
            format!("{key}/x"),
            key.replace(".3", ".03"),
        ] {
            assert_eq!(parse_manifest(&foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_key_version_cannot_climb_out_of_its_prefix() {
        let incarnation = IncarnationId::new();
        assert!(wrapped_key(incarnation, "2026-11").is_ok());
        for bad in ["", ".", "..", "a/b", "ü", "a b", &"x".repeat(65)] {
            assert!(wrapped_key(incarnation, bad).is_err(), "{bad}");
        }
    }
}
