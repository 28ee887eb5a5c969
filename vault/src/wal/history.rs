//! Timeline history files: which timeline a timeline branched off, where, and why.
//!
//! PostgreSQL writes one for every timeline but the first and never streams it inside the WAL: without
//! it a restore stops with "recovery target timeline 2 does not exist" (RELIABILITY §5.3.4). The vault keeps
//! the file byte for byte and for ever (DESIGN §3.10).

use bytes::Bytes;
use holdfast_domain::wal::TimelineStart;
use holdfast_domain::{IncarnationId, Lsn, Timeline};

use crate::seal::{self, Class};
use crate::{DataKey, Error, Result, Store, get_anywhere, layout};

/// A history file, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub timeline: Timeline,
    /// Ancestors, oldest first.
    pub ancestors: Vec<Ancestor>,
}

/// One line: this timeline was left at `switch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    pub timeline: Timeline,
    pub switch: Lsn,
    /// `after LSN 0/3000060`, `at restore point "…"`, `no recovery target specified`.
    pub reason: String,
}

impl History {
    /// The path from the first timeline to this one. `holds` says which timelines' WAL lies in the
    /// same vault prefix; an ancestor from an earlier incarnation is no parent here.
    #[must_use]
    pub fn start(&self, incarnation: IncarnationId, parent_is_ours: bool) -> TimelineStart {
        let parent = self.ancestors.last();
        TimelineStart {
            timeline: self.timeline,
            parent: parent.filter(|_| parent_is_ours).map(|line| line.timeline),
            switch: parent.map_or(Lsn::ZERO, |line| line.switch),
            history_key: Some(layout::history(incarnation, self.timeline)),
        }
    }
}

/// Reads the file of `timeline`. Empty lines and `#` comments are allowed, as PostgreSQL allows them.
pub fn parse(timeline: Timeline, text: &[u8]) -> Result<History> {
    let bad = |what: String| Error::corrupted(timeline.history_file_name(), what);
    let text = std::str::from_utf8(text).map_err(|_| bad("it is not text".to_owned()))?;
    let mut ancestors: Vec<Ancestor> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.splitn(3, '\t');
        let number = fields.next().and_then(|field| field.trim().parse().ok());
        let switch = fields.next().and_then(|field| field.trim().parse().ok());
        let (Some(number), Some(switch)) = (number, switch) else {
            return Err(bad(format!("line {line:?}")));
        };
        let before = ancestors.last();
        if number >= timeline.0
            || before.is_some_and(|before| before.timeline.0 >= number || before.switch > switch)
        {
            return Err(bad(format!("timeline {number} does not follow")));
        }
        ancestors.push(Ancestor {
            timeline: Timeline(number),
            switch,
            reason: fields.next().unwrap_or_default().trim().to_owned(),
        });
    }
    if ancestors.is_empty() && timeline != Timeline::FIRST {
        return Err(bad("it names no ancestor".to_owned()));
    }
    Ok(History {
        timeline,
        ancestors,
    })
}

/// Keeps the file in every store and returns its key. The same file again is fine, another is a conflict.
pub async fn put_history(
    stores: &[Store],
    data_key: &DataKey,
    incarnation: IncarnationId,
    timeline: Timeline,
    text: &[u8],
) -> Result<String> {
    let key = layout::history(incarnation, timeline);
    let sealed = seal::seal(data_key, Class::History, &key, text)?;
    for store in stores {
        match store.put_new(&key, sealed.clone()).await {
            Ok(()) => {}
            // Every sealing has its own salt, so that the same file never looks the same.
            Err(Error::Conflict { .. }) => {
                let stored = store.get(&key).await?;
                if seal::open(data_key, Class::History, &key, &stored)? != text {
                    return Err(Error::Conflict { key });
                }
                store.settle(&key).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(key)
}

/// The file as PostgreSQL wrote it.
pub async fn get_history(
    stores: &[Store],
    data_key: &DataKey,
    incarnation: IncarnationId,
    timeline: Timeline,
) -> Result<Bytes> {
    let key = layout::history(incarnation, timeline);
    get_anywhere(stores, &key, |stored| {
        seal::open(data_key, Class::History, &key, &stored)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_reads_as_postgres_writes_it() {
        let text =
            b"1\t0/3000060\tafter LSN 0/3000028\n\n2\t0/50000A0\tno recovery target specified\n";
        let history = parse(Timeline(3), text).expect("a good file");
        assert_eq!(history.ancestors.len(), 2);
        assert_eq!(history.ancestors[0].switch, Lsn(0x300_0060));
        assert_eq!(history.ancestors[1].reason, "no recovery target specified");
        let start = history.start(IncarnationId::new(), true);
        assert_eq!(
            (start.parent, start.switch),
            (Some(Timeline(2)), Lsn(0x500_00A0))
        );
    }

    #[test]
    fn a_history_that_cannot_be_is_refused() {
        for bad in [
            &b""[..],
            b"x\t0/1\treason\n",
            b"1\tnowhere\treason\n",
            b"3\t0/1\tits own child\n",
            b"2\t0/1\ta\n1\t0/2\tb\n",
            b"1\t0/2\ta\n2\t0/1\tb\n",
            b"\xff\xfe",
        ] {
            assert!(parse(Timeline(3), bad).is_err(), "{bad:?}");
        }
    }
}
