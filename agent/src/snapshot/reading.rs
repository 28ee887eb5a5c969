//! Which pages a backup reads: all of them, or those that the log says may have changed (ADR 15).
//!
//! Reading everything is the truth. Once a week it is read although the log could say what changed, and what
//! differs is compared with what the log said: a page that it missed is an alarm, and the log is not asked again.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::TimeDelta;
use holdfast_domain::Lsn;
use holdfast_vault::backup::{Changes, ManifestMeta};
use roaring::RoaringBitmap;

use super::page::SEGMENT_BLOCKS;
use super::session::BackupSession;
use super::walk::{FileKind, main_fork_at};
use crate::error::Result;
use crate::stream::StreamHandle;
use crate::stream::change_map::{self, Known};

/// The first page of every main fork is read whatever the log says: SP-GiST keeps a memory of pages with room
/// in its meta page and writes it without a record.
const UNLOGGED_BLOCK: u32 = 0;

/// After so long every page is read again.
const TRUSTED_FOR: TimeDelta = TimeDelta::days(7);

#[derive(Debug, Clone)]
pub enum Reading {
    All,
    /// All, and those that differ from the base's are remembered, to be compared with what the log says.
    AllAndRemember,
    /// Those that the log says may have changed since the base began. Everything but main forks is read
    /// whole: free-space maps are not logged, and visibility maps not block by block.
    Changed(Arc<change_map::Changes>),
}

impl Reading {
    /// What a backup reads that has just begun.
    pub async fn of(
        base: Option<&ManifestMeta>,
        stream: &StreamHandle,
        session: &BackupSession,
    ) -> Result<Self> {
        // Without checksums hint bits change pages and the log says nothing of it.
        let Some(base) =
            base.filter(|base| session.facts.data_checksums && base.timeline == session.timeline)
        else {
            return Ok(Self::All);
        };
        let changes = match stream.changes(base.start_lsn, session.start).await? {
            Some(changes) => changes,
            None => match also_summarized(stream, session, base.start_lsn).await? {
                Some(changes) => Arc::new(changes),
                None => return Ok(Self::All),
            },
        };
        Ok(if session.began_at - base.all_read_at < TRUSTED_FOR {
            Self::Changed(changes)
        } else {
            Self::AllAndRemember
        })
    }

    /// What the writer may believe of a file.
    #[must_use]
    pub fn changes_of(&self, kind: FileKind) -> Changes {
        let FileKind::Relation {
            first_block,
            main_fork_of: Some(relation),
        } = kind
        else {
            return Changes::Unknown;
        };
        match self {
            Self::All => Changes::Unknown,
            Self::AllAndRemember => Changes::Remember,
            Self::Changed(changes) => {
                let mut here = match changes.of(relation) {
                    Known::Whole => return Changes::Unknown,
                    Known::Nothing => RoaringBitmap::new(),
                    Known::Blocks(blocks) => {
                        let end = first_block.saturating_add(SEGMENT_BLOCKS);
                        let here = blocks.range(first_block..end);
                        here.map(|block| block - first_block).collect()
                    }
                };
                if first_block == 0 {
                    here.insert(UNLOGGED_BLOCK);
                }
                Changes::Only(Arc::new(here))
            }
        }
    }

    #[must_use]
    pub fn reads_all(&self) -> bool {
        !matches!(self, Self::Changed(_))
    }
}

/// What the stream saw, and before that what PostgreSQL itself remembers.
async fn also_summarized(
    stream: &StreamHandle,
    session: &BackupSession,
    since: Lsn,
) -> Result<Option<change_map::Changes>> {
    let Some(seen_from) = stream.changes_begin(session.timeline) else {
        return Ok(None);
    };
    // What was not seen up to the start is not looked for: the newest summaries are still being written.
    let (Some(seen), true) = (
        stream.changes(seen_from, session.start).await?,
        seen_from <= session.start,
    ) else {
        return Ok(None);
    };
    let mut changes = session.summarized(since, seen_from).await?;
    if let Some(changes) = &mut changes {
        changes.merge(&seen);
        tracing::info!(since = %since, seen_from = %seen_from, "PostgreSQL's summaries say what changed before the log was seen");
    }
    Ok(changes)
}

/// `path:page` of pages that differ from the base's though the log up to the backup's end names no change.
#[must_use]
pub fn unexplained(
    differing: &HashMap<Arc<str>, RoaringBitmap>,
    changes: &change_map::Changes,
) -> Vec<String> {
    let mut pages = Vec::new();
    for (path, differing) in differing {
        let Some((relation, first_block)) = main_fork_at(path) else {
            continue;
        };
        let known = changes.of(relation);
        pages.extend(
            differing
                .iter()
                .map(|page| first_block + page)
                .filter(|block| *block != UNLOGGED_BLOCK)
                .filter(|block| match known {
                    Known::Whole => false,
                    Known::Nothing => true,
                    Known::Blocks(blocks) => !blocks.contains(*block),
                })
                .map(|block| format!("{path}:{}", block - first_block)),
        );
    }
    pages.sort_unstable();
    pages
}
