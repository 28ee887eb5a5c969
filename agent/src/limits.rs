//! What jobs may take of this machine, as its configuration says it: `[agent.limits]`. Every key can be left out.
//!
//! Servers come first by default: jobs that nobody waits for run at a lower priority. A restore is waited for, and so is
//! the log's way to the store, which is what the newest restorable instant is made of: nothing here holds them back.

use std::num::{NonZeroU16, NonZeroU32, NonZeroU64, NonZeroUsize};

use holdfast_vault::{Courtesy, Pace};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// MiB a second that each backup reads of its server's files. Without it: as fast as the disk gives them. PostgreSQL holds a
    /// backup open, and keeps the log since its start, until they are read – unless they were frozen.
    pub read_mib_per_s: Option<NonZeroU32>,
    /// MiB a second that all backups and compactions of this node together put into stores; what goes to two stores counts
    /// twice. The write-ahead log and manifests do not wait for it.
    pub upload_mib_per_s: Option<NonZeroU32>,
    /// Threads, and so cores, that each backup may keep busy with reading, compressing and sealing. Without it: one for each
    /// core, at most eight. A compaction has one.
    pub workers: Option<NonZeroU16>,
    /// Whether the threads of backups and compactions run ten steps of nice below the agent. PostgreSQL never inherits that. A
    /// prune has no threads: it asks stores to delete.
    pub low_priority: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read_mib_per_s: None,
            upload_mib_per_s: None,
            workers: None,
            low_priority: true,
        }
    }
}

impl Limits {
    /// What all jobs of the node share.
    pub(crate) fn upload(&self) -> Pace {
        pace(self.upload_mib_per_s)
    }

    /// For one job.
    pub(crate) fn courtesy(&self, upload: &Pace) -> Courtesy {
        Courtesy {
            reading: pace(self.read_mib_per_s),
            upload: upload.clone(),
            workers: self.workers.map(NonZeroUsize::from),
            low_priority: self.low_priority,
        }
    }
}

fn pace(mib_per_s: Option<NonZeroU32>) -> Pace {
    const MIB: NonZeroU64 = NonZeroU64::new(1 << 20).expect("not zero");
    mib_per_s.map_or_else(Pace::unlimited, |limit| {
        Pace::of(NonZeroU64::from(limit).saturating_mul(MIB))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_limited_and_comes_after_the_servers() {
        let limits: Limits = serde_json::from_str("{}").expect("every key has a default");
        let courtesy = limits.courtesy(&limits.upload());
        assert!(courtesy.reading.is_unlimited() && courtesy.upload.is_unlimited());
        assert!(courtesy.low_priority);
        assert_eq!(courtesy.workers, None);
    }

    #[test]
    fn nothing_at_all_and_unknown_keys_are_refused() {
        for text in [
            r#"{"read_mib_per_s": 0}"#,
            r#"{"upload_mib_per_s": 0}"#,
            r#"{"upload_mib_per_s": -5}"#,
            r#"{"workers": 0}"#,
            r#"{"read_mb_per_s": 5}"#,
        ] {
            serde_json::from_str::<Limits>(text).expect_err(text);
        }
    }

    #[test]
    fn jobs_share_the_upload_and_each_has_its_own_workers() {
        let text = r#"{"read_mib_per_s": 20, "upload_mib_per_s": 10, "workers": 1, "low_priority": false}"#;
        let limits: Limits = serde_json::from_str(text).expect("good");
        let courtesy = limits.courtesy(&limits.upload());
        assert!(!courtesy.reading.is_unlimited() && !courtesy.upload.is_unlimited());
        assert_eq!((courtesy.workers(), courtesy.low_priority), (1, false));
    }
}
