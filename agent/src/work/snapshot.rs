//! Takes one physical backup of a running server, in exactly the order of RELIABILITY §5.2.
//!
//! Twice: a manifest that an earlier attempt of this backup published is adopted. Half: PostgreSQL
//! ends the backup with our session, which ends with this future; nothing is visible in the vault
//! before the manifest, and what was uploaded carries the dead attempt's epoch.

use std::sync::Arc;
use std::time::Duration;

use holdfast_domain::Lsn;
use holdfast_domain::job::{JobError, Progress, SnapshotOutcome, SnapshotSpec};
use holdfast_domain::wal::WalObject;
use holdfast_vault::backup::{
    Attempt, BackupWriter, BaseIndex, FinishedBackup, ManifestMeta, find_manifest,
};

use crate::error::{Error, Result};
use crate::job::JobContext;
use crate::server::ServerHandle;
use crate::snapshot::control_file::{CONTROL_FILE, ControlFile};
use crate::snapshot::copy::{Suspects, copy};
use crate::snapshot::reading::{Reading, unexplained};
use crate::snapshot::session::BackupSession;
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

    // ---- PostgreSQL holds the backup open from here …
    let session = BackupSession::start(server.connect().await?, spec.backup).await?;
    let (start, timeline, facts) = (session.start, session.timeline, session.facts.clone());
    tracing::info!(backup.id = %spec.backup, start = %start, "backup started");

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
        Reading::of(meta, &stream, &session),
    )
    .await??;
    let writer = BackupWriter::new(stores.clone(), data_key.clone(), attempt, base)?;
    let suspects = Arc::new(Suspects::since(start));
    let checked = facts.data_checksums;
    let bytes_total = copy_files(ctx, &server, &writer, checked, &suspects, &reading).await?;

    let control_file = server.data_dir().join(CONTROL_FILE);
    let control = tokio::task::spawn_blocking(move || ControlFile::read(&control_file)).await??;
    if control.system_identifier() != facts.system_identifier {
        return Err(Error::Drift(
            "its control file belongs to another cluster".into(),
        ));
    }
    writer
        .add_bytes(CONTROL_FILE, control.into_bytes().into())
        .await?;
    writer.settle().await?;

    let stopped = session.stop().await?;
    // ---- … to here. What follows only proves and publishes.
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

/// Reads every file, telling how far it is. Returns the bytes read.
async fn copy_files(
    ctx: &JobContext,
    server: &ServerHandle,
    writer: &BackupWriter,
    checked: bool,
    suspects: &Arc<Suspects>,
    reading: &Reading,
) -> Result<u64> {
    let data_dir = server.data_dir();
    let major = server.installation()?.major;
    let control_file = data_dir.join(CONTROL_FILE);
    let catalog_version = tokio::task::spawn_blocking(move || ControlFile::read(&control_file))
        .await??
        .catalog_version();
    let walk = move || Walk::new(&data_dir, major, catalog_version);
    let estimate = walk.clone();
    let total = tokio::task::spawn_blocking(move || estimated_bytes(estimate())).await??;

    let copying = copy(walk(), writer, checked, suspects, reading);
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
