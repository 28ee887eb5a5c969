//! How many files the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. The soft one is 1024 on most systems, for the sake of programs that call
/// `select`; a restore opens the files of a database together, so that each object of the vault is read once.
/// Whatever is refused leaves the limit as it was.
pub fn allow_all() {
    let now = getrlimit(Resource::Nofile);
    let _unchanged = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: now.maximum,
            maximum: now.maximum,
        },
    );
}
