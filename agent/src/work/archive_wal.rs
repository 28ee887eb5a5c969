//! Makes "latest" mean what the caller means: the newest WAL becomes durable, or is found.
//!
//! `Flush` asks the source itself; a source that is down or does not come up is read from its `pg_wal`, one whose directory
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
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result};
use crate::job::JobContext;
use crate::server::{ServerHandle, Stopped};

/// How long a living source may take: the tail of a second and a store that is slow for a while.
const FLUSH_WITHIN: Duration = Duration::from_secs(90);
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

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
    let until = Instant::now() + FLUSH_WITHIN;
    let flushed = tokio::select! {
        flushed = bring(&server, until) => flushed,
        () = ctx.cancel.cancelled() => return Err(Error::Canceled),
    };
    Ok(match flushed {
        Ok(report) => ArchiveWalOutcome {
            report,
            unavailable: None,
        },
        Err(error) => ArchiveWalOutcome {
            report: server.wal_news(),
            unavailable: Some(error.public_message()),
        },
    })
}

/// Everything that was committed is durable when this comes back. A server that does not run is read from
/// its `pg_wal`, and what that gave is the answer.
async fn bring(server: &ServerHandle, until: Instant) -> Result<Option<WalReport>> {
    while server.is_wanted() {
        match timeout_at(until, server.ready()).await {
            Ok(Ok(())) => return flush_running(server, until).await.map(Some),
            Ok(Err(error)) => match server.drain_failing().await? {
                Some(drained) => return read(drained),
                // It was stopped meanwhile, or came up after all.
                None if Instant::now() < until => tokio::time::sleep(BETWEEN_LOOKS).await,
                None => return Err(error),
            },
            Err(_) => return Err(slow("start")),
        }
    }
    read(server.stop().await?)
}

fn read(stopped: Stopped) -> Result<Option<WalReport>> {
    match stopped.left {
        Some(error) => Err(error),
        None => Ok(stopped.report),
    }
}

fn slow(what: &'static str) -> Error {
    Error::Slow {
        what,
        within: FLUSH_WITHIN,
    }
}

async fn flush_running(server: &ServerHandle, until: Instant) -> Result<WalReport> {
    let stream = server.stream().ok_or(Error::NotStreaming)?;
    match timeout_at(until, stream.flush()).await {
        Ok(flushed) => {
            let durable = flushed?;
            tracing::debug!(server.incarnation = %server.incarnation(), %durable, "flushed");
            Ok(stream.report())
        }
        Err(_) => Err(match stream.status().borrow().problem.clone() {
            Some(problem) => Error::Stream {
                code: "StreamUnavailable",
                message: problem,
                retryable: true,
            },
            None => slow("hand over its write-ahead log"),
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
