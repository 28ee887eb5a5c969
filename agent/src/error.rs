//! Everything that can go wrong on a node, and what of it a user may read.
//!
//! Inside the agent an error carries paths and causes; what leaves the machine is a `JobError`: a
//! stable code and a sentence without path, SQL or secret (RELIABILITY §4.4).

use std::path::PathBuf;
use std::time::Duration;

use holdfast_domain::IncarnationId;
use holdfast_domain::job::JobError;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file says something that cannot work.
    #[error("configuration: {0}")]
    Configuration(String),

    /// A file or directory of this machine.
    #[error("could not {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    /// A call to the operating system that names no file.
    #[error("could not {what}")]
    System {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },

    #[error("PostgreSQL {major} is not installed on this node")]
    NoSuchMajor { major: u16 },

    /// One of PostgreSQL's programs ended badly; `said` is the end of what it printed.
    #[error("{program} ended with {status}: {said}")]
    Program {
        program: &'static str,
        status: String,
        said: String,
    },

    /// A postmaster ended before it took connections.
    #[error("PostgreSQL did not start ({status}): {said}")]
    NotStarted { status: String, said: String },

    #[error("PostgreSQL did not {what} within {}s", within.as_secs())]
    Slow {
        what: &'static str,
        within: Duration,
    },

    #[error("the data directory {} is in use by process {pid}, which does not end", path.display())]
    Occupied { path: PathBuf, pid: i32 },

    #[error("could not {what} on the managed server")]
    Postgres {
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },

    /// A managed server says something about itself that it must not say.
    #[error("the managed server is not as it must be: {0}")]
    Drift(String),

    /// Text that cannot be written into SQL or a configuration file.
    #[error("{what} contains a character that cannot be written there")]
    Unquotable { what: &'static str },

    #[error("the login {0:?} is reserved")]
    ReservedLogin(String),

    #[error(transparent)]
    Vault(#[from] holdfast_vault::Error),

    #[error("server {0} is not on this node")]
    NoSuchServer(IncarnationId),

    #[error("the data directory of {0} is gone")]
    DirectoryGone(IncarnationId),

    #[error("the write-ahead log of this server is not being streamed")]
    NotStreaming,

    /// The receiver of the write-ahead log, in its own words.
    #[error("write-ahead log: {message}")]
    Stream {
        code: &'static str,
        message: String,
        retryable: bool,
    },

    /// A backup or a restore that cannot go on, in the words the user gets.
    #[error("{message}")]
    Failed {
        code: &'static str,
        message: String,
        retryable: bool,
    },

    #[error(transparent)]
    Walk(#[from] crate::snapshot::walk::WalkError),

    #[error(transparent)]
    ControlFile(#[from] crate::snapshot::control_file::ReadError),

    #[error("could not reach the scheduler ({call})")]
    Gateway {
        call: &'static str,
        #[source]
        source: reqwest::Error,
    },

    #[error("the scheduler refused {call}: {status} {code}: {message}")]
    Refused {
        call: &'static str,
        status: u16,
        code: String,
        message: String,
    },

    /// The lease has a newer holder, or ran out: stop at once, report nothing (RELIABILITY §3.3).
    #[error("the lease of this job is no longer ours")]
    StaleLease,

    #[error("the job was cancelled")]
    Canceled,

    #[error("certificate: {0}")]
    Certificate(String),

    #[error("a task of the agent ended unexpectedly")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    /// For `map_err` on file operations: `.map_err(Error::file("create", &path))`.
    pub fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    pub fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    pub fn postgres(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Postgres { what, source }
    }

    /// The stable name that reaches the user in an operation's error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Vault(error) => error.code(),
            Self::Stream { code, .. } | Self::Failed { code, .. } => code,
            Self::NoSuchMajor { .. } => "VersionNotAvailableOnNode",
            Self::NotStarted { .. } | Self::Slow { .. } | Self::Occupied { .. } => {
                "ServerDidNotStart"
            }
            Self::Postgres { .. } | Self::Drift(_) => "ServerUnavailable",
            Self::ReservedLogin(_) => "ReservedLogin",
            Self::Unquotable { .. } => "InvalidParameterValue",
            Self::NoSuchServer(_) | Self::DirectoryGone(_) => "ServerNotOnNode",
            Self::NotStreaming => "StreamUnavailable",
            Self::StaleLease => "StaleLease",
            Self::Canceled => "Canceled",
            Self::File { source, .. } | Self::System { source, .. }
                if source.kind() == std::io::ErrorKind::StorageFull =>
            {
                "InsufficientStorage"
            }
            Self::Configuration(_)
            | Self::File { .. }
            | Self::System { .. }
            | Self::Program { .. }
            | Self::Gateway { .. }
            | Self::Refused { .. }
            | Self::Certificate(_)
            | Self::Walk(_)
            | Self::ControlFile(_)
            | Self::Task(_) => "NodeError",
        }
    }

    /// Whether the same job may work when it is tried again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Vault(error) => error.is_retryable(),
            Self::Stream { retryable, .. } | Self::Failed { retryable, .. } => *retryable,
            Self::Configuration(_)
            | Self::NoSuchMajor { .. }
            | Self::ReservedLogin(_)
            | Self::Unquotable { .. }
            | Self::DirectoryGone(_)
            | Self::Canceled => false,
            _ => true,
        }
    }

    /// The sentence for the user: no path, no SQL, no output of a program.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self {
            Self::File { what, source, .. } => {
                format!(
                    "the node could not {what} a file of the server: {}",
                    source.kind()
                )
            }
            Self::System { what, source } => {
                format!("the node could not {what}: {}", source.kind())
            }
            Self::Program {
                program, status, ..
            } => format!("{program} ended with {status}; the node's log has its output"),
            Self::NotStarted { status, .. } => {
                format!("PostgreSQL did not start ({status}); the server's log has the reason")
            }
            Self::Occupied { .. } => {
                "the data directory is still in use by another process of the node".to_owned()
            }
            Self::Configuration(_) | Self::Certificate(_) | Self::Task(_) => {
                "the node's agent has a problem of its own; its log has the reason".to_owned()
            }
            Self::Postgres { what, source } => match source.code() {
                Some(state) => {
                    format!(
                        "could not {what} on the managed server (SQLSTATE {})",
                        state.code()
                    )
                }
                None => format!("could not {what} on the managed server: the connection failed"),
            },
            other => other.to_string(),
        }
    }
}

impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        Self {
            code: error.code().to_owned(),
            message: error.public_message(),
            retryable: error.is_retryable(),
        }
    }
}

/// An error and its causes on one line, for the log.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_message_names_no_path_of_the_node() {
        let error = Error::file("open", "/var/lib/holdfast/servers/x/data")(std::io::Error::from(
            std::io::ErrorKind::PermissionDenied,
        ));
        assert!(error.to_string().contains("/var/lib/holdfast"));
        let told = JobError::from(error);
        assert!(!told.message.contains('/'), "{}", told.message);
        assert!(told.retryable);
    }

    #[test]
    fn a_full_disk_has_its_own_code() {
        let error = Error::system("write")(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(error.code(), "InsufficientStorage");
    }
}
