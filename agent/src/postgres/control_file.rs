//! What `pg_control` says of a data directory that may not be running. Read through
//! `pg_controldata`, because the file's layout differs between majors and that program knows it.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;

use holdfast_domain::{Lsn, Timeline};
use tokio::process::Command;

use super::Installation;
use crate::error::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    pub system_identifier: u64,
    pub wal_segment_bytes: u64,
    /// The timeline of the latest checkpoint.
    pub timeline: Timeline,
    pub checkpoint: Lsn,
    pub redo: Lsn,
    /// PostgreSQL's words: `in production`, `shut down`, `in archive recovery`, …
    pub state: String,
    pub checksums: bool,
}

impl ControlFile {
    /// Whether the last postmaster ended by a clean shutdown.
    #[must_use]
    pub fn shut_down(&self) -> bool {
        self.state == "shut down"
    }

    pub async fn read(installation: &Installation, data_dir: &Path) -> Result<Self> {
        let program = installation.program("pg_controldata");
        let output = Command::new(&program)
            .env_clear()
            .env("LC_ALL", "C")
            .arg("--pgdata")
            .arg(data_dir)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(Error::file("run", program))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let failed = |status: String, said: String| Error::Program {
            program: "pg_controldata",
            status,
            said,
        };
        if !output.status.success() || text.contains("WARNING") {
            let said = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
            return Err(failed(
                output.status.to_string(),
                super::initdb::last_lines(&said, 3),
            ));
        }
        parse(&text).ok_or_else(|| failed("output that is not understood".into(), String::new()))
    }
}

fn parse(text: &str) -> Option<ControlFile> {
    let fields: HashMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    Some(ControlFile {
        system_identifier: fields.get("Database system identifier")?.parse().ok()?,
        wal_segment_bytes: fields.get("Bytes per WAL segment")?.parse().ok()?,
        timeline: Timeline(fields.get("Latest checkpoint's TimeLineID")?.parse().ok()?),
        checkpoint: fields.get("Latest checkpoint location")?.parse().ok()?,
        redo: fields
            .get("Latest checkpoint's REDO location")?
            .parse()
            .ok()?,
        state: (*fields.get("Database cluster state")?).to_owned(),
        checksums: *fields.get("Data page checksum version")? != "0",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_that_matter_are_found_by_name() {
        let text = "pg_control version number:            1300\n\
            Database system identifier:           7571234567890123456\n\
            Database cluster state:               shut down\n\
            Latest checkpoint location:           0/1500060\n\
            Latest checkpoint's REDO location:    0/1500060\n\
            Latest checkpoint's TimeLineID:       2\n\
            Bytes per WAL segment:                16777216\n\
            Data page checksum version:           1\n";
        let control = parse(text).expect("complete");
        assert_eq!(control.system_identifier, 7_571_234_567_890_123_456);
        assert_eq!(control.timeline, Timeline(2));
        assert!(control.shut_down() && control.checksums);
        assert_eq!(parse("nonsense"), None);
    }
}
