//! The multi-container set-up cannot be run where this is built, so its parts are read: the compose
//! file by a YAML parser, its configuration files by the code that production loads them with.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use holdfast::config;
use holdfast_tests::metadata::workspace;
use serde_json::Value;

const FILES: [(&str, &str); 4] = [
    ("api.toml", "api"),
    ("scheduler.toml", "scheduler"),
    ("agent-eastus2-1.toml", "agent"),
    ("agent-centralus-1.toml", "agent"),
];

const AGENTS: [&str; 2] = ["agent-eastus2-1", "agent-centralus-1"];

fn compose() -> Result<Value> {
    let text = std::fs::read_to_string(workspace().join("docker-compose.yml"))?;
    serde_saphyr::from_str(&text).context("docker-compose.yml")
}

/// A service with what it inherits by `<<`, whether or not the parser merged it.
fn service(compose: &Value, name: &str) -> Result<BTreeMap<String, Value>> {
    let own = compose["services"][name]
        .as_object()
        .with_context(|| format!("no {name}"))?;
    let mut all: BTreeMap<String, Value> = own
        .get("<<")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    all.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(all)
}

#[test]
fn the_compose_file_has_a_store_an_api_a_scheduler_and_agents_in_two_regions() -> Result<()> {
    let compose = compose()?;
    let services: BTreeSet<&str> = compose["services"]
        .as_object()
        .context("services")?
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        services,
        BTreeSet::from([
            "metadata",
            "api",
            "scheduler",
            "agent-eastus2-1",
            "agent-centralus-1"
        ])
    );
    for name in services {
        let service = service(&compose, name)?;
        assert!(
            service.contains_key("healthcheck"),
            "{name} has a health check"
        );
        let declared = compose["volumes"].as_object().context("volumes")?;
        for volume in service
            .get("volumes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let source = volume
                .as_str()
                .and_then(|text| text.split(':').next())
                .unwrap_or("");
            let file = source.strip_prefix("./");
            let known = declared.contains_key(source)
                || file.is_some_and(|file| workspace().join(file).exists());
            assert!(known, "{name}: {source} is a declared volume or a file");
        }
    }
    Ok(())
}

#[test]
fn each_zone_has_volumes_that_no_other_container_mounts() -> Result<()> {
    let compose = compose()?;
    let mounts = |name: &str| -> Result<BTreeMap<String, String>> {
        let service = service(&compose, name)?;
        let volumes = service["volumes"].as_array().context("volumes")?;
        volumes
            .iter()
            .map(|volume| {
                let text = volume.as_str().context("a volume in short form")?;
                let mut parts = text.split(':');
                let source = parts.next().context("a source")?.to_owned();
                Ok((parts.next().context("a place")?.to_owned(), source))
            })
            .collect()
    };
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for name in AGENTS {
        for place in ["/var/lib/holdfast/state", "/var/lib/holdfast/vault"] {
            let volume = mounts(name)?.get(place).context(place)?.clone();
            ensure!(
                compose["volumes"]
                    .as_object()
                    .is_some_and(|all| all.contains_key(&volume)),
                "{name}: {volume} is a declared volume"
            );
            let before = owners.insert(volume.clone(), name);
            ensure!(before.is_none(), "{volume} is {name}'s and {before:?}'s");
        }
    }
    for name in ["metadata", "scheduler", "api"] {
        for volume in mounts(name)?.into_values() {
            ensure!(!owners.contains_key(&volume), "{name} mounts {volume}");
        }
    }
    Ok(())
}

#[test]
fn an_agent_is_healthy_while_the_scheduler_hears_it() -> Result<()> {
    let compose = compose()?;
    for name in AGENTS {
        let service = service(&compose, name)?;
        let check = service["healthcheck"]["test"][1]
            .as_str()
            .context("a command for the shell")?;
        // Run as it stands, on a state directory of ours.
        let state = tempfile::tempdir()?;
        let here = state.path().to_str().context("text")?;
        let check = check.replace("/var/lib/holdfast/state", here);
        ensure!(
            check.contains(here),
            "{name}: it looks into the state directory: {check}"
        );
        let healthy = || -> Result<bool> {
            let status = std::process::Command::new("sh")
                .args(["-c", &check])
                .status()?;
            Ok(status.success())
        };
        ensure!(!healthy()?, "{name} never said hello");
        // A certificate that is there proves nothing.
        std::fs::write(state.path().join("node.json"), "{}")?;
        ensure!(!healthy()?, "{name} joined once");
        let alive = std::fs::File::create(state.path().join("alive"))?;
        ensure!(healthy()?, "{name} was just heard");
        let written = alive.metadata()?.modified()?;
        alive.set_modified(written - std::time::Duration::from_secs(300))?;
        ensure!(!healthy()?, "{name} was heard five minutes ago");
    }
    Ok(())
}

#[test]
fn what_is_ours_in_containers_runs_without_rights_that_it_does_not_need() -> Result<()> {
    let compose = compose()?;
    for name in ["api", "scheduler", "agent-eastus2-1", "agent-centralus-1"] {
        let service = service(&compose, name)?;
        assert_eq!(service.get("read_only"), Some(&Value::Bool(true)), "{name}");
        assert_eq!(
            service.get("cap_drop"),
            Some(&serde_json::json!(["ALL"])),
            "{name}"
        );
    }
    let dockerfile = std::fs::read_to_string(workspace().join("Dockerfile"))?;
    let last = |word: &str| dockerfile.lines().rev().find(|line| line.starts_with(word));
    let user = last("USER").context("the image says who it runs as")?;
    assert!(!user.contains("root") && !user.ends_with(" 0"), "{user}");
    assert!(
        last("ENTRYPOINT").is_some_and(|line| line.contains("tini")),
        "the image has an init"
    );
    Ok(())
}

#[test]
fn each_container_is_given_a_configuration_file_that_its_part_accepts() -> Result<()> {
    let compose = compose()?;
    for (file, kind) in FILES {
        let path = workspace().join("deploy").join(file);
        let loaded =
            config::load_with(&path, &[]).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        assert_eq!(loaded.kind(), kind, "{file}");
        let mounted = ["api", "scheduler", "agent-eastus2-1", "agent-centralus-1"]
            .iter()
            .any(|name| {
                service(&compose, name).is_ok_and(|service| {
                    let command = service
                        .get("command")
                        .map(ToString::to_string)
                        .unwrap_or_default();
                    let volumes = service
                        .get("volumes")
                        .map(ToString::to_string)
                        .unwrap_or_default();
                    volumes.contains(&format!("./deploy/{file}:"))
                        && command.contains(&format!("\"{kind}\""))
                })
            });
        assert!(mounted, "{file} is mounted where `serve {kind}` runs");
    }
    Ok(())
}

#[test]
fn a_key_that_nobody_reads_is_refused_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (file, kind) in FILES {
        let good = std::fs::read_to_string(workspace().join("deploy").join(file))?;
        let section = format!("[{kind}]\n");
        let bad = good.replacen(&section, &format!("{section}retenion_days = 7\n"), 1);
        assert_ne!(good, bad, "{file} has a section [{kind}]");
        let path = folder.path().join(file);
        std::fs::write(&path, bad)?;
        let refused = config::load_with(&path, &[])
            .err()
            .context("it was accepted")?
            .to_string();
        assert!(refused.contains("retenion_days"), "{file}: {refused}");
    }
    Ok(())
}

#[test]
fn a_role_that_nobody_can_have_is_refused_by_its_place() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("scheduler.toml");
    let good = std::fs::read_to_string(workspace().join("deploy/scheduler.toml"))?;
    for (from, to, key) in [
        ("role = \"Owner\"", "role = \"King\"", "roles.0.role"),
        (
            "scope = \"/subscriptions/",
            "scope = \"/tenants/",
            "roles.0.scope",
        ),
        ("[[roles]]", "[[owners]]", "owners"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(good, bad, "the file has {from}");
        std::fs::write(&path, bad)?;
        let refused = config::load_with(&path, &[])
            .err()
            .context("it was accepted")?
            .to_string();
        assert!(refused.contains(key), "{key}: {refused}");
    }
    Ok(())
}

#[test]
fn the_environment_wins_over_the_file() -> Result<()> {
    let path = workspace().join("deploy/api.toml");
    let wrong = config::load_with(&path, &[("HOLDFAST__API__LISTEN", "nowhere")]);
    let refused = wrong
        .err()
        .context("the override was not seen")?
        .to_string();
    assert!(refused.contains("listen"), "{refused}");
    Ok(())
}
