//! `holdfast check-config FILE`: what it is for, and everything that is wrong with it.

use std::path::Path;

use anyhow::{Result, bail};

use crate::config;
use crate::exit::Failure;
use crate::output::say;

pub fn run(file: &Path) -> Result<()> {
    match config::load(file) {
        Ok(config) => {
            say(format!(
                "{}: a good configuration for `holdfast serve {}`",
                file.display(),
                config.kind()
            ));
            Ok(())
        }
        Err(problems) => {
            for line in problems.to_string().lines() {
                eprintln!("{}: {line}", file.display());
            }
            bail!(Failure::Said)
        }
    }
}
