//! The 202 and where to ask on (contract, facts 1, 2, 3 and 10; §5).
//!
//! Both addresses are absolute and made of the configured public address. `Retry-After` is 1: clients
//! that get none wait 30 s, and 0 is read as none.

use axum::response::{IntoResponse, Response};
use holdfast_domain::operation::Operation;
use holdfast_domain::resource_id::PROVIDER;
use http::{HeaderName, HeaderValue, StatusCode, header};

use super::api_version::ApiVersion;
use super::headers::REQUEST_ID;
use crate::wire::operation::AcceptedOperation;

const AZURE_ASYNC_OPERATION: HeaderName = HeaderName::from_static("azure-asyncoperation");
const RETRY_AFTER_S: u16 = 1;

/// The two addresses of an operation.
pub struct OperationUrls {
    pub status: String,
    pub result: String,
}

impl OperationUrls {
    #[must_use]
    pub fn of(operation: &Operation, public_url: &str, version: &ApiVersion) -> Self {
        let base = format!(
            "{public_url}/subscriptions/{}/providers/{PROVIDER}/locations/{}",
            operation.subscription, operation.region
        );
        let end = format!("{}?api-version={}", operation.id, version.as_str());
        Self {
            status: format!("{base}/azureAsyncOperation/{end}"),
            result: format!("{base}/operationResults/{end}"),
        }
    }
}

/// The answer to whoever asked for something that takes time.
#[must_use]
pub fn accepted(operation: &Operation, public_url: &str, version: &ApiVersion) -> Response {
    let urls = OperationUrls::of(operation, public_url, version);
    let mut response = (
        StatusCode::ACCEPTED,
        axum::Json(AcceptedOperation::from(operation)),
    )
        .into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (AZURE_ASYNC_OPERATION, urls.status),
        (header::LOCATION, urls.result),
        (REQUEST_ID, operation.id.to_string()),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    retry(response)
}

/// Asks the client to come again in a second; the service says so on the last answer too.
#[must_use]
pub fn retry(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    response
}

/// Still running, as `operationResults` says it.
#[must_use]
pub fn still_running(operation: &Operation, public_url: &str, version: &ApiVersion) -> Response {
    let urls = OperationUrls::of(operation, public_url, version);
    let mut response = StatusCode::ACCEPTED.into_response();
    if let Ok(location) = HeaderValue::from_str(&urls.result) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    retry(response)
}

#[cfg(test)]
mod tests {
    use holdfast_domain::operation::OperationState;

    use super::*;

    #[test]
    fn both_addresses_are_absolute_and_keep_the_callers_version() {
        // contract, fact 2
        let operation = crate::wire::operation::tests::operation(OperationState::Accepted);
        let version = ApiVersion::parse("2025-08-01").expect("valid");
        let response = accepted(&operation, "https://localhost:8443", &version);
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        let shown = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
        let base = "https://localhost:8443/subscriptions/11111111-2222-3333-4444-555555555555/providers/Microsoft.DBforPostgreSQL/locations/eastus2";
        let id = "01890000-0000-7000-8000-000000000001";
        assert_eq!(
            shown("azure-asyncoperation"),
            format!("{base}/azureAsyncOperation/{id}?api-version=2025-08-01")
        );
        assert_eq!(
            shown("location"),
            format!("{base}/operationResults/{id}?api-version=2025-08-01")
        );
        assert_eq!(shown("retry-after"), "1");
        assert_eq!(shown("x-ms-request-id"), id);
    }
}
