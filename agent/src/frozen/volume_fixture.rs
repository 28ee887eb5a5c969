//! A file system of a test's own, in a file, mounted for as long as the value lives.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

/// Enough for a few small servers. The file has holes: it takes what is written.
const BYTES: u64 = 2 << 30;
const CAP_SYS_ADMIN: u32 = 21;

pub(crate) struct Volume {
    mounted: PathBuf,
    _image: TempDir,
}

impl Volume {
    /// `kind`: what stands behind `mkfs.`. `None` where tests must not mount; it is said, and a whole run says it too
    /// (`./test`).
    pub(crate) fn mount(kind: &str) -> Option<Self> {
        Self::mount_of(kind, BYTES)
    }

    pub(crate) fn mount_of(kind: &str, bytes: u64) -> Option<Self> {
        if let Some(reason) = hindrance(kind) {
            eprintln!("SKIPPED on {kind}: {reason}");
            return None;
        }
        let image = tempfile::Builder::new()
            .prefix("hfv")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711))
            .tempdir()
            .expect("a temporary directory");
        let file = image.path().join("image");
        std::fs::File::create(&file)
            .and_then(|file| file.set_len(bytes))
            .expect("a file with holes");
        let options: &[&str] = match kind {
            "xfs" => &["-q", "-m", "reflink=1"],
            _ => &["-q"],
        };
        run(Command::new(mkfs(kind)).args(options).arg(&file));
        let mounted = image.path().join("v");
        std::fs::create_dir(&mounted).expect("made");
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&file)
            .arg(&mounted));
        let volume = Self {
            mounted,
            _image: image,
        };
        std::fs::set_permissions(
            volume.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o711),
        )
        .expect("passable");
        Some(volume)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mounted
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // After a panic postmasters are still ending. The loop device goes with the last user of the mount.
        for _ in 0..50 {
            let unmounted = Command::new("umount").arg(&self.mounted).output();
            if unmounted.is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.mounted).status();
    }
}

fn mkfs(kind: &str) -> PathBuf {
    Path::new("/sbin").join(format!("mkfs.{kind}"))
}

/// Why nothing can be mounted here. What fails although it should work is a failed test.
fn hindrance(kind: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .expect("a mask of capabilities");
    if effective & (1 << CAP_SYS_ADMIN) == 0 {
        return Some("mounting needs root".to_owned());
    }
    for needed in [mkfs(kind).as_path(), Path::new("/dev/loop-control")] {
        if !needed.exists() {
            return Some(format!("there is no {}", needed.display()));
        }
    }
    None
}

fn run(command: &mut Command) {
    let output = command.output().expect("it can be run");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
