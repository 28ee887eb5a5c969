//! Official clients, unmodified, against the real thing.

use anyhow::{Result, ensure};
use holdfast_tests::site::Site;

/// The Python SDK in a virtual environment that `./test` made (`HOLDFAST_PYTHON`, or
/// `target/python`).
fn python() -> Result<std::path::PathBuf> {
    let python = std::env::var_os("HOLDFAST_PYTHON").map_or_else(
        || {
            std::path::PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../target/python/bin/python"
            ))
        },
        Into::into,
    );
    ensure!(
        python.exists(),
        "{} is missing; ./test makes it: python3 -m venv target/python && target/python/bin/pip install -r tests/clients/requirements.txt",
        python.display()
    );
    Ok(python)
}

// FLX-150
#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_creates_backs_up_restores_and_deletes() -> Result<()> {
    let site = Site::start().await?;
    let output = tokio::process::Command::new(python()?)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/clients/python_sdk.py"
        ))
        .env("HOLDFAST_URL", &site.url)
        .env("HOLDFAST_TOKEN", &site.token)
        .env("HOLDFAST_SUBSCRIPTION", &site.subscription)
        .env("HOLDFAST_RESOURCE_GROUP", &site.resource_group)
        .env("HOLDFAST_VERSION", site.major.to_string())
        .env("REQUESTS_CA_BUNDLE", &site.ca_file)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
