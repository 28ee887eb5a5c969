//! The `restore_command` of a recovery: fetches one planned file from the agent, or says why not.
//!
//! PostgreSQL reads the exit code, and nothing else stands between a lost WAL file and a restore
//! that silently ends early (RELIABILITY §5.4.6, measured):
//! - **0** the file is there, whole and verified;
//! - **1** the file is not in the plan (PostgreSQL probes for timelines and reads ahead);
//! - **255** the file is in the plan and cannot be had: recovery aborts, nothing is promoted.
//!
//! Anything unexpected – no agent at the socket, a broken answer, a full disk – is 255. An orphan of
//! an older attempt finds no socket of its epoch and gets 255 as well (RELIABILITY §5.4.2).

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The answer's first byte.
pub(super) const FILE: u8 = b'F';
pub(super) const NOT_PLANNED: u8 = b'N';
pub(super) const UNOBTAINABLE: u8 = b'X';

/// Longest request: a segment's name has 24 characters.
pub(super) const NAME_LIMIT: usize = 64;
/// No WAL file is larger than the largest segment size.
const FILE_LIMIT: u64 = 1 << 30;

/// Longer than the agent's whole retry budget: silence for this long is a dead agent.
const SILENCE: Duration = Duration::from_secs(600);

pub const EXIT_OK: i32 = 0;
pub const EXIT_NOT_PLANNED: i32 = 1;
pub const EXIT_ABORT: i32 = 255;

/// `holdfast agent wal-get --plan <socket> %f %p`. Runs as the postmaster's user, in the data
/// directory; returns the process's exit code.
#[must_use]
pub fn wal_get_main(plan_socket: &Path, file: &str, destination: &Path) -> i32 {
    match fetch(plan_socket, file, destination) {
        Ok(true) => EXIT_OK,
        Ok(false) => EXIT_NOT_PLANNED,
        Err(error) => {
            // Standard error goes to the server's log, which is kept when a restore fails.
            let _ = writeln!(io::stderr(), "holdfast wal-get: {file}: {error}");
            EXIT_ABORT
        }
    }
}

/// `Ok(false)`: not in the plan.
fn fetch(plan_socket: &Path, file: &str, destination: &Path) -> io::Result<bool> {
    if file.len() >= NAME_LIMIT || file.contains('\n') {
        return Ok(false);
    }
    let mut agent = UnixStream::connect(plan_socket)?;
    agent.set_read_timeout(Some(SILENCE))?;
    agent.write_all(format!("{file}\n").as_bytes())?;

    let mut verdict = [0];
    agent.read_exact(&mut verdict)?;
    match verdict[0] {
        FILE => {}
        NOT_PLANNED => return Ok(false),
        UNOBTAINABLE => return Err(io::Error::other("the file is planned and cannot be had")),
        _ => return Err(io::Error::other("the agent's answer cannot be understood")),
    }
    let mut length = [0; 8];
    agent.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > FILE_LIMIT {
        return Err(io::Error::other(
            "the agent announces more than a WAL file can have",
        ));
    }
    let mut hash = [0; blake3::OUT_LEN];
    agent.read_exact(&mut hash)?;

    // Not fsynced: after a crash recovery starts again from the plan.
    let temporary = destination.with_extension("holdfast.tmp");
    let written = write_verified(&mut agent.take(length), &temporary, length, hash);
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    fs::rename(&temporary, destination)?;
    Ok(true)
}

fn write_verified(
    from: &mut impl Read,
    to: &Path,
    length: u64,
    hash: [u8; blake3::OUT_LEN],
) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)?;
    let mut file = BufWriter::with_capacity(256 << 10, file);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut done = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        file.write_all(&buffer[..count])?;
        done += count as u64;
    }
    file.flush()?;
    if done != length {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the agent stopped sending",
        ));
    }
    if *hasher.finalize().as_bytes() != hash {
        return Err(io::Error::other(
            "the bytes that arrived are not those that were sent",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Not a test of its own: the restores of `round_trip_tests` call this binary as their
    /// `restore_command`, in a process of its own as it is in production.
    #[test]
    fn entry() {
        let Ok(arguments) = std::env::var("HOLDFAST_TEST_WAL_GET") else {
            return;
        };
        let mut words = arguments.split('|');
        let mut word = || words.next().expect("socket, file and destination");
        std::process::exit(wal_get_main(Path::new(word()), word(), Path::new(word())));
    }

    fn answer_with(answer: Vec<u8>) -> (tempfile::TempDir, i32, Option<Vec<u8>>) {
        let root = tempfile::tempdir().expect("a directory");
        let socket = root.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("a client");
            let mut name = [0; 25];
            client.read_exact(&mut name).expect("a request");
            client.write_all(&answer).expect("an answer");
        });
        let destination = root.path().join("RECOVERYXLOG");
        let code = wal_get_main(&socket, "000000010000000000000003", &destination);
        server.join().expect("the server ends");
        let content = fs::read(&destination).ok();
        (root, code, content)
    }

    fn file_answer(content: &[u8], announced: u64, hashed: &[u8]) -> Vec<u8> {
        let mut answer = vec![FILE];
        answer.extend(announced.to_le_bytes());
        answer.extend(blake3::hash(hashed).as_bytes());
        answer.extend(content);
        answer
    }

    #[test]
    fn a_whole_file_is_exit_0() {
        let (_root, code, content) = answer_with(file_answer(b"wal", 3, b"wal"));
        assert_eq!((code, content.as_deref()), (0, Some(&b"wal"[..])));
    }

    #[test]
    fn an_unplanned_file_is_exit_1() {
        let (_root, code, content) = answer_with(vec![NOT_PLANNED]);
        assert_eq!((code, content), (1, None));
    }

    #[test]
    fn everything_else_is_exit_255_and_leaves_nothing() {
        for answer in [
            vec![UNOBTAINABLE],
            vec![b'?'],
            vec![],
            file_answer(b"wa", 3, b"wal"),
            file_answer(b"wal", 3, b"other"),
            file_answer(b"", u64::MAX, b""),
        ] {
            let (root, code, content) = answer_with(answer.clone());
            assert_eq!((code, content), (255, None), "{answer:?}");
            assert_eq!(
                fs::read_dir(root.path()).expect("readable").count(),
                1,
                "only the socket"
            );
        }
    }

    #[test]
    fn no_agent_at_the_socket_is_exit_255() {
        let root = tempfile::tempdir().expect("a directory");
        let code = wal_get_main(
            &root.path().join("gone"),
            "00000002.history",
            &root.path().join("x"),
        );
        assert_eq!(code, 255);
    }
}
