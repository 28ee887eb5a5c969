//! Builds a new server out of a backup and WAL, in exactly the order of RELIABILITY §5.4.
//!
//! Twice: each attempt has its own directory; a finished one is adopted with the outcome that it left
//! beside its data. Half: the postmaster of an older attempt is ended and its directory removed
//! first. The last rename makes the server visible, after everything that could still refuse it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_domain::job::{JobError, RestoreOutcome, RestoreSpec};
use holdfast_vault::backup::{Manifest, RestoreInto, Restored, TablespaceRoot, restore_to};
use holdfast_vault::key::DataKey;
use holdfast_vault::store::Store;
use secrecy::SecretString;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::{Error, Result, chain};
use crate::frozen::FrozenCopy;
use crate::frozen::thaw::Unfit;
use crate::job::JobContext;
use crate::postgres::configuration::ServerConfiguration;
use crate::postgres::{Postmaster, PostmasterSpec, StopMode};
use crate::restore::directory::{Building, PrivateDir, clear_earlier};
use crate::restore::finished::Finished;
use crate::restore::goal::Goal;
use crate::restore::handover::{self, Handover, NewPassword};
use crate::restore::parameters::{self, Parameters};
use crate::restore::patience::patiently;
use crate::restore::plan::Plan;
use crate::restore::progress::RestoreProgress;
use crate::restore::recovery::{self, RecoveryConfiguration};
use crate::restore::segment_source::SegmentSource;
use crate::restore::wal_server::WalServer;
use crate::restore::{sample, tasks};
use crate::snapshot::control_file::ControlFile;

const STOP_WITHIN: Duration = Duration::from_secs(300);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

pub async fn run(ctx: &JobContext, spec: RestoreSpec) -> Result<RestoreOutcome, JobError> {
    let incarnation = spec.placement.incarnation;
    let done = tokio::select! {
        biased;
        () = ctx.cancel.cancelled() => Err(Error::Canceled),
        done = restore(ctx, &spec) => done,
    };
    if matches!(done, Err(Error::Canceled)) {
        // The recovery ended with its future; what it was building goes too.
        clear_earlier(&ctx.node, incarnation, false).await?;
    }
    Ok(done?)
}

async fn restore(ctx: &JobContext, spec: &RestoreSpec) -> Result<RestoreOutcome> {
    let node = &ctx.node;
    let placement = &spec.placement;
    let last = node.server_dir(placement.incarnation);
    if let Some(finished) = Finished::read(&last)? {
        tracing::info!(incarnation = %placement.incarnation, "a finished restore is adopted");
        return into_service(ctx, spec, finished).await;
    }
    if last.symlink_metadata().is_ok() {
        return Err(Error::Failed {
            code: "RestoreTargetExists",
            message: "the new server's directory exists already and was not made by this restore"
                .into(),
            retryable: false,
        });
    }
    clear_earlier(node, placement.incarnation, true).await?;

    let building = Building::create(node, placement.incarnation, ctx.job, ctx.epoch)?;
    let finished = match build(ctx, spec, &building).await {
        Ok(finished) => finished,
        Err(Failure {
            error,
            directory_tells: true,
        }) => {
            clear_failed(ctx, spec, building).await;
            return Err(error);
        }
        Err(Failure { error, .. }) => {
            if let Err(removing) = building.remove(node).await {
                tracing::warn!(error = %removing, "an unfinished restore could not be removed");
            }
            return Err(error);
        }
    };
    finished.write(building.root())?;
    ctx.check()?;
    node.publish(placement, building.root()).await?;
    into_service(ctx, spec, finished).await
}

/// A failed build, and whether its directory is worth keeping for a diagnosis.
struct Failure {
    error: Error,
    directory_tells: bool,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            directory_tells: false,
        }
    }
}

async fn clear_failed(ctx: &JobContext, spec: &RestoreSpec, building: Building) {
    let kept = async {
        building.keep_failed().await?;
        clear_earlier(&ctx.node, spec.placement.incarnation, true).await
    };
    if let Err(error) = kept.await {
        tracing::warn!(%error, "a failed restore could not be put aside");
    }
}

/// Everything from the empty directory to a recovered, verified, stopped cluster in it.
async fn build(
    ctx: &JobContext,
    spec: &RestoreSpec,
    building: &Building,
) -> Result<Finished, Failure> {
    let progress = RestoreProgress::new(ctx);
    let source = &spec.source;
    let stores = ctx.node.stores(&source.vaults)?;
    let data_key = ctx
        .node
        .key_ring()
        .unwrap(&source.wrapped_key, source.incarnation)?;

    let manifest = patiently("the backup's manifest", || async {
        Ok(Manifest::load(&stores, &data_key, source.incarnation, &source.manifest).await?)
    })
    .await?;
    recovery::agree(source, &manifest.meta)?;
    let goal = patiently("the WAL around the target", || {
        Goal::find(source, spec.target, &stores, &data_key)
    })
    .await?;
    let plan = Arc::new(Plan::build(source, goal)?);
    progress.planned(manifest.logical_bytes, plan.wal_bytes());
    tracing::info!(
        goal = ?plan.goal, end = ?plan.end, segments = plan.segments.len(), "restore planned"
    );

    building.require_space(plan.wal_bytes())?;
    let owner = ctx.node.service_user().ids();
    let manifest = Arc::new(manifest);
    let (restored, durable) = match clone_frozen(ctx, building, &manifest, owner).await? {
        Some(restored) => (restored, Some(make_durable(building))),
        None => {
            building.require_space(manifest.logical_bytes.saturating_add(plan.wal_bytes()))?;
            let copying = copy_data(building, &manifest, &stores, &data_key, owner, &progress);
            (copying.await?, None)
        }
    };
    progress.copied(restored.bytes);
    let control = recovery::control_file(&restored.pg_control, &manifest.meta)?;
    let source_parameters =
        parameters::of_directory(&building.data()).map_err(Error::file("read", building.data()))?;

    let recovered = Recovery {
        ctx,
        spec,
        building,
        manifest: &manifest,
        plan: &plan,
        progress: &progress,
    };
    let finished = recovered
        .run(stores, data_key, control, source_parameters, restored.bytes)
        .await
        .map_err(|error| Failure {
            directory_tells: !matches!(error, Error::Canceled),
            error,
        })?;
    if let Some(durable) = durable {
        durable.await.map_err(Error::from)??;
    }
    Ok(finished)
}

/// What was cloned has to be on the disk before the directory gets its final name, and no earlier: the file system may
/// have much of its own servers' to write back, and recovery need not wait for that.
fn make_durable(building: &Building) -> JoinHandle<Result<()>> {
    let root = building.root().to_owned();
    tokio::task::spawn_blocking(move || {
        std::fs::File::open(&root)
            .and_then(|root| Ok(nix::unistd::syncfs(root)?))
            .map_err(Error::file("make durable", root))
    })
}

/// The data from the frozen copy of exactly this backup, if this node has it and it is as it was: that takes moments,
/// whatever the size (FLX-153). `None`: it has to be fetched.
async fn clone_frozen(
    ctx: &JobContext,
    building: &Building,
    manifest: &Arc<Manifest>,
    owner: Option<(u32, u32)>,
) -> Result<Option<Restored>> {
    let node = Arc::clone(&ctx.node);
    let (building, manifest) = (building.clone(), Arc::clone(manifest));
    let stop = ctx.cancel.clone();
    let cloning = tokio::task::spawn_blocking(move || {
        let Some(frozen) = FrozenCopy::find(&node.server_dir(manifest.incarnation), &manifest)
        else {
            return Ok(None);
        };
        let (data, tablespaces) = (building.data(), building.tablespaces());
        let into = into_building(&data, &tablespaces, owner);
        let begun = Instant::now();
        match frozen.thaw(&manifest, into, &stop) {
            Ok(restored) => {
                let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(backup.id = %manifest.backup, took_ms, "the backup's frozen copy was cloned");
                Ok(Some(restored))
            }
            // The directory goes, and must not be filled again meanwhile.
            Err(Unfit::Stopped) if stop.is_cancelled() => Err(Error::Canceled),
            Err(unfit) => {
                tracing::warn!(
                    backup.id = %manifest.backup, error = chain(&unfit),
                    "the backup's frozen copy on this node is not used; its pages are fetched"
                );
                building.empty(&node)?;
                Ok(None)
            }
        }
    });
    cloning.await?
}

fn into_building<'a>(
    data: &'a Path,
    tablespaces: &'a Path,
    owner: Option<(u32, u32)>,
) -> RestoreInto<'a> {
    RestoreInto {
        dir: data,
        tablespaces: Some(TablespaceRoot {
            write_below: tablespaces,
            link_to: Path::new("../../tablespaces"),
        }),
        owner,
    }
}

async fn copy_data(
    building: &Building,
    manifest: &Manifest,
    stores: &[Store],
    data_key: &DataKey,
    owner: Option<(u32, u32)>,
    progress: &RestoreProgress<'_>,
) -> Result<Restored> {
    let written = Arc::new(AtomicU64::new(0));
    let (data, tablespaces) = (building.data(), building.tablespaces());
    let into = into_building(&data, &tablespaces, owner);
    let count = Arc::clone(&written);
    let copying = restore_to(
        into,
        manifest,
        stores,
        data_key,
        every_file,
        move |done, _| count.store(done, Ordering::Relaxed),
    );
    tokio::pin!(copying);
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    loop {
        tokio::select! {
            restored = &mut copying => return Ok(restored?),
            _ = tick.tick() => progress.copied(written.load(Ordering::Relaxed)),
        }
    }
}

fn every_file(_: &str) -> bool {
    true
}

/// The part of a restore in which PostgreSQL runs on what is being built.
struct Recovery<'a> {
    ctx: &'a JobContext,
    spec: &'a RestoreSpec,
    building: &'a Building,
    manifest: &'a Manifest,
    plan: &'a Arc<Plan>,
    progress: &'a RestoreProgress<'a>,
}

impl Recovery<'_> {
    async fn run(
        &self,
        stores: Vec<Store>,
        data_key: DataKey,
        control: ControlFile,
        source_parameters: Parameters,
        bytes_restored: u64,
    ) -> Result<Finished> {
        let (node, placement) = (&self.ctx.node, &self.spec.placement);
        let user = node.service_user();
        let meta = &self.manifest.meta;
        let major = placement.major;
        let data = self.building.data();
        let catalog_version = control.catalog_version();
        let private = PrivateDir::create(node, self.ctx.job, self.ctx.epoch)?;

        let source = SegmentSource::new(
            Arc::clone(self.plan),
            stores,
            data_key,
            self.building.spool(),
        );
        let server = WalServer::start(
            private.path(),
            self.ctx.epoch,
            user,
            Arc::clone(self.plan),
            source,
        )?;
        let production = ServerConfiguration {
            major,
            port: placement.port,
            socket_dir: private.path().to_owned(),
            cluster_name: placement.incarnation.to_string(),
            agent_os_user: user.agent_name().to_owned(),
        };
        RecoveryConfiguration {
            production: &production,
            plan: self.plan,
            executable: node.executable(),
            wal_socket: server.socket(),
            max_prepared_transactions: source_parameters
                .get("max_prepared_transactions")
                .and_then(|value| value.parse().ok()),
        }
        .write(&data, user)?;
        recovery::place_labels(&data, &meta.backup_label, control, user)?;

        let installation = node.installation(major)?;
        let minor_version = installation.minor.clone();
        let postmaster = Postmaster::spawn(&PostmasterSpec {
            installation,
            data_dir: data.clone(),
            log_file: self.building.log(),
            socket_dir: private.path().to_owned(),
            port: placement.port,
            user: user.clone(),
            settings: Vec::new(),
        })
        .await?;
        recovery::replay(&postmaster, self.plan, &server, self.progress).await?;
        let end = recovery::verify_end(&data, self.plan)?;
        let restored_to = self
            .plan
            .goal
            .restored_to(self.spec.target, meta.completed_time);
        self.progress.finishing(restored_to);

        let password = self
            .spec
            .administrator_password
            .clone()
            .map(SecretString::from);
        let handed_over = handover::clean(
            private.path(),
            placement.port,
            major,
            password.as_ref().map(|password| NewPassword {
                login: &self.spec.administrator_login,
                password,
            }),
        )
        .await?;
        postmaster.stop(StopMode::Fast, STOP_WITHIN).await?;
        drop(server);
        if meta.data_checksums {
            let known = meta.corrupt_pages.clone();
            tokio::task::spawn_blocking(move || {
                sample::check(&data, major, catalog_version, &known)
            })
            .await??;
        }
        tokio::fs::remove_dir_all(self.building.spool())
            .await
            .map_err(Error::file("remove", self.building.spool()))?;

        let (_, wrapped_key) = node.create_key(placement).await?;
        Ok(Finished {
            outcome: RestoreOutcome {
                restored_to,
                target_lsn: self.plan.goal.stamp.map(|_| self.plan.goal.target),
                switch_lsn: end.switch,
                timeline: self.plan.new_timeline(),
                system_identifier: meta.system_identifier,
                minor_version,
                wrapped_key,
                wal_segment_bytes: meta.wal_segment_bytes,
                bytes_restored,
                wal_bytes_replayed: self.plan.wal_bytes(),
                post_restore_tasks: Vec::new(),
                parameter_differences: Parameters::new(),
            },
            source_parameters,
            subscriptions: handed_over.subscriptions,
            prepared_transactions: handed_over.prepared_transactions,
            damaged_pages: meta.corrupt_pages.len(),
        })
    }
}

/// First start in production: our configuration, a slot and a stream of its own.
async fn into_service(
    ctx: &JobContext,
    spec: &RestoreSpec,
    finished: Finished,
) -> Result<RestoreOutcome> {
    let mut outcome = finished.outcome;
    let server = ctx
        .node
        .start_server(&spec.placement, &outcome.wrapped_key)
        .await?;
    let current = parameters::of_server(&*server.connect().await?).await?;
    outcome.parameter_differences = parameters::differences(&finished.source_parameters, &current);
    let handover = Handover {
        subscriptions: finished.subscriptions,
        prepared_transactions: finished.prepared_transactions,
        slots_dropped: 0,
    };
    outcome.post_restore_tasks = tasks::after_restore(
        &spec.source.server_name,
        &spec.placement.server_name,
        &outcome.parameter_differences,
        &handover,
        finished.damaged_pages,
    );
    Ok(outcome)
}
