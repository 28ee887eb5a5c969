//! How the process ends: scripts read the exit code (0 fine, 1 it failed, 2 wrong usage, 3 not found,
//! 4 something is in the way, 5 not allowed, 6 what is stored is damaged, 124 it took too long), people read the sentence.

use std::process::ExitCode;

/// An error that has an exit code of its own. Everything else ends with 1.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    NotAllowed(String),
    /// What is stored is not what was stored. The findings were said, line by line.
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    TooLong(String),
    /// Everything was already said, line by line.
    #[error("")]
    Said,
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Said => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Conflict(_) => 4,
            Self::NotAllowed(_) => 5,
            Self::Damaged(_) => 6,
            Self::TooLong(_) => 124,
        }
    }
}

/// Tells the user, on standard error, and chooses the code.
pub fn report(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    let failure = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>());
    if !matches!(failure, Some(Failure::Said)) {
        eprintln!("holdfast: {error:#}");
    }
    ExitCode::from(failure.map_or(1, Failure::code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_code_under_context() {
        let error = anyhow::Error::new(Failure::NotFound("no server pg1".into())).context("asking");
        let found = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Failure>());
        assert_eq!(found.map(Failure::code), Some(3));
    }
}
