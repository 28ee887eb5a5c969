//! The one table from "no" to HTTP: status, code, target, message (DESIGN §3.16, contract §6).
//!
//! Messages tell the caller what to change and come from the [`Refusal`] itself. What went wrong
//! inside goes to the log, here, once; the caller gets a number to ask about. No final refusal
//! carries `Retry-After`, because clients retry whatever does (contract, fact 9).

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use holdfast_control_plane::Error;
use holdfast_domain::Refusal;
use holdfast_domain::instant::wire;
use http::{HeaderValue, StatusCode, header};
use uuid::Uuid;

use crate::wire::error::{ErrorDetail, ErrorEnvelope, ErrorInfo};

pub type Result<T> = std::result::Result<T, ArmError>;

/// An answer that says no.
#[derive(Debug)]
pub struct ArmError {
    status: StatusCode,
    code: Cow<'static, str>,
    message: String,
    target: Option<Box<str>>,
    details: Vec<ErrorDetail>,
    /// Only for what passes by itself.
    retry_after_s: Option<u16>,
}

impl ArmError {
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            target: None,
            details: Vec::new(),
            retry_after_s: None,
        }
    }

    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// A value that cannot be, at this JSON path.
    pub fn invalid(target: impl Into<String>, message: impl Into<String>) -> Self {
        Refusal::invalid(target, message).into()
    }

    /// Something of ours broke; `what` is for the log only.
    pub fn internal(what: &dyn std::error::Error) -> Self {
        let tracking = Uuid::new_v4();
        let mut causes = what.to_string();
        let mut source = what.source();
        while let Some(cause) = source {
            causes.push_str(": ");
            causes.push_str(&cause.to_string());
            source = cause.source();
        }
        tracing::error!(tracking_id = %tracking, error = %causes, "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            format!(
                "An unexpected error occurred while processing the request. Tracking ID: '{tracking}'"
            ),
        )
    }

    #[must_use]
    pub fn at(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into().into_boxed_str());
        self
    }

    #[must_use]
    pub fn with_detail(
        mut self,
        code: &'static str,
        message: impl Into<String>,
        target: &str,
    ) -> Self {
        self.details.push(ErrorDetail {
            code: code.to_owned(),
            message: message.into(),
            target: Some(target.to_owned()),
        });
        self
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u16) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    #[must_use]
    pub fn code(&self) -> &'static str {
        match &self.code {
            Cow::Borrowed(code) => code,
            Cow::Owned(_) => "OperationFailed",
        }
    }

    #[must_use]
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// The table. One line a rule; the order is that of [`Refusal`].
impl From<Refusal> for ArmError {
    fn from(refusal: Refusal) -> Self {
        use StatusCode as S;
        let message = refusal.to_string();
        let say = |status, code: &'static str| Self::new(status, code, message);
        match refusal {
            Refusal::InvalidResourceName { .. } => say(S::BAD_REQUEST, "InvalidResourceName"),
            Refusal::InvalidResourceId { .. } => {
                say(S::BAD_REQUEST, "InvalidResourceId").at("properties.sourceServerResourceId")
            }
            Refusal::InvalidParameterValue { target, .. } => {
                say(S::BAD_REQUEST, "InvalidParameterValue").at(target)
            }
            Refusal::CreateOnly { target, .. } => {
                say(S::BAD_REQUEST, "InvalidParameterValue").at(target)
            }
            Refusal::RestoreTimeOutOfRange {
                earliest, latest, ..
            } => {
                let mut error = say(S::BAD_REQUEST, "InvalidParameterValue").at("pointInTimeUTC");
                for (target, bound) in [
                    ("earliestRestoreDate", earliest),
                    ("latestRestoreDate", latest),
                ] {
                    if let Some(bound) = bound {
                        error = error.with_detail("RestorableWindow", wire(bound), target);
                    }
                }
                error
            }
            Refusal::ClockAnomaly { before, after, .. } => {
                say(S::BAD_REQUEST, "InvalidParameterValue")
                    .at("pointInTimeUTC")
                    .with_detail("NearestInstant", wire(before), "before")
                    .with_detail("NearestInstant", wire(after), "after")
            }
            Refusal::WalGap { before, .. } => say(S::BAD_REQUEST, "WalGap")
                .at("pointInTimeUTC")
                .with_detail("NearestInstant", wire(before), "before"),
            Refusal::NoBackupYet { .. } => say(S::BAD_REQUEST, "NoBackupYet"),
            Refusal::ServerNameAlreadyExists { .. } => say(S::CONFLICT, "ServerNameAlreadyExists"),
            Refusal::ServerIsBusy { .. } => say(S::CONFLICT, "ServerIsBusy"),
            Refusal::ServerIsNotReady { .. } => say(S::BAD_REQUEST, "ServerIsNotReady"),
            Refusal::InvalidResourceLocation { .. } => {
                say(S::CONFLICT, "InvalidResourceLocation").at("location")
            }
            Refusal::InvalidResourceGroupLocation { .. } => {
                say(S::CONFLICT, "InvalidResourceGroupLocation").at("location")
            }
            Refusal::LocationNotAvailable { .. } => {
                say(S::BAD_REQUEST, "LocationNotAvailableForResourceType").at("location")
            }
            Refusal::NoCapacity { .. } => say(S::CONFLICT, "NoCapacity").at("location"),
            Refusal::SubscriptionNotFound(_) => say(S::NOT_FOUND, "SubscriptionNotFound"),
            Refusal::ResourceGroupNotFound(_) => say(S::NOT_FOUND, "ResourceGroupNotFound"),
            Refusal::ResourceNotFound { kind, .. } => {
                let lock = kind.eq_ignore_ascii_case("Microsoft.Authorization/locks");
                say(
                    S::NOT_FOUND,
                    if lock {
                        "LockNotFound"
                    } else {
                        "ResourceNotFound"
                    },
                )
            }
            Refusal::OperationNotFound(_) => say(S::NOT_FOUND, "OperationNotFound"),
            Refusal::BackupAlreadyExists { .. } => say(S::CONFLICT, "BackupAlreadyExists"),
            Refusal::OnDemandBackupLimitReached { .. } => {
                say(S::BAD_REQUEST, "OnDemandBackupLimitReached")
            }
            Refusal::OnDemandBackupNotSupported { .. } => {
                say(S::BAD_REQUEST, "OnDemandBackupNotSupported")
            }
            Refusal::AutomaticBackupCannotBeDeleted { .. } => {
                say(S::BAD_REQUEST, "AutomaticBackupCannotBeDeleted")
            }
            Refusal::BackupInUse { .. } => say(S::CONFLICT, "BackupInUse"),
            Refusal::ScopeLocked { .. } => say(S::CONFLICT, "ScopeLocked"),
            Refusal::NotSupported(_) => say(S::BAD_REQUEST, "NotSupported"),
        }
    }
}

impl From<Error> for ArmError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => refusal.into(),
            Error::Unavailable(_) => {
                tracing::warn!(error = %error, "metadata store is unavailable");
                // The one answer that is worth another try by itself.
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "ServiceUnavailable",
                    "The service cannot reach its metadata store at the moment. Nothing was changed; try again.",
                )
                .retry_after(5)
            }
            error => Self::internal(&error),
        }
    }
}

impl IntoResponse for ArmError {
    fn into_response(self) -> Response {
        let body = ErrorEnvelope {
            error: ErrorInfo {
                code: self.code.into_owned(),
                message: self.message,
                target: self.target.map(Into::into),
                details: self.details,
            },
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use http_body_util::BodyExt;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("valid")
    }

    async fn body(error: ArmError) -> serde_json::Value {
        let bytes = error
            .into_response()
            .into_body()
            .collect()
            .await
            .expect("in memory")
            .to_bytes();
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[tokio::test]
    async fn a_time_outside_the_window_names_both_bounds() {
        // RELIABILITY §4.9 row 16, DESIGN §3.6
        let error = ArmError::from(Refusal::RestoreTimeOutOfRange {
            asked: Some(at("2026-11-01T00:00:00Z")),
            earliest: Some(at("2026-11-10T00:00:00Z")),
            latest: Some(at("2026-11-20T00:00:00Z")),
        });
        assert_eq!(
            body(error).await,
            serde_json::json!({"error": {
                "code": "InvalidParameterValue",
                "message": "Invalid value given for parameter pointInTimeUTC. 2026-11-01T00:00:00.0000000+00:00 is outside the restorable window. Give a time from 2026-11-10T00:00:00.0000000+00:00 to 2026-11-20T00:00:00.0000000+00:00.",
                "target": "pointInTimeUTC",
                "details": [
                    {"code": "RestorableWindow", "message": "2026-11-10T00:00:00.0000000+00:00", "target": "earliestRestoreDate"},
                    {"code": "RestorableWindow", "message": "2026-11-20T00:00:00.0000000+00:00", "target": "latestRestoreDate"},
                ]
            }})
        );
    }

    #[test]
    fn no_final_refusal_asks_to_be_tried_again() {
        // contract, fact 9: clients repeat whatever carries Retry-After, and every 500.
        let name = || "pg1".to_owned();
        for refusal in [
            Refusal::ServerIsBusy { server: name() },
            Refusal::ServerNameAlreadyExists { name: name() },
            Refusal::ScopeLocked {
                target: name(),
                verb: "delete",
                locked: vec![name()],
            },
            Refusal::OnDemandBackupLimitReached {
                server: name(),
                limit: 7,
            },
            Refusal::NotSupported(name()),
            Refusal::ResourceGroupNotFound(name()),
        ] {
            let response = ArmError::from(refusal).into_response();
            assert!(response.status().is_client_error());
            assert!(!response.headers().contains_key(header::RETRY_AFTER));
        }
    }

    #[test]
    fn codes_and_statuses_are_those_of_the_contract() {
        let name = || "x".to_owned();
        let cases = [
            (
                Refusal::ServerIsBusy { server: name() },
                409,
                "ServerIsBusy",
            ),
            (
                Refusal::BackupAlreadyExists {
                    server: name(),
                    backup: name(),
                },
                409,
                "BackupAlreadyExists",
            ),
            (
                Refusal::AutomaticBackupCannotBeDeleted {
                    backup: name(),
                    retention_days: 7,
                },
                400,
                "AutomaticBackupCannotBeDeleted",
            ),
            (
                Refusal::OnDemandBackupNotSupported {
                    server: name(),
                    reason: "x",
                },
                400,
                "OnDemandBackupNotSupported",
            ),
            (
                Refusal::SubscriptionNotFound(name()),
                404,
                "SubscriptionNotFound",
            ),
            (
                Refusal::ResourceNotFound {
                    kind: "Microsoft.Authorization/locks",
                    name: name(),
                    group: name(),
                },
                404,
                "LockNotFound",
            ),
            (
                Refusal::ResourceNotFound {
                    kind: "Microsoft.DBforPostgreSQL/flexibleServers",
                    name: name(),
                    group: name(),
                },
                404,
                "ResourceNotFound",
            ),
        ];
        for (refusal, status, code) in cases {
            let error = ArmError::from(refusal);
            assert_eq!((error.status().as_u16(), error.code()), (status, code));
        }
        let retention = ArmError::from(Refusal::invalid(
            "properties.backup.backupRetentionDays",
            "x",
        ));
        assert_eq!(
            retention.target(),
            Some("properties.backup.backupRetentionDays")
        );
    }
}
