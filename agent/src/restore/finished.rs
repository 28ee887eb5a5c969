//! What a finished restore leaves beside its data, so that a job whose report got lost answers the same.
//!
//! Written before the directory gets its final name: a directory with that name and this file is whole.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use holdfast_domain::job::RestoreOutcome;
use serde::{Deserialize, Serialize};

use super::parameters::Parameters;
use crate::error::{Error, Result};

const FILE: &str = "restored.json";

/// The outcome as far as it is known before the server first runs in production.
#[derive(Serialize, Deserialize)]
pub struct Finished {
    pub outcome: RestoreOutcome,
    pub source_parameters: Parameters,
    pub subscriptions: Vec<String>,
    pub prepared_transactions: Vec<String>,
    pub damaged_pages: usize,
}

impl Finished {
    /// `None`: no restore has finished in this directory.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }

    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let bytes =
            serde_json::to_vec(self).map_err(|error| Error::file("write", &path)(error.into()))?;
        // The source's parameters are nobody else's business.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .map_err(Error::file("write", path))
    }
}
