//! What a finished job means for the truth. Runs inside the report's transaction.

use std::collections::BTreeMap;

use holdfast_domain::activity::{ActivityEvent, ActivityStatus};
use holdfast_domain::backup::{BackupKind, BackupState, automatic_name};
use holdfast_domain::job::{
    JobOutcome, JobSpec, PruneOutcome, PruneSpec, SnapshotOutcome, WalReport,
};
use holdfast_domain::resource_id::ServerResourceId;
use holdfast_domain::server::{Server, ServerState};
use holdfast_domain::wal::TimelineStart;
use holdfast_domain::{BackupId, IncarnationId, Lsn, SubscriptionId};

use crate::activity::event;
use crate::store::incarnation::Finished;
use crate::store::job::Job;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result, compaction, prune};

pub(crate) async fn apply(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    job: &Job,
    outcome: &JobOutcome,
) -> Result<()> {
    let spec = job
        .spec
        .as_ref()
        .ok_or_else(|| Error::corrupt(format!("job {} has no spec", job.id)))?;
    match (spec, outcome) {
        (JobSpec::Provision(spec), JobOutcome::Provision(made)) => {
            let finished = Finished {
                system_identifier: made.system_identifier,
                wrapped_key: &made.wrapped_key,
                wal_segment_bytes: made.wal_segment_bytes,
                timeline: made.timeline,
            };
            let begin = TimelineStart {
                timeline: made.timeline,
                parent: None,
                switch: Lsn::ZERO,
                history_key: None,
            };
            begin_life(unit, job, spec.placement.incarnation, finished, begin).await?;
            set_minor(unit, job, &made.minor_version).await
        }
        (JobSpec::Restore(spec), JobOutcome::Restore(made)) => {
            let finished = Finished {
                system_identifier: made.system_identifier,
                wrapped_key: &made.wrapped_key,
                wal_segment_bytes: made.wal_segment_bytes,
                timeline: made.timeline,
            };
            // A new life: what came before it is the source's, and its WAL begins here.
            let begin = TimelineStart {
                timeline: made.timeline,
                parent: None,
                switch: made.switch_lsn,
                history_key: None,
            };
            begin_life(unit, job, spec.placement.incarnation, finished, begin).await?;
            set_minor(unit, job, &made.minor_version).await?;
            let result = serde_json::json!({
                "restoredTo": made.restored_to,
                "backupName": backup_name(unit, spec.source.manifest.backup).await?,
                "sourceServerName": spec.source.server_name,
                "bytesRestored": made.bytes_restored,
                "walBytesReplayed": made.wal_bytes_replayed,
                "postRestoreTasks": made.post_restore_tasks,
                "parameterDifferences": made.parameter_differences,
            });
            match job.operation {
                Some(id) => {
                    store::operation::set_result(unit.conn(), job.subscription, id, &result).await
                }
                None => Ok(()),
            }
        }
        (JobSpec::Snapshot(spec), JobOutcome::Snapshot(made)) => {
            complete_backup(unit, job, spec.backup, spec.placement.incarnation, made).await
        }
        (JobSpec::ArchiveWal(spec), JobOutcome::ArchiveWal(made)) => {
            if let Some(reason) = &made.unavailable {
                tracing::warn!(server.id = %spec.placement.server, reason, "the source could not be asked for its newest WAL");
            }
            // The source may belong to another subscription than the restore.
            take_in(
                control_plane,
                unit,
                made.report.as_ref(),
                spec.placement.incarnation,
            )
            .await
        }
        (JobSpec::Prune(spec), JobOutcome::Prune(made)) => pruned(unit, job, spec, made).await,
        (JobSpec::Compact(spec), JobOutcome::Compact(made)) => {
            compaction::settle(control_plane, unit, job, spec, made).await
        }
        (JobSpec::Power(spec), JobOutcome::Power(made)) => {
            set_minor(unit, job, &made.minor_version).await?;
            take_in(
                control_plane,
                unit,
                made.report.as_ref(),
                spec.placement.incarnation,
            )
            .await
        }
        (JobSpec::Drop(spec), JobOutcome::Drop(made)) => {
            take_in(
                control_plane,
                unit,
                made.report.as_ref(),
                spec.placement.incarnation,
            )
            .await?;
            let mut server = server_of(unit, job).await?;
            if server.state == ServerState::Failed {
                // It is cleared away: its node and port are free again.
                server.node = None;
                server.port = None;
                store::server::update(unit.conn(), &server, ServerState::Failed).await?;
            }
            Ok(())
        }
        (spec, outcome) => Err(Error::Absurd(format!(
            "a {:?} job ended as a {:?}",
            spec.kind(),
            outcome.kind()
        ))),
    }
}

async fn server_of(unit: &mut Unit, job: &Job) -> Result<Server> {
    store::server::by_id(unit.conn(), job.subscription, job.server, Hold::Update)
        .await?
        .ok_or_else(|| Error::corrupt(format!("server {} is missing", job.server)))
}

async fn set_minor(unit: &mut Unit, job: &Job, minor: &str) -> Result<()> {
    let mut server = server_of(unit, job).await?;
    server.minor_version = Some(minor.chars().take(32).collect());
    let state = server.state;
    store::server::update(unit.conn(), &server, state).await
}

async fn begin_life(
    unit: &mut Unit,
    job: &Job,
    id: IncarnationId,
    made: Finished<'_>,
    begin: TimelineStart,
) -> Result<()> {
    let now = unit.now();
    store::incarnation::ready(unit.conn(), job.subscription, id, made, now).await?;
    store::wal::insert_timelines(unit.conn(), job.subscription, id, &[begin]).await
}

async fn backup_name(unit: &mut Unit, id: BackupId) -> Result<Option<String>> {
    store::backup::name_of(unit.conn(), id).await
}

async fn complete_backup(
    unit: &mut Unit,
    job: &Job,
    id: BackupId,
    incarnation: IncarnationId,
    made: &SnapshotOutcome,
) -> Result<()> {
    let now = unit.now();
    if made.stop_lsn < made.start_lsn {
        return Err(Error::Absurd(format!(
            "backup from {} back to {}",
            made.start_lsn, made.stop_lsn
        )));
    }
    if made.manifest.backup != id {
        return Err(Error::Absurd(format!(
            "manifest of backup {} for {id}",
            made.manifest.backup
        )));
    }
    let prefix = incarnation.to_string();
    let keys = made
        .objects
        .iter()
        .map(|object| &object.key)
        .chain([&made.manifest.key]);
    if let Some(foreign) = keys.into_iter().find(|key| !key.contains(&prefix)) {
        return Err(Error::Absurd(format!(
            "object {foreign:?} outside its incarnation"
        )));
    }
    let backup = store::backup::by_id(unit.conn(), job.subscription, id)
        .await?
        .filter(|backup| matches!(backup.state, BackupState::Requested | BackupState::Running))
        .ok_or(Error::Stale)?;
    let name = match (&backup.kind, &backup.name) {
        (BackupKind::OnDemand, Some(name)) => name.clone(),
        _ => automatic_name(made.completed_time),
    };
    let life = store::incarnation::get(unit.conn(), job.subscription, incarnation).await?;
    store::wal::of_backup(unit.conn(), job.subscription, incarnation, made).await?;
    store::backup::completed(unit.conn(), &backup, &name, made, &life.vaults, now).await?;
    store::superseded::recount(unit.conn(), job.subscription, incarnation).await?;
    if job.operation.is_none() {
        let server = server_of(unit, job).await?;
        let event = of_service(
            &server,
            job,
            "backups/write",
            ActivityStatus::Succeeded,
            now,
        );
        unit.record(ActivityEvent {
            properties: BTreeMap::from([
                ("backupName".to_owned(), name),
                ("storedBytes".to_owned(), made.stored_bytes.to_string()),
            ]),
            ..event
        });
    }
    Ok(())
}

/// An event about what the service does by itself.
pub(crate) fn of_service(
    server: &Server,
    job: &Job,
    action: &str,
    status: ActivityStatus,
    now: chrono::DateTime<chrono::Utc>,
) -> ActivityEvent {
    let id = ServerResourceId {
        subscription: server.subscription,
        group: server.group.clone(),
        name: server.name.clone(),
    };
    event(
        server.subscription,
        &server.group,
        &id.to_string(),
        &format!("Microsoft.DBforPostgreSQL/flexibleServers/{action}"),
        status,
        &job.caller,
        now,
    )
}

async fn take_in(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    report: Option<&WalReport>,
    incarnation: IncarnationId,
) -> Result<()> {
    let Some(report) = report else {
        return Ok(());
    };
    if report.incarnation != incarnation {
        return Err(Error::Absurd(format!(
            "WAL of {} instead of {incarnation}",
            report.incarnation
        )));
    }
    let now = unit.now();
    let subscription: SubscriptionId =
        store::incarnation::subscription_of(unit.conn(), incarnation)
            .await?
            .ok_or_else(|| Error::corrupt(format!("incarnation {incarnation} is missing")))?;
    let grace = control_plane.policy().prune_grace;
    store::wal::take_in(unit.conn(), subscription, report, now, grace).await
}

async fn pruned(unit: &mut Unit, job: &Job, spec: &PruneSpec, made: &PruneOutcome) -> Result<()> {
    let now = unit.now();
    let asked = prune::asked(spec);
    if let Some(foreign) = made.deleted.iter().find(|&key| !asked(key)) {
        return Err(Error::Absurd(format!(
            "deleted {foreign:?}, which was not asked"
        )));
    }
    let gone = prune::settle(unit, job, spec, made).await?;
    if gone == 0 && made.bytes_freed == 0 {
        return Ok(());
    }
    store::gauge::add_pruned(unit.conn(), made.bytes_freed).await?;
    let server = server_of(unit, job).await?;
    let event = of_service(
        &server,
        job,
        "backups/delete",
        ActivityStatus::Succeeded,
        now,
    );
    unit.record(ActivityEvent {
        properties: BTreeMap::from([
            ("backupsDeleted".to_owned(), gone.to_string()),
            ("objectsDeleted".to_owned(), made.deleted.len().to_string()),
            ("bytesFreed".to_owned(), made.bytes_freed.to_string()),
        ]),
        ..event
    });
    Ok(())
}
