//! What an agent is told when a call is refused: `{"code","message"}` and a status that says whether
//! trying again helps. Internals go to the log, once, here.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use holdfast_control_plane as control_plane;
use holdfast_domain::IncarnationId;
use holdfast_domain::job::RefusedWalReport;

use super::check::Absurd;

/// A refused call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    status: StatusCode,
    code: &'static str,
    message: String,
}

#[derive(Serialize)]
struct Envelope<'a> {
    code: &'a str,
    message: &'a str,
}

impl Refused {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    /// No client certificate, or one that names no agent or has ended.
    #[must_use]
    pub fn certificate() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "ClientCertificateRequired",
            "this call needs a valid client certificate of an agent; join to get one",
        )
    }

    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequest", message)
    }

    #[must_use]
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "there is no such call on the agent port",
        )
    }

    #[must_use]
    pub fn timeout() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "RequestTimeout",
            "the call did not end in time",
        )
    }

    /// What is wrong is not with one report: the store is away, or the node may not speak.
    #[must_use]
    pub fn concerns_the_call(&self) -> bool {
        matches!(
            self.status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::FORBIDDEN
        )
    }

    #[must_use]
    pub fn of(self, incarnation: IncarnationId) -> RefusedWalReport {
        RefusedWalReport {
            incarnation,
            code: self.code.to_owned(),
            message: self.message,
        }
    }

    fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            "the call failed inside the scheduler; its log has more",
        )
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let envelope = Json(Envelope {
            code: self.code,
            message: &self.message,
        });
        let mut response = (self.status, envelope).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let after = HeaderValue::from_static("1");
            response.headers_mut().insert(header::RETRY_AFTER, after);
        }
        response
    }
}

impl From<Absurd> for Refused {
    fn from(absurd: Absurd) -> Self {
        tracing::warn!(reason = %absurd, "an agent sent something impossible");
        Self::invalid(absurd.to_string())
    }
}

impl From<control_plane::Error> for Refused {
    fn from(error: control_plane::Error) -> Self {
        use control_plane::Error;
        match error {
            Error::Stale => Self::new(
                StatusCode::CONFLICT,
                "StaleLease",
                "the lease is not, or no longer, this agent's: stop the work now",
            ),
            Error::UnknownNode(_) => Self::new(
                StatusCode::FORBIDDEN,
                "NodeNotKnown",
                "this node never joined here or was revoked; give it a new join token",
            ),
            Error::JoinRefused => Self::new(
                StatusCode::FORBIDDEN,
                "JoinRefused",
                "the join token is used, expired, or made for another node, region or zone; make a new one",
            ),
            Error::Absurd(reason) => {
                tracing::warn!(%reason, "an agent sent something impossible");
                Self::invalid(reason)
            }
            Error::Refused(refusal) => Self::invalid(refusal.to_string()),
            Error::Unavailable(_) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the store does not answer"
                );
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "ServiceUnavailable",
                    "the control plane's database does not answer; try again",
                )
            }
            error => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a call of an agent failed"
                );
                Self::internal()
            }
        }
    }
}

impl From<crate::Error> for Refused {
    fn from(error: crate::Error) -> Self {
        match error {
            crate::Error::CertificateRequest => Self::invalid(error.to_string()),
            crate::Error::ControlPlane(error) => error.into(),
            error => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a call of an agent failed"
                );
                Self::internal()
            }
        }
    }
}

/// A JSON body whose every failure is a [`Refused`].
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(JsonRejection::MissingJsonContentType(_)) => Err(Refused::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UnsupportedMediaType",
                "send application/json",
            )),
            Err(JsonRejection::BytesRejection(error))
                if error.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Err(Refused::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "RequestTooLarge",
                    "the body is larger than this call takes",
                ))
            }
            // serde's text names the field and says what was expected; a value it may quote is the
            // agent's own.
            Err(other) => Err(Refused::invalid(other.body_text())),
        }
    }
}
