//! The job of an operation's next step, made when it is queued from the facts of that moment.

use chrono::{DateTime, Utc};
use holdfast_domain::job::{
    ArchiveWalMode, ArchiveWalSpec, DropSpec, JobKind, JobSpec, Power, PowerSpec, ProvisionSpec,
    RestoreSpec, SnapshotSpec, WrappedKey,
};
use holdfast_domain::node::NodeState;
use holdfast_domain::operation::OperationKind;
use holdfast_domain::redundancy::Vault;
use holdfast_domain::restore::choose;
use holdfast_domain::server::Server;
use holdfast_domain::{BackupId, IncarnationId, NodeId};

use crate::placement::{placement, vault_refs};
use crate::store::catalogue::Depth;
use crate::store::incarnation::Incarnation;
use crate::store::operation::{Input, Record};
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{ControlPlane, Error, Result};

pub(crate) enum Composed {
    Order(Box<Order>),
    /// Not now: something that it must not overlap with is under way.
    Later,
}

pub(crate) struct Order {
    pub spec: JobSpec,
    pub node: NodeId,
    pub incarnation: Option<IncarnationId>,
    pub base: Option<BackupId>,
    /// `None`: the operation's.
    pub deadline: Option<DateTime<Utc>>,
}

/// The operation's server with everything that its jobs carry.
struct Subject {
    server: Server,
    incarnation: Incarnation,
    vaults: Vec<Vault>,
    node: NodeId,
}

impl Subject {
    async fn load(unit: &mut Unit, record: &Record) -> Result<Self> {
        let operation = &record.operation;
        let server = store::server::by_id(
            unit.conn(),
            operation.subscription,
            operation.server,
            Hold::None,
        )
        .await?
        .ok_or_else(|| Error::corrupt(format!("server {} is missing", operation.server)))?;
        let id = server
            .incarnation
            .ok_or_else(|| Error::corrupt(format!("server {} has no life", server.id)))?;
        let node = server
            .node
            .ok_or_else(|| Error::corrupt(format!("server {} is nowhere", server.id)))?;
        Ok(Self {
            incarnation: store::incarnation::get(unit.conn(), server.subscription, id).await?,
            vaults: store::node::vaults(unit.conn()).await?,
            server,
            node,
        })
    }

    fn order(&self, spec: JobSpec) -> Composed {
        Composed::Order(Box::new(Order {
            spec,
            node: self.node,
            incarnation: Some(self.incarnation.id),
            base: None,
            deadline: None,
        }))
    }

    fn key(&self) -> Result<WrappedKey> {
        key(&self.incarnation)
    }
}

fn key(incarnation: &Incarnation) -> Result<WrappedKey> {
    incarnation
        .wrapped_key
        .clone()
        .ok_or_else(|| Error::corrupt(format!("incarnation {} has no key", incarnation.id)))
}

pub(crate) async fn compose(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    record: &Record,
    kind: JobKind,
) -> Result<Composed> {
    let subject = Subject::load(unit, record).await?;
    let place = placement(&subject.server, &subject.incarnation, &subject.vaults)?;
    Ok(match kind {
        JobKind::Provision => subject.order(JobSpec::Provision(ProvisionSpec {
            placement: place,
            administrator_login: subject.server.settings.administrator_login.clone(),
            administrator_password: match &record.input {
                Some(Input::Create {
                    administrator_password,
                }) => administrator_password.clone(),
                _ => None,
            },
        })),
        JobKind::Snapshot => {
            let backup = record
                .operation
                .backup
                .ok_or_else(|| Error::corrupt("a backup operation without a backup"))?;
            snapshot(
                unit,
                &subject.server,
                &subject.incarnation,
                &subject.vaults,
                backup,
            )
            .await?
        }
        JobKind::ArchiveWal => flush(control_plane, unit, record, &subject).await?,
        JobKind::Restore => restore(unit, record, &subject).await?,
        JobKind::Power => subject.order(JobSpec::Power(PowerSpec {
            placement: place,
            wrapped_key: subject.key()?,
            to: match (&record.input, record.operation.kind) {
                (Some(Input::Power { to }), _) => *to,
                (_, OperationKind::StopServer) => Power::Stopped,
                (_, OperationKind::RestartServer) => Power::Restarted,
                _ => Power::Running,
            },
        })),
        JobKind::Drop => subject.order(JobSpec::Drop(DropSpec {
            placement: place,
            wrapped_key: subject.incarnation.wrapped_key.clone(),
        })),
        JobKind::Prune | JobKind::Compact => {
            return Err(Error::corrupt("no operation prunes or compacts"));
        }
    })
}

/// A snapshot that builds on the newest complete backup. The rows' uniqueness keeps a second one of
/// the same incarnation waiting.
pub(crate) async fn snapshot(
    unit: &mut Unit,
    server: &Server,
    incarnation: &Incarnation,
    vaults: &[Vault],
    backup: BackupId,
) -> Result<Composed> {
    let Some(node) = server.node else {
        return Ok(Composed::Later);
    };
    let complete =
        store::backup::complete(unit.conn(), &[server.subscription.0], &[incarnation.id.0]).await?;
    let base = complete
        .into_iter()
        .map(|(_, backup)| backup)
        .max_by_key(|b| (b.stop, b.completed_time));
    Ok(Composed::Order(Box::new(Order {
        node,
        incarnation: Some(incarnation.id),
        base: base.as_ref().map(|base| base.id),
        deadline: None,
        spec: JobSpec::Snapshot(SnapshotSpec {
            placement: placement(server, incarnation, vaults)?,
            backup,
            base: base.map(|base| base.manifest),
            wrapped_key: key(incarnation)?,
        }),
    })))
}

/// The source and its present life.
async fn source(unit: &mut Unit, record: &Record) -> Result<(Server, Incarnation)> {
    let Some(Input::Restore {
        source_subscription,
        source,
        incarnation,
        ..
    }) = &record.input
    else {
        return Err(Error::corrupt("a restore without a source"));
    };
    let server = store::server::by_id(unit.conn(), *source_subscription, *source, Hold::None)
        .await?
        .ok_or_else(|| Error::corrupt(format!("source {source} is missing")))?;
    let incarnation =
        store::incarnation::get(unit.conn(), *source_subscription, *incarnation).await?;
    Ok((server, incarnation))
}

/// Latest is meant: a living source's newest WAL becomes durable first; a silent one's is looked for
/// in the store by the node that is going to restore (DESIGN §4).
async fn flush(
    control_plane: &ControlPlane,
    unit: &mut Unit,
    record: &Record,
    subject: &Subject,
) -> Result<Composed> {
    let now = unit.now();
    let (server, incarnation) = source(unit, record).await?;
    let on = match server.node {
        Some(node) => store::node::get(unit.conn(), node, now).await?,
        None => None,
    };
    let (node, mode) = match on {
        Some(view) if view.node.state != NodeState::Silent => (view.node.id, ArchiveWalMode::Flush),
        _ => (subject.node, ArchiveWalMode::Survey),
    };
    Ok(Composed::Order(Box::new(Order {
        node,
        incarnation: Some(incarnation.id),
        base: None,
        deadline: Some(
            record
                .operation
                .deadline
                .min(now + control_plane.policy().flush),
        ),
        spec: JobSpec::ArchiveWal(ArchiveWalSpec {
            placement: placement(&server, &incarnation, &subject.vaults)?,
            wrapped_key: key(&incarnation)?,
            mode,
        }),
    })))
}

/// The catalogue is loaded anew: after a flush the latest state is later than it was.
async fn restore(unit: &mut Unit, record: &Record, subject: &Subject) -> Result<Composed> {
    let Some(Input::Restore {
        target,
        administrator_password,
        ..
    }) = &record.input
    else {
        return Err(Error::corrupt("a restore without a target"));
    };
    let now = unit.now();
    let (server, incarnation) = source(unit, record).await?;
    let catalogue = store::catalogue::load(
        unit.conn(),
        server.subscription,
        incarnation.id,
        Depth::Whole,
    )
    .await?
    .ok_or_else(|| Error::corrupt(format!("source {} is not ready", server.id)))?;
    let chosen = choose(&catalogue, *target)?;
    let backup = chosen.backup.id;
    store::pin::place(
        unit.conn(),
        server.subscription,
        incarnation.id,
        backup,
        &record.operation,
        now,
    )
    .await?;
    Ok(subject.order(JobSpec::Restore(Box::new(RestoreSpec {
        placement: placement(&subject.server, &subject.incarnation, &subject.vaults)?,
        administrator_login: subject.server.settings.administrator_login.clone(),
        administrator_password: administrator_password.clone(),
        target: chosen.target,
        source: chosen.source(
            &catalogue,
            server.id,
            vault_refs(&incarnation, &subject.vaults)?,
            key(&incarnation)?,
        ),
    }))))
}
