//! What the control plane last said this node should be running, kept on disk: after a restart the
//! servers and their streams come back without it (RELIABILITY §5.3.8, ≥ 24 h).
//!
//! Wrapped keys in here are useless without the key-encryption key; still the file is the agent's only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use holdfast_domain::IncarnationId;
use holdfast_domain::job::{Assignment, Power};

use crate::credentials::replace_private;
use crate::error::{Error, Result};

#[derive(Debug)]
pub struct Assignments {
    path: PathBuf,
    known: BTreeMap<IncarnationId, Assignment>,
}

impl Assignments {
    pub fn load(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join("assignments.json");
        let known = match std::fs::read(&path) {
            Ok(bytes) => {
                let list: Vec<Assignment> =
                    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                        // The control plane says it all again with the next hello.
                        tracing::error!(%error, "the cache of assignments cannot be read");
                        Vec::new()
                    });
                list.into_iter()
                    .map(|a| (a.placement.incarnation, a))
                    .collect()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        Ok(Self { path, known })
    }

    #[must_use]
    pub fn list(&self) -> Vec<Assignment> {
        self.known.values().cloned().collect()
    }

    /// Remembers one assignment; writes only when it is news.
    pub fn put(&mut self, assignment: Assignment) -> Result<()> {
        let incarnation = assignment.placement.incarnation;
        if self.known.get(&incarnation) == Some(&assignment) {
            return Ok(());
        }
        self.known.insert(incarnation, assignment);
        self.save()
    }

    pub fn set_power(&mut self, incarnation: IncarnationId, power: Power) -> Result<()> {
        match self.known.get_mut(&incarnation) {
            Some(assignment) if assignment.power != power => {
                assignment.power = power;
                self.save()
            }
            _ => Ok(()),
        }
    }

    pub fn remove(&mut self, incarnation: IncarnationId) -> Result<()> {
        match self.known.remove(&incarnation) {
            Some(_) => self.save(),
            None => Ok(()),
        }
    }

    fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.list()).map_err(|error| Error::System {
            what: "write the cache of assignments",
            source: error.into(),
        })?;
        replace_private(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_domain::job::{Placement, VaultRef, WrappedKey};
    use holdfast_domain::{ServerId, VaultId};

    use super::*;

    #[test]
    fn assignments_outlive_the_agent() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let incarnation = IncarnationId::new();
        let assignment = Assignment {
            placement: Placement {
                server: ServerId::new(),
                incarnation,
                server_name: "pg1".into(),
                major: 15,
                port: 5501,
                vaults: vec![VaultRef {
                    id: VaultId::new(),
                    url: "file:///v".into(),
                }],
            },
            wrapped_key: WrappedKey {
                kek_version: "1".into(),
                wrapped: "x".into(),
            },
            power: Power::Running,
        };
        let mut cache = Assignments::load(dir.path()).expect("empty");
        cache.put(assignment.clone()).expect("kept");
        cache.set_power(incarnation, Power::Stopped).expect("kept");
        let again = Assignments::load(dir.path()).expect("readable");
        assert_eq!(
            again.list(),
            [Assignment {
                power: Power::Stopped,
                ..assignment
            }]
        );
        cache.remove(incarnation).expect("kept");
        assert!(
            Assignments::load(dir.path())
                .expect("readable")
                .list()
                .is_empty()
        );
    }
}
