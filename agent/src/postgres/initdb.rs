//! A new, empty cluster: checksums on, the agent's superuser and nobody else (issue 2 §4).

use std::path::Path;
use std::process::Stdio;

use nix::unistd::syncfs;
use tokio::process::Command;

use super::{AGENT_ROLE, Installation, ServiceUser};
use crate::error::{Error, Result};

/// Runs `initdb` on an empty or missing directory. Ended with its caller: a directory that it left
/// half-made has a temporary name and is removed by the next attempt.
pub async fn run(installation: &Installation, data_dir: &Path, user: &ServiceUser) -> Result<()> {
    user.create_dir(data_dir)?;
    let mut command = Command::new(installation.program("initdb"));
    user.apply(&mut command);
    let output = command
        .arg("--pgdata")
        .arg(data_dir)
        .args(["--username", AGENT_ROLE])
        .args(["--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8"])
        // Our own pg_hba.conf replaces what these write, before the first start.
        .args(["--auth-local=peer", "--auth-host=scram-sha-256"])
        .args(["--text-search-config=english", "--no-sync"])
        .args(no_instructions(installation.major))
        .current_dir(data_dir)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(Error::file("run", installation.program("initdb")))?;
    if output.status.success() {
        // Instead of initdb's own thousand calls, one per file: measured 4.3 s against 1.2 s.
        let directory = std::fs::File::open(data_dir).map_err(Error::file("open", data_dir))?;
        return tokio::task::spawn_blocking(move || {
            syncfs(&directory).map_err(|errno| Error::system("sync the new cluster")(errno.into()))
        })
        .await?;
    }
    Err(Error::Program {
        program: "initdb",
        status: output.status.to_string(),
        said: last_lines(&String::from_utf8_lossy(&output.stderr), 6),
    })
}

/// Nobody reads them; 13 has no way to leave them out.
fn no_instructions(major: u16) -> Option<&'static str> {
    (major >= 14).then_some("--no-instructions")
}

/// The end of what a program printed: where it says why.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirteen_is_not_given_what_it_does_not_know() {
        assert_eq!(no_instructions(13), None);
        assert_eq!(no_instructions(14), Some("--no-instructions"));
    }
}
