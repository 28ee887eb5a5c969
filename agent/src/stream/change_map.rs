//! Which blocks of which relations changed, by what the stream has seen of the log: a backup that knows
//! reads only those (issue "cost follows the change"; ADR 15 says why that is sound and where it ends).
//!
//! The map is *complete* for all records that begin at or after [`ChangeMap::from`]; of what came before it
//! knows nothing, and whoever needs to know more reads every page. It may say too much, never too little:
//! epochs are coarse, and a relation about which a record says something that is not a list of blocks –
//! made, cut short, copied as a file – is *whole*, to be read from beginning to end.
//!
//! Memory is bounded: when it has grown beyond [`MOST_EPOCHS`] epochs, neighbours become one; when it is still too
//! large, the oldest goes and `from` moves up.

use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::wal::blocks::{Head, MAIN_FORK, Unreadable};
use holdfast_vault::wal::record::{Record, RelFileLocator, rmgr};
use roaring::RoaringBitmap;

/// WAL of one epoch at first; neighbours are put together as they age.
const EPOCH_BYTES: u64 = 256 << 20;
const MOST_EPOCHS: usize = 12;
const MOST_BYTES: usize = 24 << 20;

/// What a record of resource manager XLOG may say: server parameters, `full_page_writes` among them, have changed.
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
const XLOG_FPW_CHANGE: u8 = 0x80;
/// Resource managers from here on are extensions'.
const FIRST_CUSTOM_RMGR: u8 = 128;

/// See the module.
#[derive(Debug)]
pub struct ChangeMap {
    from: Lsn,
    timeline: Timeline,
    /// End of the newest record that was seen.
    seen_to: Lsn,
    /// It was wrong once.
    distrusted: bool,
    /// In order of their beginnings.
    epochs: Vec<Epoch>,
}

#[derive(Debug)]
struct Epoch {
    /// Records that begin before this belong to an earlier epoch.
    from: Lsn,
    end: Lsn,
    changes: Changes,
}

/// Changed blocks of main forks.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    blocks: HashMap<RelFileLocator, RoaringBitmap>,
    /// Read these from beginning to end.
    relations: HashSet<RelFileLocator>,
    /// And everything in these databases.
    databases: HashSet<u32>,
}

/// What is known of one relation's main fork.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known<'a> {
    /// No block of it changed.
    Nothing,
    /// These may have.
    Blocks(&'a RoaringBitmap),
    /// All of it may have.
    Whole,
}

impl Changes {
    #[must_use]
    pub fn of(&self, relation: RelFileLocator) -> Known<'_> {
        if self.relations.contains(&relation) || self.databases.contains(&relation.database) {
            return Known::Whole;
        }
        self.blocks
            .get(&relation)
            .map_or(Known::Nothing, Known::Blocks)
    }

    pub fn add_block(&mut self, relation: RelFileLocator, block: u32) {
        self.blocks.entry(relation).or_default().insert(block);
    }

    /// It was made, or cut short.
    pub fn add_relation(&mut self, relation: RelFileLocator) {
        self.relations.insert(relation);
    }

    /// It was copied as files, or dropped.
    pub fn add_database(&mut self, database: u32) {
        self.databases.insert(database);
    }

    pub fn merge(&mut self, other: &Self) {
        for (relation, blocks) in &other.blocks {
            *self.blocks.entry(*relation).or_default() |= blocks;
        }
        self.relations.extend(&other.relations);
        self.databases.extend(&other.databases);
    }

    /// About what it takes in memory.
    fn bytes(&self) -> usize {
        let blocks: usize = self
            .blocks
            .values()
            .map(|set| 64 + set.serialized_size())
            .sum();
        blocks + 16 * self.relations.len() + 8 * self.databases.len()
    }

    /// Takes in what one record changes. `Err`: that cannot be told.
    fn take(&mut self, record: &Record, head: Head<'_>) -> Result<(), Unreadable> {
        match record.rmgr {
            rmgr::SMGR => {
                let data = head.data()?;
                // CREATE: the locator; TRUNCATE: the new length, then the locator.
                let at = if record.info & 0xF0 == 0x20 { 4 } else { 0 };
                self.add_relation(RelFileLocator {
                    tablespace: word(data, at)?,
                    database: word(data, at + 4)?,
                    relation: word(data, at + 8)?,
                });
            }
            // Made by copying files, or dropped: in each kind of record the database comes first.
            rmgr::DATABASE => {
                self.add_database(word(head.data()?, 0)?);
            }
            rmgr::XLOG if matches!(record.info & 0xF0, XLOG_PARAMETER_CHANGE | XLOG_FPW_CHANGE) => {
                return Err(Unreadable);
            }
            FIRST_CUSTOM_RMGR.. => return Err(Unreadable),
            _ => head.blocks(|block| {
                if block.fork == MAIN_FORK {
                    self.add_block(block.relation, block.block);
                }
            })?,
        }
        Ok(())
    }
}

fn word(data: &[u8], at: usize) -> Result<u32, Unreadable> {
    let bytes = data.get(at..at + 4).ok_or(Unreadable)?;
    Ok(u32::from_le_bytes(
        bytes.try_into().map_err(|_| Unreadable)?,
    ))
}

/// Knows nothing until a stream resumes.
impl Default for ChangeMap {
    fn default() -> Self {
        Self {
            seen_to: Lsn::ZERO,
            ..Self::new(Timeline::FIRST, Lsn(u64::MAX))
        }
    }
}

impl ChangeMap {
    /// Complete from the first record on that begins at or after `from`.
    #[must_use]
    pub fn new(timeline: Timeline, from: Lsn) -> Self {
        Self {
            from,
            timeline,
            seen_to: from,
            distrusted: false,
            epochs: Vec::new(),
        }
    }

    /// Records come in the order of the log; after an interruption some may come again.
    pub fn take(&mut self, record: &Record, head: Head<'_>) {
        if record.start < self.from {
            return;
        }
        self.seen_to = self.seen_to.max(record.end);
        if self
            .epochs
            .last()
            .is_none_or(|last| record.start >= last.end)
        {
            let from = Lsn(record.start.0 - record.start.0 % EPOCH_BYTES);
            self.epochs.push(Epoch {
                from,
                end: from + EPOCH_BYTES,
                changes: Changes::default(),
            });
            self.keep_small();
        }
        let epoch = self
            .epochs
            .iter_mut()
            .rev()
            .find(|epoch| record.start >= epoch.from);
        let taken = match epoch {
            Some(epoch) => epoch.changes.take(record, head),
            None => Err(Unreadable),
        };
        if taken.is_err() {
            tracing::debug!(lsn = %record.start, "the change map begins anew behind a record that it cannot follow");
            self.begin_anew(record.end);
        }
    }

    /// Records come from `start` on: perhaps again, perhaps with a hole before them.
    pub fn resume(&mut self, timeline: Timeline, start: Lsn) {
        if timeline != self.timeline || start > self.seen_to {
            self.timeline = timeline;
            self.begin_anew(start);
        }
    }

    /// Nothing is known of what begins before `from`.
    pub fn begin_anew(&mut self, from: Lsn) {
        *self = Self {
            distrusted: self.distrusted,
            ..Self::new(self.timeline, from)
        };
    }

    /// From now on it says that it knows nothing.
    pub fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// What records changed that begin at or after `since`; `None` when not all of them were seen.
    #[must_use]
    pub fn since(&self, since: Lsn) -> Option<Arc<Changes>> {
        if since < self.from || self.distrusted {
            return None;
        }
        let mut all = Changes::default();
        for epoch in self.epochs.iter().filter(|epoch| epoch.end > since) {
            all.merge(&epoch.changes);
        }
        Some(Arc::new(all))
    }

    /// Where what it knows begins; `None` when it is not believed, or knows nothing of this timeline.
    #[must_use]
    pub fn begins(&self, timeline: Timeline) -> Option<Lsn> {
        (!self.distrusted && self.timeline == timeline).then_some(self.from)
    }

    /// No backup will ask about what comes before this.
    pub fn forget_before(&mut self, lsn: Lsn) {
        self.epochs.retain(|epoch| epoch.end > lsn);
        self.from = self.from.max(lsn);
    }

    fn keep_small(&mut self) {
        if self.epochs.len() > MOST_EPOCHS {
            // The two that together span least, the newest left out: it is still growing.
            let upto = self.epochs.len() - 2;
            if let Some(at) = (0..upto)
                .min_by_key(|at| self.epochs[at + 1].end.bytes_since(self.epochs[*at].from))
            {
                let later = self.epochs.remove(at + 1);
                self.epochs[at].end = later.end;
                self.epochs[at].changes.merge(&later.changes);
            }
        }
        let mut bytes: usize = self.epochs.iter().map(|epoch| epoch.changes.bytes()).sum();
        while bytes > MOST_BYTES && self.epochs.len() > 1 {
            let oldest = self.epochs.remove(0);
            bytes -= oldest.changes.bytes();
            self.from = self.from.max(oldest.end);
        }
    }
}

#[cfg(test)]
mod tests;
