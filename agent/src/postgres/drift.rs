//! Whether a running server is still as backup and restore need it (RELIABILITY §5.1: looked at every
//! cycle, put right or reported).

use std::collections::HashMap;
use std::path::Path;

use super::configuration::{self, ServerConfiguration, owned_settings};
use super::{Connection, Instance, ServiceUser};
use crate::error::{Error, Result};

/// Settings that are not what they must be, as `name is 'x' and must be 'y'`.
pub async fn settings(session: &Connection, major: u16) -> Result<Vec<String>> {
    let wanted: Vec<(&str, &str)> = owned_settings(major)
        .map(|setting| (setting.name, setting.shown))
        // Made by initdb, not by a file: nothing can put it right but a new cluster.
        .chain([("data_checksums", "on")])
        .collect();
    let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).collect();
    let rows = session
        .query(
            "SELECT name, setting FROM pg_settings WHERE name = ANY ($1)",
            &[&names],
        )
        .await
        .map_err(Error::postgres("read the settings"))?;
    let found: HashMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok(wanted
        .into_iter()
        .filter_map(|(name, must)| match found.get(name) {
            Some(is) if is == must => None,
            Some(is) => Some(format!("{name} is '{is}' and must be '{must}'")),
            None => Some(format!("{name} is unknown to this server")),
        })
        .collect())
}

/// One look: files that were changed are written again, a changed setting is re-read. What is wrong
/// after that is returned, for a person; it takes a restart.
pub async fn check(
    instance: &Instance,
    session: &Connection,
    data_dir: &Path,
    wanted: &ServerConfiguration,
    user: &ServiceUser,
) -> Result<Vec<String>> {
    let changed = configuration::differing(data_dir, wanted).unwrap_or_else(|_| vec!["unreadable"]);
    let drifted = settings(session, wanted.major).await?;
    if changed.is_empty() && drifted.is_empty() {
        return Ok(drifted);
    }
    tracing::warn!(?changed, ?drifted, path = %data_dir.display(), "a server has drifted; putting it right");
    configuration::write(data_dir, wanted, user)?;
    let before = loaded_at(session).await?;
    instance.reload();
    // The server re-reads when the signal arrives, not when it was sent.
    for _ in 0..100 {
        if loaded_at(session).await? != before {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    settings(session, wanted.major).await
}

async fn loaded_at(session: &Connection) -> Result<chrono::DateTime<chrono::Utc>> {
    let row = session
        .query_one("SELECT pg_conf_load_time()", &[])
        .await
        .map_err(Error::postgres("read the settings"))?;
    Ok(row.get(0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::postgres::StopMode;
    use crate::postgres::cluster_fixture::{Cluster, majors};

    #[tokio::test]
    async fn a_drifted_setting_is_put_right_or_reported() {
        for major in majors().await {
            drifts(major).await;
        }
    }

    async fn drifts(major: u16) {
        let cluster = Cluster::create_major(major).await;
        let instance = Instance::start(cluster.spec());
        instance.ready().await.expect("started");
        let session = cluster.connect().await;
        let look = || async {
            let configuration = cluster.configuration();
            check(
                &instance,
                &session,
                &cluster.data_dir(),
                &configuration,
                cluster.user(),
            )
            .await
            .expect("looked")
        };
        assert!(look().await.is_empty());
        // Somebody with rights they should not have turns off what backups rest on.
        session
            .batch_execute("ALTER SYSTEM SET full_page_writes = off")
            .await
            .expect("set");
        session
            .batch_execute("ALTER SYSTEM SET wal_level = minimal")
            .await
            .expect("set");
        session
            .query_one("SELECT pg_reload_conf()", &[])
            .await
            .expect("reloaded");
        assert!(look().await.is_empty());
        let row = session
            .query_one("SHOW full_page_writes", &[])
            .await
            .expect("read");
        assert_eq!(row.get::<_, &str>(0), "on");
        instance
            .stop(StopMode::Fast, Duration::from_secs(30))
            .await
            .expect("stopped");

        let mut spec = cluster.spec();
        spec.settings.push(("wal_level".into(), "logical".into()));
        let instance = Instance::start(spec);
        instance.ready().await.expect("started");
        let session = cluster.connect().await;
        let reported = settings(&session, major).await.expect("looked");
        assert_eq!(reported, ["wal_level is 'logical' and must be 'replica'"]);
        instance
            .stop(StopMode::Fast, Duration::from_secs(30))
            .await
            .expect("stopped");
    }
}
