//! What a user asked for and polls: accepted here, moved by [`crate::advance`], ended by
//! [`crate::settle`].

use holdfast_domain::activity::{ActivityEvent, ActivityStatus, Caller};
use holdfast_domain::operation::{KEPT_FOR, Operation, OperationKind, OperationState};
use holdfast_domain::region::canonical;
use holdfast_domain::resource_id::ServerResourceId;
use holdfast_domain::server::Server;
use holdfast_domain::{BackupId, OperationId, Refusal, SubscriptionId};

use crate::activity::event;
use crate::store::operation::{Input, Record};
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result};

/// The answer to whoever asked for an operation.
#[derive(Debug, Clone)]
pub struct Accepted {
    pub operation: Operation,
    /// The same request came before: this is its answer again.
    pub replayed: bool,
}

impl ControlPlane {
    /// An operation by the id in its URL. Ended ones stay readable for 30 days.
    ///
    /// # Errors
    /// [`Refusal::OperationNotFound`], also for another region's.
    pub async fn get_operation(
        &self,
        subscription: SubscriptionId,
        region: &str,
        id: OperationId,
    ) -> Result<Operation> {
        let mut conn = self.pool().acquire().await?;
        let now = self.clock().now();
        store::operation::get(&mut conn, subscription, id, Hold::None)
            .await?
            .map(|record| record.operation)
            .filter(|operation| {
                operation.region == canonical(region)
                    && operation
                        .ended_at
                        .is_none_or(|ended| now - ended < KEPT_FOR)
            })
            .ok_or_else(|| Refusal::OperationNotFound(id.to_string()).into())
    }
}

/// What is asked for.
pub(crate) struct Ask<'a> {
    pub id: OperationId,
    pub kind: OperationKind,
    pub caller: &'a Caller,
    pub method: &'static str,
    pub server: &'a Server,
    /// The backup that it is about, with its name.
    pub backup: Option<(BackupId, &'a str)>,
    pub input: Option<Input>,
}

/// The action names of the activity log (contract, other-apis §1).
pub(crate) fn action(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::CreateServer
        | OperationKind::RestoreServer
        | OperationKind::UpdateServer => "Microsoft.DBforPostgreSQL/flexibleServers/write",
        OperationKind::DeleteServer => "Microsoft.DBforPostgreSQL/flexibleServers/delete",
        OperationKind::StartServer => "Microsoft.DBforPostgreSQL/flexibleServers/start/action",
        OperationKind::StopServer => "Microsoft.DBforPostgreSQL/flexibleServers/stop/action",
        OperationKind::RestartServer => "Microsoft.DBforPostgreSQL/flexibleServers/restart/action",
        OperationKind::CreateBackup => "Microsoft.DBforPostgreSQL/flexibleServers/backups/write",
        OperationKind::DeleteBackup => "Microsoft.DBforPostgreSQL/flexibleServers/backups/delete",
    }
}

/// Accepts: the operation's row, and the events Started and Accepted under one correlation id.
///
/// # Errors
/// [`Refusal::ServerIsBusy`] while another one that this one excludes is under way.
pub(crate) async fn accept(unit: &mut Unit, ask: Ask<'_>) -> Result<Record> {
    let now = unit.now();
    // As things are called, however the caller spelled them: the activity log is searched by it.
    let mut resource_id = ServerResourceId {
        subscription: ask.server.subscription,
        group: ask.server.group.clone(),
        name: ask.server.name.clone(),
    }
    .to_string();
    if let Some((_, name)) = ask.backup {
        resource_id.push_str("/backups/");
        resource_id.push_str(name);
    }
    let record = Record {
        operation: Operation {
            id: ask.id,
            subscription: ask.server.subscription,
            kind: ask.kind,
            state: OperationState::Accepted,
            server: ask.server.id,
            backup: ask.backup.map(|(id, _)| id),
            resource_id,
            region: ask.server.region.clone(),
            failure: None,
            progress: None,
            result: None,
            created_at: now,
            deadline: now + ask.kind.time_limit(),
            ended_at: None,
        },
        group: ask.server.group.clone(),
        action: action(ask.kind).to_owned(),
        input: ask.input,
        caller: ask.caller.clone(),
    };
    if !store::operation::insert(unit.conn(), &record).await? {
        return Err(Refusal::ServerIsBusy {
            server: ask.server.name.clone(),
        }
        .into());
    }
    for (status, http_status) in [
        (ActivityStatus::Started, None),
        (ActivityStatus::Accepted, Some(202)),
    ] {
        let event = ActivityEvent {
            http_method: Some(ask.method.to_owned()),
            http_status,
            ..of_operation(&record, status, now)
        };
        unit.record(event);
    }
    unit.wake_operations();
    Ok(record)
}

/// An event about an operation, under its caller.
pub(crate) fn of_operation(
    record: &Record,
    status: ActivityStatus,
    now: chrono::DateTime<chrono::Utc>,
) -> ActivityEvent {
    ActivityEvent {
        operation: Some(record.operation.id),
        ..event(
            record.operation.subscription,
            &record.group,
            &record.operation.resource_id,
            &record.action,
            status,
            &record.caller,
            now,
        )
    }
}

/// The operation as it stands after a transaction's own changes.
pub(crate) async fn reread(unit: &mut Unit, record: &Record) -> Result<Operation> {
    let (subscription, id) = (record.operation.subscription, record.operation.id);
    store::operation::get(unit.conn(), subscription, id, Hold::None)
        .await?
        .map(|record| record.operation)
        .ok_or_else(|| Error::corrupt(format!("operation {id} vanished")))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use futures::future::join_all;
    use holdfast_domain::activity::ActivityStatus;
    use holdfast_domain::job::{JobError, JobResult, Power};
    use holdfast_domain::server::{ServerState, ServerWish};

    use super::*;
    use crate::activity::ActivityFilter;
    use crate::story::{SUBSCRIPTION, World, at, caller, idem, minutes, refused, wish};
    use crate::{PageRequest, PutMode, ServerRef};

    #[tokio::test]
    async fn fifty_identical_puts_make_one_server_and_one_operation() {
        let world = World::new().await;
        let (who, request) = (caller(), idem());
        let wish = wish();
        let puts = (0..50).map(|_| {
            world
                .control_plane
                .put_server(&who, at("pg1"), &wish, PutMode::Create, &request)
        });
        let answers: Vec<_> = join_all(puts)
            .await
            .into_iter()
            .map(|a| a.expect("accepted"))
            .collect();
        assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
        assert!(
            answers
                .iter()
                .all(|answer| answer.operation.id == answers[0].operation.id)
        );
        assert_eq!(world.count("select count(*) from server").await, 1);
        assert_eq!(world.count("select count(*) from operation").await, 1);
        // Another body while it is busy.
        let other = crate::Idempotency {
            body_hash: [1; 32],
            ..request
        };
        let answer = world
            .control_plane
            .put_server(&who, at("pg1"), &wish, PutMode::Create, &other)
            .await;
        assert!(matches!(refused(answer), Refusal::ServerIsBusy { .. }));
    }

    #[tokio::test]
    async fn without_a_request_id_a_repetition_counts_only_while_the_first_is_under_way() {
        let mut world = World::new().await;
        let request = crate::Idempotency {
            client_request_id: None,
            ..idem()
        };
        let put = || {
            world
                .control_plane
                .put_server(&CALLER, at("pg1"), &WISH, PutMode::Default, &request)
        };
        let first = put().await.expect("accepted");
        let again = put().await.expect("accepted");
        assert!(again.replayed && again.operation.id == first.operation.id);
        world.run_until_idle().await;
        let answer = world
            .control_plane
            .update_server(&CALLER, at("pg1"), &ServerWish::default(), false, &request)
            .await
            .expect("accepted");
        assert!(!answer.replayed);
    }

    static CALLER: std::sync::LazyLock<Caller> = std::sync::LazyLock::new(caller);
    static WISH: std::sync::LazyLock<ServerWish> = std::sync::LazyLock::new(wish);

    #[tokio::test]
    async fn one_name_asked_for_twenty_times_becomes_one_server() {
        let world = World::new().await;
        let who = caller();
        let wish = wish();
        let requests: Vec<_> = (0..20).map(|_| idem()).collect();
        let puts = requests.iter().map(|one| {
            world
                .control_plane
                .put_server(&who, at("pg1"), &wish, PutMode::Create, one)
        });
        let made = join_all(puts)
            .await
            .into_iter()
            .filter(Result::is_ok)
            .count();
        assert_eq!(made, 1);
        assert_eq!(world.count("select count(*) from server").await, 1);
        assert_eq!(world.count("select count(*) from job").await, 1);
    }

    #[tokio::test]
    async fn one_server_operation_excludes_another() {
        // DESIGN §2, "what excludes what"
        let mut world = World::new().await;
        world.create("pg1").await;
        let it = &world.control_plane;
        it.power_server(&caller(), at("pg1"), Power::Stopped, &idem())
            .await
            .expect("accepted");
        let answer = it
            .power_server(&caller(), at("PG1"), Power::Restarted, &idem())
            .await;
        assert!(matches!(refused(answer), Refusal::ServerIsBusy { .. }));
        let answer = it.delete_server(&caller(), at("pg1"), &idem()).await;
        assert!(matches!(refused(answer), Refusal::ServerIsBusy { .. }));
        world.run_until_idle().await;
        assert_eq!(world.server("pg1").await.server.state, ServerState::Stopped);
        let it = &world.control_plane;
        let answer = it
            .power_server(&caller(), at("pg1"), Power::Stopped, &idem())
            .await;
        assert!(matches!(refused(answer), Refusal::ServerIsNotReady { .. }));
        it.power_server(&caller(), at("pg1"), Power::Running, &idem())
            .await
            .expect("accepted");
        world.run_until_idle().await;
        let server = world.server("pg1").await.server;
        assert_eq!(
            (server.state, server.stopped_at),
            (ServerState::Ready, None)
        );
    }

    #[tokio::test]
    async fn a_failed_create_leaves_nothing_and_frees_its_name() {
        let mut world = World::new().await;
        let it = world.control_plane.clone();
        let asked = it
            .put_server(&caller(), at("pg1"), &wish(), PutMode::Create, &idem())
            .await;
        let asked = asked.expect("accepted");
        let job = world.lease_one().await.expect("provision");
        let error = JobError {
            code: "DiskFull".to_owned(),
            message: "The node has no room.".to_owned(),
            retryable: false,
        };
        world
            .report(&job, &JobResult::Failed(error))
            .await
            .expect("taken");
        let operation = it
            .get_operation(SUBSCRIPTION, "northcentralus", asked.operation.id)
            .await;
        let failure = operation.expect("readable").failure.expect("says why");
        assert_eq!(failure.code, "DiskFull");
        assert!(matches!(
            refused(it.get_server(at("pg1")).await),
            Refusal::ResourceNotFound { .. }
        ));
        assert!(it.server_name_available("pg1").await.expect("answers"));
        // The node is told to clear away, and gets its port back.
        world.run_until_idle().await;
        assert_eq!(world.done, [holdfast_domain::job::JobKind::Drop]);
        assert_eq!(
            world
                .count("select count(*) from server where node_id is not null")
                .await,
            0
        );
        world.create("pg1").await;
    }

    #[tokio::test]
    async fn every_operation_ends_at_its_deadline() {
        // RELIABILITY §0.9
        let mut world = World::new().await;
        let it = world.control_plane.clone();
        let asked = it
            .put_server(&caller(), at("pg1"), &wish(), PutMode::Create, &idem())
            .await;
        let asked = asked.expect("accepted");
        let job = world.lease_one().await.expect("provision");
        world.pass(minutes(31)).await;
        world.duties().await;
        let operation = it
            .get_operation(SUBSCRIPTION, "northcentralus", asked.operation.id)
            .await;
        let operation = operation.expect("readable");
        assert_eq!(operation.state, OperationState::Failed);
        assert_eq!(operation.ended_at, Some(world.now()));
        let outcome = world.outcome(&job).await;
        let late = world.report(&job, &JobResult::Done(outcome)).await;
        assert!(matches!(late, Err(Error::Stale)), "{late:?}");
        assert!(
            it.get_server(at("pg1")).await.is_err(),
            "no half-made server is shown"
        );
    }

    #[tokio::test]
    async fn an_operation_is_readable_for_thirty_days_and_in_its_region() {
        let mut world = World::new().await;
        world.create("pg1").await;
        let it = world.control_plane.clone();
        let wish = ServerWish {
            retention_days: Some(14),
            ..ServerWish::default()
        };
        let asked = it
            .update_server(&caller(), at("pg1"), &wish, false, &idem())
            .await
            .expect("ok");
        assert_eq!(asked.operation.state, OperationState::Succeeded);
        assert_eq!(
            world.server("pg1").await.server.settings.retention.days(),
            14
        );
        let id = asked.operation.id;
        assert!(it.get_operation(SUBSCRIPTION, "eastus2", id).await.is_err());
        assert!(
            it.get_operation(SUBSCRIPTION, "northcentralus", id)
                .await
                .is_ok()
        );
        world.pass(TimeDelta::days(30)).await;
        assert!(
            it.get_operation(SUBSCRIPTION, "northcentralus", id)
                .await
                .is_err()
        );
        world.pass(TimeDelta::days(1)).await;
        assert!(it.forget().await.expect("forgets") > 0);
        assert_eq!(world.count("select count(*) from operation").await, 0);
    }

    #[tokio::test]
    async fn an_operation_has_three_events_under_one_correlation_id_and_the_chain_holds() {
        let mut world = World::new().await;
        let who = caller();
        let it = world.control_plane.clone();
        it.put_server(&who, at("pg1"), &wish(), PutMode::Create, &idem())
            .await
            .expect("accepted");
        world.run_until_idle().await;
        let filter = ActivityFilter {
            subscription: SUBSCRIPTION,
            from: world.now() - minutes(60),
            to: None,
            group: None,
            resource_id: Some(at("pg1").id().to_uppercase()),
            provider: Some("microsoft.dbforpostgresql".to_owned()),
            correlation_id: Some(who.correlation_id.clone()),
            status: None,
            caller: Some("ANN@example.com".to_owned()),
        };
        let mut shown = Vec::new();
        let mut page = PageRequest {
            after: None,
            limit: 2,
        };
        loop {
            let events = it.query_activity(&filter, &page).await.expect("answers");
            shown.extend(events.items.iter().map(|event| event.status));
            page.after = match events.next {
                Some(next) => Some(next),
                None => break,
            };
        }
        use ActivityStatus::{Accepted, Started, Succeeded};
        assert_eq!(shown, [Succeeded, Accepted, Started]);
        let broken = world
            .count(
                "select count(*) from (select previous_hash, lag(hash) over (partition by subscription_id order by number) as before, number
                                         from activity_event) e where number > 1 and previous_hash <> before",
            )
            .await;
        assert_eq!(broken, 0);
        let changed = sqlx::query("update activity_event set action = 'x'")
            .execute(world.pool())
            .await;
        assert!(changed.is_err(), "history is never changed");
    }

    #[tokio::test]
    async fn a_lock_above_a_server_guards_it() {
        // FLX-073
        use holdfast_domain::lock::LockLevel;
        let mut world = World::new().await;
        world.create("pg1").await;
        let it = world.control_plane.clone();
        let scope = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/rg1");
        let (_, new) = it
            .put_lock(
                &caller(),
                SUBSCRIPTION,
                &scope,
                "Keep",
                LockLevel::CanNotDelete,
                None,
            )
            .await
            .expect("locked");
        assert!(new);
        let answer = it.delete_server(&caller(), at("pg1"), &idem()).await;
        assert!(matches!(refused(answer), Refusal::ScopeLocked { .. }));
        it.power_server(&caller(), at("pg1"), Power::Restarted, &idem())
            .await
            .expect("no delete");
        world.run_until_idle().await;
        let level = LockLevel::ReadOnly;
        let (_, new) = it
            .put_lock(&caller(), SUBSCRIPTION, &scope, "keep", level, None)
            .await
            .expect("changed");
        assert!(!new);
        let answer = it
            .power_server(&caller(), at("pg1"), Power::Stopped, &idem())
            .await;
        assert!(matches!(refused(answer), Refusal::ScopeLocked { .. }));
        let below = ServerRef {
            name: "pg2",
            ..at("pg1")
        };
        let answer = it
            .put_server(&caller(), below, &wish(), PutMode::Create, &idem())
            .await;
        assert!(matches!(refused(answer), Refusal::ScopeLocked { .. }));
        assert_eq!(
            it.list_locks(SUBSCRIPTION, &at("pg1").id(), true)
                .await
                .expect("lists")
                .len(),
            1
        );
        assert!(
            it.delete_lock(&caller(), SUBSCRIPTION, &scope, "KEEP")
                .await
                .expect("gone")
        );
        assert!(
            it.delete_server(&caller(), at("pg1"), &idem())
                .await
                .expect("accepted")
                .is_some()
        );
    }
}
