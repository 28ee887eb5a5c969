//! Room for a clean shutdown on a full disk (RELIABILITY §5.1).
//!
//! WAL is never dropped to save disk, so a store that is away for long fills the file system. At 95 % the
//! agent releases a file that it kept for this moment; at 98 % it stops the servers whose WAL fills the
//! disk (`Node::look_after`), and in the room that was released they write their last checkpoint
//! instead of dying in the middle of a write. They come back when there is room again.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

use crate::error::{Error, Result};

/// Two WAL segments.
const BYTES: i64 = 32 << 20;
/// From here on nothing is kept that only makes something faster.
const SPARE_FROM_PERCENT: u64 = 70;
const RELEASE_AT_PERCENT: u64 = 95;
const STOP_AT_PERCENT: u64 = 98;
/// Taken back only when there is room again, so that it does not come and go.
const TAKE_BACK_AT_PERCENT: u64 = 90;

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// There is room, and frozen copies are not kept any more: they grow with what their servers overwrite.
    Filling,
    /// Below the mark at which the reserve goes, and not yet above the one at which it comes back.
    Scarce,
    /// The reserve is released: nothing is kept that can go.
    NearlyNone {
        used_percent: u64,
    },
    /// Servers stop while they still can.
    None {
        used_percent: u64,
    },
}

impl Room {
    /// How much there is on the file system of a directory. Blocking.
    pub fn on(directory: &Path) -> Result<Self> {
        used_percent_on(directory).map(Self::of)
    }

    fn of(used_percent: u64) -> Self {
        match used_percent {
            STOP_AT_PERCENT.. => Self::None { used_percent },
            RELEASE_AT_PERCENT.. => Self::NearlyNone { used_percent },
            TAKE_BACK_AT_PERCENT.. => Self::Scarce,
            SPARE_FROM_PERCENT.. => Self::Filling,
            _ => Self::Enough,
        }
    }
}

#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("reserve"),
        }
    }

    /// Looks at the file system, and releases the reserve or takes it back. Blocking.
    pub fn look(&self) -> Result<Room> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let used = used_percent_on(directory)?;
        self.act(used)?;
        Ok(Room::of(used))
    }

    fn act(&self, used_percent: u64) -> Result<()> {
        if used_percent >= RELEASE_AT_PERCENT {
            match std::fs::remove_file(&self.path) {
                Ok(()) => tracing::error!(
                    used_percent,
                    "the disk is nearly full: released the reserve"
                ),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::file("release", &self.path)(error)),
            }
        } else if used_percent < TAKE_BACK_AT_PERCENT && !self.path.exists() {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&self.path)
                .map_err(Error::file("create", &self.path))?;
            posix_fallocate(&file, 0, BYTES)
                .map_err(|errno| Error::file("reserve room in", &self.path)(errno.into()))?;
        }
        Ok(())
    }
}

fn used_percent_on(directory: &Path) -> Result<u64> {
    let disk = statvfs(directory)
        .map_err(|errno| Error::file("look at the file system of", directory)(errno.into()))?;
    Ok(used_percent(disk.blocks(), disk.blocks_available()))
}

fn used_percent(blocks: u64, available: u64) -> u64 {
    if blocks == 0 {
        return 0;
    }
    blocks.saturating_sub(available) * 100 / blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_released_on_a_full_disk_and_taken_back_later() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let reserve = Reserve::new(dir.path());
        let held = || std::fs::metadata(dir.path().join("reserve")).map_or(0, |m| m.len());
        reserve.act(50).expect("room");
        assert_eq!(held(), 32 << 20);
        reserve.act(95).expect("released");
        reserve.act(92).expect("not yet");
        assert_eq!(held(), 0);
        reserve.act(89).expect("room again");
        assert_eq!(held(), 32 << 20);
        assert_eq!(used_percent(100, 4), 96);
        assert_eq!(
            [69, 70, 89, 90, 95, 98].map(Room::of),
            [
                Room::Enough,
                Room::Filling,
                Room::Filling,
                Room::Scarce,
                Room::NearlyNone { used_percent: 95 },
                Room::None { used_percent: 98 }
            ]
        );
        reserve.look().expect("the real disk can be looked at");
    }
}
