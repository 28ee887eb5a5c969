//! A new, empty server (issue 2 §4).
//!
//! Order: data key durable in every vault → `initdb` under a temporary name → final name → running →
//! administrator → slot and stream. Each step finds what an earlier attempt did and goes on from there;
//! nothing before the report makes the server visible to anybody.

use holdfast_domain::job::{JobError, Progress, ProvisionOutcome, ProvisionSpec};
use secrecy::SecretString;

use crate::error::Error;
use crate::job::JobContext;
use crate::postgres::{administrator, initdb};

pub async fn run(ctx: &JobContext, spec: ProvisionSpec) -> Result<ProvisionOutcome, JobError> {
    let ProvisionSpec {
        placement,
        administrator_login,
        administrator_password,
    } = spec;
    let node = &ctx.node;
    let password = administrator_password.map(SecretString::from);
    let installation = node.installation(placement.major)?;
    phase(ctx, "Preparing", 5.0);
    let (_, wrapped_key) = node.create_key(&placement).await?;

    for leftover in node.unfinished(placement.incarnation)? {
        node.remove_dir(&leftover).await?;
    }
    if !node.server_dir(placement.incarnation).exists() {
        let building = node.building_dir(placement.incarnation, ctx.job, ctx.epoch);
        phase(ctx, "Initializing", 20.0);
        initdb::run(&installation, &building.join("data"), node.service_user()).await?;
        ctx.check()?;
        node.publish(&placement, &building).await?;
    }

    phase(ctx, "Starting", 60.0);
    let server = node.start_server(&placement, &wrapped_key).await?;
    administrator::ensure(
        &server.socket_dir(),
        server.port(),
        placement.major,
        &administrator_login,
        password.as_ref(),
    )
    .await?;
    phase(ctx, "Finishing", 90.0);
    let control = server.control_file().await?;
    if !control.checksums {
        return Err(Error::Drift("data checksums are off".into()).into());
    }
    ctx.check()?;
    Ok(ProvisionOutcome {
        system_identifier: control.system_identifier,
        minor_version: installation.minor,
        timeline: control.timeline,
        wrapped_key,
        wal_segment_bytes: control.wal_segment_bytes,
    })
}

fn phase(ctx: &JobContext, phase: &str, percent: f64) {
    ctx.progress(Progress {
        phase: phase.to_owned(),
        percent,
        ..Progress::default()
    });
}
