//! Which pages a backup reads: all of them, or those that the log says may have changed (ADR 15).
//!
//! Reading everything is the truth. Once a week it is read although the log could say what changed, and what
//! differs is compared with what the log said: a page that it missed is an alarm, and the log is not asked again.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::{Lsn, Timeline};
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

/// What PostgreSQL itself remembers of the log before the stream saw it.
#[derive(Debug)]
pub struct Earlier {
    until: Lsn,
    changes: change_map::Changes,
}

impl Earlier {
    /// To be asked while the session lives. What was not seen up to its start is not looked for: the newest
    /// summaries are still being written.
    pub async fn of(
        stream: &StreamHandle,
        session: &BackupSession,
        since: Lsn,
    ) -> Result<Option<Self>> {
        let Some(until) = stream
            .changes_begin(session.timeline)
            .filter(|until| since < *until && *until <= session.start)
        else {
            return Ok(None);
        };
        let changes = session.summarized(since, until).await?;
        Ok(changes.map(|changes| {
            tracing::info!(%since, %until, "PostgreSQL's summaries say what changed before the log was seen");
            Self { until, changes }
        }))
    }
}

impl Reading {
    /// What a backup reads that begins at `start`, by the server's clock at `now`.
    pub async fn of(
        base: Option<&ManifestMeta>,
        stream: &StreamHandle,
        (timeline, start): (Timeline, Lsn),
        checksums: bool,
        now: DateTime<Utc>,
        earlier: Option<Earlier>,
    ) -> Result<Self> {
        // Without checksums hint bits change pages and the log says nothing of it.
        let Some(base) = base.filter(|base| checksums && base.timeline == timeline) else {
            return Ok(Self::All);
        };
        let changes = match (stream.changes(base.start_lsn, start).await?, earlier) {
            (Some(changes), _) => changes,
            (None, Some(mut earlier)) => {
                let Some(seen) = stream.changes(earlier.until, start).await? else {
                    return Ok(Self::All);
                };
                earlier.changes.merge(&seen);
                Arc::new(earlier.changes)
            }
            (None, None) => return Ok(Self::All),
        };
        Ok(if now - base.all_read_at < TRUSTED_FOR {
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
