//! Feeds the files of a server to the vault (RELIABILITY §5.2.5).
//!
//! Unless they are frozen, PostgreSQL writes while we read. A file that vanished was dropped; one that became shorter is
//! padded with zeroes; a torn page is read again. WAL from the backup's start repairs all of that on
//! restore. What it cannot repair – a page that is wrong and was last changed before the start, or
//! claims a change that the backup's WAL does not reach – is a *suspect*, reported and kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_domain::Lsn;
use holdfast_vault::backup::{BackupWriter, PageCheck};
use tokio::sync::mpsc;

use super::page::{self, PAGE_BYTES, Verdict};
use super::reading::Reading;
use super::walk::{Entry, FileKind, WalkError, location_text};
use crate::error::Result;

const REREADS: u32 = 3;
const BEFORE_REREAD: Duration = Duration::from_millis(10);

/// Open files between the walk and the vault's pipeline.
const FILES_AHEAD: usize = 32;

/// A list that a person can still read; beyond it the count says enough.
const SUSPECTS_KEPT: usize = 1000;

/// Pages that failed their check. Those last changed after the backup's start are counted only once its
/// stop is known: most of them were torn by a write that the WAL repeats, and must not crowd out the
/// others.
#[derive(Debug)]
pub struct Suspects {
    start: Lsn,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    /// Older than the start: damaged, whatever follows.
    older: Vec<Suspect>,
    older_count: usize,
    /// Those with the largest LSNs, where a stop can lie below.
    newer: BTreeSet<Suspect>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Suspect {
    lsn: Lsn,
    path: String,
    block_in_file: u64,
}

impl Suspects {
    /// For a backup that started at `start`.
    #[must_use]
    pub fn since(start: Lsn) -> Self {
        Self {
            start,
            found: Mutex::default(),
        }
    }

    fn push(&self, suspect: Suspect) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if suspect.lsn < self.start {
            found.older_count += 1;
            if found.older.len() < SUSPECTS_KEPT {
                found.older.push(suspect);
            }
        } else {
            found.newer.insert(suspect);
            if found.newer.len() > SUSPECTS_KEPT {
                found.newer.pop_first();
            }
        }
    }

    /// `path:page` of those that the WAL from the start to `stop` does not write anew, at most
    /// [`SUSPECTS_KEPT`], and how many were found.
    #[must_use]
    pub fn not_repaired(&self, stop: Lsn) -> (Vec<String>, usize) {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let beyond: Vec<&Suspect> = found.newer.iter().filter(|one| one.lsn > stop).collect();
        let count = found.older_count + beyond.len();
        let mut pages: Vec<String> = found
            .older
            .iter()
            .chain(beyond)
            .take(SUSPECTS_KEPT)
            .map(|suspect| format!("{}:{}", suspect.path, suspect.block_in_file))
            .collect();
        pages.sort_unstable();
        (pages, count)
    }
}

/// Whether files change while they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// PostgreSQL writes to them, and drops some.
    Live,
    /// Nobody does. A page of them is never torn, and reading it again gives the same.
    Frozen,
}

/// What is read, with its size as it was when it was opened.
enum Opened {
    Directory(String),
    Tablespace {
        oid: u32,
        location: PathBuf,
    },
    File {
        path: String,
        file: File,
        bytes: u64,
        kind: FileKind,
    },
}

/// Hands all entries to the writer and returns when all of them have been read.
/// `checked`: the cluster has page checksums.
pub async fn copy(
    entries: impl Iterator<Item = Result<Entry, WalkError>> + Send + 'static,
    files: Files,
    writer: &BackupWriter,
    checked: bool,
    suspects: &Arc<Suspects>,
    reading: &Reading,
) -> Result<()> {
    let (found, mut next) = mpsc::channel(FILES_AHEAD);
    let walking = tokio::task::spawn_blocking(move || open_all(entries, files, &found));
    while let Some(opened) = next.recv().await {
        match opened {
            Opened::Directory(path) => writer.add_dir(&path)?,
            Opened::Tablespace { oid, location } => {
                writer.add_tablespace(oid, &location_text(&location))
            }
            Opened::File {
                path,
                file,
                bytes,
                kind,
            } => match kind {
                FileKind::Relation { first_block, .. } => {
                    let check = checked.then(|| {
                        page_check(path.clone(), first_block, files, Arc::clone(suspects))
                    });
                    writer
                        .add_relation_segment(&path, file, bytes, check, reading.changes_of(kind))
                        .await?;
                }
                FileKind::Other => writer.add_file(&path, file, bytes).await?,
            },
        }
    }
    walking.await??;
    writer.settle().await?;
    Ok(())
}

/// The walking thread. Ends early, without an error, when nobody listens any more.
fn open_all(
    entries: impl Iterator<Item = Result<Entry, WalkError>>,
    files: Files,
    found: &mpsc::Sender<Opened>,
) -> Result<(), WalkError> {
    for entry in entries {
        let opened = match entry? {
            Entry::Directory { path } => Opened::Directory(path),
            Entry::Tablespace { oid, location } => Opened::Tablespace { oid, location },
            Entry::File {
                path, source, kind, ..
            } => match open(&source) {
                Ok((file, bytes)) => Opened::File {
                    path,
                    file,
                    bytes,
                    kind,
                },
                // Of frozen files none is dropped: a backup must not lack one silently.
                Err(error) if error.kind() == io::ErrorKind::NotFound && files == Files::Live => {
                    continue;
                }
                Err(source) => return Err(WalkError::Io { path, source }),
            },
        };
        if found.blocking_send(opened).is_err() {
            break;
        }
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

fn page_check(path: String, first_block: u32, files: Files, suspects: Arc<Suspects>) -> PageCheck {
    let rereads = match files {
        Files::Live => REREADS,
        Files::Frozen => 0,
    };
    Arc::new(move |file: &File, block_in_file: u64, page: &mut [u8]| {
        if page.len() != PAGE_BYTES {
            return Ok(()); // the rest of a file that is being extended
        }
        // A relation has at most 2^32 blocks; a file that claims more is caught by its checksums.
        let block = first_block.wrapping_add(block_in_file as u32);
        let mut reread = 0;
        loop {
            let Verdict::Bad { lsn } = page::check(page, block) else {
                return Ok(());
            };
            if reread == rereads {
                suspects.push(Suspect {
                    lsn,
                    path: path.clone(),
                    block_in_file,
                });
                return Ok(());
            }
            reread += 1;
            std::thread::sleep(BEFORE_REREAD);
            if !read_page(file, block_in_file, page)? {
                return Ok(());
            }
        }
    })
}

/// `false`: the file has been truncated before this page, which is now zero.
fn read_page(file: &File, block_in_file: u64, page: &mut [u8]) -> io::Result<bool> {
    let mut done = 0;
    while done < page.len() {
        match file.read_at(
            &mut page[done..],
            block_in_file * PAGE_BYTES as u64 + done as u64,
        ) {
            Ok(0) => {
                page[done..].fill(0);
                return Ok(done > 0);
            }
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(pages: &[Vec<u8>]) -> (tempfile::TempDir, File) {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("16384");
        std::fs::write(&path, pages.concat()).expect("written");
        (root, File::open(path).expect("opened"))
    }

    fn good_page(block: u32, lsn: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..PAGE_BYTES).map(|at| (at % 97) as u8 + 1).collect();
        page[0..8].fill(0);
        page[4..8].copy_from_slice(&lsn.to_le_bytes());
        let sum = page::checksum(&page, block).to_le_bytes();
        page[8..10].copy_from_slice(&sum);
        page
    }

    #[test]
    fn a_torn_page_is_read_again() {
        let good = good_page(1, 100);
        let (_root, file) = file_of(&[good_page(0, 100), good.clone()]);
        let suspects = Arc::new(Suspects::since(Lsn(u64::MAX)));
        let check = page_check("base/5/16384".into(), 0, Files::Live, Arc::clone(&suspects));
        let mut torn = good.clone();
        torn[5000..].fill(0);
        check(&file, 1, &mut torn).expect("readable");
        assert_eq!(torn, good);
        assert_eq!(suspects.not_repaired(Lsn(0)), (Vec::new(), 0));
    }

    #[test]
    fn a_damaged_page_is_a_suspect_unless_wal_writes_it_anew() {
        let mut damaged = good_page(131_072 + 1, 500);
        damaged[4000] ^= 1;
        let (_root, file) = file_of(&[good_page(131_072, 1), damaged.clone()]);
        for files in [Files::Live, Files::Frozen] {
            let mut found = |start, stop| {
                let suspects = Arc::new(Suspects::since(Lsn(start)));
                let path = "base/5/16384.1".to_owned();
                page_check(path, 131_072, files, Arc::clone(&suspects))(&file, 1, &mut damaged)
                    .expect("readable");
                suspects.not_repaired(Lsn(stop))
            };
            let one = (vec!["base/5/16384.1:1".to_owned()], 1);
            assert_eq!(found(501, 900), one, "older than the start");
            assert_eq!(found(400, 900), (Vec::new(), 0), "in the backup's WAL");
            assert_eq!(found(400, 450), one, "beyond the stop");
        }
    }

    #[test]
    fn pages_that_wal_repairs_do_not_crowd_out_those_that_it_does_not() {
        let suspects = Suspects::since(Lsn(1000));
        let at = |lsn, block_in_file| Suspect {
            lsn: Lsn(lsn),
            path: "base/5/16384".into(),
            block_in_file,
        };
        for block in 0..3 * SUSPECTS_KEPT as u64 {
            suspects.push(at(1500, block));
        }
        suspects.push(at(900, 7));
        suspects.push(at(3000, 8));
        for block in 0..SUSPECTS_KEPT as u64 {
            suspects.push(at(1600, block));
        }
        let named = ["base/5/16384:7", "base/5/16384:8"].map(str::to_owned);
        assert_eq!(suspects.not_repaired(Lsn(2000)), (named.to_vec(), 2));
        for block in 0..SUSPECTS_KEPT as u64 {
            suspects.push(at(900, block));
        }
        let (pages, count) = suspects.not_repaired(Lsn(2000));
        assert_eq!((pages.len(), count), (SUSPECTS_KEPT, SUSPECTS_KEPT + 2));
    }

    #[test]
    fn a_page_truncated_away_meanwhile_is_zero() {
        let (_root, file) = file_of(&[good_page(0, 1)]);
        let suspects = Arc::new(Suspects::since(Lsn(u64::MAX)));
        let mut page = vec![7; PAGE_BYTES];
        page_check("base/5/1".into(), 0, Files::Live, Arc::clone(&suspects))(&file, 1, &mut page)
            .expect("readable");
        assert_eq!(page, vec![0; PAGE_BYTES]);
        assert_eq!(suspects.not_repaired(Lsn(0)), (Vec::new(), 0));
    }

    #[test]
    fn a_file_that_is_gone_was_dropped_unless_it_was_frozen() {
        let root = tempfile::tempdir().expect("a directory");
        let gone = || {
            let path = "base/5/1".to_owned();
            let (source, kind) = (root.path().join("1"), FileKind::Other);
            std::iter::once(Ok(Entry::File {
                path,
                source,
                bytes: 1,
                kind,
            }))
        };
        let (found, _next) = mpsc::channel(1);
        open_all(gone(), Files::Live, &found).expect("dropped meanwhile");
        open_all(gone(), Files::Frozen, &found).expect_err("missing");
    }
}
