//! How courteous backups are: `limits.toml` in the state directory of `up`. An agent that runs apart has the same
//! keys in the `[agent.limits]` of its file.

use std::path::Path;

use holdfast_agent::Limits;
use serde::{Deserialize, Serialize};

use super::load::{Problems, collect, load_plain};
use super::{Check, Collect};

/// `limits.toml`: the same for every node of the site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsFile {
    #[serde(default)]
    pub limits: Limits,
}

impl LimitsFile {
    /// No file, no limits.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        if path.exists() {
            load_plain(path)
        } else {
            Ok(Self::default())
        }
    }
}

impl Check for LimitsFile {
    const SECTIONS: &'static [(&'static str, Collect)] = &[("limits", collect::<Limits>)];

    // A limit that parses is a limit.
    fn check(&self, _: &mut Problems) {}
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU16, NonZeroU32};

    use super::*;

    #[test]
    fn a_limits_file_limits_or_says_what_is_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("limits.toml");
        assert_eq!(LimitsFile::load(&path), Ok(LimitsFile::default()));
        let write = |text: &str| std::fs::write(&path, text).expect("writes");
        write("[limits]\nread_mib_per_s = 50\nworkers = 1\n");
        let read = LimitsFile::load(&path).expect("a good one").limits;
        assert_eq!(
            (read.read_mib_per_s, read.workers),
            (NonZeroU32::new(50), NonZeroU16::new(1))
        );
        for (text, key) in [
            ("[limits]\nworkers = 0\n", "workers"),
            (
                "[limits]\nread_mib_per_s = \"fast\"\n",
                "limits.read_mib_per_s",
            ),
            ("[limits]\nread = 5\n", "limits.read"),
            ("[limit]\nworkers = 1\n", "limit"),
        ] {
            write(text);
            let problems = LimitsFile::load(&path).expect_err("refused").to_string();
            assert!(problems.contains(key), "{problems}");
        }
    }
}
