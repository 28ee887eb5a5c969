//! Which commits a user is waiting for.
//!
//! A commit record says nothing about what was committed, so by itself it never counts as a modification
//! (RELIABILITY §5.5). But the commit of a user's change must be durable within the second, and that of an
//! automatic ANALYZE need not be. The difference is in the records the transaction wrote before: a
//! transaction is *quiet* when every one of them was seen and none counted. Not sure means not quiet.

use foldhash::HashMap;
use holdfast_vault::wal::record::{Record, rmgr};

/// More transactions than this at once are not followed; their commits are urgent.
const MOST_FOLLOWED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// Transaction id → nothing it wrote counted so far. Only transactions seen from their first record.
    followed: HashMap<u32, bool>,
    newest: Option<u32>,
}

impl Transactions {
    /// Takes in a record; `counts` is whether it is a modification by itself. Says whether somebody waits.
    pub fn is_urgent(&mut self, record: &Record, counts: bool) -> bool {
        if record.stamped_at.is_some() {
            let quiet = self.followed.remove(&record.xid).unwrap_or(false);
            return counts || record.ends_subtransactions || !quiet;
        }
        if record.xid != 0 && record.rmgr != rmgr::XACT {
            self.note(record.xid, counts);
        }
        counts
    }

    fn note(&mut self, xid: u32, counts: bool) {
        if let Some(quiet) = self.followed.get_mut(&xid) {
            *quiet &= !counts;
            return;
        }
        // Ids are handed out in order (they wrap): one that is not newer than all others may have
        // written something before this walk began.
        let is_new = self
            .newest
            .is_none_or(|newest| xid.wrapping_sub(newest).cast_signed() > 0);
        if !is_new {
            return;
        }
        let first_of_the_walk = self.newest.replace(xid).is_none();
        if self.followed.len() >= MOST_FOLLOWED {
            self.followed.clear();
        }
        if !first_of_the_walk {
            self.followed.insert(xid, !counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use holdfast_domain::Lsn;

    use super::*;

    fn record(xid: u32, rmgr: u8, commit: bool) -> Record {
        Record {
            start: Lsn(8),
            end: Lsn(16),
            bytes: 8,
            rmgr,
            info: 0,
            xid,
            relation: None,
            stamped_at: commit.then_some(DateTime::UNIX_EPOCH),
            ends_subtransactions: false,
            transactional_message: false,
        }
    }

    #[test]
    fn only_a_commit_of_nothing_that_counts_may_wait() {
        let mut seen = Transactions::default();
        let heap = |xid| record(xid, rmgr::HEAP, false);
        let commit = |xid| record(xid, rmgr::XACT, true);
        // The walk's first transaction may have begun before it.
        seen.is_urgent(&heap(9), false);
        assert!(seen.is_urgent(&commit(9), false));
        // Statistics only.
        seen.is_urgent(&heap(10), false);
        assert!(!seen.is_urgent(&commit(10), false));
        // Statistics and a row.
        seen.is_urgent(&heap(11), false);
        assert!(seen.is_urgent(&heap(11), true));
        seen.is_urgent(&heap(11), false);
        assert!(seen.is_urgent(&commit(11), false));
        // Never seen, and older than what was seen.
        assert!(seen.is_urgent(&commit(12), false));
        seen.is_urgent(&heap(5), false);
        assert!(seen.is_urgent(&commit(5), false));
    }
}
