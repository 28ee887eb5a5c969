//! What there is to back up: pages made from numbers, as content and on a disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use holdfast_vault::backup::{Changes, PAGE_BYTES, PG_CONTROL};
use roaring::RoaringBitmap;

/// A data directory: of each relation its pages, by seed. Zero is a page of zeros.
pub type Content = BTreeMap<String, Vec<u64>>;
/// The same as bytes, the control file included.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A page that no other seed makes: half text that compresses, half noise that does not.
pub fn half_text(seed: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE_BYTES);
    while page.len() < PAGE_BYTES / 2 {
        page.extend_from_slice(format!("row {seed} of a table; ").as_bytes());
    }
    page.truncate(PAGE_BYTES / 2);
    page.extend(noise_of(seed, PAGE_BYTES / 2));
    page
}

pub fn noise(seed: u64) -> Vec<u8> {
    noise_of(seed, PAGE_BYTES)
}

fn noise_of(seed: u64, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().read_exact(&mut noise).unwrap();
    noise
}

/// What a file holds, by the numbers of its pages, and the file.
type Relation = (Vec<u64>, File);

/// The data directory: of each relation the file, and what it holds. Copies share it: whoever backs up makes it say first
/// what it needs.
#[derive(Clone)]
pub struct Disk {
    pub page: fn(u64) -> Vec<u8>,
    relations: Arc<Mutex<BTreeMap<String, Relation>>>,
}

impl Disk {
    pub fn of(page: fn(u64) -> Vec<u8>) -> Self {
        Self {
            page,
            relations: Arc::default(),
        }
    }

    fn page(&self, seed: u64) -> Vec<u8> {
        match seed {
            0 => vec![0; PAGE_BYTES],
            seed => (self.page)(seed),
        }
    }

    /// A relation, once it holds this.
    pub fn file(&self, path: &str, seeds: &[u64]) -> File {
        let mut relations = self.relations.lock().unwrap();
        let (before, file) = relations
            .entry(path.to_owned())
            .or_insert_with(|| (Vec::new(), tempfile::tempfile().unwrap()));
        file.set_len((seeds.len() * PAGE_BYTES) as u64).unwrap();
        for (at, seed) in seeds.iter().enumerate() {
            if before.get(at) != Some(seed) {
                let page = self.page(*seed);
                file.write_all_at(&page, (at * PAGE_BYTES) as u64).unwrap();
            }
        }
        *before = seeds.to_vec();
        file.try_clone().unwrap()
    }

    pub fn files(&self, content: &Content) -> Files {
        let relations = content.iter().map(|(path, seeds)| {
            let pages = seeds.iter().flat_map(|seed| self.page(*seed));
            (path.clone(), pages.collect())
        });
        let mut files: Files = relations.collect();
        files.insert(PG_CONTROL.to_owned(), half_text(1));
        files
    }
}

/// What the log would say of a relation.
pub fn changed(before: &[u64], now: &[u64]) -> Changes {
    let differs = |at: &usize| before.get(*at) != Some(&now[*at]);
    let pages: RoaringBitmap = (0..now.len())
        .filter(differs)
        .map(|page| page as u32)
        .collect();
    Changes::Only(Arc::new(pages))
}

/// All files below a directory.
pub fn read_tree(dir: &Path, below: &str, files: &mut Files) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            read_tree(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
}
