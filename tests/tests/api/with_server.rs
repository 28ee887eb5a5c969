//! A server `pg1` behind the API, and a look at what a refused request must leave as it was.

use anyhow::Result;
use holdfast_tests::api_client::{Answer, ApiClient, create_body, server_path};
use holdfast_tests::harness::Harness;
use http::Method;
use serde_json::{Value, json};

pub struct Setting {
    pub harness: Harness,
    pub api: ApiClient,
}

impl Setting {
    /// With a server `pg1` that has its first backup.
    pub async fn new() -> Result<Self> {
        let mut harness = Harness::new().await?;
        let api = ApiClient::new(&harness).await?;
        harness.create("pg1").await?;
        Ok(Self { harness, api })
    }

    pub async fn put(&self, name: &str, body: Value) -> Result<Answer> {
        self.api
            .call(Method::PUT, &server_path(name), Some(body))
            .await
    }

    pub async fn restore(&self, name: &str, at: Value) -> Result<Answer> {
        let mut body = restore_body();
        body["properties"]["pointInTimeUTC"] = at;
        self.put(name, body).await
    }

    /// What a refused request must not change.
    pub async fn traces(&self) -> Result<[i64; 3]> {
        Ok([
            self.harness.count("SELECT count(*) FROM server").await?,
            self.harness.count("SELECT count(*) FROM operation").await?,
            self.harness.count("SELECT count(*) FROM job").await?,
        ])
    }
}

/// A restore of `pg1`, as far as every one of them goes.
pub fn restore_body() -> Value {
    json!({
        "location": "eastus2",
        "properties": {
            "createMode": "PointInTimeRestore",
            "sourceServerResourceId": server_path("pg1"),
        },
    })
}

/// An API in front of nothing.
pub async fn empty() -> Result<(Harness, ApiClient)> {
    let harness = Harness::new().await?;
    let api = ApiClient::new(&harness).await?;
    Ok((harness, api))
}

/// An API with a server `pg1` that was created through it.
pub async fn created() -> Result<(Harness, ApiClient)> {
    let (mut harness, api) = empty().await?;
    let accepted = api
        .call(Method::PUT, &server_path("pg1"), Some(create_body()))
        .await?;
    anyhow::ensure!(accepted.status == 202, "{accepted:?}");
    harness.run_until_idle().await?;
    Ok((harness, api))
}
