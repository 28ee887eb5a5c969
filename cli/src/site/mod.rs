//! Everything on one machine: what `up` runs (DESIGN §6).
//!
//! One process holds API, scheduler and an agent per zone; PostgreSQL – the metadata store and every
//! managed server – runs in processes of its own, started and reaped by it. The parts are the same as in
//! `serve` and speak to each other in the same way: agents fetch their work over mutual TLS.
//!
//! Read [`run`]: it is the order in which things start, and backwards the one in which they stop.

mod executable;
pub mod identity;
pub mod metadata;
mod nodes;
pub mod service_users;
pub mod token;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use chrono::TimeDelta;
use holdfast_agent::{AgentConfig, Limits};
use holdfast_api::ApiConfig;
use holdfast_control_plane::{Clock, ControlPlane, Policy};
use holdfast_domain::activity::Caller;
use holdfast_domain::node::NodeState;
use holdfast_domain::region::Site;
use holdfast_domain::role::{Role, RoleAssignment};
use holdfast_scheduler::{Authority, SchedulerConfig};
use holdfast_vault::{KeyRing, Store};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use self::identity::Identity;
use self::metadata::Metadata;
use self::nodes::{AgentSetting, KEY_VERSION, Place};
use crate::config::{LimitsFile, RoleSection, RolesFile};
use crate::join_tokens::{self, Joiner};
use crate::run_record::{self, Phase, RunRecord};
use crate::state_dir::{self, StateDir, passage, private_dir};
use crate::tls::Certificate;

/// Loopback is all that the built-in site's agents need.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// The first start on a slow machine makes eight agents and a metadata store.
const READY_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Servers get a fast shutdown and the time to make their last WAL durable.
const AGENTS_STOP_WITHIN: Duration = Duration::from_secs(90);
const SERVICES_STOP_WITHIN: Duration = Duration::from_secs(20);
/// An agent that could not start tries again; the other ones are not concerned.
const AGENT_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// A third of a server certificate's life.
const CERTIFICATE_RENEWED_AFTER: TimeDelta = TimeDelta::days(30);

#[derive(Debug, Clone)]
pub struct SiteOptions {
    pub listen: SocketAddr,
    /// Without TLS; only where nobody else listens in.
    pub insecure_http: bool,
}

impl SiteOptions {
    pub fn check(&self) -> Result<()> {
        // The built-in issuer makes an Owner of whoever can read its key: fine for oneself only.
        ensure!(
            self.listen.ip().is_loopback(),
            crate::exit::Failure::Usage(format!(
                "`up` serves this machine only: {} is not a loopback address; use `holdfast serve` with a configuration file",
                self.listen.ip()
            ))
        );
        Ok(())
    }
}

/// Runs the site until `shutdown`. `ready` is called once, when everything answers.
pub async fn run(
    state: &StateDir,
    options: &SiteOptions,
    shutdown: CancellationToken,
    ready: impl FnOnce(&RunRecord),
) -> Result<()> {
    options.check()?;
    let state = &state.create()?;
    let Some(_lock) = run_record::lock(state).await? else {
        bail!(crate::exit::Failure::Conflict(format!(
            "a site already runs in {}",
            state.path().display()
        )));
    };
    let (identity, ports) = Identity::open_or_create(state)?;
    let roles = roles(state, &identity)?;
    let limits = limits(state)?;
    let clock = Clock::wall();
    let executable = executable::install(state)?;
    let run_dir = state.create_run_dir()?;
    let authority = Authority::open_or_create(&state.authority_dir(), clock.now())?;
    state_dir::replace(&state.ca_file(), authority.ca_pem().as_bytes(), 0o644)?;
    token::open_issuer(state)?;
    private_dir(&state.keys_dir())?;
    KeyRing::create(&state.keys_dir(), KEY_VERSION)?;
    let users = tokio::task::spawn_blocking(service_users::resolve).await??;

    // Early, so that a port that is taken is said before anything has been started.
    let api_listener = listen(options.listen).await?;
    let gateway_listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let gateway = Url::parse(&format!("https://{}", gateway_listener.local_addr()?))?;
    let scheme = if options.insecure_http {
        "http"
    } else {
        "https"
    };
    let url = format!("{scheme}://{}", api_listener.local_addr()?);
    let record = RunRecord::of_this_process(url.clone(), Phase::Starting)?;
    state_dir::write_json(&state.run_file(), &record)?;

    let metadata = Metadata::start(state, &[], &run_dir, &users.metadata).await?;
    let pool = metadata.pool();
    ControlPlane::migrate(&pool).await?;
    let site = Site::built_in();
    let places = nodes::places(&site);
    let control_plane =
        ControlPlane::connect(pool.clone(), clock.clone(), site, Policy::default()).await?;
    furnish(&control_plane, state, &identity, &roles, &places).await?;

    let setting = AgentSetting {
        state,
        run_dir: &run_dir,
        gateway: &gateway,
        executable: &executable,
        service_user: users.servers.name(),
        ports: &ports,
        limits: &limits,
    };
    let (agents, joiners) = admit(&control_plane, &setting, &places).await?;

    // Three tokens, because they stop in this order: no new requests; agents, which report to the
    // scheduler until they are gone; the scheduler.
    let (stop_api, stop_agents, stop_scheduler) = (
        CancellationToken::new(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    let mut services: JoinSet<Result<&'static str>> = JoinSet::new();
    let certificate = match options.insecure_http {
        true => None,
        false => Some(certificate(&authority, &clock, options.listen)?),
    };
    let auth = token::accepted(state, &identity);
    let api = holdfast_api::router(
        control_plane.clone(),
        auth,
        ApiConfig {
            public_url: url,
            ..ApiConfig::default()
        },
    )?;
    services.spawn({
        let stop = stop_api.clone();
        let tls = certificate
            .as_ref()
            .map(Certificate::server_config)
            .transpose()?;
        async move {
            let until = stop.cancelled_owned();
            holdfast_api::serve(api_listener, tls, api, until)
                .await
                .context("the API ended")?;
            Ok("the API")
        }
    });
    if let Some(certificate) = certificate {
        tokio::spawn(certificate.keep(stop_api.clone(), {
            let (authority, clock, listen) = (authority.clone(), clock.clone(), options.listen);
            let mut made = clock.now();
            move || {
                if clock.now() - made < CERTIFICATE_RENEWED_AFTER {
                    return Ok(None);
                }
                made = clock.now();
                let new = authority.server_certificate(&loopback_names(listen), made)?;
                Ok(Some((new.certificate_pem, new.key_pem)))
            }
        }));
    }
    services.spawn({
        let (control_plane, stop) = (control_plane.clone(), stop_scheduler.clone());
        let config = SchedulerConfig {
            gateway_names: LOOPBACK.map(str::to_owned).to_vec(),
        };
        async move {
            holdfast_scheduler::serve(control_plane, authority, config, gateway_listener, stop)
                .await
                .context("the scheduler ended")?;
            Ok("the scheduler")
        }
    });
    tokio::spawn({
        let (control_plane, stop) = (control_plane.clone(), stop_agents.clone());
        async move {
            let issuing = join_tokens::keep_issuing(control_plane, joiners);
            stop.run_until_cancelled(issuing).await;
        }
    });
    let mut running_agents: JoinSet<()> = JoinSet::new();
    for config in agents {
        running_agents.spawn(keep_agent(config, stop_agents.clone()));
    }

    let outcome = tokio::select! {
        outcome = serve_until(&control_plane, state, &record, places.len(), &shutdown, ready) => outcome,
        ended = services.join_next() => Err(match ended {
            Some(Ok(Ok(what))) => anyhow!("{what} ended by itself"),
            Some(Ok(Err(error))) => error,
            Some(Err(error)) => error.into(),
            None => anyhow!("nothing was running"),
        }),
    };

    tracing::info!("stopping");
    if let Err(error) = announce(state, &record, Phase::Stopping) {
        tracing::warn!(%error, "that the site stops could not be said");
    }
    stop_api.cancel();
    stop_agents.cancel();
    all_ended("agents", &mut running_agents, AGENTS_STOP_WITHIN).await;
    stop_scheduler.cancel();
    all_ended("services", &mut services, SERVICES_STOP_WITHIN).await;
    drop(control_plane);
    if tokio::time::timeout(SERVICES_STOP_WITHIN, pool.close())
        .await
        .is_err()
    {
        tracing::warn!("connections to the metadata store are still in use");
    }
    metadata.stop().await;
    let _ = std::fs::remove_file(state.run_file());
    outcome
}

/// Says that the site is ready when it is, then waits for its end.
async fn serve_until(
    control_plane: &ControlPlane,
    state: &StateDir,
    record: &RunRecord,
    agents: usize,
    shutdown: &CancellationToken,
    ready: impl FnOnce(&RunRecord),
) -> Result<()> {
    let answered = tokio::select! {
        answered = tokio::time::timeout(READY_WITHIN, everything_answers(control_plane, agents)) => answered,
        () = shutdown.cancelled() => return Ok(()),
    };
    answered.map_err(|_| {
        crate::exit::Failure::TooLong(format!(
            "not everything answered within {} s; see {}",
            READY_WITHIN.as_secs(),
            state.log_file().display()
        ))
    })??;
    ready(&announce(state, record, Phase::Ready)?);
    shutdown.cancelled().await;
    Ok(())
}

/// Other commands read how far the site is.
fn announce(state: &StateDir, record: &RunRecord, phase: Phase) -> Result<RunRecord> {
    let record = RunRecord {
        phase,
        ..record.clone()
    };
    state_dir::write_json(&state.run_file(), &record)?;
    Ok(record)
}

/// The API asks no more of itself than this before it says that it is ready; agents are Up from their
/// first hello of this life on, and they say it when their servers were started.
async fn everything_answers(control_plane: &ControlPlane, agents: usize) -> Result<()> {
    let since = control_plane.clock().now();
    loop {
        let nodes = control_plane.nodes().await?;
        let up = nodes.iter().filter(|view| {
            view.node.state == NodeState::Up && view.last_seen.is_some_and(|seen| seen >= since)
        });
        if up.count() >= agents && control_plane.check_schema().await? {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn certificate(authority: &Authority, clock: &Clock, listen: SocketAddr) -> Result<Certificate> {
    let made = authority.server_certificate(&loopback_names(listen), clock.now())?;
    Certificate::new(&made.certificate_pem, &made.key_pem)
}

fn loopback_names(listen: SocketAddr) -> Vec<String> {
    let mut names: Vec<String> = LOOPBACK.map(str::to_owned).to_vec();
    let address = listen.ip().to_string();
    if !names.contains(&address) {
        names.push(address);
    }
    names
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let what =
            format!("{address} cannot be listened on ({error}): choose another with --listen");
        crate::exit::Failure::Conflict(what).into()
    })
}

/// The administrator's, and what `roles.toml` says besides.
fn roles(state: &StateDir, identity: &Identity) -> Result<Vec<RoleAssignment>> {
    let file = state.roles_file();
    let given = RolesFile::load(&file).map_err(|problems| {
        crate::exit::Failure::Usage(format!("{} cannot be used: {problems}", file.display()))
    })?;
    let owner = RoleAssignment {
        principal: identity.administrator.to_string(),
        role: Role::Owner,
        scope: format!("/subscriptions/{}", identity.subscription),
    };
    let given = given.roles.iter().map(RoleSection::assignment);
    Ok(std::iter::once(owner).chain(given).collect())
}

/// What `limits.toml` says.
fn limits(state: &StateDir) -> Result<Limits> {
    let file = state.limits_file();
    let read = LimitsFile::load(&file).map_err(|problems| {
        crate::exit::Failure::Usage(format!("{} cannot be used: {problems}", file.display()))
    })?;
    Ok(read.limits)
}

/// What a site has from the start: a subscription with its owner, a resource group, its stores.
async fn furnish(
    control_plane: &ControlPlane,
    state: &StateDir,
    identity: &Identity,
    roles: &[RoleAssignment],
    places: &[Place],
) -> Result<()> {
    passage(&state.nodes_dir())?;
    private_dir(&state.vaults_dir())?;
    control_plane
        .ensure_subscription(identity.subscription)
        .await?;
    control_plane.configure_roles(roles).await?;
    let group = &identity.resource_group;
    if !control_plane
        .resource_group_exists(identity.subscription, group)
        .await?
    {
        let region = places.first().map(|place| place.region.as_str());
        let caller = Caller::service(Uuid::new_v4().to_string());
        control_plane
            .put_resource_group(&caller, identity.subscription, group, region, None)
            .await?;
    }
    let known = control_plane.vaults().await?;
    let mut vaults = Vec::new();
    for place in places {
        vaults.extend(nodes::vaults(state, identity, place)?);
    }
    // Agents prove a store again before they write; what cannot hold backups is not even registered.
    let mut proofs = JoinSet::new();
    for vault in vaults.iter().filter(|vault| !known.contains(vault)) {
        let store = Store::open(&vault.url)?;
        proofs.spawn(async move { store.probe().await });
    }
    while let Some(proof) = proofs.join_next().await {
        proof??;
    }
    control_plane.register_vaults(&vaults).await?;
    Ok(())
}

/// The agents' directories, and a token for each to join with.
async fn admit(
    control_plane: &ControlPlane,
    setting: &AgentSetting<'_>,
    places: &[Place],
) -> Result<(Vec<AgentConfig>, Vec<Joiner>)> {
    let (mut agents, mut joiners) = (Vec::new(), Vec::new());
    for (nth, place) in (0..).zip(places) {
        passage(&setting.node_dir(place))?;
        let config = setting.config(nth, place);
        config.check()?;
        agents.push(config);
        joiners.push(Joiner {
            name: place.node_name(),
            region: place.region.clone(),
            zone: place.zone.clone(),
            file: setting.join_token_file(place),
        });
    }
    join_tokens::issue(control_plane, &joiners).await?;
    Ok((agents, joiners))
}

async fn keep_agent(config: AgentConfig, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let name = config.name.clone();
        match holdfast_agent::runtime::run(config.clone(), stop.clone()).await {
            Ok(()) if stop.is_cancelled() => break,
            Ok(()) => tracing::warn!(node = name, "the agent ended by itself"),
            Err(error) => tracing::error!(node = name, %error, "the agent ended"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(AGENT_AGAIN_AFTER) => {}
        }
    }
}

async fn all_ended<T: 'static>(what: &str, tasks: &mut JoinSet<T>, within: Duration) {
    let end = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(within, end).await.is_err() {
        tracing::warn!("some {what} did not end in time");
        tasks.abort_all();
    }
}
