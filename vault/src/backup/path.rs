//! Paths inside a data directory. A manifest is authenticated, but what it restores may have been
//! written by somebody hostile, or by a bug: a path that could leave its directory is refused both
//! when it is recorded and when it is restored (RELIABILITY §4.5).

use std::collections::HashSet;

use crate::{Error, Result};

/// Refuses anything but `a/b/c`: not absolute, no empty, `.` or `..` part, no NUL, no backslash
/// games, lengths that every file system takes.
pub(crate) fn check(path: &str) -> Result<()> {
    let good_part = |part: &str| {
        !part.is_empty() && part.len() <= 255 && part != "." && part != ".." && !part.contains('\0')
    };
    if path.len() <= 1024 && path.split('/').all(good_part) {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{:?} is not a path inside a data directory",
        path.chars().take(120).collect::<String>()
    )))
}

/// Refuses a path that is named twice, or is a file and something's directory at once.
pub(crate) fn check_distinct<'a>(
    files: impl Iterator<Item = &'a str> + Clone,
    directories: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let twice = |path: &str| Err(Error::refused(format!("{path:?} is named twice")));
    let mut seen = HashSet::new();
    for path in files.clone() {
        check(path)?;
        if !seen.insert(path) {
            return twice(path);
        }
    }
    for path in directories {
        check(path)?;
        if seen.contains(path) {
            return twice(path);
        }
    }
    for path in files {
        let mut parent = path;
        while let Some((above, _)) = parent.rsplit_once('/') {
            if seen.contains(above) {
                return twice(above);
            }
            parent = above;
        }
    }
    Ok(())
}

/// `(16385, Some("PG_15_…/5/1259"))` for a path inside a tablespace.
pub(crate) fn in_tablespace(path: &str) -> Option<(u32, Option<&str>)> {
    let rest = path.strip_prefix("pg_tblspc/")?;
    let (oid, below) = match rest.split_once('/') {
        Some((oid, below)) => (oid, Some(below)),
        None => (rest, None),
    };
    Some((oid.parse().ok()?, below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_could_leave_its_directory_is_refused() {
        for good in [
            "PG_VERSION",
            "base/5/1259.1",
            "base/5/odd name",
            "pg_tblspc/16385/PG_15_202209061/5/x",
        ] {
            check(good).unwrap();
        }
        let long = "x".repeat(256);
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "base/../../x",
            "base//x",
            "base/",
            "./x",
            "a\0b",
            long.as_str(),
        ] {
            assert!(matches!(check(bad), Err(Error::Refused { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_path_cannot_be_two_things() {
        let distinct = |files: &[&'static str], directories: &[&'static str]| {
            check_distinct(files.iter().copied(), directories.iter().copied())
        };
        distinct(&["a/b", "a/c"], &["a", "d"]).unwrap();
        assert!(distinct(&["a/b", "a/b"], &[]).is_err());
        assert!(distinct(&["a/b"], &["a/b"]).is_err());
        assert!(
            distinct(&["a", "a/b"], &[]).is_err(),
            "a file that is a directory"
        );
    }
}
