//! Sixty days of daily differentials, a fiftieth of the pages changed in each, under the rules of retention,
//! compaction and prune: what lies in the store, and what would at least have to.

use std::sync::Arc;

use chrono::TimeDelta;
use holdfast_vault::{DataKey, Store};
use object_store::memory::InMemory;

use super::catalogue::Life;
use super::content::Content;

/// What a differential has changed since the one before: one page of so many.
const ONE_OF: usize = 50;
pub const DAYS: i64 = 60;
const RELATION: &str = "base/5/16400";

/// Bytes in the store, what they would be at best, and what was rewritten for it.
#[derive(Debug)]
pub struct Figures {
    pub stored: u64,
    pub minimum: u64,
    /// Looked at every tenth day, once the window is full.
    pub worst_percent: u64,
    pub rewritten: u64,
    pub backups: usize,
}

pub fn in_memory() -> Store {
    Store::from_object_store(Arc::new(InMemory::new()))
}

/// Lives for sixty days with a relation of so many pages, each made from its number. Whoever calls can look at what is left.
pub async fn live(
    page: fn(u64) -> Vec<u8>,
    count: usize,
    window: i64,
    compacting: bool,
) -> (Life, Figures) {
    let mut life = Life::new(in_memory(), DataKey::generate().unwrap(), window, page);
    // As agents do it; what is stored is the same either way.
    life.by_map = true;
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut seeds: Vec<u64> = (1..=count as u64).collect();
    let mut next = seeds.len() as u64;
    let (mut worst_percent, mut rewritten) = (0, 0);
    for day in 0..=DAYS {
        if day > 0 {
            life.now += TimeDelta::days(1);
            for _ in 0..seeds.len() / ONE_OF {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let at = (random >> 33) as usize % seeds.len();
                next += 1;
                seeds[at] = next;
            }
        }
        let content = Content::from([(RELATION.to_owned(), seeds.clone())]);
        let mut snapshot = life.plan_snapshot(&content);
        life.snapshot(&mut snapshot).await.unwrap();
        life.sweep();
        if let Some(mut job) = life.plan_compaction().filter(|_| compacting) {
            rewritten += life.compact(&mut job).await.unwrap().bytes_written;
        }
        let prune = life.plan_prune();
        life.prune(&prune).await.unwrap();
        if compacting && day > window + 2 && day % 10 == 0 {
            let (stored, minimum) = sizes(&life).await;
            worst_percent = worst_percent.max(stored * 100 / minimum);
        }
    }
    let (stored, minimum) = sizes(&life).await;
    let backups = life.complete().count();
    let figures = Figures {
        stored,
        minimum,
        worst_percent,
        rewritten,
        backups,
    };
    (life, figures)
}

async fn sizes(life: &Life) -> (u64, u64) {
    let least = life.minimum(in_memory()).await;
    (life.stored("").await, least.stored("").await)
}
