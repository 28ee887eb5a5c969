//! Makes a frozen copy: every file that a backup reads is cloned (`FICLONE`), which copies none of its bytes.
//!
//! A clone is atomic with regard to writes (ioctl_ficlonerange(2)), so a page in it is never torn. The files are cloned one
//! after the other and not all at one instant; that is as good as reading them one after the other, which is what
//! a physical backup is: WAL from its start repairs it.
//!
//! Half: the directory goes with the attempt; what a killed agent left goes when it starts again.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_domain::JobId;
use holdfast_vault::Courtesy;
use tokio_util::sync::CancellationToken;

use super::record::{Identity, Mark, Record};
use super::{CONTROL, FILES, THREADS, clear_unfinished, kept_in, remove_tree, unfinished_in};
use crate::error::{Error, Result, chain};
use crate::snapshot::control_file::ControlFile;
use crate::snapshot::walk::{Entry, FileKind, Walk, WalkError};

/// A file that every data directory has.
const PROBED: &str = "PG_VERSION";

/// A directory in which files of a server can be cloned. It and everything in it goes when this is dropped.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
    server_dir: PathBuf,
}

impl Place {
    /// Finds out by doing it: neither the name of the file system nor its options decide. Blocks.
    ///
    /// # Errors
    /// What the clone of a small file said: most often that the operation is not supported.
    pub fn probe(server_dir: &Path, job: JobId, epoch: i64) -> io::Result<Self> {
        if let Err(error) = clear_unfinished(server_dir) {
            tracing::warn!(
                error = chain(&error),
                "could not remove what was frozen before"
            );
        }
        let place = Self {
            root: unfinished_in(server_dir, job, epoch),
            server_dir: server_dir.to_owned(),
        };
        match place.prove() {
            Ok(()) => Ok(place),
            Err(error) => {
                place.remove();
                Err(error)
            }
        }
    }

    fn prove(&self) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&self.root)?;
        let probed = self.server_dir.join("data").join(PROBED);
        let probe = self.root.join(PROBED);
        clone(&probed, &probe)?;
        if std::fs::read(&probe)? != std::fs::read(&probed)? {
            return Err(io::Error::other(
                "a clone has another content than its source",
            ));
        }
        std::fs::remove_file(&probe)?;
        DirBuilder::new().mode(0o700).create(self.files())
    }

    fn files(&self) -> PathBuf {
        self.root.join(FILES)
    }

    fn remove(&self) {
        remove_or_tell(&self.root);
    }

    /// Clones everything that the walk finds. Blocks, for about as long as the files are many; their sizes
    /// hardly matter.
    ///
    /// # Errors
    /// What could not be cloned; [`Error::Canceled`] after `stop`. Nothing is left then.
    pub fn freeze(
        self,
        walk: Walk,
        courtesy: &Courtesy,
        stop: &CancellationToken,
    ) -> Result<Frozen> {
        let found = Mutex::new(Found {
            walk,
            directories: Vec::new(),
            tablespaces: Vec::new(),
            failed: false,
        });
        let below = self.files();
        let cloned: Vec<_> = std::thread::scope(|scope| {
            let worker = || {
                scope.spawn(|| {
                    courtesy.begin_thread();
                    clone_all(&below, &found, stop)
                })
            };
            let workers: Vec<_> = (0..THREADS).map(|_| worker()).collect();
            workers.into_iter().map(|worker| worker.join()).collect()
        });
        let mut files = Vec::new();
        for cloned in cloned {
            let died = |_| Error::system("clone files")(io::Error::other("a thread panicked"));
            match cloned.map_err(died).and_then(|cloned| cloned) {
                Ok(mut cloned) => files.append(&mut cloned),
                Err(error) => {
                    self.remove();
                    return Err(error);
                }
            }
        }
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Frozen {
            place: self,
            directories: found.directories,
            tablespaces: found.tablespaces,
            bytes: files.iter().map(|file| file.mark.bytes).sum(),
            files,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that is kept has another name by now.
        if !self.root.exists() {
            return;
        }
        let root = std::mem::take(&mut self.root);
        // A million files take a while, and whoever drops this may be an async task.
        std::thread::spawn(move || remove_or_tell(&root));
    }
}

fn remove_or_tell(root: &Path) {
    if let Err(error) = remove_tree(root) {
        tracing::warn!(error = chain(&error), "could not remove what was frozen");
    }
}

/// The files of a server as they were while PostgreSQL held a backup open.
#[derive(Debug)]
pub struct Frozen {
    place: Place,
    directories: Vec<String>,
    tablespaces: Vec<(u32, PathBuf)>,
    files: Vec<FrozenFile>,
    bytes: u64,
}

#[derive(Debug)]
struct FrozenFile {
    path: String,
    kind: FileKind,
    mark: Mark,
}

impl Frozen {
    /// Bytes of all its files, shared or not.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// What the walk found, with the clones as its files.
    pub fn entries(self: &Arc<Self>) -> impl Iterator<Item = Result<Entry, WalkError>> + use<> {
        let (frozen, below) = (Arc::clone(self), self.place.files());
        let (directories, tablespaces) = (frozen.directories.len(), frozen.tablespaces.len());
        let all = directories + tablespaces + frozen.files.len();
        (0..all).map(move |nth| {
            if let Some(path) = frozen.directories.get(nth) {
                return Ok(Entry::Directory { path: path.clone() });
            }
            if let Some((oid, location)) = frozen.tablespaces.get(nth - directories) {
                let (oid, location) = (*oid, location.clone());
                return Ok(Entry::Tablespace { oid, location });
            }
            let file = &frozen.files[nth - directories - tablespaces];
            Ok(Entry::File {
                source: below.join(&file.path),
                path: file.path.clone(),
                bytes: file.mark.bytes,
                kind: file.kind,
            })
        })
    }

    /// Makes it the frozen copy of its server, in place of an older one. From here on a restore of the
    /// backup `of` may clone it. Blocks.
    pub fn keep(&self, of: Identity, control: &ControlFile) -> Result<()> {
        let root = &self.place.root;
        let failed = |what| Error::file(what, root);
        let control = write_control(root, control).map_err(failed("write the control file in"))?;
        // A copy that is believed after a crash must have survived it.
        File::open(root)
            .and_then(|root| Ok(nix::unistd::syncfs(root)?))
            .map_err(failed("make durable"))?;
        let files = self.files.iter();
        Record {
            of,
            control,
            files: files.map(|file| (file.path.clone(), file.mark)).collect(),
        }
        .write(root)?;
        super::remove(&self.place.server_dir)?;
        std::fs::rename(root, kept_in(&self.place.server_dir))
            .and_then(|()| File::open(&self.place.server_dir)?.sync_all())
            .map_err(failed("put in place"))
    }
}

fn write_control(root: &Path, control: &ControlFile) -> io::Result<Mark> {
    use std::io::Write as _;
    let mut file = new_file(&root.join(CONTROL))?;
    file.write_all(control.bytes())?;
    file.sync_all()?;
    Mark::of(&file)
}

/// What threads share that clone the files of one walk.
struct Found {
    walk: Walk,
    directories: Vec<String>,
    tablespaces: Vec<(u32, PathBuf)>,
    /// One of them gave up: the others do, too.
    failed: bool,
}

impl Found {
    /// The next file. A directory is made here, by one thread at a time, before anybody sees a file in it.
    fn next_file(&mut self, below: &Path) -> Result<Option<(String, PathBuf, FileKind)>> {
        while !self.failed {
            let Some(entry) = self.walk.next() else {
                return Ok(None);
            };
            match entry? {
                Entry::Directory { path } => {
                    let made = below.join(&path);
                    DirBuilder::new()
                        .recursive(true)
                        .mode(0o700)
                        .create(&made)
                        .map_err(Error::file("create the directory", made))?;
                    self.directories.push(path);
                }
                Entry::Tablespace { oid, location } => self.tablespaces.push((oid, location)),
                Entry::File {
                    path, source, kind, ..
                } => return Ok(Some((path, source, kind))),
            }
        }
        Ok(None)
    }
}

/// One thread's life.
fn clone_all(
    below: &Path,
    found: &Mutex<Found>,
    stop: &CancellationToken,
) -> Result<Vec<FrozenFile>> {
    let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cloned = Vec::new();
    let result = loop {
        if stop.is_cancelled() {
            break Err(Error::Canceled);
        }
        let next = lock().next_file(below);
        let (path, source, kind) = match next {
            Ok(Some(file)) => file,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        match clone(&source, &below.join(&path)) {
            Ok(mark) => cloned.push(FrozenFile { path, kind, mark }),
            // Dropped meanwhile; WAL drops it again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => break Err(Error::file("clone", source)(error)),
        }
    };
    if result.is_err() {
        lock().failed = true;
    }
    result.map(|()| cloned)
}

/// A new file that shares what `source` holds at one instant.
fn clone(source: &Path, to: &Path) -> io::Result<Mark> {
    let source = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(source)?;
    let file = new_file(to)?;
    rustix::fs::ioctl_ficlone(&file, &source)?;
    Mark::of(&file)
}

/// For the agent alone to read, and for nobody to write to.
fn new_file(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)
}
