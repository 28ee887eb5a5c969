//! What of a data directory belongs into a backup (RELIABILITY §5.2.4).
//!
//! The list says what is left out; everything unknown is taken along. Directories whose content is
//! left out are kept, empty: PostgreSQL does not make them itself. Only `pg_tblspc/*` links are
//! followed; any other link is an error, because a restore could not say what it should point at.
//!
//! The walk holds one directory's listing at a time, so a million relations cost no memory.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use holdfast_vault::wal::record::RelFileLocator;

use super::control_file::CONTROL_FILE;

/// Directories of the top level that go along without what is in them.
const EMPTIED: [&str; 10] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    // Server logs, where a logging collector would put them.
    "log",
    "pg_log",
];

/// Files of the top level that belong to the running server or to another backup, not to the data.
const LEFT_OUT: [&str; 4] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "backup_label.old",
];

/// One thing that a backup holds. Paths are relative to the data directory, with `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Directory {
        path: String,
    },
    /// A tablespace whose directory is elsewhere; its content follows below `pg_tblspc/{oid}/`.
    Tablespace {
        oid: u32,
        location: PathBuf,
    },
    File {
        path: String,
        source: PathBuf,
        bytes: u64,
        kind: FileKind,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Pages of a relation's fork; `first_block` is where this segment file begins in it.
    Relation {
        first_block: u32,
        /// Whose main fork it is; `None` for the other forks.
        main_fork_of: Option<RelFileLocator>,
    },
    Other,
}

/// Why a directory cannot be walked.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    #[error("{path} could not be read")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} is a symbolic link that PostgreSQL did not make; replace it by what it points at"
    )]
    ForeignLink { path: String },
    #[error("{path} has a name that is not UTF-8")]
    Name { path: String },
    #[error("{path} is neither a file nor a directory")]
    Kind { path: String },
}

/// A walk over one data directory.
pub struct Walk {
    /// `PG_15_202209061`: the only directory of a tablespace that is this cluster's.
    version_directory: String,
    pending: Vec<Pending>,
    ready: std::vec::IntoIter<Entry>,
}

struct Pending {
    /// Relative to the data directory; empty for the directory itself.
    path: String,
    source: PathBuf,
}

impl Walk {
    /// `catalog_version` is that of the control file.
    #[must_use]
    pub fn new(data_dir: &Path, major: u16, catalog_version: u32) -> Self {
        Self {
            version_directory: format!("PG_{major}_{catalog_version}"),
            pending: vec![Pending {
                path: String::new(),
                source: data_dir.to_owned(),
            }],
            ready: Vec::new().into_iter(),
        }
    }

    /// One directory: its files in the order of their names, its subdirectories for later.
    fn list(&mut self, directory: &Pending) -> Result<Vec<Entry>, WalkError> {
        let mut entries = Vec::new();
        let mut deeper = Vec::new();
        let mut names = match names_in(&directory.source) {
            Ok(names) => names,
            // A database or tablespace dropped meanwhile; WAL drops it again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(entries),
            Err(source) => {
                return Err(WalkError::Io {
                    path: directory.path.clone(),
                    source,
                });
            }
        };
        names.sort_unstable();
        let relations = is_relation_directory(&directory.path);
        let unlogged = if relations {
            unlogged_relations(&names)
        } else {
            HashSet::new()
        };

        for name in names {
            let Some(name) = name.to_str() else {
                return Err(WalkError::Name {
                    path: join(&directory.path, &name.to_string_lossy()),
                });
            };
            let path = join(&directory.path, name);
            let source = directory.source.join(name);
            if is_left_out(&directory.path, name) {
                continue;
            }
            let metadata = match fs::symlink_metadata(&source) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(WalkError::Io { path, source }),
            };
            let kind = metadata.file_type();
            let top = directory.path.is_empty();
            if kind.is_symlink() {
                if directory.path == "pg_tblspc" {
                    if let Some(tablespace) = self.tablespace(name, &path, &source)? {
                        entries.extend(tablespace.0);
                        deeper.push(tablespace.1);
                    }
                } else if top && name == "pg_wal" {
                    entries.push(Entry::Directory { path });
                } else {
                    return Err(WalkError::ForeignLink { path });
                }
            } else if kind.is_dir() {
                entries.push(Entry::Directory { path: path.clone() });
                if !(top && EMPTIED.contains(&name)) {
                    deeper.push(Pending { path, source });
                }
            } else if kind.is_file() {
                let file = if relations { relation_file(name) } else { None };
                let kind = match &file {
                    Some(file) if unlogged.contains(file.node) && file.fork != Some("init") => {
                        continue;
                    }
                    Some(file) => FileKind::Relation {
                        first_block: file.segment.saturating_mul(super::page::SEGMENT_BLOCKS),
                        main_fork_of: match file.fork {
                            None => locator(&directory.path, file.node),
                            Some(_) => None,
                        },
                    },
                    None => FileKind::Other,
                };
                entries.push(Entry::File {
                    path,
                    source,
                    bytes: metadata.len(),
                    kind,
                });
            } else {
                return Err(WalkError::Kind { path });
            }
        }
        // Depth first, in the order of the names.
        deeper.reverse();
        self.pending.append(&mut deeper);
        Ok(entries)
    }

    fn tablespace(
        &self,
        name: &str,
        path: &str,
        link: &Path,
    ) -> Result<Option<(Vec<Entry>, Pending)>, WalkError> {
        let Ok(oid) = name.parse::<u32>() else {
            return Err(WalkError::ForeignLink {
                path: path.to_owned(),
            });
        };
        let location = match fs::read_link(link) {
            Ok(location) => location,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(WalkError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let inside = join(path, &self.version_directory);
        let source = link.join(&self.version_directory);
        Ok(Some((
            vec![
                Entry::Tablespace { oid, location },
                Entry::Directory {
                    path: inside.clone(),
                },
            ],
            Pending {
                path: inside,
                source,
            },
        )))
    }
}

impl Iterator for Walk {
    type Item = Result<Entry, WalkError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.ready.next() {
                return Some(Ok(entry));
            }
            let directory = self.pending.pop()?;
            match self.list(&directory) {
                Ok(entries) => self.ready = entries.into_iter(),
                Err(error) => {
                    self.pending.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

fn names_in(directory: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

/// Directories that hold relations: `global`, `base/{db}`, `pg_tblspc/{oid}/{version}/{db}`.
fn is_relation_directory(path: &str) -> bool {
    let mut parts = path.split('/');
    let depth = path.split('/').count();
    match parts.next() {
        Some("global") => depth == 1,
        Some("base") => depth == 2,
        Some("pg_tblspc") => depth == 4,
        _ => false,
    }
}

/// The relation that WAL means when its files lie in this directory under this number.
fn locator(directory: &str, node: &str) -> Option<RelFileLocator> {
    const PG_DEFAULT: u32 = 1663;
    const PG_GLOBAL: u32 = 1664;
    let parts: Vec<_> = directory.split('/').collect();
    let (tablespace, database) = match parts[..] {
        ["global"] => (PG_GLOBAL, 0),
        ["base", database] => (PG_DEFAULT, database.parse().ok()?),
        ["pg_tblspc", tablespace, _, database] => {
            (tablespace.parse().ok()?, database.parse().ok()?)
        }
        _ => return None,
    };
    Some(RelFileLocator {
        tablespace,
        database,
        relation: node.parse().ok()?,
    })
}

/// The relation whose main fork lies at a path, and the block with which that file begins.
#[must_use]
pub fn main_fork_at(path: &str) -> Option<(RelFileLocator, u32)> {
    let (directory, name) = path.rsplit_once('/')?;
    let file = relation_file(name).filter(|file| file.fork.is_none())?;
    let first_block = file.segment.saturating_mul(super::page::SEGMENT_BLOCKS);
    Some((locator(directory, file.node)?, first_block))
}

fn is_left_out(directory: &str, name: &str) -> bool {
    if name.starts_with("pgsql_tmp") || name.starts_with("pg_internal.init") {
        return true;
    }
    if directory.is_empty() {
        return LEFT_OUT.contains(&name)
            || name.starts_with("tablespace_map")
            || name.starts_with("current_logfiles")
            || name == "postgresql.auto.conf.tmp"
            // What this agent keeps beside PostgreSQL's files.
            || name.starts_with("holdfast.")
            || name.starts_with(".holdfast");
    }
    if join(directory, name) == CONTROL_FILE {
        return true; // read last, by itself
    }
    is_relation_directory(directory) && is_temporary_relation(name)
}

/// `t3_16384`, `t3_16384_fsm`, `t3_16384.1`: relations of a session that is gone after a restore.
fn is_temporary_relation(name: &str) -> bool {
    name.strip_prefix('t')
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(backend, relation)| is_digits(backend) && relation_file(relation).is_some())
}

/// Relfilenodes that have an `_init` fork: PostgreSQL makes the other forks from it at startup.
fn unlogged_relations(names: &[std::ffi::OsString]) -> HashSet<String> {
    names
        .iter()
        .filter_map(|name| {
            name.to_str()?
                .strip_suffix("_init")
                .filter(|node| is_digits(node))
                .map(str::to_owned)
        })
        .collect()
}

struct RelationFile<'a> {
    node: &'a str,
    fork: Option<&'a str>,
    segment: u32,
}

/// `16384`, `16384.2`, `16384_fsm`, `16384_vm.1`, `16384_init`.
fn relation_file(name: &str) -> Option<RelationFile<'_>> {
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) if is_digits(segment) => (stem, segment.parse().ok()?),
        Some(_) => return None,
        None => (name, 0),
    };
    let (node, fork) = match stem.split_once('_') {
        Some((node, fork @ ("fsm" | "vm" | "init"))) => (node, Some(fork)),
        Some(_) => return None,
        None => (stem, None),
    };
    is_digits(node).then_some(RelationFile {
        node,
        fork,
        segment,
    })
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Bytes that the walk will meet: what progress is measured against. An estimate, since the server
/// goes on writing.
pub fn estimated_bytes(walk: Walk) -> Result<u64, WalkError> {
    let mut total = 0;
    for entry in walk {
        if let Entry::File { bytes, .. } = entry? {
            total += bytes;
        }
    }
    Ok(total)
}

/// The tablespace's location as text, for a manifest.
#[must_use]
pub fn location_text(location: &Path) -> String {
    let text: &OsStr = location.as_os_str();
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, path: &str) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().expect("below the root")).expect("mkdir");
        fs::write(file, b"x").expect("write");
    }

    fn paths(root: &Path) -> Vec<String> {
        Walk::new(root, 15, 202_209_061)
            .map(|entry| match entry.expect("readable") {
                Entry::Directory { path } => format!("{path}/"),
                Entry::Tablespace { oid, .. } => format!("@{oid}"),
                Entry::File { path, .. } => path,
            })
            .collect()
    }

    #[test]
    fn what_belongs_to_the_running_server_stays_behind() {
        let root = tempfile::tempdir().expect("a directory");
        for path in [
            "PG_VERSION",
            "postmaster.pid",
            "postmaster.opts",
            "backup_label.old",
            "tablespace_map.old",
            "current_logfiles",
            "pg_wal/000000010000000000000001",
            "pg_wal/summaries/x",
            "pg_replslot/holdfast/state",
            "pg_stat_tmp/global.stat",
            "pg_xact/0000",
            "base/5/16384",
            "base/5/16384.1",
            "base/5/16384_fsm",
            "base/5/t4_16385",
            "base/5/t4_16385_fsm",
            "base/5/16386",
            "base/5/16386_init",
            "base/5/16386_vm",
            "base/5/pg_internal.init",
            "base/5/pg_internal.init.7",
            "base/5/pg_filenode.map",
            "base/pgsql_tmp/pgsql_tmp9.0",
            "global/pg_control",
            "global/1262",
            "something/unknown.bin",
        ] {
            touch(root.path(), path);
        }
        let expected = [
            "PG_VERSION",
            "base/",
            "global/",
            "pg_replslot/",
            "pg_stat_tmp/",
            "pg_wal/",
            "pg_xact/",
            "something/",
            "base/5/",
            "base/5/16384",
            "base/5/16384.1",
            "base/5/16384_fsm",
            "base/5/16386_init",
            "base/5/pg_filenode.map",
            "global/1262",
            "pg_xact/0000",
            "something/unknown.bin",
        ];
        assert_eq!(paths(root.path()), expected);
    }

    #[test]
    fn a_tablespace_is_followed_into_its_version_directory_only() {
        let root = tempfile::tempdir().expect("a directory");
        let elsewhere = tempfile::tempdir().expect("a directory");
        touch(elsewhere.path(), "PG_15_202209061/5/16999");
        touch(elsewhere.path(), "PG_14_202107181/5/1");
        fs::create_dir(root.path().join("pg_tblspc")).expect("mkdir");
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("pg_tblspc/16400"))
            .expect("link");
        assert_eq!(
            paths(root.path()),
            [
                "pg_tblspc/",
                "@16400",
                "pg_tblspc/16400/PG_15_202209061/",
                "pg_tblspc/16400/PG_15_202209061/5/",
                "pg_tblspc/16400/PG_15_202209061/5/16999",
            ]
        );
        assert!(is_relation_directory("pg_tblspc/16400/PG_15_202209061/5"));
    }

    #[test]
    fn a_foreign_link_is_refused_by_name() {
        let root = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("evil")).expect("link");
        let error = Walk::new(root.path(), 15, 1)
            .find_map(Result::err)
            .expect("refused");
        assert!(matches!(error, WalkError::ForeignLink { path } if path == "evil"));
    }

    #[test]
    fn a_segment_file_knows_its_first_block() {
        let root = tempfile::tempdir().expect("a directory");
        touch(root.path(), "base/5/16384.2");
        let kind = Walk::new(root.path(), 15, 1).find_map(|entry| match entry {
            Ok(Entry::File { kind, .. }) => Some(kind),
            _ => None,
        });
        assert_eq!(
            kind,
            Some(FileKind::Relation {
                first_block: 262_144,
                main_fork_of: Some(RelFileLocator {
                    tablespace: 1663,
                    database: 5,
                    relation: 16384
                }),
            })
        );
    }
}
