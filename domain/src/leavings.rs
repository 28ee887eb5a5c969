//! What attempts and servers that came to nothing may have left in a vault: objects that no catalogue
//! names. Their keys say whose they are (`docs/VAULT-FORMAT.md` §1), so that a listing can find them; whether one
//! goes is decided from the catalogue, key by key (DESIGN §3.9, RELIABILITY §5.6).

use serde::{Deserialize, Serialize};

use crate::{BackupId, IncarnationId, JobId};

/// Every attempt of a snapshot job that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedAttempts {
    pub job: JobId,
    /// The newest; all before it are meant too.
    pub epoch: i64,
    /// The backup that the job was to make, when it failed for good: what was published of it goes too.
    pub failed_backup: Option<BackupId>,
}

/// Where in a vault a prune looks for objects that its list does not name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leavings {
    #[default]
    Nowhere,
    Attempts(Vec<EndedAttempts>),
    /// The incarnation is over and nothing is known of it any more.
    Everywhere,
}

impl Leavings {
    /// Prefixes of keys in the order in which what they hold goes: what names something before what it
    /// names, and the key without which nothing can be read last.
    #[must_use]
    pub fn prefixes(&self, incarnation: IncarnationId) -> Vec<String> {
        match self {
            Self::Nowhere => Vec::new(),
            Self::Attempts(ended) => ended
                .iter()
                .flat_map(|ended| {
                    let published = ended
                        .failed_backup
                        .map(|backup| format!("backups/{incarnation}/{backup}/"));
                    let job = ended.job;
                    let written = (1..=ended.epoch).flat_map(move |epoch| {
                        ["leaves", "packs"]
                            .map(|kind| format!("{kind}/{incarnation}/{job}.{epoch}/"))
                    });
                    published.into_iter().chain(written)
                })
                .collect(),
            Self::Everywhere => ["backups", "leaves", "packs", "wal", "keys"]
                .map(|kind| format!("{kind}/{incarnation}/"))
                .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_goes_before_what_it_names_and_the_key_goes_last() {
        let (life, job, backup) = (IncarnationId::new(), JobId::new(), BackupId::new());
        let ended = Leavings::Attempts(vec![EndedAttempts {
            job,
            epoch: 2,
            failed_backup: Some(backup),
        }]);
        assert_eq!(
            ended.prefixes(life),
            [
                format!("backups/{life}/{backup}/"),
                format!("leaves/{life}/{job}.1/"),
                format!("packs/{life}/{job}.1/"),
                format!("leaves/{life}/{job}.2/"),
                format!("packs/{life}/{job}.2/"),
            ]
        );
        let all = Leavings::Everywhere.prefixes(life);
        assert_eq!(all.first(), Some(&format!("backups/{life}/")));
        assert_eq!(all.last(), Some(&format!("keys/{life}/")));
        assert_eq!(Leavings::Nowhere.prefixes(life), Vec::<String>::new());
    }
}
