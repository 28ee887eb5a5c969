//! What in the WAL counts as a modification of a server (FLX-017, FLX-018; RELIABILITY §5.5).
//!
//! An idle server writes WAL too: checkpoints, snapshots of running transactions, autovacuum's work,
//! fresh statistics. None of that may cost a snapshot or a store request. The rule errs to one side only:
//! whatever this file does not know counts.

use foldhash::HashSet;

use super::record::{OPERATION, Record, XACT_COMMIT_PREPARED, rmgr};

/// Database oid and file number of relations whose rows are statistics: `pg_statistic`,
/// `pg_statistic_ext_data` and their toast tables, of every database.
///
/// A rewrite (VACUUM FULL) gives them new file numbers; until the set is read again, changes to them count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatisticsRelations(HashSet<(u32, u32)>);

impl StatisticsRelations {
    #[must_use]
    pub fn contains(&self, database: u32, relation: u32) -> bool {
        self.0.contains(&(database, relation))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u32, u32)> for StatisticsRelations {
    fn from_iter<I: IntoIterator<Item = (u32, u32)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// Whether this record modifies the server in the sense of the suspension of daily snapshots.
#[must_use]
pub fn counts(record: &Record, statistics: &StatisticsRelations) -> bool {
    match record.rmgr {
        rmgr::HEAP => {
            heap_counts(record.info & OPERATION) && !touches_statistics(record, statistics)
        }
        rmgr::HEAP2 => {
            heap2_counts(record.info & OPERATION) && !touches_statistics(record, statistics)
        }
        rmgr::XACT => record.info & OPERATION == XACT_COMMIT_PREPARED,
        rmgr::LOGICAL_MESSAGE => record.transactional_message,
        // Checkpoints, full-page images, next oid, restore points, segment switches, parameter changes.
        rmgr::XLOG
        // Bookkeeping of transactions whose effects are records of their own.
        | rmgr::CLOG
        | rmgr::MULTIXACT
        | rmgr::STANDBY
        | rmgr::COMMIT_TS
        | rmgr::REPLICATION_ORIGIN
        // Index-only records: vacuum and page splits; an entry for a new row follows that row's record.
        | rmgr::BTREE
        | rmgr::HASH
        | rmgr::GIN
        | rmgr::GIST
        | rmgr::SPGIST
        | rmgr::BRIN => false,
        // Smgr, Database, Tablespace, RelMap, Sequence; Generic and custom managers, which are an
        // extension's and could be anything.
        _ => true,
    }
}

/// Whether file numbers of statistics may have changed with this record.
#[must_use]
pub fn renames_relations(record: &Record) -> bool {
    matches!(record.rmgr, rmgr::SMGR | rmgr::RELMAP | rmgr::DATABASE)
}

/// Everything but INPLACE, with which vacuum and analyze update `pg_class` and `pg_database`.
fn heap_counts(operation: u8) -> bool {
    const INPLACE: u8 = 0x70;
    operation != INPLACE
}

/// Everything but cleaning. 13: CLEAN, FREEZE, CLEANUP_INFO, VISIBLE; 14–16: PRUNE, VACUUM, FREEZE, VISIBLE; from 17 on
/// three kinds of PRUNE, VISIBLE – the same four numbers throughout. NEW_CID only repeats, for logical decoding, a heap
/// record written beside it.
fn heap2_counts(operation: u8) -> bool {
    const NEW_CID: u8 = 0x70;
    !matches!(operation, 0x10 | 0x20 | 0x30 | 0x40 | NEW_CID)
}

fn touches_statistics(record: &Record, statistics: &StatisticsRelations) -> bool {
    record
        .relation
        .is_some_and(|relation| statistics.contains(relation.database, relation.relation))
}

#[cfg(test)]
mod tests {
    use holdfast_domain::Lsn;

    use super::*;
    use crate::wal::record::RelFileLocator;

    fn record(rmgr: u8, info: u8, relation: u32) -> Record {
        Record {
            start: Lsn(40),
            end: Lsn(80),
            bytes: 40,
            rmgr,
            info,
            xid: 7,
            relation: Some(RelFileLocator {
                tablespace: 1663,
                database: 5,
                relation,
            }),
            stamped_at: None,
            ends_subtransactions: false,
            transactional_message: false,
        }
    }

    // FLX-017
    #[test]
    fn users_changes_count_and_housekeeping_does_not() {
        let none = StatisticsRelations::default();
        for (rmgr, info) in [
            (rmgr::HEAP, 0x00),
            (rmgr::HEAP, 0x80),
            (rmgr::HEAP, 0x10),
            (rmgr::HEAP, 0x20),
            (rmgr::HEAP, 0x30),
            (rmgr::HEAP, 0x40),
            (rmgr::HEAP2, 0x50),
            (rmgr::SEQUENCE, 0x00),
            (rmgr::DATABASE, 0x10),
            (rmgr::TABLESPACE, 0x00),
            (rmgr::RELMAP, 0x00),
            (rmgr::SMGR, 0x10),
            (rmgr::SMGR, 0x20),
            (rmgr::XACT, 0x30),
            (rmgr::GENERIC, 0x00),
            (200, 0x00),
        ] {
            assert!(counts(&record(rmgr, info, 9), &none), "{rmgr} {info:#x}");
        }
        for (rmgr, info) in [
            (rmgr::XLOG, 0x00),
            (rmgr::XLOG, 0x10),
            (rmgr::XLOG, 0xA0),
            (rmgr::XLOG, 0xB0),
            (rmgr::STANDBY, 0x10),
            (rmgr::HEAP, 0x70),
            (rmgr::HEAP2, 0x10),
            (rmgr::HEAP2, 0x20),
            (rmgr::HEAP2, 0x30),
            (rmgr::HEAP2, 0x40),
            (rmgr::XACT, 0x00),
            (rmgr::XACT, 0x80),
            (rmgr::BTREE, 0x00),
            (rmgr::LOGICAL_MESSAGE, 0x00),
        ] {
            assert!(!counts(&record(rmgr, info, 9), &none), "{rmgr} {info:#x}");
        }
    }

    // FLX-017
    #[test]
    fn fresh_statistics_do_not_count_in_the_database_they_belong_to() {
        let statistics = StatisticsRelations::from_iter([(5, 2619)]);
        assert!(!counts(&record(rmgr::HEAP, 0x20, 2619), &statistics));
        assert!(counts(&record(rmgr::HEAP, 0x20, 2620), &statistics));
        let mut elsewhere = record(rmgr::HEAP, 0x20, 2619);
        elsewhere.relation = elsewhere
            .relation
            .map(|r| RelFileLocator { database: 6, ..r });
        assert!(counts(&elsewhere, &statistics));
    }

    #[test]
    fn a_message_counts_when_it_belongs_to_its_transaction() {
        let mut message = record(rmgr::LOGICAL_MESSAGE, 0x00, 0);
        message.transactional_message = true;
        assert!(counts(&message, &StatisticsRelations::default()));
    }
}
