//! A site that ends badly, and what the next command makes of it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_agent::postgres::occupancy;
use holdfast_tests::site::{Site, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn postmaster(data_dir: &Path) -> Result<Pid> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid"))?;
    let pid = text.lines().next().context("a pid")?.trim().parse()?;
    Ok(Pid::from_raw(pid))
}

async fn marked(site: &Site) -> Result<bool> {
    let row = site.sql("pg1").await?;
    let row = row.query_one("SELECT x FROM mark", &[]).await?;
    Ok(row.get::<_, i32>(0) == 42)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_crashed_comes_back_whole_or_goes_whole() -> Result<()> {
    let mut site = Site::start().await?;
    site.create("pg1").await?;
    let sql = site.sql("pg1").await?;
    sql.batch_execute("CREATE TABLE mark AS SELECT 42 AS x")
        .await?;
    drop(sql);
    let data = site.data_dir("pg1").await?;
    let metadata = site.state_dir().join("metadata/data");

    // Said twice in the same moment: one starts it, both return when everything answers – servers, too.
    site.kill().await?;
    let up = ["up", "--detach", "--listen", "127.0.0.1:0"];
    let (one, other) = tokio::join!(site.command(&up), site.command(&up));
    one.and(other)?;
    site.up().await?;
    ensure!(marked(&site).await?);

    // The metadata store's postmaster dies under a running site.
    let first = postmaster(&metadata)?;
    kill(first, Signal::SIGKILL)?;
    let path = site.server_path("pg1");
    until(Duration::from_secs(60), || async {
        let answers = site.get(&path).await.is_ok_and(|it| it.status == 200);
        Ok((answers && postmaster(&metadata).is_ok_and(|pid| pid != first)).then_some(()))
    })
    .await?;
    site.back_up("pg1", "afterwards").await?;

    // A site that is just stopping, or has just stopped, is waited for.
    let (down, up) = tokio::join!(site.command(&["down"]), async {
        let stopping = || std::fs::read_to_string(site.state_dir().join("run.json"));
        until(Duration::from_secs(30), || async {
            let running = stopping().is_ok_and(|it| !it.contains("stopping"));
            Ok((!running).then_some(()))
        })
        .await?;
        site.command(&up).await
    });
    down.and(up)?;
    site.up().await?;
    ensure!(marked(&site).await?);

    // What a crash left running is ended by `down`, and there is nothing left for a second one.
    site.kill().await?;
    ensure!(!occupancy::holders(&data).await?.is_empty(), "it lives on");
    let said = site.command(&["down"]).await?;
    ensure!(
        said.contains("left PostgreSQL running; 2 stopped"),
        "{said}"
    );
    for directory in [&data, &metadata] {
        ensure!(occupancy::holders(directory).await?.is_empty());
    }
    let said = site.command(&["down"]).await?;
    ensure!(said.contains("No site runs"), "{said}");

    // Without TLS nobody but this machine is served.
    let open = ["up", "--detach", "--insecure-http", "--listen"];
    let refused = site.command(&[&open[..], &["0.0.0.0:0"]].concat()).await;
    let refused = refused.err().context("it was served")?.to_string();
    ensure!(refused.contains("not a loopback address"), "{refused}");
    site.command(&[&open[..], &["127.0.0.1:0"]].concat())
        .await?;
    site.up().await?;
    ensure!(site.url.starts_with("http://"), "{}", site.url);
    ensure!(site.get(&site.server_path("pg1")).await?.status == 200);
    ensure!(marked(&site).await?);
    Ok(())
}
