//! Opening the stream: the right server, a slot, the place to go on from, the timeline's history.
//!
//! The order matters. The slot comes first, because from then on PostgreSQL keeps what nobody has yet,
//! however long a store takes to answer. The history of a timeline is stored before its first WAL
//! (RELIABILITY §5.3.4). A hole is declared only when neither a store nor `pg_wal` has the bytes (§5.3.9).

use std::sync::Arc;

use holdfast_domain::job::WalGap;
use holdfast_domain::wal::TimelineStart;
use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::wal::counting::StatisticsRelations;
use holdfast_vault::wal::history;
use tokio::sync::watch;

use super::cutter::Lineage;
use super::error::{Error, Result};
use super::handle::{StreamConfig, StreamStatus};
use super::observer::{Address, Session, Slot};
use super::origin::{self, Origin};
use super::pg_wal::PgWal;
use super::replication::{Replication, SystemIdentity};

/// A stream that runs.
pub(super) struct Opened {
    pub replication: Replication,
    pub flushed: Lsn,
    pub statistics: Arc<StatisticsRelations>,
    pub from: From,
}

/// Where the stream that was opened begins.
pub(super) enum From {
    /// The next byte after what was received before the connection broke.
    Received,
    /// A first byte of a unit: the cutter begins anew.
    Unit(Box<Beginning>),
}

pub(super) struct Beginning {
    pub lineage: Lineage,
    /// What the stores have; `durable` may lie inside the unit.
    pub origin: Origin,
    pub timelines: Vec<TimelineStart>,
    pub gap: Option<WalGap>,
}

/// What the caller knows of where to go on.
#[derive(Clone)]
pub(super) enum Resume {
    /// Nothing: ask the stores.
    Unknown,
    /// Everything before is durable; the timeline ended or the server says it has another.
    Durable(Timeline, Lsn),
    /// The bytes before are in hand.
    Received(Timeline, Lsn),
}

pub(super) async fn open(
    config: Arc<StreamConfig>,
    resume: Resume,
    status: watch::Sender<StreamStatus>,
) -> Result<Opened> {
    let mut replication =
        Replication::connect(&config.socket_dir, config.port, &config.user).await?;
    let identity = replication.identify().await?;
    if identity.system_identifier != config.system_identifier {
        return Err(Error::OtherCluster {
            expected: config.system_identifier,
            found: identity.system_identifier,
        });
    }
    let address = config.address();
    let sql = address.open("postgres").await?;
    let slot = hold_wal(&mut replication, &sql).await?;
    status.send_modify(|status| status.slot = true);
    let statistics = Arc::new(read_statistics(&address).await);

    if let Resume::Received(timeline, received) = resume {
        if received > identity.flushed && timeline == identity.timeline {
            return Err(Error::Behind {
                durable: received,
                server: identity.flushed,
            });
        }
        start(&mut replication, &sql, received, timeline).await?;
        return Ok(Opened {
            replication,
            flushed: identity.flushed,
            statistics,
            from: From::Received,
        });
    }
    let beginning = begin(&config, &mut replication, &sql, identity, slot, resume).await?;
    Ok(Opened {
        replication,
        flushed: identity.flushed,
        statistics,
        from: From::Unit(Box::new(beginning)),
    })
}

/// Without the list more counts than has to; that is no reason to wait with the stream.
pub(super) async fn read_statistics(address: &Address) -> StatisticsRelations {
    address.statistics().await.unwrap_or_else(|error| {
        tracing::warn!(
            error = error.chain(),
            "could not find the statistics relations"
        );
        StatisticsRelations::default()
    })
}

/// Makes sure of the slot and says from where on it holds WAL.
async fn hold_wal(replication: &mut Replication, sql: &Session) -> Result<Slot> {
    if let Some(slot) = sql.slot().await?
        && slot.restart.is_some()
    {
        return Ok(slot);
    }
    replication.create_slot().await?;
    sql.slot()
        .await?
        .ok_or_else(|| Error::Protocol("the slot that was just made is not there".to_owned()))
}

async fn start(
    replication: &mut Replication,
    sql: &Session,
    from: Lsn,
    timeline: Timeline,
) -> Result<()> {
    let outcome = replication.start(from, timeline).await;
    if outcome.as_ref().is_err_and(Error::slot_is_in_use) {
        // A receiver of ours that died: PostgreSQL has not noticed yet. The next attempt finds the slot free.
        if let Some(Slot {
            active_pid: Some(pid),
            ..
        }) = sql.slot().await?
        {
            sql.end_session(pid).await?;
        }
    }
    outcome
}

async fn begin(
    config: &StreamConfig,
    replication: &mut Replication,
    sql: &Session,
    identity: SystemIdentity,
    slot: Slot,
    resume: Resume,
) -> Result<Beginning> {
    let lineage_of = |timeline| Lineage {
        incarnation: config.placement.incarnation,
        system_identifier: config.system_identifier,
        segment_bytes: config.wal_segment_bytes,
        timeline,
    };
    let unit_bytes = lineage_of(identity.timeline).unit_bytes();
    let known = match resume {
        Resume::Durable(timeline, durable) => Some(Origin {
            timeline,
            durable,
            objects: Vec::new(),
            stranded: Vec::new(),
        }),
        _ => {
            let incarnation = config.placement.incarnation;
            let state_dir = &config.state_dir;
            origin::find(
                &config.stores,
                &config.data_key,
                incarnation,
                state_dir,
                unit_bytes,
            )
            .await?
        }
    };
    let mut timelines = Vec::new();
    let mut origin = match known {
        Some(origin) => {
            let (origin, entered) = follow(config, replication, identity, origin).await?;
            timelines.extend(entered);
            origin
        }
        None => {
            let timeline = identity.timeline;
            timelines.push(store_history(config, replication, timeline, false).await?);
            // The whole unit from which the slot holds WAL on.
            let from = slot.restart.unwrap_or(identity.flushed);
            Origin {
                timeline,
                durable: lineage_of(timeline).unit_start(from),
                objects: Vec::new(),
                stranded: Vec::new(),
            }
        }
    };
    if origin.timeline == identity.timeline && origin.durable > identity.flushed {
        return Err(Error::Behind {
            durable: origin.durable,
            server: identity.flushed,
        });
    }
    // PostgreSQL would say so only after the stream has begun.
    let gap = find_gap(config, &origin).await?;
    if let Some(gap) = gap {
        origin.durable = gap.end;
    }
    let lineage = lineage_of(origin.timeline);
    start(
        replication,
        sql,
        lineage.unit_start(origin.durable),
        origin.timeline,
    )
    .await?;
    Ok(Beginning {
        lineage,
        origin,
        timelines,
        gap,
    })
}

/// The server may be on a newer timeline than the stores: then the old one is finished first, and once its
/// end is durable, the next one begins where it branched off.
async fn follow(
    config: &StreamConfig,
    replication: &mut Replication,
    identity: SystemIdentity,
    mut origin: Origin,
) -> Result<(Origin, Option<TimelineStart>)> {
    if origin.timeline >= identity.timeline {
        return Ok((origin, None));
    }
    let text = replication.timeline_history(identity.timeline).await?;
    let ancestors = history::parse(identity.timeline, &text)?.ancestors;
    let place = ancestors
        .iter()
        .position(|line| line.timeline == origin.timeline);
    let Some((at, line)) = place.and_then(|at| Some((at, ancestors.get(at)?))) else {
        return Err(Error::Protocol(format!(
            "timeline {} does not descend from timeline {}",
            identity.timeline, origin.timeline
        )));
    };
    if origin.durable < line.switch {
        return Ok((origin, None));
    }
    let next = ancestors
        .get(at + 1)
        .map_or(identity.timeline, |line| line.timeline);
    let entered = store_history(config, replication, next, true).await?;
    origin.timeline = next;
    origin.durable = line.switch;
    Ok((origin, Some(entered)))
}

async fn store_history(
    config: &StreamConfig,
    replication: &mut Replication,
    timeline: Timeline,
    parent_is_ours: bool,
) -> Result<TimelineStart> {
    if timeline == Timeline::FIRST {
        return Ok(TimelineStart {
            timeline,
            parent: None,
            switch: Lsn::ZERO,
            history_key: None,
        });
    }
    let incarnation = config.placement.incarnation;
    let text = replication.timeline_history(timeline).await?;
    history::put_history(
        &config.stores,
        &config.data_key,
        incarnation,
        timeline,
        &text,
    )
    .await?;
    Ok(history::parse(timeline, &text)?.start(incarnation, parent_is_ours))
}

/// The bytes after `durable` that the server has removed: the segment that holds them is not there, and a
/// later one is.
async fn find_gap(config: &StreamConfig, origin: &Origin) -> Result<Option<WalGap>> {
    let pg_wal = PgWal::new(&config.data_dir, config.wal_segment_bytes);
    let (timeline, durable) = (origin.timeline, origin.durable);
    let segments = tokio::task::spawn_blocking(move || pg_wal.segments(timeline))
        .await
        .map_err(|_| Error::Closed)?
        .map_err(|source| Error::PgWal {
            what: "list segments",
            source,
        })?;
    if segments.contains(&durable.segment_start(config.wal_segment_bytes)) {
        return Ok(None);
    }
    Ok(segments
        .into_iter()
        .find(|start| *start > durable)
        .map(|end| WalGap {
            timeline,
            start: durable,
            end,
        }))
}
