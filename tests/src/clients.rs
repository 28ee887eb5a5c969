//! Clients of others that run against us: where `tests/clients/install` put them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::metadata::workspace;

/// The programs' sources.
#[must_use]
pub fn folder() -> PathBuf {
    workspace().join("tests/clients")
}

fn installed(what: PathBuf) -> Result<PathBuf> {
    ensure!(
        what.exists(),
        "{} is missing; tests/clients/install makes it",
        what.display()
    );
    Ok(what)
}

/// A program of the virtual environment of this name, such as `python`.
///
/// # Errors
/// When it is not installed.
pub fn program(environment: &str, program: &str) -> Result<PathBuf> {
    let environment = workspace().join("target/clients").join(environment);
    installed(environment.join("bin").join(program))
}

/// The interpreter of the virtual environment of this name.
///
/// # Errors
/// When it is not installed.
pub fn python(environment: &str) -> Result<PathBuf> {
    program(environment, "python")
}

/// A program for Node, beside its modules.
///
/// # Errors
/// When the modules are not installed.
pub fn javascript(program: &str) -> Result<PathBuf> {
    let folder = folder().join("javascript");
    installed(folder.join("node_modules"))?;
    Ok(folder.join(program))
}

/// Sections of the programs that the server does not offer yet.
///
/// # Errors
/// When the list cannot be read.
pub fn not_yet() -> Result<BTreeSet<String>> {
    let list: &Path = &folder().join("NOT_YET");
    let text =
        std::fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    Ok(text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect())
}
