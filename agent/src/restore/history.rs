//! What PostgreSQL wrote about the end of a recovery, compared with what the plan said.
//!
//! The last line of the new timeline's history file names the parent timeline, the position where
//! recovery ended and why it ended. "no recovery target specified" is what a restore leaves that ran
//! out of WAL and started anyway (RELIABILITY §0.3, measured): always a failure.

use holdfast_domain::{Lsn, Timeline};

/// History files are a few lines; anything larger is not one.
pub const HISTORY_LIMIT: u64 = 1 << 20;

/// The end of a recovery, as planned or as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryEnd {
    /// The timeline that was recovered.
    pub parent: Timeline,
    /// The first byte of the new timeline.
    pub switch: Lsn,
    pub reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// `after LSN X`: an inclusive LSN target.
    AfterLsn(Lsn),
    /// `at restore point "…"`.
    RestorePoint(String),
    /// Anything else, a target that was not met included.
    Other(String),
}

/// Why a finished recovery is not the one that was planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("the history of the new timeline cannot be read")]
    Unreadable,
    #[error("recovery ran out of WAL and ended without having met its target")]
    NoTarget,
    #[error("recovery followed {found:?} instead of {planned:?}")]
    Parent { planned: Timeline, found: Timeline },
    #[error("recovery ended at {found} instead of {planned}")]
    Switch { planned: Lsn, found: Lsn },
    #[error("recovery ended for the reason {found:?} instead of {planned:?}")]
    Reason { planned: Reason, found: Reason },
}

/// The last line of a history file: the most recent branching.
#[must_use]
pub fn last_branch(text: &str) -> Option<RecoveryEnd> {
    let line = text
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !line.starts_with('#'))?;
    let (parent, rest) = line.split_once(|c: char| c.is_ascii_whitespace())?;
    let (switch, reason) = match rest
        .trim_start()
        .split_once(|c: char| c.is_ascii_whitespace())
    {
        Some((switch, reason)) => (switch, reason.trim()),
        None => (rest.trim(), ""),
    };
    Some(RecoveryEnd {
        parent: Timeline(parent.parse().ok()?),
        switch: switch.parse().ok()?,
        reason: Reason::read(reason),
    })
}

impl Reason {
    fn read(text: &str) -> Self {
        if let Some(lsn) = text
            .strip_prefix("after LSN ")
            .and_then(|lsn| lsn.trim().parse().ok())
        {
            return Self::AfterLsn(lsn);
        }
        if let Some(name) = text
            .strip_prefix("at restore point \"")
            .and_then(|rest| rest.strip_suffix('"'))
        {
            return Self::RestorePoint(name.to_owned());
        }
        Self::Other(text.chars().take(200).collect())
    }
}

impl RecoveryEnd {
    /// Whether the history file of the new timeline tells of exactly this end.
    pub fn compare(&self, history: &str) -> Result<(), Mismatch> {
        let found = last_branch(history).ok_or(Mismatch::Unreadable)?;
        if matches!(&found.reason, Reason::Other(text) if text.contains("no recovery target specified"))
        {
            return Err(Mismatch::NoTarget);
        }
        if found.reason != self.reason {
            return Err(Mismatch::Reason {
                planned: self.reason.clone(),
                found: found.reason,
            });
        }
        if found.parent != self.parent {
            return Err(Mismatch::Parent {
                planned: self.parent,
                found: found.parent,
            });
        }
        if found.switch != self.switch {
            return Err(Mismatch::Switch {
                planned: self.switch,
                found: found.switch,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned() -> RecoveryEnd {
        RecoveryEnd {
            parent: Timeline(1),
            switch: Lsn(0x0300_0160),
            reason: Reason::AfterLsn(Lsn(0x0300_0130)),
        }
    }

    #[test]
    fn an_end_as_planned_passes() {
        assert_eq!(
            planned().compare("1\t0/3000160\tafter LSN 0/3000130\n\n"),
            Ok(())
        );
        let on_two = "1\t0/2000000\tbefore 2026-01-01\n\n2\t0/3000160\tafter LSN 0/3000130\n\n";
        let end = RecoveryEnd {
            parent: Timeline(2),
            ..planned()
        };
        assert_eq!(end.compare(on_two), Ok(()));
    }

    // RELIABILITY §0.3: the silent-loss case
    #[test]
    fn running_out_of_wal_is_never_a_success() {
        for end in [
            planned(),
            RecoveryEnd {
                reason: Reason::Other("no recovery target specified".into()),
                ..planned()
            },
        ] {
            assert_eq!(
                end.compare("1\t0/3000160\tno recovery target specified\n"),
                Err(Mismatch::NoTarget)
            );
        }
    }

    #[test]
    fn another_place_timeline_or_reason_is_a_mismatch() {
        let plan = planned();
        assert!(matches!(
            plan.compare("1\t0/3000170\tafter LSN 0/3000130\n"),
            Err(Mismatch::Switch { .. })
        ));
        assert!(matches!(
            plan.compare("2\t0/3000160\tafter LSN 0/3000130\n"),
            Err(Mismatch::Parent { .. })
        ));
        assert!(matches!(
            plan.compare("1\t0/3000160\tafter LSN 0/3000138\n"),
            Err(Mismatch::Reason { .. })
        ));
        assert!(matches!(
            plan.compare("1\t0/3000160\tbefore 2026-01-01\n"),
            Err(Mismatch::Reason { .. })
        ));
        for nonsense in [
            "",
            "\n\n",
            "x",
            "1",
            "1\tnot-an-lsn\tafter LSN 0/1",
            "# only a comment",
        ] {
            assert_eq!(
                plan.compare(nonsense),
                Err(Mismatch::Unreadable),
                "{nonsense:?}"
            );
        }
    }

    #[test]
    fn a_restore_point_is_read_with_its_name() {
        let end = last_branch("1\t0/5000090\tat restore point \"hf_1\"\n").expect("a branch");
        assert_eq!(end.reason, Reason::RestorePoint("hf_1".into()));
    }
}
