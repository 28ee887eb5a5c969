//! From a URL to a store. Only operators write these URLs; tenants never do (RELIABILITY §4.6).
//!
//! Directories are fsynced: without it an acknowledged object is lost in a power cut (RELIABILITY
//! L21; `object_store` has it off by default). S3 gets conditional puts and a checksum that it
//! verifies itself; what goes anywhere else is read back. Credentials come from the environment, as each cloud's own tools read them.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::directory::create_private_dir;
use super::{ONE_REQUEST, Store};
use crate::{Error, Result};

/// Prefixes of the environment variables that describe a cloud store.
const CLOUD_SETTINGS: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

impl Store {
    /// `file:///…` (made, readable by its owner only, when it does not exist), `s3://bucket/prefix`,
    /// `az://container/prefix`, `gs://bucket/prefix`.
    pub fn open(url: &str) -> Result<Self> {
        let url = Url::parse(url).map_err(|_| Error::refused("the store's URL cannot be read"))?;
        match url.scheme() {
            "file" => open_directory(&url),
            "s3" | "az" | "gs" => open_cloud(
                &url,
                std::env::vars_os().filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                }),
            ),
            other => Err(Error::refused(format!(
                "a store's URL begins with file://, s3://, az:// or gs://, not {other}://"
            ))),
        }
    }
}

fn open_directory(url: &Url) -> Result<Store> {
    let dir = url
        .to_file_path()
        .map_err(|()| Error::refused("a file:// store needs an absolute path and no host"))?;
    create_private_dir(&dir)
        .map_err(|error| Error::io("the store's directory cannot be made", error))?;
    let objects = LocalFileSystem::new_with_prefix(&dir)
        .map_err(|_| Error::refused("the store's directory cannot be used"))?
        .with_fsync(true);
    Ok(Store::new(Arc::new(objects), Path::default(), true).in_directory(dir))
}

/// `environment`: names and values.
fn open_cloud(url: &Url, environment: impl Iterator<Item = (String, String)>) -> Result<Store> {
    let refused = |error: object_store::Error| {
        tracing::error!(error = %error, "store.open.failed");
        Error::refused("the store's URL or the credentials in the environment are not complete")
    };
    let (scheme, prefix) = ObjectStoreScheme::parse(url).map_err(|error| refused(error.into()))?;
    let mut settings = vec![
        ("aws_conditional_put".to_owned(), "etag".to_owned()),
        ("aws_checksum_algorithm".to_owned(), "sha256".to_owned()),
    ];
    settings.extend(environment.filter_map(|(name, value)| {
        CLOUD_SETTINGS
            .iter()
            .any(|prefix| name.starts_with(prefix))
            .then(|| (name.to_ascii_lowercase(), value))
    }));
    macro_rules! build {
        ($builder:ty) => {{
            // The time of a whole request, a 64 MiB put included. Above it stands a retry loop with a
            // budget: the client's own retries may only bridge a hiccup.
            let builder = <$builder>::new()
                .with_url(url.as_str())
                .with_client_options(ClientOptions::new().with_timeout(ONE_REQUEST))
                .with_retry(RetryConfig {
                    max_retries: 2,
                    retry_timeout: Duration::from_secs(10),
                    ..RetryConfig::default()
                });
            let set = |builder: $builder, (name, value): (String, String)| match name.parse() {
                Ok(name) => builder.with_config(name, value),
                Err(_) => builder,
            };
            let builder = settings.into_iter().fold(builder, set);
            Arc::new(builder.build().map_err(refused)?)
        }};
    }
    let objects: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => build!(AmazonS3Builder),
        ObjectStoreScheme::MicrosoftAzure => build!(MicrosoftAzureBuilder),
        _ => build!(GoogleCloudStorageBuilder),
    };
    // Only S3 verifies a checksum of ours; what goes anywhere else is read back.
    let read_back = scheme != ObjectStoreScheme::AmazonS3;
    Ok(Store::new(objects, prefix, read_back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_store_that_verifies_a_checksum_is_not_read_back() {
        let environment = |names: &[(&str, &str)]| {
            names
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect::<Vec<_>>()
                .into_iter()
        };
        let open = |url: &str| {
            let known = [
                ("AWS_ACCESS_KEY_ID", "id"),
                ("AWS_SECRET_ACCESS_KEY", "secret"),
                ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
                ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0"),
                ("GOOGLE_SKIP_SIGNATURE", "true"),
                ("HOME", "/root"),
            ];
            open_cloud(&Url::parse(url).unwrap(), environment(&known)).unwrap()
        };
        for (url, read_back) in [
            ("s3://bucket/a/b", false),
            ("az://container/a/b", true),
            ("gs://bucket/a/b", true),
        ] {
            let store = open(url);
            assert_eq!(store.inner.read_back, read_back, "{url}");
            assert_eq!(store.inner.prefix.as_ref(), "a/b", "{url}");
        }
    }
}
