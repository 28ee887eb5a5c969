//! PostgreSQL's streaming replication protocol, the physical half of it, over a Unix socket.
//!
//! `pg_receivewal` is no substitute: it acknowledges what its own disk has (RELIABILITY §5.3.1). Nothing here
//! decides; it says what the server says. Source: PostgreSQL's manual, "Streaming Replication Protocol"
//! and "Message Formats".

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use chrono::{DateTime, Utc};
use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::wal::record::to_postgres_time;
use postgres_protocol::message::{backend, frontend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::error::{Error, Result};

/// The slot every managed server has (RELIABILITY §5.3.2).
pub const SLOT: &str = "holdfast";

/// A WAL message holds at most 128 KiB; nothing a server says to this client comes near this.
const LARGEST_MESSAGE_BYTES: usize = 16 << 20;
/// Connecting, answering a command, taking a few bytes of status.
const PATIENCE: Duration = Duration::from_secs(30);
/// SQLSTATE undefined_file: the segment was removed.
const UNDEFINED_FILE: &str = "58P01";
/// SQLSTATE duplicate_object.
const DUPLICATE_OBJECT: &str = "42710";
/// SQLSTATE object_in_use.
const OBJECT_IN_USE: &str = "55006";

const COPY_BOTH_TAG: u8 = b'W';

/// A connection in walsender mode.
#[derive(Debug)]
pub(super) struct Replication {
    socket: UnixStream,
    inbox: BytesMut,
}

/// What `IDENTIFY_SYSTEM` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SystemIdentity {
    pub system_identifier: u64,
    pub timeline: Timeline,
    /// How far the server's WAL is flushed.
    pub flushed: Lsn,
}

/// What a stream brings.
#[derive(Debug)]
pub(super) enum Incoming {
    Wal {
        start: Lsn,
        /// How far the server had sent or could send.
        server_end: Lsn,
        bytes: Bytes,
    },
    KeepAlive {
        server_end: Lsn,
        reply_requested: bool,
    },
    /// The timeline asked for ends here; the server knows a newer one.
    TimelineEnded,
    /// The server ended the stream in order: it shuts down and everything was acknowledged.
    Ended,
}

impl Error {
    pub(super) fn segment_is_gone(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == UNDEFINED_FILE)
    }

    pub(super) fn slot_is_in_use(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == OBJECT_IN_USE)
    }
}

impl Replication {
    pub async fn connect(socket_dir: &Path, port: u16, user: &str) -> Result<Self> {
        let path = socket_dir.join(format!(".s.PGSQL.{port}"));
        let socket = UnixStream::connect(path)
            .await
            .map_err(|source| Error::Connection {
                what: "connect",
                source,
            })?;
        let mut this = Self {
            socket,
            inbox: BytesMut::with_capacity(256 << 10),
        };
        let mut hello = BytesMut::new();
        let parameters = [
            ("user", user),
            ("replication", "true"),
            ("application_name", "holdfast stream"),
            ("client_encoding", "UTF8"),
        ];
        frontend::startup_message(parameters, &mut hello)
            .map_err(|error| Error::Protocol(error.to_string()))?;
        this.send(&hello).await?;
        loop {
            let (tag, body) = this.expect_message("log in").await?;
            match tag {
                backend::AUTHENTICATION_TAG => {
                    let method = body.get(..4).map_or(-1, |mut word| word.get_i32());
                    if method != 0 {
                        return Err(Error::Protocol(format!(
                            "the server asks for authentication method {method}, not for the peer's identity"
                        )));
                    }
                }
                backend::READY_FOR_QUERY_TAG => return Ok(this),
                // Parameter status, key data.
                _ => {}
            }
        }
    }

    pub async fn identify(&mut self) -> Result<SystemIdentity> {
        let rows = self.query("IDENTIFY_SYSTEM", "identification").await?;
        let bad = || Error::Protocol("IDENTIFY_SYSTEM answered something else".to_owned());
        let row = rows.first().ok_or_else(bad)?;
        let text = |i: usize| {
            row.get(i)
                .and_then(|f| f.as_deref())
                .and_then(|f| std::str::from_utf8(f).ok())
        };
        let read = || {
            Some(SystemIdentity {
                system_identifier: text(0)?.parse().ok()?,
                timeline: Timeline(text(1)?.parse().ok()?),
                flushed: text(2)?.parse().ok()?,
            })
        };
        read().ok_or_else(bad)
    }

    /// Makes the slot and lets it hold WAL from now on. One that exists is fine.
    pub async fn create_slot(&mut self) -> Result<()> {
        let command = format!("CREATE_REPLICATION_SLOT {SLOT} PHYSICAL RESERVE_WAL");
        match self.query(&command, "a replication slot").await {
            Err(Error::Refused { code, .. }) if code == DUPLICATE_OBJECT => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// The history file of a timeline, byte for byte.
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<Bytes> {
        let command = format!("TIMELINE_HISTORY {}", timeline.0);
        let rows = self.query(&command, "a timeline's history").await?;
        rows.into_iter()
            .next()
            .and_then(|row| row.into_iter().nth(1).flatten())
            .ok_or_else(|| Error::Protocol("TIMELINE_HISTORY answered no content".to_owned()))
    }

    /// Begins the stream at `start`, which need not be a segment's first byte.
    pub async fn start(&mut self, start: Lsn, timeline: Timeline) -> Result<()> {
        let command = format!(
            "START_REPLICATION SLOT {SLOT} PHYSICAL {start} TIMELINE {}",
            timeline.0
        );
        self.send_query(&command).await?;
        let mut failure = None;
        loop {
            let (tag, body) = self.expect_message("start streaming").await?;
            match tag {
                COPY_BOTH_TAG => return Ok(()),
                backend::ERROR_RESPONSE_TAG => failure = Some(refusal("to stream", &body)),
                backend::READY_FOR_QUERY_TAG => {
                    return Err(failure.unwrap_or_else(|| {
                        Error::Protocol("START_REPLICATION did not start".to_owned())
                    }));
                }
                _ => {}
            }
        }
    }

    /// The next thing the stream brings. Can be dropped and called again without loss.
    pub async fn next(&mut self) -> Result<Incoming> {
        loop {
            let (tag, mut body) = self.message("receive").await?;
            match tag {
                backend::COPY_DATA_TAG => match body.first().copied() {
                    Some(b'w') if body.len() >= 25 => {
                        body.advance(1);
                        let start = Lsn(body.get_u64());
                        let server_end = Lsn(body.get_u64());
                        body.advance(8);
                        return Ok(Incoming::Wal {
                            start,
                            server_end,
                            bytes: body,
                        });
                    }
                    Some(b'k') if body.len() >= 18 => {
                        body.advance(1);
                        let server_end = Lsn(body.get_u64());
                        body.advance(8);
                        let reply_requested = body.get_u8() != 0;
                        return Ok(Incoming::KeepAlive {
                            server_end,
                            reply_requested,
                        });
                    }
                    other => {
                        return Err(Error::Protocol(format!(
                            "a copy message begins with {other:?}"
                        )));
                    }
                },
                backend::COPY_DONE_TAG => return Ok(Incoming::TimelineEnded),
                backend::COMMAND_COMPLETE_TAG => return Ok(Incoming::Ended),
                backend::ERROR_RESPONSE_TAG => return Err(refusal("to go on streaming", &body)),
                // Notices and changed parameters.
                _ => {}
            }
        }
    }

    /// Tells the server what is durable. Written, flushed and applied are the same here: nothing is
    /// worth anything to PostgreSQL before the stores have it.
    pub async fn send_status(&mut self, durable: Lsn, now: DateTime<Utc>) -> Result<()> {
        let mut body = [0_u8; 34];
        body[0] = b'r';
        for place in [1, 9, 17] {
            body[place..place + 8].copy_from_slice(&durable.0.to_be_bytes());
        }
        body[25..33].copy_from_slice(&to_postgres_time(now).to_be_bytes());
        let mut message = BytesMut::with_capacity(40);
        frontend::CopyData::new(&body[..])
            .map_err(|error| Error::Protocol(error.to_string()))?
            .write(&mut message);
        self.send(&message).await
    }

    async fn query(
        &mut self,
        command: &str,
        what: &'static str,
    ) -> Result<Vec<Vec<Option<Bytes>>>> {
        self.send_query(command).await?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let (tag, body) = self.expect_message(what).await?;
            match tag {
                backend::DATA_ROW_TAG => rows.push(columns(body)?),
                backend::ERROR_RESPONSE_TAG => failure = Some(refusal(what, &body)),
                backend::READY_FOR_QUERY_TAG => return failure.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    async fn send_query(&mut self, command: &str) -> Result<()> {
        let mut message = BytesMut::new();
        frontend::query(command, &mut message)
            .map_err(|error| Error::Protocol(error.to_string()))?;
        self.send(&message).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |source| Error::Connection {
            what: "send",
            source,
        };
        tokio::time::timeout(PATIENCE, self.socket.write_all(bytes))
            .await
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(failed)
    }

    /// A message outside of the stream: the server has to answer.
    async fn expect_message(&mut self, what: &'static str) -> Result<(u8, Bytes)> {
        let (tag, body) = tokio::time::timeout(PATIENCE, self.message(what))
            .await
            .map_err(|_| Error::Connection {
                what,
                source: io::ErrorKind::TimedOut.into(),
            })??;
        // An error before the first command ends the connection.
        if tag == backend::ERROR_RESPONSE_TAG && what == "log in" {
            return Err(refusal("the connection", &body));
        }
        Ok((tag, body))
    }

    /// The next message's tag and body. Whatever was read stays in the inbox until it is whole.
    async fn message(&mut self, what: &'static str) -> Result<(u8, Bytes)> {
        loop {
            let header = backend::Header::parse(&self.inbox)
                .map_err(|error| Error::Protocol(error.to_string()))?;
            if let Some(header) = header {
                let length = usize::try_from(header.len())
                    .ok()
                    .filter(|length| *length <= LARGEST_MESSAGE_BYTES)
                    .ok_or_else(|| {
                        Error::Protocol(format!("a message of {} bytes", header.len()))
                    })?;
                if self.inbox.len() > length {
                    let mut message = self.inbox.split_to(length + 1).freeze();
                    message.advance(5);
                    return Ok((header.tag(), message));
                }
                self.inbox.reserve(length + 1 - self.inbox.len());
            } else {
                self.inbox.reserve(64 << 10);
            }
            let read = self
                .socket
                .read_buf(&mut self.inbox)
                .await
                .map_err(|source| Error::Connection { what, source })?;
            if read == 0 {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(Error::Connection { what, source });
            }
        }
    }
}

/// The columns of a data row.
fn columns(mut body: Bytes) -> Result<Vec<Option<Bytes>>> {
    let bad = || Error::Protocol("a data row is cut short".to_owned());
    if body.len() < 2 {
        return Err(bad());
    }
    let count = body.get_u16();
    let mut row = Vec::new();
    for _ in 0..count {
        if body.len() < 4 {
            return Err(bad());
        }
        match usize::try_from(body.get_i32()) {
            Ok(length) if length <= body.len() => row.push(Some(body.split_to(length))),
            Ok(_) => return Err(bad()),
            Err(_) => row.push(None),
        }
    }
    Ok(row)
}

/// An error message's SQLSTATE and text.
fn refusal(what: &'static str, body: &[u8]) -> Error {
    let mut code = String::new();
    let mut message = String::new();
    for field in body.split(|byte| *byte == 0) {
        match field.split_first() {
            Some((b'C', text)) => code = String::from_utf8_lossy(text).into_owned(),
            Some((b'M', text)) => message = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    Error::Refused {
        what,
        code,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_message_is_read_with_its_code() {
        let error = refusal(
            "a test",
            b"SERROR\0C58P01\0Mrequested WAL segment is gone\0\0",
        );
        assert!(error.segment_is_gone());
        assert!(error.to_string().contains("requested WAL segment is gone"));
    }

    #[test]
    fn a_data_row_cut_short_is_refused() {
        assert!(columns(Bytes::from_static(&[0, 2, 0, 0, 0, 1])).is_err());
        assert!(columns(Bytes::from_static(&[0])).is_err());
        let row = columns(Bytes::from_static(&[
            0, 2, 0, 0, 0, 1, b'x', 255, 255, 255, 255,
        ]));
        assert_eq!(
            row.expect("a whole row"),
            [Some(Bytes::from_static(b"x")), None]
        );
    }
}
