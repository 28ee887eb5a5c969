//! Jobs and their leases. Everything that an agent says is checked here against epoch, boot and
//! state; leases know one clock, `lease_now()`.

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_domain::activity::Caller;
use holdfast_domain::job::{JobError, JobKind, JobSpec, JobState, LeaseRef};
use holdfast_domain::leavings::EndedAttempts;
use holdfast_domain::plan::JobFact;
use holdfast_domain::{
    BackupId, BootId, IncarnationId, JobId, NodeId, OperationId, ServerId, SubscriptionId,
};
use sqlx::postgres::types::PgInterval;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::Hold;
use super::label::{from_label, json, label};
use crate::{Error, Result};

/// What users wait for comes before what the scheduler wants.
pub(crate) const FOR_A_USER: i16 = 10;
pub(crate) const FOR_A_BACKUP: i16 = 20;
pub(crate) const FOR_TIDINESS: i16 = 30;

/// A job to be queued.
pub(crate) struct NewJob<'a> {
    pub subscription: SubscriptionId,
    pub operation: Option<OperationId>,
    pub server: ServerId,
    pub incarnation: Option<IncarnationId>,
    pub backup: Option<BackupId>,
    pub base: Option<BackupId>,
    pub node: NodeId,
    pub priority: i16,
    pub spec: &'a JobSpec,
    pub max_attempts: u32,
    pub deadline: DateTime<Utc>,
    pub caller: &'a Caller,
}

/// A job as it stands. No `Debug`: its spec can hold a password.
#[derive(Clone)]
pub(crate) struct Job {
    pub subscription: SubscriptionId,
    pub id: JobId,
    pub operation: Option<OperationId>,
    pub server: ServerId,
    pub backup: Option<BackupId>,
    pub node: NodeId,
    pub kind: JobKind,
    pub state: JobState,
    /// Until it ends.
    /// Gone when the job has ended. `None` before that: this version cannot read it.
    pub spec: Option<JobSpec>,
    pub epoch: i64,
    pub boot: Option<BootId>,
    pub attempts: u32,
    pub max_attempts: u32,
    pub cancel_asked: bool,
    pub deadline: DateTime<Utc>,
    pub result_hash: Option<Vec<u8>>,
    pub caller: Caller,
}

#[derive(sqlx::FromRow)]
struct Row {
    subscription_id: Uuid,
    id: Uuid,
    operation_id: Option<Uuid>,
    server_id: Uuid,
    backup_id: Option<Uuid>,
    node_id: Uuid,
    kind: String,
    state: String,
    spec: Option<Json<serde_json::Value>>,
    epoch: i64,
    boot_id: Option<Uuid>,
    attempts: i32,
    max_attempts: i32,
    cancel_asked: bool,
    deadline: DateTime<Utc>,
    result_hash: Option<Vec<u8>>,
    caller: Json<Caller>,
}

const COLUMNS: &str = "
    j.subscription_id, j.id, j.operation_id, j.server_id, j.backup_id, j.node_id,
    j.kind::text as kind, j.state::text as state, j.spec, j.epoch, j.boot_id, j.attempts, j.max_attempts,
    j.cancel_asked, j.deadline, j.result_hash, j.caller";

impl TryFrom<Row> for Job {
    type Error = Error;
    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            subscription: SubscriptionId(row.subscription_id),
            id: JobId(row.id),
            operation: row.operation_id.map(OperationId),
            server: ServerId(row.server_id),
            backup: row.backup_id.map(BackupId),
            node: NodeId(row.node_id),
            kind: from_label(row.kind)?,
            state: from_label(row.state)?,
            spec: row.spec.and_then(|spec| readable(row.id, spec.0)),
            epoch: row.epoch,
            boot: row.boot_id.map(BootId),
            attempts: row.attempts.unsigned_abs(),
            max_attempts: row.max_attempts.unsigned_abs(),
            cancel_asked: row.cancel_asked,
            deadline: row.deadline,
            result_hash: row.result_hash,
            caller: row.caller.0,
        })
    }
}

/// Another version of the control plane may have written it, so a row stays usable without it.
fn readable(job: Uuid, spec: serde_json::Value) -> Option<JobSpec> {
    serde_json::from_value(spec)
        // serde's text may quote a value, and a value may be a password.
        .inspect_err(|error| tracing::error!(job.id = %job, at = ?error.classify(), "a job's spec cannot be read"))
        .ok()
}

fn interval(length: TimeDelta) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: length.num_microseconds().unwrap_or(i64::MAX),
    }
}

/// `None`: the incarnation has an open job of this kind already (snapshot, prune).
pub(crate) async fn queue(
    conn: &mut PgConnection,
    job: NewJob<'_>,
    now: DateTime<Utc>,
) -> Result<Option<JobId>> {
    let id = JobId::new();
    let done = sqlx::query(
        "insert into job (subscription_id, id, operation_id, server_id, incarnation_id, backup_id, base_backup_id,
                          node_id, kind, priority, spec, max_attempts, deadline, caller, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9::job_kind, $10, $11, $12, $13, $14, $15)
         on conflict do nothing",
    )
    .bind(job.subscription.0)
    .bind(id.0)
    .bind(job.operation.map(|id| id.0))
    .bind(job.server.0)
    .bind(job.incarnation.map(|id| id.0))
    .bind(job.backup.map(|id| id.0))
    .bind(job.base.map(|id| id.0))
    .bind(job.node.0)
    .bind(label(job.spec.kind()))
    .bind(job.priority)
    .bind(json(job.spec)?)
    .bind(i32::try_from(job.max_attempts).unwrap_or(i32::MAX))
    .bind(job.deadline)
    .bind(Json(job.caller))
    .bind(now)
    .execute(conn)
    .await?;
    Ok((done.rows_affected() == 1).then_some(id))
}

/// What a node may be given now.
macro_rules! ready {
    () => {
        "from job j
          where j.node_id = $1 and j.state = 'queued' and j.run_at <= lease_now()
            and not (j.kind in ('snapshot', 'prune', 'compact')
                     and exists (select from job writer
                                  where writer.subscription_id = j.subscription_id
                                    and writer.incarnation_id = j.incarnation_id
                                    and writer.state = 'leased' and writer.kind in ('snapshot', 'prune', 'compact')))"
    };
}

/// Gives the node its next job. One statement: the rows that others are taking are skipped, the
/// epoch rises, and walking `job_ready` from its start needs neither scan nor sort.
pub(crate) const CLAIM: &str = concat!(
    "with next as (select j.subscription_id, j.id ",
    ready!(),
    "      order by j.priority, j.run_at, j.id
           limit 1
             for no key update of j skip locked)
     update job j
        set state = 'leased', epoch = j.epoch + 1, boot_id = $2, lease_until = lease_now() + $3,
            attempts = j.attempts + 1
       from next
      where (j.subscription_id, j.id) = (next.subscription_id, next.id)
  returning "
);

pub(crate) async fn claim(
    conn: &mut PgConnection,
    node: NodeId,
    boot: BootId,
    lease: TimeDelta,
) -> Result<Option<Job>> {
    let row = sqlx::query_as::<_, Row>(AssertSqlSafe(format!("{CLAIM}{COLUMNS}")))
        .bind(node.0)
        .bind(boot.0)
        .bind(interval(lease))
        .fetch_optional(conn)
        .await;
    match row {
        Ok(row) => row.map(Job::try_from).transpose(),
        // Another poll took a writer of the same incarnation at this moment; the next poll sees it.
        Err(error)
            if crate::error::violated(&error) == Some("job_one_writer_of_backup_objects") =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether there is something for the node that [`claim`] passed by, because another transaction holds
/// its row.
pub(crate) async fn any_ready(conn: &mut PgConnection, node: NodeId) -> Result<bool> {
    let query = sqlx::query_scalar(concat!("select exists (select ", ready!(), ")"));
    Ok(query.bind(node.0).fetch_one(conn).await?)
}

/// Of leases that a node believes to have, those that are asked to end or were given to somebody else. What
/// its holder itself has ended keeps its epoch.
pub(crate) async fn to_renew(
    conn: &mut PgConnection,
    node: NodeId,
    running: &[LeaseRef],
) -> Result<Vec<JobId>> {
    let (jobs, epochs): (Vec<Uuid>, Vec<i64>) = running
        .iter()
        .map(|lease| (lease.job.0, lease.epoch))
        .unzip();
    let found: Vec<Uuid> = sqlx::query_scalar(
        "select j.id from job j join unnest($2::uuid[], $3::bigint[]) as held (job, epoch) on j.id = held.job
          where j.node_id = $1
            and (j.epoch > held.epoch or (j.cancel_asked and j.state = 'leased' and j.epoch = held.epoch))",
    )
    .bind(node.0)
    .bind(jobs)
    .bind(epochs)
    .fetch_all(conn)
    .await?;
    Ok(found.into_iter().map(JobId).collect())
}

pub(crate) async fn get(conn: &mut PgConnection, id: JobId, hold: Hold) -> Result<Option<Job>> {
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "select {COLUMNS} from job j where j.id = $1{}",
        hold.sql()
    )))
    .bind(id.0)
    .fetch_optional(conn)
    .await?;
    row.map(Job::try_from).transpose()
}

/// Renews a lease; `None`: it is not the newest one. Answers whether the job is still wanted and for
/// which operation it is.
pub(crate) async fn renew(
    conn: &mut PgConnection,
    node: NodeId,
    lease: LeaseRef,
    length: TimeDelta,
) -> Result<Option<(bool, SubscriptionId, Option<OperationId>)>> {
    let row: Option<(bool, Uuid, Option<Uuid>)> = sqlx::query_as(
        "update job set lease_until = lease_now() + $5
          where id = $1 and epoch = $2 and boot_id = $3 and node_id = $4 and state = 'leased'
      returning cancel_asked, subscription_id, operation_id",
    )
    .bind(lease.job.0)
    .bind(lease.epoch)
    .bind(lease.boot.0)
    .bind(node.0)
    .bind(interval(length))
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|(cancel, subscription, operation)| {
        (
            cancel,
            SubscriptionId(subscription),
            operation.map(OperationId),
        )
    }))
}

/// The end of a job. Its spec goes, and with it any password. The epoch rises unless the holder
/// itself reported, so that whoever still works on it is told to stop.
pub(crate) async fn end(
    conn: &mut PgConnection,
    job: &Job,
    state: JobState,
    error: Option<&JobError>,
    result_hash: Option<&[u8]>,
    now: DateTime<Utc>,
) -> Result<()> {
    let done = sqlx::query(
        "update job
            set state = $3::job_state, error = coalesce($4, error), result_hash = $5, ended_at = $6, spec = null,
                lease_until = null, epoch = epoch + case when $5 is null then 1 else 0 end
          where subscription_id = $1 and id = $2 and state in ('queued', 'leased')",
    )
    .bind(job.subscription.0)
    .bind(job.id.0)
    .bind(label(state))
    .bind(error.map(Json))
    .bind(result_hash)
    .bind(now)
    .execute(conn)
    .await?;
    match done.rows_affected() {
        1 => Ok(()),
        _ => Err(Error::Stale),
    }
}

/// Back into the queue, for a while.
pub(crate) async fn requeue(
    conn: &mut PgConnection,
    job: &Job,
    error: Option<&JobError>,
    result_hash: Option<&[u8]>,
    patience: TimeDelta,
) -> Result<()> {
    sqlx::query(
        "update job
            set state = 'queued', run_at = lease_now() + $3, lease_until = null, error = coalesce($4, error),
                result_hash = $5
          where subscription_id = $1 and id = $2 and state = 'leased'",
    )
    .bind(job.subscription.0)
    .bind(job.id.0)
    .bind(interval(patience))
    .bind(error.map(Json))
    .bind(result_hash)
    .execute(conn)
    .await?;
    Ok(())
}

/// Its agent is told at its next renewal.
pub(crate) async fn ask_cancel(conn: &mut PgConnection, job: &Job) -> Result<()> {
    sqlx::query("update job set cancel_asked = true where subscription_id = $1 and id = $2 and state = 'leased'")
        .bind(job.subscription.0)
        .bind(job.id.0)
        .execute(conn)
        .await?;
    Ok(())
}

/// The jobs of an operation in the order in which they were queued, as the plan looks at them.
pub(crate) async fn facts(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    operation: OperationId,
) -> Result<Vec<JobFact>> {
    let rows: Vec<(String, String, Option<Json<JobError>>)> = sqlx::query_as(
        "select kind::text, state::text, error from job
          where subscription_id = $1 and operation_id = $2 order by created_at, id",
    )
    .bind(subscription.0)
    .bind(operation.0)
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(kind, state, error)| {
            Ok(JobFact {
                kind: from_label(kind)?,
                state: from_label(state)?,
                error: error.map(|e| e.0),
            })
        })
        .collect()
}

/// Jobs that have not ended, for one server, held for change.
pub(crate) async fn open_of_server(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    server: ServerId,
) -> Result<Vec<Job>> {
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(format!(
        "select {COLUMNS} from job j
          where j.subscription_id = $1 and j.server_id = $2 and j.state in ('queued', 'leased')
          order by j.created_at, j.id for no key update"
    )))
    .bind(subscription.0)
    .bind(server.0)
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(Job::try_from).collect()
}

/// Nobody else changes the server's open jobs until the end of the transaction.
pub(crate) async fn hold_open(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    server: ServerId,
) -> Result<()> {
    sqlx::query(
        "select id from job
          where subscription_id = $1 and server_id = $2 and state in ('queued', 'leased')
          order by created_at, id for no key update",
    )
    .bind(subscription.0)
    .bind(server.0)
    .execute(conn)
    .await?;
    Ok(())
}

/// Snapshots and compactions that ended, without success or not at the first attempt, and whose leavings
/// were not looked for yet; oldest first. Not while another job may still publish the same backup, and not
/// before the manifests that a compaction wrote in vain are gone: they name what it left.
pub(crate) async fn to_reclaim(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    incarnation: IncarnationId,
    ended_before: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<EndedAttempts>> {
    let rows: Vec<(Uuid, i64, Option<Uuid>)> = sqlx::query_as(
        "select j.id, j.epoch, case when b.state = 'failed' then b.id end
           from job j left join backup b on (b.subscription_id, b.id) = (j.subscription_id, j.backup_id)
          where j.subscription_id = $1 and j.incarnation_id = $2 and j.kind in ('snapshot', 'compact')
            and j.ended_at <= $3 and j.reclaimed_at is null
            and j.attempts > 0 and (j.state <> 'done' or j.attempts > 1)
            and case j.kind when 'snapshot' then b.state not in ('requested', 'running')
                else not exists (select from superseded_object s
                                  where s.subscription_id = j.subscription_id and s.job_id = j.id
                                    and starts_with(s.key, 'backups/')) end
          order by j.ended_at, j.id limit $4",
    )
    .bind(subscription.0)
    .bind(incarnation.0)
    .bind(ended_before)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(job, epoch, failed)| EndedAttempts {
            job: JobId(job),
            epoch,
            failed_backup: failed.map(BackupId),
        })
        .collect())
}

/// What these jobs left behind was looked for.
pub(crate) async fn reclaimed(
    conn: &mut PgConnection,
    subscription: SubscriptionId,
    ids: &[JobId],
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query(
        "update job set reclaimed_at = $3
          where subscription_id = $1 and id = any($2) and ended_at is not null and reclaimed_at is null",
    )
    .bind(subscription.0)
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// A queued job is to do the same with newer facts.
pub(crate) async fn set_spec(conn: &mut PgConnection, job: &Job, spec: &JobSpec) -> Result<()> {
    sqlx::query(
        "update job set spec = $3 where subscription_id = $1 and id = $2 and state = 'queued'",
    )
    .bind(job.subscription.0)
    .bind(job.id.0)
    .bind(json(spec)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// Leases that ran out.
pub(crate) async fn expired(
    conn: &mut PgConnection,
) -> Result<Vec<(JobId, SubscriptionId, ServerId)>> {
    let rows: Vec<(Uuid, Uuid, Uuid)> = sqlx::query_as(
        "select id, subscription_id, server_id from job
          where state = 'leased' and lease_until < lease_now() order by lease_until",
    )
    .fetch_all(conn)
    .await?;
    Ok(named(rows))
}

pub(crate) async fn is_expired(conn: &mut PgConnection, job: &Job) -> Result<bool> {
    let (expired,): (bool,) = sqlx::query_as(
        "select exists (select from job where subscription_id = $1 and id = $2
                           and state = 'leased' and lease_until < lease_now())",
    )
    .bind(job.subscription.0)
    .bind(job.id.0)
    .fetch_one(conn)
    .await?;
    Ok(expired)
}

/// Leases of this node's earlier processes: dead as soon as a new one speaks. None when an even newer
/// one has spoken since: then those are its leases.
pub(crate) async fn of_other_boots(
    conn: &mut PgConnection,
    node: NodeId,
    boot: BootId,
) -> Result<Vec<(JobId, SubscriptionId, ServerId)>> {
    let rows: Vec<(Uuid, Uuid, Uuid)> = sqlx::query_as(
        "select id, subscription_id, server_id from job
          where state = 'leased' and node_id = $1 and boot_id <> $2
            and exists (select from node where id = $1 and boot_id = $2)
          order by id",
    )
    .bind(node.0)
    .bind(boot.0)
    .fetch_all(conn)
    .await?;
    Ok(named(rows))
}

/// Open jobs whose time is over, and flushes that wait for a node that fell silent.
pub(crate) async fn overdue(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    silent_since: DateTime<Utc>,
) -> Result<Vec<(JobId, SubscriptionId, ServerId)>> {
    let rows: Vec<(Uuid, Uuid, Uuid)> = sqlx::query_as(
        "select j.id, j.subscription_id, j.server_id
           from job j join node n on n.id = j.node_id
          where j.state in ('queued', 'leased')
            and (j.deadline <= $1
                 or (j.kind = 'archive-wal' and j.state = 'queued'
                     and coalesce(n.last_seen_at, n.joined_at) < $2))
          order by j.deadline, j.id",
    )
    .bind(now)
    .bind(silent_since)
    .fetch_all(conn)
    .await?;
    Ok(named(rows))
}

fn named(rows: Vec<(Uuid, Uuid, Uuid)>) -> Vec<(JobId, SubscriptionId, ServerId)> {
    rows.into_iter()
        .map(|(id, subscription, server)| {
            (JobId(id), SubscriptionId(subscription), ServerId(server))
        })
        .collect()
}
