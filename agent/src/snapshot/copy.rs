//! Feeds the files of a running server to the vault (RELIABILITY §5.2.5).
//!
//! PostgreSQL writes while we read. A file that vanished was dropped; one that became shorter is
//! padded with zeroes; a torn page is read again. WAL from the backup's start repairs all of that on
//! restore. What it cannot repair – a page that is wrong and was last changed before the start, or
//! claims a change that the backup's WAL does not reach – is a *suspect*, reported and kept.

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
use super::walk::{Entry, FileKind, Walk, WalkError, location_text};
use crate::error::Result;

const REREADS: u32 = 3;
const BEFORE_REREAD: Duration = Duration::from_millis(10);

/// Open files between the walk and the vault's pipeline.
const FILES_AHEAD: usize = 32;

/// A list that a person can still read; beyond it the count says enough.
const SUSPECTS_KEPT: usize = 1000;

/// Pages that failed their check.
#[derive(Debug, Default)]
pub struct Suspects(Mutex<Vec<Suspect>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Suspect {
    path: String,
    block_in_file: u64,
    lsn: Lsn,
}

impl Suspects {
    fn push(&self, suspect: Suspect) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < SUSPECTS_KEPT {
            all.push(suspect);
        }
    }

    /// `path:page` of those that the WAL from `start` to `stop` does not write anew.
    #[must_use]
    pub fn not_repaired(&self, start: Lsn, stop: Lsn) -> Vec<String> {
        let mut pages: Vec<String> = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|suspect| suspect.lsn < start || suspect.lsn > stop)
            .map(|suspect| format!("{}:{}", suspect.path, suspect.block_in_file))
            .collect();
        pages.sort_unstable();
        pages
    }
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

/// Hands everything the walk finds to the writer and returns when all of it has been read.
/// `checked`: the cluster has page checksums.
pub async fn copy(
    walk: Walk,
    writer: &BackupWriter,
    checked: bool,
    suspects: &Arc<Suspects>,
) -> Result<()> {
    let (found, mut next) = mpsc::channel(FILES_AHEAD);
    let walking = tokio::task::spawn_blocking(move || open_all(walk, &found));
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
                FileKind::Relation { first_block } => {
                    let check = checked
                        .then(|| page_check(path.clone(), first_block, Arc::clone(suspects)));
                    writer
                        .add_relation_segment(&path, file, bytes, check)
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
fn open_all(walk: Walk, found: &mpsc::Sender<Opened>) -> Result<(), WalkError> {
    for entry in walk {
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
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
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

fn page_check(path: String, first_block: u32, suspects: Arc<Suspects>) -> PageCheck {
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
            if reread == REREADS {
                suspects.push(Suspect {
                    path: path.clone(),
                    block_in_file,
                    lsn,
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
        let suspects = Arc::new(Suspects::default());
        let check = page_check("base/5/16384".into(), 0, Arc::clone(&suspects));
        let mut torn = good.clone();
        torn[5000..].fill(0);
        check(&file, 1, &mut torn).expect("readable");
        assert_eq!(torn, good);
        assert_eq!(
            suspects.not_repaired(Lsn(0), Lsn(u64::MAX)),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_damaged_page_is_a_suspect_unless_wal_writes_it_anew() {
        let mut damaged = good_page(131_072 + 1, 500);
        damaged[4000] ^= 1;
        let (_root, file) = file_of(&[good_page(131_072, 1), damaged.clone()]);
        let suspects = Arc::new(Suspects::default());
        page_check("base/5/16384.1".into(), 131_072, Arc::clone(&suspects))(&file, 1, &mut damaged)
            .expect("readable");
        assert_eq!(
            suspects.not_repaired(Lsn(501), Lsn(900)),
            ["base/5/16384.1:1"],
            "older than the start"
        );
        assert_eq!(
            suspects.not_repaired(Lsn(400), Lsn(900)),
            Vec::<String>::new(),
            "in the backup's WAL"
        );
        assert_eq!(
            suspects.not_repaired(Lsn(400), Lsn(450)),
            ["base/5/16384.1:1"],
            "beyond the stop"
        );
    }

    #[test]
    fn a_page_truncated_away_meanwhile_is_zero() {
        let (_root, file) = file_of(&[good_page(0, 1)]);
        let suspects = Arc::new(Suspects::default());
        let mut page = vec![7; PAGE_BYTES];
        page_check("base/5/1".into(), 0, Arc::clone(&suspects))(&file, 1, &mut page)
            .expect("readable");
        assert_eq!(page, vec![0; PAGE_BYTES]);
        assert_eq!(suspects.not_repaired(Lsn(0), Lsn(0)), Vec::<String>::new());
    }
}
