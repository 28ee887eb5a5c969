//! `holdfast destroy`: everything goes, servers and backups. Only what a site makes is removed; anything
//! else that somebody put into the directory stays.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::exit::Failure;
use crate::output::say;
use crate::state_dir::StateDir;
use crate::{down, run_record};

pub async fn run(state: &StateDir, yes: bool) -> Result<()> {
    if !state.path().exists() {
        say(format!("There is nothing in {}.", state.path().display()));
        return Ok(());
    }
    ensure!(
        state.site_file().exists() || state.lock_file().exists(),
        Failure::NotFound(format!(
            "{} is not the directory of a site",
            state.path().display()
        ))
    );
    ensure!(
        yes,
        Failure::Usage(format!(
            "this removes all servers in {} and all their backups, for ever: say --yes",
            state.path().display()
        ))
    );
    down::stop(state).await?;
    let Some(_lock) = run_record::lock(state).await? else {
        bail!(Failure::Conflict("a site was started meanwhile".into()));
    };
    down::end_leftovers(state).await?;
    for path in state.contents() {
        remove(&path)?;
    }
    remove(&state.run_dir())?;
    match fs::remove_dir(state.path()) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            say(format!(
                "Removed. {} holds more than the site and was left.",
                state.path().display()
            ));
        }
        removed => {
            removed.with_context(|| format!("{} cannot be removed", state.path().display()))?;
            say("Removed.");
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    removed.with_context(|| format!("{} cannot be removed", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_a_site_makes_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::choose(Some(dir.path().join("s"))).expect("absolute");
        fs::create_dir(state.path()).expect("made");
        let mine = state.path().join("mine.txt");
        fs::write(&mine, "x").expect("written");
        assert!(run(&state, true).await.is_err(), "it is not a site");
        fs::write(state.site_file(), "{}").expect("written");
        fs::create_dir_all(state.vaults_dir().join("r/1/1")).expect("made");
        assert!(run(&state, false).await.is_err(), "nobody said yes");
        run(&state, true).await.expect("removed");
        assert!(mine.exists() && !state.vaults_dir().exists() && !state.site_file().exists());
    }
}
