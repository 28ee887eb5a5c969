//! Makes "latest" mean what the caller means: the newest WAL becomes durable, or is found.
//!
//! `Flush` asks the source itself; a source that is down is read from its `pg_wal`, one whose directory
//! is gone yields what the store has, and that is an answer, not a failure. `Survey` lists the store for
//! what a silent agent put and never reported (DESIGN §3.9: listing may find, never delete).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_domain::Timeline;
use holdfast_domain::job::{
    ArchiveWalMode, ArchiveWalOutcome, ArchiveWalSpec, JobError, WalReport,
};
use holdfast_domain::wal::{TimelineStart, WalObject, spans};
use holdfast_vault::wal::history;
use holdfast_vault::wal::survey::{list_histories, list_wal};

use crate::error::{Error, Result};
use crate::job::JobContext;
use crate::server::ServerHandle;

/// How long a living source may take: the tail of a second and a store that is slow for a while.
const FLUSH_WITHIN: Duration = Duration::from_secs(90);

pub async fn run(ctx: &JobContext, spec: ArchiveWalSpec) -> Result<ArchiveWalOutcome, JobError> {
    match spec.mode {
        ArchiveWalMode::Flush => Ok(flush(ctx, &spec).await?),
        ArchiveWalMode::Survey => Ok(ArchiveWalOutcome {
            report: survey(ctx, &spec).await?,
            unavailable: None,
        }),
    }
}

async fn flush(ctx: &JobContext, spec: &ArchiveWalSpec) -> Result<ArchiveWalOutcome> {
    let node = &ctx.node;
    let incarnation = spec.placement.incarnation;
    if !node
        .server_dir(incarnation)
        .join("data/PG_VERSION")
        .exists()
    {
        return Ok(ArchiveWalOutcome {
            report: node
                .server(incarnation)
                .and_then(|server| server.wal_news()),
            unavailable: Some("the server's data directory is gone".into()),
        });
    }
    let server = node.adopt(&spec.placement, &spec.wrapped_key);
    let answer = if server.is_wanted() {
        tokio::select! {
            answer = flush_running(&server) => answer,
            () = ctx.cancel.cancelled() => return Err(Error::Canceled),
        }
    } else {
        let stopped = server.stop().await?;
        (!stopped.drained)
            .then(|| "its last write-ahead log could not be brought to the store".into())
    };
    Ok(ArchiveWalOutcome {
        report: server.wal_news(),
        unavailable: answer,
    })
}

/// Why the newest commits could not be made durable, if they could not.
async fn flush_running(server: &ServerHandle) -> Option<String> {
    let Some(stream) = server.stream() else {
        return Some("the server is being stopped".into());
    };
    match tokio::time::timeout(FLUSH_WITHIN, stream.flush()).await {
        Ok(Ok(durable)) => {
            tracing::debug!(server.incarnation = %server.incarnation(), %durable, "flushed");
            None
        }
        Ok(Err(error)) => Some(Error::from(error).public_message()),
        Err(_) => Some(match stream.status().borrow().problem.clone() {
            Some(problem) => format!("the stream does not get on: {problem}"),
            None => "the stream does not get on".into(),
        }),
    }
}

/// Everything that the vaults hold of an incarnation. `None` when they hold no WAL of it.
async fn survey(ctx: &JobContext, spec: &ArchiveWalSpec) -> Result<Option<WalReport>> {
    let incarnation = spec.placement.incarnation;
    let stores = ctx.node.stores(&spec.placement.vaults)?;
    let data_key = ctx.node.data_key(&spec.placement, &spec.wrapped_key)?;
    let mut objects: BTreeMap<String, WalObject> = BTreeMap::new();
    let mut histories: BTreeSet<Timeline> = BTreeSet::new();
    for store in &stores {
        for object in list_wal(store, &data_key, incarnation, None).await? {
            objects.entry(object.key.clone()).or_insert(object);
        }
        histories.extend(list_histories(store, incarnation).await?);
    }
    let ours: BTreeSet<Timeline> = objects.values().map(|object| object.timeline).collect();
    let mut timelines = Vec::with_capacity(histories.len());
    for timeline in histories {
        let text = history::get_history(&stores, &data_key, incarnation, timeline).await?;
        let found = history::parse(timeline, &text)?;
        // The branch that a restore made belongs to another incarnation's past.
        let parent_is_ours = found
            .ancestors
            .last()
            .is_some_and(|a| ours.contains(&a.timeline));
        timelines.push(found.start(incarnation, parent_is_ours));
    }
    Ok(report_of(spec, objects.into_values().collect(), timelines))
}

fn report_of(
    spec: &ArchiveWalSpec,
    objects: Vec<WalObject>,
    timelines: Vec<TimelineStart>,
) -> Option<WalReport> {
    // The newest timeline; on it, up to where the first hole begins after the newest joined stretch.
    let newest = spans(&objects).into_iter().next_back()?;
    Some(WalReport {
        incarnation: spec.placement.incarnation,
        timeline: newest.timeline,
        durable: newest.end,
        superseded: Vec::new(),
        timelines,
        // Nobody asked the server: what it committed without streaming is unknown.
        caught_up_at: None,
        last_counting: objects
            .iter()
            .filter_map(|object| object.last_counting)
            .max(),
        held_bytes: 0,
        gap: None,
        objects,
    })
}
