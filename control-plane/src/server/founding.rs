//! A new server, whether created or restored: its row, its name, its first life.

use holdfast_domain::server::{Server, ServerSettings, ServerState};
use holdfast_domain::{IncarnationId, Refusal, ServerId};

use super::ServerRef;
use crate::error::violated;
use crate::placement::Place;
use crate::store;
use crate::store::incarnation::Incarnation;
use crate::transaction::Unit;
use crate::{Error, Result};

/// A new server with its name and its first life.
pub(crate) async fn found(
    unit: &mut Unit,
    at: ServerRef<'_>,
    region: &str,
    settings: ServerSettings,
    place: Place,
) -> Result<Server> {
    let now = unit.now();
    let group = store::resource_group::get(unit.conn(), at.subscription, at.group)
        .await?
        .ok_or_else(|| Refusal::ResourceGroupNotFound(at.group.to_owned()))?;
    let server = Server {
        id: ServerId::new(),
        subscription: at.subscription,
        group: group.name,
        name: at.name.to_owned(),
        region: region.to_owned(),
        state: ServerState::Provisioning,
        settings,
        is_replica: false,
        node: Some(place.node),
        placed_zone: place.zone,
        port: Some(place.port),
        minor_version: None,
        incarnation: Some(IncarnationId::new()),
        created_at: now,
        stopped_at: None,
        dropped_at: None,
        restorable_until: None,
    };
    let taken = || {
        Error::from(Refusal::ServerNameAlreadyExists {
            name: server.name.clone(),
        })
    };
    match store::server::insert(unit.conn(), &server).await {
        Err(Error::Database(error)) if violated(&error) == Some("server_living_name") => {
            return Err(taken());
        }
        other => other?,
    }
    if !store::server::take_name(unit.conn(), &server).await? {
        return Err(taken());
    }
    if let Some(id) = server.incarnation {
        let incarnation = Incarnation {
            subscription: server.subscription,
            id,
            server: server.id,
            vaults: place.vaults,
            ready_at: None,
            wrapped_key: None,
        };
        store::incarnation::insert(unit.conn(), &incarnation, now).await?;
    }
    Ok(server)
}
