//! What a store's error means: worth another request, or final, and for whom.

use crate::Error;
use crate::error::is_out_of_space;

/// Whether asking again may help: the store, or the way to it, failed – not the request.
pub(super) fn is_transient(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::Generic { .. } => !io_error(error).is_some_and(is_out_of_space),
        object_store::Error::JoinError { .. } => true,
        _ => false,
    }
}

fn io_error(error: &object_store::Error) -> Option<&std::io::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref() {
            return Some(io);
        }
        cause = current.source();
    }
    None
}

pub(super) fn describe(key: &str, error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::NotFound {
            key: key.to_owned(),
        },
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            Error::Conflict {
                key: key.to_owned(),
            }
        }
        object_store::Error::InvalidPath { .. } => {
            Error::refused(format!("{key:?} is not an object key"))
        }
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            Error::StoreOverwrites
        }
        object_store::Error::PermissionDenied { .. } => Error::StoreUnavailable {
            what: "it refuses this node's credentials the right to do that".to_owned(),
        },
        object_store::Error::Unauthenticated { .. } => Error::StoreUnavailable {
            what: "it does not accept this node's credentials".to_owned(),
        },
        error if io_error(&error).is_some_and(is_out_of_space) => Error::InsufficientStorage {
            what: "the object store is full".to_owned(),
        },
        error => {
            // The text may carry a path or a host: it goes to the log, once, and no further.
            tracing::error!(object.key = key, error = %error, "store.request.failed");
            Error::StoreUnavailable {
                what: "it did not answer within the retry budget".to_owned(),
            }
        }
    }
}
