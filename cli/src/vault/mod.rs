//! `holdfast vault …`: what can be done with a vault and its key-encryption key alone (DESIGN §3.14). No site,
//! no metadata store and no agent has a part in it; nothing is ever written to the vault.

pub mod inspect;
pub mod restore;
pub mod verify;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use holdfast_domain::IncarnationId;
use holdfast_domain::job::WrappedKey;
use holdfast_vault::key::find_data_key;
use holdfast_vault::rescan::listing::{Listing, VaultListing};
use holdfast_vault::rescan::scan::Scan;
use holdfast_vault::{DataKey, Error, KeyRing, Store};
use url::Url;

use crate::command::{Output, VaultPlace};
use crate::exit::Failure;

/// Somebody waits at a terminal: shorter than an agent's patience.
const RETRY_BUDGET: Duration = Duration::from_secs(20);

/// A vault that exists.
pub(crate) struct Vault {
    pub store: Store,
    /// As `inspect` shows it.
    pub url: String,
    pub listing: VaultListing,
}

/// One incarnation, opened.
pub(crate) struct Opened {
    pub incarnation: IncarnationId,
    pub data_key: DataKey,
    pub wrapped_key: WrappedKey,
    pub listing: Listing,
    pub scan: Scan,
}

impl Vault {
    pub async fn open(place: &VaultPlace) -> Result<Self> {
        let url = url_of(&place.vault)?;
        let store = Store::open(&url)
            .map_err(|error| match error {
                Error::Refused { what } => Failure::Usage(what).into(),
                other => failed(other),
            })?
            .with_retry_budget(RETRY_BUDGET);
        let listing = VaultListing::of(&store).await.map_err(failed)?;
        Ok(Self {
            store,
            url,
            listing,
        })
    }

    /// Opens one incarnation with a key of the ring.
    pub async fn incarnation(
        &self,
        incarnation: IncarnationId,
        ring: &KeyRing,
    ) -> Result<Opened, Error> {
        let mut listing = self.listing.incarnations[&incarnation].clone();
        let stores = std::slice::from_ref(&self.store);
        let (data_key, wrapped_key) = find_data_key(stores, ring, incarnation).await?;
        let scan = Scan::of(&self.store, &data_key, incarnation, &mut listing).await?;
        Ok(Opened {
            incarnation,
            data_key,
            wrapped_key,
            listing,
            scan,
        })
    }

    /// The incarnation that is meant: the one named, or the only one.
    pub fn choose(&self, named: Option<IncarnationId>) -> Result<IncarnationId> {
        let all = &self.listing.incarnations;
        match named {
            Some(named) if all.contains_key(&named) => Ok(named),
            Some(named) => Err(Failure::NotFound(format!(
                "IncarnationNotFound: the vault has no incarnation {named}"
            ))
            .into()),
            None => match all.keys().collect::<Vec<_>>()[..] {
                [] => Err(empty()),
                [only] => Ok(*only),
                _ => Err(Failure::Usage(
                    "the vault has more than one incarnation; choose with --incarnation, `holdfast vault \
                     inspect` shows them"
                        .to_owned(),
                )
                .into()),
            },
        }
    }
}

fn empty() -> anyhow::Error {
    Failure::NotFound("VaultEmpty: there is nothing of Holdfast's there".to_owned()).into()
}

/// A URL as it is; a directory, which has to exist, as one.
fn url_of(text: &str) -> Result<String> {
    let directory = match Url::parse(text) {
        Ok(url) if url.scheme() == "file" => url.to_file_path().ok(),
        Ok(_) => return Ok(text.to_owned()),
        Err(_) => Some(text.into()),
    };
    let found = directory
        .and_then(|directory| std::fs::canonicalize(directory).ok())
        .filter(|directory| directory.is_dir())
        .and_then(|directory| Url::from_directory_path(directory).ok());
    let url = found.ok_or_else(|| Failure::NotFound(format!("{text} is not a directory")))?;
    Ok(url.to_string())
}

/// A key file under any name, or a directory with `{version}.key` in it.
pub(crate) fn key_ring(path: &Path) -> Result<KeyRing> {
    let read = match path.is_dir() {
        true => KeyRing::load(path),
        false => KeyRing::load_file(path),
    };
    let ring = read.map_err(|error| match error {
        Error::Refused { what } => anyhow::Error::new(Failure::Usage(what)),
        other => anyhow!(other),
    })?;
    match ring.is_empty() {
        true => Err(Failure::Usage(format!("there is no key in {}", path.display())).into()),
        false => Ok(ring),
    }
}

/// With its code in front, and an exit code where there is one of its own.
pub(crate) fn failed(error: Error) -> anyhow::Error {
    let text = format!("{}: {error}", error.code());
    match error {
        Error::KeyUnavailable { version } => Failure::NotAllowed(format!(
            "KeyUnavailable: the key that was given does not open it; its data key is wrapped by the \
             key-encryption key of version {version:?}"
        ))
        .into(),
        Error::Corrupted { .. } | Error::NotFound { .. } | Error::WalGap { .. } => {
            Failure::Damaged(text).into()
        }
        _ => anyhow!(text),
    }
}

/// Scripts get JSON unless they ask otherwise, people a table.
pub(crate) fn wants_table(output: Option<Output>) -> bool {
    output.map_or(std::io::stdout().is_terminal(), |output| {
        output == Output::Table
    })
}

pub(crate) fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).context("the answer cannot be written as JSON")
}

/// `3.1 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut amount = count as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{amount:.1} {}", UNITS[unit]),
    }
}

/// Wide as its widest line needs.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = widths.entry(column).or_default();
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("{cell:<width$}", width = widths[&column]))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_not_there_is_not_made() {
        let root = tempfile::tempdir().expect("a directory");
        let missing = root.path().join("vault");
        for text in [
            missing.display().to_string(),
            format!("file://{}", missing.display()),
        ] {
            assert!(url_of(&text).is_err(), "{text}");
        }
        assert!(!missing.exists());
        std::fs::create_dir(&missing).expect("made");
        let url = url_of(&missing.display().to_string()).expect("there");
        assert!(
            url.starts_with("file:///") && url.ends_with("/vault/"),
            "{url}"
        );
        assert_eq!(url_of("s3://b/p").expect("a URL"), "s3://b/p");
    }

    #[test]
    fn amounts_are_for_people() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (3 << 30, "3.0 GiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
