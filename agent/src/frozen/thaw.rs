//! A restore from the frozen copy that its own node has: files are cloned, no page is fetched (FLX-153).
//!
//! Only when the copy is of exactly the backup that is restored, has exactly the files that the manifest names, and each of
//! them is untouched. Whether it is untouched is asked after it was cloned, so that nothing can have come between.
//!
//! Twice and half: what was made goes with the attempt's directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_vault::backup::{Manifest, PG_CONTROL, RestoreInto, Restored, lay_out};
use tokio_util::sync::CancellationToken;

use super::record::{Identity, Mark, Record};
use super::{CONTROL, FILES, THREADS, kept_in};
use crate::snapshot::control_file::CONTROL_FILE_BYTES;

/// Open files between the one thread that makes them and those that fill them.
const FILES_AHEAD: usize = 64;

/// The frozen copy of one backup.
#[derive(Debug)]
pub struct FrozenCopy {
    root: PathBuf,
    record: Record,
}

/// Why a frozen copy is not used after all.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("its files are not those that the backup names")]
    OtherFiles,
    #[error("{path} was written to or replaced")]
    Touched { path: String },
    #[error("{path} could not be cloned")]
    Clone {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Vault(#[from] holdfast_vault::Error),
    #[error("cloning its files was given up")]
    Stopped,
}

impl FrozenCopy {
    /// The copy of this backup that the server's directory has. Blocks.
    #[must_use]
    pub fn find(server_dir: &Path, manifest: &Manifest) -> Option<Self> {
        let root = kept_in(server_dir);
        let record = match Record::read(&root) {
            Ok(record) => record?,
            Err(error) => {
                tracing::warn!(
                    error = crate::error::chain(&error),
                    "a frozen copy cannot be used"
                );
                return None;
            }
        };
        if record.of != Identity::of(manifest) {
            tracing::info!(backup.id = %manifest.backup, "the frozen copy on this node is of another backup");
            return None;
        }
        Some(Self { root, record })
    }

    /// Clones it to where [`holdfast_vault::backup::restore_to`] would write the backup. Nothing of it is
    /// durable yet. After an error the directories hold some of it. Blocks.
    pub fn thaw(
        &self,
        manifest: &Manifest,
        into: RestoreInto<'_>,
        stop: &CancellationToken,
    ) -> Result<Restored, Unfit> {
        let marks: HashMap<&str, Mark> = self
            .record
            .files
            .iter()
            .map(|(path, mark)| (path.as_str(), *mark))
            .collect();
        if manifest.files().len() != marks.len() + 1 {
            return Err(Unfit::OtherFiles);
        }
        let (queue, made) = sync_channel(FILES_AHEAD);
        // Owned by the threads: when none is left, nobody waits for room in the queue.
        let made = Arc::new(Mutex::new(made));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let made = Arc::clone(&made);
                    scope.spawn(move || self.fill_all(&made))
                })
                .collect();
            drop(made);
            let laid = lay_out(into, manifest, |file, empty| {
                let mark = marks.get(file.path.as_str());
                let mark = mark.filter(|mark| mark.bytes == file.bytes);
                let mark = *mark.ok_or(Unfit::OtherFiles)?;
                if stop.is_cancelled() {
                    return Err(Unfit::Stopped);
                }
                let path = file.path.clone();
                queue.send((path, mark, empty)).map_err(|_| Unfit::Stopped)
            });
            drop(queue);
            for thread in threads {
                // Its reason is the better one: all that the other side sees is that nobody listens.
                thread.join().map_err(|_| Unfit::Stopped)??;
            }
            laid
        })?;
        Ok(Restored {
            pg_control: self.control()?.into(),
            bytes: manifest.logical_bytes,
            files: manifest.files().len() as u64,
        })
    }

    /// One thread's life.
    fn fill_all(&self, made: &Mutex<Receiver<(String, Mark, File)>>) -> Result<(), Unfit> {
        let next = || {
            let made = made.lock().unwrap_or_else(PoisonError::into_inner);
            made.recv().ok()
        };
        while let Some((path, mark, file)) = next() {
            let source = self.root.join(FILES).join(&path);
            match clone_marked(&source, &file, mark) {
                Ok(true) => {}
                Ok(false) => return Err(Unfit::Touched { path }),
                Err(source) => return Err(Unfit::Clone { path, source }),
            }
        }
        Ok(())
    }

    fn control(&self) -> Result<Vec<u8>, Unfit> {
        let read = || {
            let file = open(&self.root.join(CONTROL))?;
            let mut bytes = Vec::new();
            (&file)
                .take(CONTROL_FILE_BYTES as u64)
                .read_to_end(&mut bytes)?;
            Ok((bytes, Mark::of(&file)?))
        };
        let path = PG_CONTROL.to_owned();
        match read() {
            Ok((bytes, mark)) if mark == self.record.control => Ok(bytes),
            Ok(_) => Err(Unfit::Touched { path }),
            Err(source) => Err(Unfit::Clone { path, source }),
        }
    }
}

/// `false`: it is not the file that was marked, or not any more.
fn clone_marked(source: &Path, to: &File, mark: Mark) -> io::Result<bool> {
    let source = open(source)?;
    rustix::fs::ioctl_ficlone(to, &source)?;
    Ok(Mark::of(&source)? == mark)
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
}
