//! The executable, where the service user can run it. PostgreSQL calls `holdfast agent wal-get` as that
//! user, and the one that was typed may lie in a home directory which nobody else may enter.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::state_dir::{StateDir, passage};

/// Copies the running executable into the state directory unless it is there already, and returns where.
pub fn install(state: &StateDir) -> Result<PathBuf> {
    let target = state.executable();
    let parent = target
        .parent()
        .context("the executable lies in a directory")?;
    passage(parent)?;
    // Also right when the file on the disk was replaced since this process started.
    let mut running =
        fs::File::open("/proc/self/exe").context("/proc/self/exe cannot be opened")?;
    if is_same(&mut running, &target)? {
        return Ok(target);
    }
    let beside = target.with_extension("new");
    let copy = || -> io::Result<()> {
        let mut from = fs::File::open("/proc/self/exe")?;
        let mut to = fs::File::create(&beside)?;
        io::copy(&mut from, &mut to)?;
        to.set_permissions(fs::Permissions::from_mode(0o755))?;
        to.sync_all()?;
        // A recovery that is under way keeps the file that it has open.
        fs::rename(&beside, &target)
    };
    copy().with_context(|| format!("the executable cannot be copied to {}", target.display()))?;
    Ok(target)
}

fn is_same(running: &mut fs::File, target: &std::path::Path) -> Result<bool> {
    let mut there = match fs::File::open(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    if running.metadata()?.len() != there.metadata()?.len() {
        return Ok(false);
    }
    Ok(digest(running)? == digest(&mut there)?)
}

fn digest(file: &mut fs::File) -> io::Result<Vec<u8>> {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(file, &mut buffer)? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            count => context.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_made_once_and_can_be_run_by_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::choose(Some(dir.path().to_path_buf())).expect("there");
        let path = install(&state).expect("copied");
        let first = fs::metadata(&path).expect("there");
        assert_eq!(first.permissions().mode() & 0o777, 0o755);
        install(&state).expect("again");
        let again = fs::metadata(&path).expect("there");
        assert_eq!(
            first.modified().expect("known"),
            again.modified().expect("known")
        );
    }
}
