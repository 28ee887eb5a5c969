//! Official clients, unmodified, against the real thing. Their programs are in `tests/clients`, a section for each
//! thing that a user does; `NOT_YET` there lists the sections that the server does not offer yet.

use std::collections::BTreeSet;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use holdfast_tests::clients;
use holdfast_tests::site::Site;
use tokio::process::Command;

/// A program, by what it is a client of, and how it is run.
fn programs() -> Result<Vec<(&'static str, Command)>> {
    let python = |environment: &str, program: &str| -> Result<Command> {
        let mut command = Command::new(clients::python(environment)?);
        command.arg(clients::folder().join("python").join(program));
        Ok(command)
    };
    let mut javascript = Command::new("node");
    javascript.arg(clients::javascript("flexible_servers.mjs")?);
    Ok(vec![
        (
            "azure-mgmt-postgresqlflexibleservers 3.0.0",
            python("newest", "flexible_servers.py")?,
        ),
        (
            "azure-mgmt-postgresqlflexibleservers 2.0.0",
            python("flexibleservers-2.0.0", "flexible_servers.py")?,
        ),
        (
            "azure-mgmt-postgresqlflexibleservers 1.1.0",
            python("flexibleservers-1.1.0", "flexible_servers.py")?,
        ),
        (
            "azure-mgmt-resource, -resource-locks, -subscription, -monitor",
            python("newest", "resource_manager.py")?,
        ),
        ("@azure/arm-postgresql-flexible", javascript),
    ])
}

async fn run(site: &Site, client: &str, mut command: Command) -> Result<(bool, String)> {
    let output = command
        .env("HOLDFAST_URL", &site.url)
        .env("HOLDFAST_TOKEN", &site.token)
        .env("HOLDFAST_SUBSCRIPTION", &site.subscription)
        .env("HOLDFAST_RESOURCE_GROUP", &site.resource_group)
        .env("HOLDFAST_TENANT", &site.tenant)
        .env("HOLDFAST_VERSION", site.major.to_string())
        .env("HOLDFAST_BINARY", holdfast_tests::site::binary()?)
        .env("HOLDFAST_STATE_DIR", site.state_dir())
        .env("REQUESTS_CA_BUNDLE", &site.ca_file)
        .env("NODE_EXTRA_CA_CERTS", &site.ca_file)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{client}: {command:?}"))?;
    let said = format!(
        "== {client}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((output.status.success(), said))
}

// FLX-150
#[tokio::test(flavor = "multi_thread")]
async fn the_official_clients_find_here_what_they_know() -> Result<()> {
    let site = Site::start().await?;
    let runs = programs()?
        .into_iter()
        .map(|(client, command)| run(&site, client, command));
    let mut all_well = true;
    let mut not_yet = BTreeSet::new();
    for (well, said) in futures::future::try_join_all(runs).await? {
        println!("{said}");
        all_well &= well;
        not_yet.extend(
            said.lines()
                .filter_map(|line| line.strip_prefix("section ")?.split_once(": not yet "))
                .map(|(section, _)| section.to_owned()),
        );
    }
    ensure!(all_well, "a client complains; see above");
    let listed = clients::not_yet()?;
    ensure!(
        listed == not_yet,
        "tests/clients/NOT_YET has names that no program knows: {:?}",
        listed.difference(&not_yet)
    );
    Ok(())
}
