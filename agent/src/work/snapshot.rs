//! Takes one physical backup of a running server, in exactly the order of RELIABILITY §5.2.
//!
//! Twice: a manifest that an earlier attempt of this backup published is adopted. Half: PostgreSQL
//! ends the backup with our session, which ends with this future; nothing is visible in the vault
//! before the manifest, and what was uploaded carries the dead attempt's epoch.
//!
//! Where the file system can, the files are frozen first: PostgreSQL's backup ends after moments, and what is uploaded are
//! clones that do not change (`crate::frozen`).

use std::sync::Arc;
use std::time::Duration;

use holdfast_domain::Lsn;
use holdfast_domain::job::{JobError, Progress, SnapshotOutcome, SnapshotSpec};
use holdfast_domain::wal::WalObject;
use holdfast_vault::backup::{
    Attempt, BackupWriter, BaseIndex, FinishedBackup, ManifestMeta, find_manifest,
};
use tokio::time::Instant;

use crate::error::{Error, Result, chain};
use crate::frozen::{Frozen, Identity, Place};
use crate::job::JobContext;
use crate::reserve::Room;
use crate::server::ServerHandle;
use crate::snapshot::control_file::{CONTROL_FILE, ControlFile};
use crate::snapshot::copy::{Files, Suspects, copy};
use crate::snapshot::reading::{Earlier, Reading, unexplained};
use crate::snapshot::session::{BackupSession, Stopped};
use crate::snapshot::wal::BackupWal;
use crate::snapshot::walk::{Walk, estimated_bytes};
use crate::stream::StreamHandle;

/// How long the stream may take for the WAL of the backup (RELIABILITY §5.2.8).
const WAL_WITHIN: Duration = Duration::from_secs(600);
/// How long a stream may need before the backup starts: one that is further behind is ill.
const STREAM_WITHIN: Duration = Duration::from_secs(120);
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Shares of the whole, for people: copying is nearly all of it.
const COPIED_PERCENT: f64 = 94.0;
const WAL_DURABLE_PERCENT: f64 = 98.0;

pub async fn run(ctx: &JobContext, spec: SnapshotSpec) -> Result<SnapshotOutcome, JobError> {
    tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::Canceled.into()),
        outcome = take(ctx, &spec) => Ok(outcome?),
    }
}

async fn take(ctx: &JobContext, spec: &SnapshotSpec) -> Result<SnapshotOutcome> {
    let placement = &spec.placement;
    let incarnation = placement.incarnation;
    let stores = ctx.node.stores(&placement.vaults)?;
    let data_key = ctx.node.data_key(placement, &spec.wrapped_key)?;
    tell(ctx, "Preparing", 0, None, 0.0);

    if let Some(published) = find_manifest(&stores, &data_key, incarnation, spec.backup).await? {
        tracing::info!(backup.id = %spec.backup, "the manifest of an earlier attempt is adopted");
        let wal = BackupWal::of(incarnation, &published.meta);
        let objects = wal.proven(&stores, &data_key).await?;
        return Ok(outcome(published, objects));
    }

    let server = ctx
        .node
        .server(incarnation)
        .ok_or(Error::NoSuchServer(incarnation))?;
    let stream = server.stream().ok_or(Error::NotStreaming)?;
    within(
        STREAM_WITHIN,
        "make its write-ahead log durable",
        stream.flush(),
    )
    .await??;

    let base = match &spec.base {
        Some(base) => BaseIndex::load(&stores, &data_key, incarnation, base).await?,
        None => None,
    };

    let data_dir = server.data_dir();
    let major = server.installation()?.major;
    let catalog_version = control_file(&server).await?.catalog_version();
    let walk = move || Walk::new(&data_dir, major, catalog_version);
    let place = place_to_freeze(ctx, &server).await?;

    // ---- PostgreSQL holds the backup open from here …
    let connection = server.connect().await?;
    let asked = Instant::now();
    let session = BackupSession::start(connection, spec.backup).await?;
    let (start, timeline, facts) = (session.start, session.timeline, session.facts.clone());
    let began_at = session.began_at;
    tracing::info!(
        backup.id = %spec.backup, start = %start, checkpoint_ms = millis(asked), "backup started"
    );
    let earlier = match &base {
        Some(base) => Earlier::of(&stream, &session, base.meta().start_lsn).await?,
        None => None,
    };
    let mut held = Held::Open(Box::new(session), Instant::now());
    let frozen = match place {
        Some(place) => freeze(ctx, place, walk()).await?.map(Arc::new),
        None => None,
    };
    if frozen.is_some() {
        held = Held::Ended(held.end(&server).await?);
        // ---- … to here, when the files are frozen.
    }

    let attempt = Attempt {
        incarnation,
        backup: spec.backup,
        job: ctx.job,
        epoch: ctx.epoch,
    };
    let meta = base.as_ref().map(BaseIndex::meta);
    let (base_start, all_read_before) = (
        meta.map(|meta| meta.start_lsn),
        meta.map(|meta| meta.all_read_at),
    );
    let reading = within(
        STREAM_WITHIN,
        "make its write-ahead log durable",
        Reading::of(
            meta,
            &stream,
            (timeline, start),
            facts.data_checksums,
            began_at,
            earlier,
        ),
    )
    .await??;
    let writer = BackupWriter::new(
        stores.clone(),
        data_key.clone(),
        attempt,
        base,
        ctx.node.equipment().courtesy(),
    )?;
    let suspects = Arc::new(Suspects::since(start));
    let checked = facts.data_checksums;
    let bytes_total = match &frozen {
        Some(frozen) => {
            let entries = frozen.entries();
            let copying = copy(
                entries,
                Files::Frozen,
                &writer,
                checked,
                &suspects,
                &reading,
            );
            follow(ctx, &writer, frozen.bytes(), copying).await?
        }
        None => {
            let estimate = walk.clone();
            let total = tokio::task::spawn_blocking(move || estimated_bytes(estimate())).await??;
            let copying = copy(walk(), Files::Live, &writer, checked, &suspects, &reading);
            follow(ctx, &writer, total, copying).await?
        }
    };
    let Ended { control, stopped } = held.end(&server).await?;
    // ---- … to here at the latest. What follows only proves and publishes.
    if control.system_identifier() != facts.system_identifier {
        return Err(Error::Drift(
            "its control file belongs to another cluster".into(),
        ));
    }
    writer
        .add_bytes(CONTROL_FILE, control.bytes().to_vec().into())
        .await?;
    tell(
        ctx,
        "WaitingForWal",
        bytes_total,
        Some(bytes_total),
        COPIED_PERCENT,
    );
    let wal = BackupWal {
        incarnation,
        timeline,
        start,
        stop: stopped.stop,
        segment_bytes: facts.wal_segment_bytes,
    };
    within(
        WAL_WITHIN,
        "make the backup's write-ahead log durable",
        stream.wait_durable(stopped.stop),
    )
    .await
    .map_err(|slow| Error::Failed {
        code: "BackupWalMissing",
        message: slow.to_string(),
        retryable: true,
    })??;
    if let (Reading::AllAndRemember, Some(since)) = (&reading, base_start) {
        compare_with_log(&writer, &stream, since, stopped.stop).await?;
    }
    let mut objects = wal.proven(&stores, &data_key).await?;
    let largest = wal.largest_stamp(&objects, &stores, &data_key).await?;
    let completed_time = largest.map_or(stopped.clock, |stamp| stamp.max(stopped.clock));

    let (corrupt_pages, damaged) = suspects.not_repaired(stopped.stop);
    if damaged > 0 {
        tracing::error!(backup.id = %spec.backup, pages = damaged, "the server has damaged pages");
    }

    tell(
        ctx,
        "Finishing",
        bytes_total,
        Some(bytes_total),
        WAL_DURABLE_PERCENT,
    );
    ctx.check()?;
    let published = writer
        .finish(ManifestMeta {
            server: placement.server,
            server_name: placement.server_name.clone(),
            pg_version: server.installation()?.minor,
            system_identifier: facts.system_identifier,
            timeline,
            start_lsn: start,
            stop_lsn: stopped.stop,
            completed_time,
            all_read_at: match all_read_before {
                Some(before) if !reading.reads_all() => before,
                _ => completed_time,
            },
            backup_label: stopped.label,
            tablespace_map: stopped.tablespace_map,
            wrapped_key: spec.wrapped_key.clone(),
            wal_segment_bytes: facts.wal_segment_bytes,
            data_checksums: facts.data_checksums,
            corrupt_pages,
        })
        .await?;
    let published_wal = BackupWal::of(incarnation, &published.meta);
    if published_wal != wal {
        // Another attempt published first; its backup is this one.
        objects = published_wal.proven(&stores, &data_key).await?;
    } else if let Some(frozen) = frozen {
        let of = Identity::new(incarnation, spec.backup, &published.meta);
        keep(ctx, &server, frozen, of, control).await?;
    }
    stream.forget_changes_before(start);
    Ok(outcome(published, objects))
}

/// Every page was read; what differs must be what the log said. A difference is a mistake of ours, and
/// never of this backup, which has what it read.
async fn compare_with_log(
    writer: &BackupWriter,
    stream: &StreamHandle,
    since: Lsn,
    stop: Lsn,
) -> Result<()> {
    let Some(changes) = stream.changes(since, stop).await? else {
        return Ok(());
    };
    let unexplained = unexplained(&writer.take_changed(), &changes);
    if !unexplained.is_empty() {
        stream.distrust_changes();
        tracing::error!(
            pages = unexplained.len(),
            first = unexplained.first(),
            "pages changed of which the write-ahead log says nothing; from now on every page is read"
        );
    }
    Ok(())
}

/// A backup in PostgreSQL.
enum Held {
    /// Since then.
    Open(Box<BackupSession>, Instant),
    Ended(Ended),
}

struct Ended {
    control: ControlFile,
    stopped: Stopped,
}

impl Held {
    /// Reads the control file, last of all files, and ends the backup, unless that was done.
    async fn end(self, server: &ServerHandle) -> Result<Ended> {
        match self {
            Self::Ended(ended) => Ok(ended),
            Self::Open(session, since) => {
                let control = control_file(server).await?;
                let stopped = session.stop().await?;
                tracing::info!(stop = %stopped.stop, open_ms = millis(since), "backup stopped");
                Ok(Ended { control, stopped })
            }
        }
    }
}

async fn control_file(server: &ServerHandle) -> Result<ControlFile> {
    let path = server.data_dir().join(CONTROL_FILE);
    Ok(tokio::task::spawn_blocking(move || ControlFile::read(&path)).await??)
}

/// `None`: files cannot be frozen here, or are not to be.
async fn place_to_freeze(ctx: &JobContext, server: &ServerHandle) -> Result<Option<Place>> {
    if !ctx.node.equipment().config.frozen_copies {
        return Ok(None);
    }
    let (server_dir, job, epoch) = (server.directory(), ctx.job, ctx.epoch);
    let probing = tokio::task::spawn_blocking(move || match Room::on(&server_dir) {
        // What the server overwrites during the upload takes room as long as that lasts.
        Ok(Room::Enough | Room::Filling) => Place::probe(&server_dir, job, epoch)
            .inspect_err(|error| tracing::debug!(%error, "files cannot be frozen here"))
            .ok(),
        Ok(_) | Err(_) => None,
    });
    Ok(probing.await?)
}

/// `None`: it did not work, and the files are read where they are.
async fn freeze(ctx: &JobContext, place: Place, walk: Walk) -> Result<Option<Frozen>> {
    let begun = Instant::now();
    let (courtesy, stop) = (ctx.node.equipment().courtesy(), ctx.cancel.clone());
    let freezing = move || place.freeze(walk, &courtesy, &stop);
    match tokio::task::spawn_blocking(freezing).await? {
        Ok(frozen) => {
            tracing::info!(
                files = frozen.count(),
                bytes = frozen.bytes(),
                took_ms = millis(begun),
                "the server's files are frozen"
            );
            Ok(Some(frozen))
        }
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                "the server's files could not be frozen"
            );
            Ok(None)
        }
    }
}

/// Keeps what was frozen for restores on this node, as long as there is room. Without it a restore takes longer and that
/// is all.
async fn keep(
    ctx: &JobContext,
    server: &ServerHandle,
    frozen: Arc<Frozen>,
    of: Identity,
    control: ControlFile,
) -> Result<()> {
    if ctx.check().is_err() {
        return Ok(());
    }
    let server_dir = server.directory();
    tokio::task::spawn_blocking(move || {
        let keeping = match Room::on(&server_dir) {
            Ok(Room::Enough) => frozen.keep(of, &control),
            // An older copy is of little use beside a newer backup.
            Ok(_) => crate::frozen::remove(&server_dir),
            Err(error) => Err(error),
        };
        if let Err(error) = keeping {
            tracing::warn!(error = chain(&error), "what was frozen could not be kept");
        }
    })
    .await?;
    Ok(())
}

/// Tells how far the copying is. Returns the bytes read.
async fn follow(
    ctx: &JobContext,
    writer: &BackupWriter,
    total: u64,
    copying: impl Future<Output = Result<()>>,
) -> Result<u64> {
    tokio::pin!(copying);
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    loop {
        tokio::select! {
            copied = &mut copying => break copied?,
            _ = tick.tick() => {
                let read = writer.progress().bytes_done;
                let share = read as f64 / total.max(1) as f64;
                tell(ctx, "CopyingData", read, Some(total.max(read)), share.min(1.0) * COPIED_PERCENT);
            }
        }
    }
    Ok(writer.progress().bytes_done)
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn tell(ctx: &JobContext, phase: &str, bytes_done: u64, bytes_total: Option<u64>, percent: f64) {
    ctx.progress(Progress {
        phase: phase.to_owned(),
        bytes_done,
        bytes_total,
        percent,
        ..Progress::default()
    });
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = T>,
) -> Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| Error::Slow {
            what,
            within: limit,
        })
}

fn outcome(published: FinishedBackup, mut wal: Vec<WalObject>) -> SnapshotOutcome {
    let meta = published.meta;
    wal.retain(|object| object.start < meta.stop_lsn);
    SnapshotOutcome {
        manifest: published.manifest,
        timeline: meta.timeline,
        start_lsn: meta.start_lsn,
        stop_lsn: meta.stop_lsn,
        completed_time: meta.completed_time,
        minor_version: meta.pg_version,
        logical_bytes: published.logical_bytes,
        stored_bytes: published.stored_bytes,
        objects: published.objects,
        wal,
        corrupt_pages: meta.corrupt_pages,
    }
}
