//! The WAL of a server that does not run, read from its `pg_wal` (RELIABILITY §5.3.6).
//!
//! With no receiver a fast shutdown takes a tenth of a second and the last records exist only there; after a
//! crash the same holds for what the stream had not taken. The valid end is found as PostgreSQL finds it: the
//! last record whose page, back link and CRC are right. Files are synced before anything in them counts:
//! after a crash of the process they may be in memory only, and a vault must never know more than
//! the server will after a crash of the machine.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_domain::job::{Placement, WalGap, WalReport};
use holdfast_domain::wal::TimelineStart;
use holdfast_domain::{Lsn, Timeline};
use holdfast_vault::wal::counting::StatisticsRelations;
use holdfast_vault::wal::{Walker, history};
use holdfast_vault::{DataKey, Store};
use tokio::time::Instant;

use super::cutter::{Cutter, Lineage, Piece};
use super::error::{Error, Result};
use super::ledger::{Ledger, acknowledge_on_disk};
use super::origin::{self, Origin};
use super::pg_wal::PgWal;
use super::put::{Putter, impatient};
use crate::snapshot::control_file::{CONTROL_FILE, ControlFile};

const READ_BYTES: usize = 1 << 20;

/// A server at rest.
#[derive(Clone)]
pub struct DrainConfig {
    pub placement: Placement,
    pub data_dir: PathBuf,
    pub state_dir: PathBuf,
    pub stores: Vec<Store>,
    pub data_key: DataKey,
    pub now: Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>,
}

/// What a data directory says about its last life.
#[derive(Debug, Clone, Copy)]
struct AtRest {
    system_identifier: u64,
    timeline: Timeline,
    /// When it was shut down, if it was shut down in order.
    stopped_at: Option<DateTime<Utc>>,
}

/// Makes everything durable that the directory has and the stores have not. The server must not run, nor
/// its [`super::Streamer`]. Nothing new costs no write. The report holds everything not acknowledged yet.
pub async fn drain_pg_wal(mut config: DrainConfig) -> Result<WalReport> {
    config.stores = impatient(config.stores);
    let data_dir = config.data_dir.clone();
    let (at_rest, pg_wal) = blocking(move || {
        let at_rest = AtRest::read(&data_dir)?;
        let pg_wal = PgWal::of_unknown_size(&data_dir).map_err(|source| Error::PgWal {
            what: "list segments",
            source,
        })?;
        Ok((at_rest, pg_wal))
    })
    .await?;
    let incarnation = config.placement.incarnation;
    let Some(pg_wal) = pg_wal else {
        let ledger = Ledger::new(incarnation, &config.state_dir, at_rest.timeline, Lsn::ZERO);
        return Ok(ledger.whole_report());
    };
    let mut drain = Drain {
        putter: Putter::new(&config.stores, &config.data_key, pg_wal),
        ledger: Ledger::new(incarnation, &config.state_dir, at_rest.timeline, Lsn::ZERO),
        config,
        at_rest,
    };
    drain.run().await?;
    Ok(drain.ledger.whole_report())
}

/// The control plane has kept the report of [`drain_pg_wal`].
pub fn ack_drained(state_dir: &Path, report: &WalReport) {
    acknowledge_on_disk(state_dir, report);
}

struct Drain {
    config: DrainConfig,
    at_rest: AtRest,
    putter: Putter,
    ledger: Ledger,
}

impl Drain {
    async fn run(&mut self) -> Result<()> {
        let newest = self.newest_timeline().await?;
        let mut origin = self.origin(newest).await?;
        for object in &origin.objects {
            self.ledger.add(object.clone());
        }
        self.ledger.strand(std::mem::take(&mut origin.stranded));
        self.ledger.enter_timeline(origin.timeline, origin.durable);
        for object in &origin.objects {
            self.ledger.add(object.clone());
        }
        // Old timelines end where the next one begins; the newest where its valid bytes end.
        for (next, switch) in self.path(origin.timeline, newest).await? {
            self.drain_timeline(&origin, Some(switch)).await?;
            let start = self.keep_history(next, true).await?;
            self.ledger.add_timeline(start);
            self.ledger.enter_timeline(next, switch);
            origin = Origin {
                timeline: next,
                durable: switch,
                objects: Vec::new(),
                stranded: Vec::new(),
            };
        }
        self.drain_timeline(&origin, None).await?;
        if let Some(stopped_at) = self.at_rest.stopped_at {
            self.ledger.see_caught_up(stopped_at);
        }
        Ok(())
    }

    async fn newest_timeline(&self) -> Result<Timeline> {
        let pg_wal = self.putter.pg_wal.clone();
        let found = blocking(move || {
            pg_wal.newest_history().map_err(|source| Error::PgWal {
                what: "list histories",
                source,
            })
        })
        .await?;
        Ok(found.map_or(self.at_rest.timeline, |found| {
            found.max(self.at_rest.timeline)
        }))
    }

    async fn origin(&mut self, newest: Timeline) -> Result<Origin> {
        let unit_bytes = self.lineage(newest).unit_bytes();
        let config = &self.config;
        let found = origin::find(
            &config.stores,
            &config.data_key,
            config.placement.incarnation,
            &config.state_dir,
            unit_bytes,
        )
        .await?;
        if let Some(found) = found {
            return Ok(found);
        }
        // Never streamed: all there is, from the oldest segment on.
        let start = self.keep_history(newest, false).await?;
        self.ledger.add_timeline(start);
        let oldest = self.segments(newest).await?.first().copied();
        Ok(Origin {
            timeline: newest,
            durable: oldest.unwrap_or(Lsn::ZERO),
            objects: Vec::new(),
            stranded: Vec::new(),
        })
    }

    /// The timelines after `from` up to `to`, each with the place where it begins.
    async fn path(&self, from: Timeline, to: Timeline) -> Result<Vec<(Timeline, Lsn)>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let ancestors = history::parse(to, &self.read_history(to).await?)?.ancestors;
        let steps = ancestors
            .iter()
            .enumerate()
            .skip_while(|(_, line)| line.timeline != from);
        Ok(steps
            .map(|(at, line)| {
                (
                    ancestors.get(at + 1).map_or(to, |next| next.timeline),
                    line.switch,
                )
            })
            .collect())
    }

    async fn read_history(&self, timeline: Timeline) -> Result<Vec<u8>> {
        let pg_wal = self.putter.pg_wal.clone();
        blocking(move || {
            pg_wal.history(timeline).map_err(|source| Error::PgWal {
                what: "read a history",
                source,
            })
        })
        .await
    }

    async fn keep_history(
        &self,
        timeline: Timeline,
        parent_is_ours: bool,
    ) -> Result<TimelineStart> {
        if timeline == Timeline::FIRST {
            return Ok(TimelineStart {
                timeline,
                parent: None,
                switch: Lsn::ZERO,
                history_key: None,
            });
        }
        let text = self.read_history(timeline).await?;
        let incarnation = self.config.placement.incarnation;
        let (stores, data_key) = (&self.config.stores, &self.config.data_key);
        history::put_history(stores, data_key, incarnation, timeline, &text).await?;
        Ok(history::parse(timeline, &text)?.start(incarnation, parent_is_ours))
    }

    async fn segments(&self, timeline: Timeline) -> Result<Vec<Lsn>> {
        let pg_wal = self.putter.pg_wal.clone();
        blocking(move || {
            pg_wal.segments(timeline).map_err(|source| Error::PgWal {
                what: "list segments",
                source,
            })
        })
        .await
    }

    fn lineage(&self, timeline: Timeline) -> Lineage {
        Lineage {
            incarnation: self.config.placement.incarnation,
            system_identifier: self.at_rest.system_identifier,
            segment_bytes: self.putter.pg_wal.segment_bytes(),
            timeline,
        }
    }

    async fn drain_timeline(&mut self, origin: &Origin, limit: Option<Lsn>) -> Result<()> {
        let lineage = self.lineage(origin.timeline);
        let mut origin = origin.clone();
        let mut from = lineage.unit_start(origin.durable);
        let mut end = self.valid_end(lineage, from).await?;
        if end.is_none()
            && let Some(gap) = self.gap(lineage, origin.durable).await?
        {
            tracing::error!(wal.start = %gap.start, wal.end = %gap.end, "WAL is lost for ever");
            self.ledger.record_gap(gap);
            from = gap.end;
            origin.durable = gap.end;
            end = self.valid_end(lineage, from).await?;
        }
        let end = end.unwrap_or(from);
        let end = limit.map_or(end, |limit| end.min(limit));
        self.ledger.see_server_flush(end);
        if end <= origin.durable {
            return Ok(());
        }
        let mut cutter = Cutter::resume(
            lineage,
            origin.durable,
            Arc::new(StatisticsRelations::default()),
            // A server that does not run is not backed up.
            Arc::default(),
            self.putter.spare.clone(),
        );
        cutter.remember(&origin.objects);
        let mut at = from;
        while at < end {
            let (pg_wal, timeline) = (self.putter.pg_wal.clone(), lineage.timeline);
            let to = end
                .min(at + READ_BYTES as u64)
                .min((at + 1).segment_end(lineage.segment_bytes));
            let bytes = blocking(move || {
                pg_wal
                    .read(timeline, at, to)
                    .map_err(|source| Error::PgWal {
                        what: "read a segment",
                        source,
                    })
            })
            .await?;
            if at == from {
                let (stores, data_key) = (&self.config.stores, &self.config.data_key);
                if let Some(walker) =
                    origin::prime(stores, data_key, &lineage, &origin, &bytes).await
                {
                    cutter.continue_from(walker);
                }
            }
            for piece in cutter.take(&bytes, Instant::now()) {
                self.put(piece).await?;
            }
            at = to;
        }
        if let Some(piece) = cutter.cut() {
            self.put(piece).await?;
        }
        self.ledger.see_counting(cutter.last_counting());
        Ok(())
    }

    async fn put(&mut self, mut piece: Piece) -> Result<()> {
        self.putter.complete(&mut piece).await;
        self.ledger.add(self.putter.put_once(piece).await?);
        Ok(())
    }

    /// Where the last valid record ends, walking from `from`; `None` when there is no such segment.
    async fn valid_end(&self, lineage: Lineage, from: Lsn) -> Result<Option<Lsn>> {
        let pg_wal = self.putter.pg_wal.clone();
        blocking(move || {
            walk_to_the_end(&pg_wal, lineage, from).map_err(|source| Error::PgWal {
                what: "read a segment",
                source,
            })
        })
        .await
    }

    /// The segment that holds `durable` is gone: a hole if a later one has WAL in it.
    async fn gap(&self, lineage: Lineage, durable: Lsn) -> Result<Option<WalGap>> {
        for start in self.segments(lineage.timeline).await? {
            if start <= durable {
                continue;
            }
            if self
                .valid_end(lineage, start)
                .await?
                .is_some_and(|end| end > start)
            {
                let (timeline, end) = (lineage.timeline, start);
                return Ok(Some(WalGap {
                    timeline,
                    start: durable,
                    end,
                }));
            }
        }
        Ok(None)
    }
}

fn walk_to_the_end(pg_wal: &PgWal, lineage: Lineage, from: Lsn) -> io::Result<Option<Lsn>> {
    let mut walker =
        Walker::at_page(from, lineage.segment_bytes).of_cluster(lineage.system_identifier);
    let mut buffer = vec![0; READ_BYTES];
    let mut found = false;
    loop {
        let at = walker.position();
        let Some(mut file) = pg_wal.open(lineage.timeline, at)? else {
            break;
        };
        found = true;
        file.sync_data()?;
        file.seek(SeekFrom::Start(at.0 % lineage.segment_bytes))?;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            // What is not valid any more is simply the end.
            if walker.feed(&buffer[..read], |_| {}).is_err() || walker.has_ended() {
                return Ok(Some(walker.valid_end()));
            }
        }
        if walker.position() == at {
            break;
        }
    }
    Ok(found.then(|| walker.valid_end()))
}

impl AtRest {
    fn read(data_dir: &Path) -> Result<Self> {
        // Places that have been the same from 13 to 18: state, time of the last update, and the
        // last checkpoint's timeline.
        const STATE: usize = 16;
        const TIME: usize = 24;
        const TIMELINE: usize = 48;
        const SHUT_DOWN: u8 = 1;
        let file = ControlFile::read(&data_dir.join(CONTROL_FILE))?;
        let bytes = file.bytes();
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[TIMELINE..TIMELINE + 4]);
        let mut time = [0; 8];
        time.copy_from_slice(&bytes[TIME..TIME + 8]);
        Ok(Self {
            system_identifier: file.system_identifier(),
            timeline: Timeline(u32::from_le_bytes(word)),
            stopped_at: (bytes[STATE] == SHUT_DOWN)
                .then(|| DateTime::from_timestamp(i64::from_le_bytes(time), 0))
                .flatten(),
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Closed)?
}
