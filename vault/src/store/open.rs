//! From a URL to a store. Only operators write these URLs; tenants never do (RELIABILITY §4.6).
//!
//! Directories are fsynced: without it an acknowledged object is lost in a power cut (RELIABILITY
//! L21; `object_store` has it off by default). S3 gets conditional puts and a checksum that it
//! verifies itself. Credentials come from the environment, as each cloud's own tools read them.

use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::parse_url_opts;
use object_store::path::Path;
use url::Url;

use super::Store;
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
            "s3" | "az" | "gs" => open_cloud(&url),
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
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|error| Error::io("the store's directory cannot be made", error))?;
    let objects = LocalFileSystem::new_with_prefix(&dir)
        .map_err(|_| Error::refused("the store's directory cannot be used"))?
        .with_fsync(true);
    Ok(Store::new(Arc::new(objects), Path::default(), true))
}

fn open_cloud(url: &Url) -> Result<Store> {
    let mut options = vec![
        ("aws_conditional_put".to_owned(), "etag".to_owned()),
        ("aws_checksum_algorithm".to_owned(), "sha256".to_owned()),
    ];
    options.extend(std::env::vars_os().filter_map(|(name, value)| {
        let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
        CLOUD_SETTINGS
            .iter()
            .any(|prefix| name.starts_with(prefix))
            .then(|| (name.to_ascii_lowercase(), value))
    }));
    let (objects, prefix) = parse_url_opts(url, options).map_err(|error| {
        tracing::error!(error = %error, "store.open.failed");
        Error::refused("the store's URL or the credentials in the environment are not complete")
    })?;
    Ok(Store::new(Arc::from(objects), prefix, false))
}
