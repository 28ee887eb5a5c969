//! `holdfast serve …`: one part of an installation, told by a configuration file. The parts are those
//! of the built-in site; here each is a process.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use holdfast_api::ApiConfig;
use holdfast_api::auth::AuthConfig;
use holdfast_control_plane::{Clock, ControlPlane, Policy};
use holdfast_domain::activity::Caller;
use holdfast_domain::redundancy::Vault;
use holdfast_domain::role::RoleAssignment;
use holdfast_scheduler::{Authority, SchedulerConfig};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::config::{self, ApiFile, Config, RoleSection, SchedulerFile};
use crate::exit::Failure;
use crate::tls::{Certificate, Files};
use crate::up::until_signalled;
use crate::{join_tokens, state_dir, telemetry};

fn wrong_kind(file: &Path, config: &Config, wanted: &str) -> anyhow::Error {
    let what = format!(
        "{} is for `holdfast serve {}`, not {wanted}",
        file.display(),
        config.kind()
    );
    Failure::Usage(what).into()
}

fn load(file: &Path) -> Result<Config> {
    config::load(file).with_context(|| format!("{} cannot be used", file.display()))
}

pub async fn api(file: &Path) -> Result<()> {
    let config = match load(file)? {
        Config::Api(config) => *config,
        other => return Err(wrong_kind(file, &other, "api")),
    };
    let telemetry = telemetry::init(&config.telemetry)?;
    let outcome = serve_api(&config).await;
    telemetry.flush();
    outcome
}

async fn serve_api(config: &ApiFile) -> Result<()> {
    let shutdown = until_signalled()?;
    let pool = config.database.pool()?;
    let control_plane =
        ControlPlane::connect(pool, Clock::wall(), config.site(), Policy::default()).await?;
    let tls = match &config.api.tls {
        None => None,
        Some(section) => {
            let files = Files {
                certificate: section.certificate_file.clone(),
                key: section.key_file.clone(),
            };
            let mut shown = files.read()?;
            let certificate = Certificate::new(&shown.0, &shown.1)?;
            tokio::spawn(certificate.clone().keep(shutdown.clone(), move || {
                let found = files.read()?;
                let changed = found != shown;
                shown.clone_from(&found);
                Ok(changed.then_some(found))
            }));
            Some(certificate.server_config()?)
        }
    };
    let auth = AuthConfig {
        jwks_file: config.api.auth.jwks_file.clone(),
        issuer: config.api.auth.issuer.clone(),
        audiences: config.api.auth.audiences.clone(),
        tenant: config.api.auth.tenant.clone(),
    };
    let mut settings = ApiConfig {
        public_url: config.api.public_url.to_string(),
        seal_key: config.api.seal_key()?,
        ..ApiConfig::default()
    };
    if let Some(suffix) = &config.api.domain_suffix {
        settings.domain_suffix.clone_from(suffix);
    }
    let api = holdfast_api::Api::new(control_plane, auth, settings)?;
    let listener = bind(config.api.listen).await?;
    let metrics = match config.api.metrics_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    tracing::info!(address = %config.api.listen, "the API answers");
    let measured = holdfast_api::metrics_router(api.clone());
    let until = shutdown.clone().cancelled_owned();
    tokio::try_join!(
        holdfast_api::serve(
            listener,
            tls,
            holdfast_api::router_of(api),
            shutdown.cancelled_owned()
        ),
        async {
            if let Some(listener) = metrics {
                holdfast_api::serve_metrics(listener, measured, until).await;
            }
            Ok(())
        }
    )?;
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} cannot be listened on"))
}

pub async fn scheduler(file: &Path) -> Result<()> {
    let config = match load(file)? {
        Config::Scheduler(config) => *config,
        other => return Err(wrong_kind(file, &other, "scheduler")),
    };
    let telemetry = telemetry::init(&config.telemetry)?;
    let outcome = serve_scheduler(&config).await;
    telemetry.flush();
    outcome
}

async fn serve_scheduler(config: &SchedulerFile) -> Result<()> {
    let shutdown = until_signalled()?;
    let clock = Clock::wall();
    let pool = config.database.pool()?;
    // The scheduler brings the schema up to date: API replicas wait until it is theirs.
    ControlPlane::migrate(&pool).await?;
    let control_plane =
        ControlPlane::connect(pool, clock.clone(), config.site(), Policy::default()).await?;
    let authority = Authority::open_or_create(&config.scheduler.authority_dir, clock.now())?;
    if let Some(file) = &config.scheduler.ca_file {
        state_dir::replace(file, authority.ca_pem().as_bytes(), 0o644)?;
    }
    for wanted in &config.scheduler.certificates {
        let made = authority.server_certificate(&wanted.names, clock.now())?;
        // The key first: who sees the certificate finds its key.
        state_dir::replace(&wanted.key_file, made.key_pem.as_bytes(), 0o600)?;
        state_dir::replace(
            &wanted.certificate_file,
            made.certificate_pem.as_bytes(),
            0o644,
        )?;
    }
    furnish(&control_plane, config).await?;
    let joiners = config.joiners();
    join_tokens::issue(&control_plane, &joiners).await?;
    let listener = bind(config.scheduler.listen).await?;
    tracing::info!(address = %config.scheduler.listen, "agents are served");
    let settings = SchedulerConfig {
        gateway_names: config.scheduler.names.clone(),
    };
    let (hints, tokens) = (control_plane.clone(), control_plane.clone());
    tokio::select! {
        served = holdfast_scheduler::serve(control_plane, authority, settings, listener, shutdown) => Ok(served?),
        // It ends with the connection, and what hints make faster is only slower without them.
        () = follow_hints(hints) => bail!("hints ended"),
        () = join_tokens::keep_issuing(tokens, joiners) => bail!("join tokens ended"),
    }
}

/// Hears what other processes wake each other up for.
async fn follow_hints(control_plane: ControlPlane) {
    loop {
        if let Err(error) = control_plane.hints().follow(control_plane.pool()).await {
            tracing::warn!(%error, "hints of other processes are not heard for a moment");
        }
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
}

/// Writes what the file says into the metadata store. Any number of times, by any number of schedulers.
async fn furnish(control_plane: &ControlPlane, config: &SchedulerFile) -> Result<()> {
    let mut vaults = Vec::with_capacity(config.vaults.len());
    for (nth, vault) in config.vaults.iter().enumerate() {
        vaults.push(Vault {
            id: vault.id,
            region: vault.region.clone(),
            zone: vault.zone.clone(),
            url: vault.url.to_string(),
            own_copies: vault.own_copies,
            ordinal: u16::try_from(nth).context("there are too many vaults")?,
        });
    }
    control_plane.register_vaults(&vaults).await?;
    for subscription in &config.subscriptions {
        let id = subscription.id;
        control_plane.ensure_subscription(id).await?;
        let region = config.regions.first().map(|region| region.name.as_str());
        for group in &subscription.resource_groups {
            if !control_plane.resource_group_exists(id, group).await? {
                let caller = Caller::service(Uuid::new_v4().to_string());
                control_plane
                    .put_resource_group(&caller, id, group, region, None)
                    .await?;
            }
        }
    }
    let roles: Vec<RoleAssignment> = config.roles.iter().map(RoleSection::assignment).collect();
    control_plane.configure_roles(&roles).await?;
    Ok(())
}

pub async fn agent(file: &Path) -> Result<()> {
    let config = match load(file)? {
        Config::Agent(config) => *config,
        other => return Err(wrong_kind(file, &other, "agent")),
    };
    let telemetry = telemetry::init(&config.telemetry)?;
    let outcome = holdfast_agent::runtime::run(config.agent, until_signalled()?).await;
    telemetry.flush();
    Ok(outcome?)
}
