//! A last look at a restored cluster before it goes into service: do its pages have the sums they
//! should have? A sample, because every page was already compared with what the backup read; this
//! one sees what recovery made of them (RELIABILITY §5.4.7).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::{Error, Result};
use crate::snapshot::page::{self, PAGE_BYTES, Verdict};
use crate::snapshot::walk::{Entry, FileKind, Walk};

const FILES: usize = 400;
/// First, last and a few between.
const PAGES_PER_FILE: u64 = 4;

/// Checks a stopped cluster with page checksums. `known`: pages that the backup already found
/// damaged (`path:page`). Blocks. Returns how many pages were looked at.
pub fn check(data_dir: &Path, major: u16, catalog_version: u32, known: &[String]) -> Result<u64> {
    let mut looked_at = 0;
    let mut files = 0;
    for entry in Walk::new(data_dir, major, catalog_version) {
        let Entry::File {
            path,
            source,
            bytes,
            kind: FileKind::Relation { first_block, .. },
        } = entry?
        else {
            continue;
        };
        let pages = bytes / PAGE_BYTES as u64;
        // Free space maps are not in the WAL; PostgreSQL makes a torn one anew when it meets it.
        if pages == 0 || path.ends_with("_fsm") {
            continue;
        }
        files += 1;
        if files > FILES {
            break;
        }
        let file = File::open(&source).map_err(Error::file("open", &source))?;
        let step = (pages / PAGES_PER_FILE).max(1);
        let mut page = vec![0; PAGE_BYTES];
        for block in (0..pages).step_by(step as usize) {
            file.read_exact_at(&mut page, block * PAGE_BYTES as u64)
                .map_err(Error::file("read", &source))?;
            looked_at += 1;
            let damaged = matches!(
                page::check(&page, first_block.wrapping_add(block as u32)),
                Verdict::Bad { .. }
            );
            if damaged && !known.contains(&format!("{path}:{block}")) {
                return Err(Error::Failed {
                    code: "BackupCorrupted",
                    message: format!("page {block} of {path} is damaged after the recovery"),
                    retryable: false,
                });
            }
        }
    }
    Ok(looked_at)
}
