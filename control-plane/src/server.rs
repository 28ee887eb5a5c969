//! Servers: created, changed, started, stopped, dropped ([`view`]: looked at).

use holdfast_domain::activity::Caller;
use holdfast_domain::backup::BackupKind;
use holdfast_domain::job::Power;
use holdfast_domain::lock::Verb;
use holdfast_domain::operation::OperationKind;
use holdfast_domain::region::canonical;
use holdfast_domain::resource_id::ServerResourceId;
use holdfast_domain::server::{Server, ServerState, ServerWish, create, patch};
use holdfast_domain::{OperationId, Refusal, SubscriptionId, name};

use crate::idempotency::replay;
use crate::operation::{Ask, accept, reread};
use crate::placement;
use crate::store::operation::Input;
use crate::store::{self, Hold};
use crate::transaction::Unit;
use crate::{Accepted, ControlPlane, Idempotency, Result, advance, lock, rescue};

mod founding;
mod view;

pub(crate) use founding::found;
pub use view::{ConnectionView, ServerView};

/// A server as callers name it; case does not matter and is echoed.
#[derive(Debug, Clone, Copy)]
pub struct ServerRef<'a> {
    pub subscription: SubscriptionId,
    pub group: &'a str,
    pub name: &'a str,
}

impl ServerRef<'_> {
    /// Its resource id, in the caller's case.
    #[must_use]
    pub fn id(&self) -> String {
        ServerResourceId {
            subscription: self.subscription,
            group: self.group.to_owned(),
            name: self.name.to_owned(),
        }
        .to_string()
    }

    pub(crate) fn not_found(&self) -> Refusal {
        Refusal::ResourceNotFound {
            kind: "Microsoft.DBforPostgreSQL/flexibleServers",
            name: self.name.to_owned(),
            group: self.group.to_owned(),
        }
    }
}

/// A PUT's create mode, as far as it is not a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// A new server; a taken name is refused.
    Create,
    /// New, or an update of what is there.
    Default,
    /// An update of what is there; nothing is made.
    Update,
}

impl ControlPlane {
    /// PUT: a new server, or an update of the one that is there.
    ///
    /// # Errors
    /// What the domain refuses; a taken name; a lock; no capacity.
    pub async fn put_server(
        &self,
        caller: &Caller,
        at: ServerRef<'_>,
        wish: &ServerWish,
        mode: PutMode,
        idem: &Idempotency,
    ) -> Result<Accepted> {
        let mut unit = Unit::begin(self).await?;
        let id = OperationId::new();
        if let Some(first) = replay(self, &mut unit, caller, at.subscription, idem, id).await? {
            return Ok(first);
        }
        group_of(&mut unit, at).await?;
        let found = store::server::find(unit.conn(), at, Hold::Update).await?;
        let operation = match (found, mode) {
            (Some(server), PutMode::Create) => {
                let open =
                    store::operation::exclusive_open(unit.conn(), at.subscription, server.id);
                return Err(if open.await? {
                    Refusal::ServerIsBusy {
                        server: server.name,
                    }
                } else {
                    Refusal::ServerNameAlreadyExists { name: server.name }
                }
                .into());
            }
            (Some(server), _) => {
                self.change(&mut unit, caller, at, server, wish, false, idem.method, id)
                    .await?
            }
            (None, PutMode::Update) => return Err(at.not_found().into()),
            (None, _) => {
                self.create(&mut unit, caller, at, wish, idem.method, id)
                    .await?
            }
        };
        unit.commit().await?;
        Ok(operation)
    }

    async fn create(
        &self,
        unit: &mut Unit,
        caller: &Caller,
        at: ServerRef<'_>,
        wish: &ServerWish,
        method: &'static str,
        id: OperationId,
    ) -> Result<Accepted> {
        name::new_server(at.name)?;
        lock::allow(unit, at.subscription, &at.id(), Verb::Write).await?;
        let location = wish
            .location
            .as_deref()
            .ok_or_else(|| Refusal::invalid("location", "Give the location."))?;
        let region = self.region(location)?;
        let nodes = placement::nodes(unit).await?;
        let settings = create(wish, region, &placement::majors(&nodes, &region.name))?;
        let zone = settings.zone.as_deref();
        let (major, redundancy) = (settings.major, settings.redundancy);
        let place =
            placement::find(unit, &nodes, &region.name, zone, None, major, redundancy).await?;
        let server = found(unit, at, &region.name, settings, place).await?;
        let input = Input::Create {
            administrator_password: wish.administrator_password.clone(),
        };
        let ask = Ask {
            id,
            kind: OperationKind::CreateServer,
            caller,
            method,
            server: &server,
            backup: None,
            input: Some(input),
        };
        self.accept_and_begin(unit, ask).await
    }

    /// Accepts an operation and takes its first step in the same transaction.
    pub(crate) async fn accept_and_begin(&self, unit: &mut Unit, ask: Ask<'_>) -> Result<Accepted> {
        let record = accept(unit, ask).await?;
        advance::step(self, unit, &record).await?;
        Ok(Accepted {
            operation: reread(unit, &record).await?,
            replayed: false,
        })
    }

    /// PATCH: retention, tags, storage growth, sku, maintenance window.
    ///
    /// `client_defaults_geo`: the client's api-version says `geoRedundantBackup: "Disabled"` unasked.
    ///
    /// # Errors
    /// What the domain refuses; a lock; another operation under way.
    pub async fn update_server(
        &self,
        caller: &Caller,
        at: ServerRef<'_>,
        wish: &ServerWish,
        client_defaults_geo: bool,
        idem: &Idempotency,
    ) -> Result<Accepted> {
        let mut unit = Unit::begin(self).await?;
        let id = OperationId::new();
        if let Some(first) = replay(self, &mut unit, caller, at.subscription, idem, id).await? {
            return Ok(first);
        }
        let server = living(&mut unit, at, Hold::Update).await?;
        let geo = client_defaults_geo;
        let accepted = self
            .change(&mut unit, caller, at, server, wish, geo, idem.method, id)
            .await?;
        unit.commit().await?;
        Ok(accepted)
    }

    #[allow(clippy::too_many_arguments, reason = "a private step of two use cases")]
    async fn change(
        &self,
        unit: &mut Unit,
        caller: &Caller,
        at: ServerRef<'_>,
        mut server: Server,
        wish: &ServerWish,
        client_defaults_geo: bool,
        method: &'static str,
        id: OperationId,
    ) -> Result<Accepted> {
        lock::allow(unit, at.subscription, &at.id(), Verb::Write).await?;
        if let Some(location) = &wish.location
            && canonical(location) != server.region
        {
            return Err(Refusal::InvalidResourceLocation {
                current: server.region,
                asked: location.clone(),
            }
            .into());
        }
        settled(unit, &server, &[ServerState::Ready], "Ready").await?;
        let settings = patch(wish, &server.settings, client_defaults_geo)?;
        if wish.administrator_password.is_some() {
            // It would have to be told to the server itself, and never be taken for done when it is not.
            return Err(Refusal::NotSupported(format!(
                "The administrator's password of server '{}' cannot be changed here yet. Leave administratorLoginPassword out and use ALTER ROLE ... PASSWORD on the server.",
                server.name
            ))
            .into());
        }
        server.settings = settings;
        let state = server.state;
        store::server::update(unit.conn(), &server, state).await?;
        let ask = Ask {
            id,
            kind: OperationKind::UpdateServer,
            caller,
            method,
            server: &server,
            backup: None,
            input: None,
        };
        self.accept_and_begin(unit, ask).await
    }

    /// Start, stop or restart.
    ///
    /// # Errors
    /// The server is in no state for it, or busy; a lock.
    pub async fn power_server(
        &self,
        caller: &Caller,
        at: ServerRef<'_>,
        to: Power,
        idem: &Idempotency,
    ) -> Result<Accepted> {
        let mut unit = Unit::begin(self).await?;
        let id = OperationId::new();
        if let Some(first) = replay(self, &mut unit, caller, at.subscription, idem, id).await? {
            return Ok(first);
        }
        let mut server = living(&mut unit, at, Hold::Update).await?;
        lock::allow(&mut unit, at.subscription, &at.id(), Verb::Write).await?;
        let (from, wanted, during, kind) = match to {
            Power::Running => (
                ServerState::Stopped,
                "Stopped",
                ServerState::Starting,
                OperationKind::StartServer,
            ),
            Power::Stopped => (
                ServerState::Ready,
                "Ready",
                ServerState::Stopping,
                OperationKind::StopServer,
            ),
            Power::Restarted => (
                ServerState::Ready,
                "Ready",
                ServerState::Updating,
                OperationKind::RestartServer,
            ),
        };
        settled(&mut unit, &server, &[from], wanted).await?;
        if to != Power::Running {
            self.end_automatic_backup(&mut unit, &server).await?;
        }
        server.state = during;
        store::server::update(unit.conn(), &server, from).await?;
        let ask = Ask {
            id,
            kind,
            caller,
            method: idem.method,
            server: &server,
            backup: None,
            input: Some(Input::Power { to }),
        };
        let accepted = self.accept_and_begin(&mut unit, ask).await?;
        unit.commit().await?;
        Ok(accepted)
    }

    /// Drops a server. Its backups stay for five days (DESIGN §3.15), its name is free when it is gone.
    /// `None`: there is no such server.
    ///
    /// # Errors
    /// A lock; another operation or an on-demand backup under way.
    pub async fn delete_server(
        &self,
        caller: &Caller,
        at: ServerRef<'_>,
        idem: &Idempotency,
    ) -> Result<Option<Accepted>> {
        let mut unit = Unit::begin(self).await?;
        let id = OperationId::new();
        if let Some(first) = replay(self, &mut unit, caller, at.subscription, idem, id).await? {
            return Ok(Some(first));
        }
        let Some(mut server) = store::server::find(unit.conn(), at, Hold::Update).await? else {
            return Ok(None);
        };
        lock::allow(&mut unit, at.subscription, &at.id(), Verb::Delete).await?;
        let states = [
            ServerState::Ready,
            ServerState::Stopped,
            ServerState::Dropping,
        ];
        settled(&mut unit, &server, &states, "Ready or Stopped").await?;
        self.end_automatic_backup(&mut unit, &server).await?;
        let from = std::mem::replace(&mut server.state, ServerState::Dropping);
        store::server::update(unit.conn(), &server, from).await?;
        let ask = Ask {
            id,
            kind: OperationKind::DeleteServer,
            caller,
            method: idem.method,
            server: &server,
            backup: None,
            input: None,
        };
        let accepted = self.accept_and_begin(&mut unit, ask).await?;
        unit.commit().await?;
        Ok(Some(accepted))
    }

    /// Stop, restart and delete cancel a running automatic backup; an on-demand one is waited for
    /// (DESIGN §2, "what excludes what").
    async fn end_automatic_backup(&self, unit: &mut Unit, server: &Server) -> Result<()> {
        let open = store::backup::open(unit.conn(), server.subscription, server.id).await?;
        if open
            .iter()
            .any(|backup| backup.kind == BackupKind::OnDemand)
        {
            return Err(Refusal::ServerIsBusy {
                server: server.name.clone(),
            }
            .into());
        }
        for job in store::job::open_of_server(unit.conn(), server.subscription, server.id).await? {
            if job.backup.is_some() {
                rescue::cancel(self, unit, &job).await?;
            }
        }
        Ok(())
    }
}

/// A missing group is said before a missing server (contract, other-apis §3).
pub(crate) async fn group_of(unit: &mut Unit, at: ServerRef<'_>) -> Result<()> {
    store::resource_group::get(unit.conn(), at.subscription, at.group)
        .await?
        .map(|_| ())
        .ok_or_else(|| Refusal::ResourceGroupNotFound(at.group.to_owned()).into())
}

pub(crate) async fn living(unit: &mut Unit, at: ServerRef<'_>, hold: Hold) -> Result<Server> {
    if let Some(server) = store::server::find(unit.conn(), at, hold).await? {
        return Ok(server);
    }
    group_of(unit, at).await?;
    Err(at.not_found().into())
}

/// Refuses unless the server is at rest in one of these states. Busy is said before not ready.
async fn settled(
    unit: &mut Unit,
    server: &Server,
    states: &[ServerState],
    wanted: &'static str,
) -> Result<()> {
    if store::operation::exclusive_open(unit.conn(), server.subscription, server.id).await? {
        return Err(Refusal::ServerIsBusy {
            server: server.name.clone(),
        }
        .into());
    }
    if !states.contains(&server.state) {
        return Err(Refusal::ServerIsNotReady {
            server: server.name.clone(),
            state: server.state,
            wanted,
        }
        .into());
    }
    Ok(())
}
