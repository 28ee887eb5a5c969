//! Sixty days of daily differentials, a fiftieth of the pages changed in each, under the rules of retention,
//! compaction and prune: what lies in the store, and what would at least have to.

use std::collections::{BTreeSet, HashSet};

use chrono::TimeDelta;
use holdfast_domain::backup::{BackupKind, CompleteBackup};
use holdfast_domain::catalogue::Catalogue;
use holdfast_domain::compaction::{ObjectUse, choose};
use holdfast_domain::job::ObjectRef;
use holdfast_domain::retention::{RetentionWindow, sweep};
use holdfast_domain::wal::TimelineStart;

use super::compaction::turn;
use super::*;

/// What a differential has changed since the one before: one page of so many.
const ONE_OF: usize = 50;
const DAYS: i64 = 60;

#[derive(Clone, Copy)]
enum Content {
    /// Noise.
    Incompressible,
    /// Half text: [`page`].
    HalfText,
}

impl Content {
    /// About four packs' worth.
    fn pages(self) -> usize {
        match self {
            Self::Incompressible => 4096,
            Self::HalfText => 8192,
        }
    }

    fn page(self, seed: u64) -> Vec<u8> {
        match self {
            Self::HalfText => page(seed),
            Self::Incompressible => {
                let mut noise = vec![0; PAGE_BYTES];
                let mut hasher = blake3::Hasher::new();
                hasher.update(&seed.to_le_bytes());
                hasher.finalize_xof().read_exact(&mut noise).unwrap();
                noise
            }
        }
    }
}

/// A backup of the simulation: what its pages were, by seed.
struct Day {
    backup: CompleteBackup,
    objects: Vec<ObjectRef>,
    seeds: Vec<u64>,
    delete_after: Option<DateTime<chrono::Utc>>,
}

struct Sixty {
    site: Site,
    content: Content,
    window: RetentionWindow,
    compacting: bool,
    days: Vec<Day>,
    superseded: Vec<(String, DateTime<chrono::Utc>)>,
    rewritten: u64,
}

/// Bytes in the store, what they would be at best, and what was rewritten for it.
#[derive(Debug)]
struct Figures {
    stored: u64,
    minimum: u64,
    worst_percent: u64,
    rewritten: u64,
    backups: usize,
}

impl Sixty {
    async fn live(content: Content, window: i64, compacting: bool) -> Figures {
        let mut it = Self {
            site: Site::new(1),
            content,
            window: RetentionWindow::new(window).unwrap(),
            compacting,
            days: Vec::new(),
            superseded: Vec::new(),
            rewritten: 0,
        };
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut seeds: Vec<u64> = (0..content.pages() as u64).collect();
        let mut relation: Vec<u8> = seeds.iter().flat_map(|seed| content.page(*seed)).collect();
        let mut worst_percent = 0;
        for day in 0..=DAYS {
            if day > 0 {
                for _ in 0..seeds.len() / ONE_OF {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let at = (random >> 33) as usize % seeds.len();
                    seeds[at] = seeds.iter().max().unwrap() + 1;
                    relation[at * PAGE_BYTES..(at + 1) * PAGE_BYTES]
                        .copy_from_slice(&content.page(seeds[at]));
                }
            }
            let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::days(day);
            it.back_up(&relation, &seeds, now).await;
            it.sweep(now);
            it.compact(now).await;
            it.prune(now).await;
            if day > window + 2 && day % 5 == 0 {
                worst_percent = worst_percent.max(it.stored().await * 100 / it.minimum().await);
            }
        }
        it.assert_whole().await;
        Figures {
            stored: it.stored().await,
            minimum: it.minimum().await,
            worst_percent,
            rewritten: it.rewritten,
            backups: it.window().count(),
        }
    }

    fn window(&self) -> impl Iterator<Item = &Day> {
        self.days.iter().filter(|day| day.delete_after.is_none())
    }

    fn files(relation: &[u8]) -> Files {
        Files::from([
            (PG_CONTROL.to_owned(), page(1)),
            ("base/5/16400".to_owned(), relation.to_vec()),
        ])
    }

    async fn back_up(&mut self, relation: &[u8], seeds: &[u64], now: DateTime<chrono::Utc>) {
        let base = self.days.last().map(|day| day.backup.manifest.clone());
        let files = Self::files(relation);
        let made = self.site.back_up(&files, base.as_ref()).await.unwrap();
        let at = Lsn(0x0100_0000 * (1 + self.days.len() as u64));
        self.days.push(Day {
            backup: CompleteBackup {
                id: made.manifest.backup,
                name: now.to_string(),
                kind: BackupKind::Automatic,
                timeline: Timeline(1),
                start: at,
                stop: at + 0x100,
                completed_time: now,
                manifest: made.manifest,
                damaged: false,
            },
            objects: made.objects,
            seeds: seeds.to_vec(),
            delete_after: None,
        });
    }

    /// The rules of `domain::retention`, the grace of the control plane.
    fn sweep(&mut self, now: DateTime<chrono::Utc>) {
        let catalogue = Catalogue {
            server_name: "pg1".to_owned(),
            incarnation: self.site.incarnation,
            wal_segment_bytes: 16 << 20,
            backups: self.window().map(|day| day.backup.clone()).collect(),
            wal: Vec::new(),
            timelines: vec![TimelineStart {
                timeline: Timeline(1),
                parent: None,
                switch: Lsn(0),
                history_key: None,
            }],
            head: Timeline(1),
            durable: Lsn(u64::MAX),
            caught_up_at: None,
            gaps: Vec::new(),
        };
        let swept = sweep(&catalogue, self.window.start(now), &[]);
        for day in &mut self.days {
            if swept.expire.contains(&day.backup.id) {
                day.delete_after = Some(now + TimeDelta::days(1));
            }
        }
    }

    fn usage(&self) -> Vec<ObjectUse> {
        let mut usage = BTreeMap::<&str, ObjectUse>::new();
        for object in self.window().flat_map(|day| &day.objects) {
            let one = usage.entry(&object.key).or_insert_with(|| ObjectUse {
                key: object.key.clone(),
                bytes: object.bytes,
                living: 0,
            });
            one.living = one.living.max(object.living.unwrap_or(object.bytes));
        }
        usage.into_values().collect()
    }

    async fn compact(&mut self, now: DateTime<chrono::Utc>) {
        let usage = self.usage();
        let chosen: BTreeSet<String> = choose(&usage)
            .into_iter()
            .map(|one| one.key.clone())
            .collect();
        if chosen.is_empty() || !self.compacting {
            return;
        }
        let backups: Vec<&ManifestRef> = self.window().map(|day| &day.backup.manifest).collect();
        let done = compact(self.site.compaction(&backups, chosen))
            .await
            .unwrap();
        self.rewritten += done.bytes_written;
        let grace = now + TimeDelta::days(1);
        for rewritten in &done.backups {
            let of = |day: &&mut Day| day.backup.id == rewritten.manifest.backup;
            let day = self.days.iter_mut().find(of).unwrap();
            self.superseded
                .push((day.backup.manifest.key.clone(), grace));
            let dropped = rewritten.dropped.iter().map(|key| (key.clone(), grace));
            self.superseded.extend(dropped);
            day.backup.manifest = rewritten.manifest.clone();
            turn(&mut day.objects, rewritten);
        }
    }

    /// The rules of the control plane's `prune.rs`.
    async fn prune(&mut self, now: DateTime<chrono::Utc>) {
        let over = |day: &Day| day.delete_after.is_some_and(|after| after <= now);
        let (gone, days): (Vec<Day>, Vec<Day>) =
            std::mem::take(&mut self.days).into_iter().partition(over);
        self.days = days;
        let named: HashSet<&str> = self
            .days
            .iter()
            .flat_map(|day| day.objects.iter().map(|object| object.key.as_str()))
            .collect();
        let waits = |key: &str| self.superseded.iter().any(|(other, _)| other == key);
        let mut going: Vec<String> = gone
            .iter()
            .map(|day| day.backup.manifest.key.clone())
            .collect();
        for object in gone.iter().flat_map(|day| &day.objects) {
            if !named.contains(object.key.as_str()) && !waits(&object.key) {
                going.push(object.key.clone());
            }
        }
        let due = |(key, after): &&(String, _)| *after <= now && !named.contains(key.as_str());
        going.extend(
            self.superseded
                .iter()
                .filter(due)
                .map(|(key, _)| key.clone()),
        );
        for key in &going {
            self.site.delete(key).await;
        }
        let going: HashSet<String> = going.into_iter().collect();
        self.superseded.retain(|(key, _)| !going.contains(key));
    }

    async fn stored(&self) -> u64 {
        let found = self.site.stores[0].list("").await.unwrap();
        found.iter().map(|object| object.bytes).sum()
    }

    /// Every page version that a backup of the window has, stored once by the same code in a vault of its own.
    async fn minimum(&self) -> u64 {
        let versions: BTreeSet<u64> = self.window().flat_map(|day| &day.seeds).copied().collect();
        let pages: Vec<u8> = versions
            .into_iter()
            .flat_map(|seed| self.content.page(seed))
            .collect();
        let other = Site::new(1);
        other.back_up(&Self::files(&pages), None).await.unwrap();
        let found = other.stores[0].list("").await.unwrap();
        found.iter().map(|object| object.bytes).sum()
    }

    async fn assert_whole(&self) {
        for day in self.window() {
            let relation: Vec<u8> = day
                .seeds
                .iter()
                .flat_map(|seed| self.content.page(*seed))
                .collect();
            let restored = self.site.restore(&day.backup.manifest).await.unwrap();
            assert!(restored == Self::files(&relation), "{}", day.backup.name);
        }
    }
}

async fn sixty_days(content: Content, window: i64) {
    let figures = Sixty::live(content, window, true).await;
    let percent = figures.stored * 100 / figures.minimum;
    eprintln!("{window} days kept: {percent} % of the minimum, {figures:?}");
    assert!(percent <= 125, "{percent} % of the minimum: {figures:?}");
    // A pack that was rewritten lies there twice for a day, and of few packs one is a good part.
    assert!(figures.worst_percent <= 140, "{figures:?}");
    assert!(figures.backups as i64 >= window, "{figures:?}");
    // On average a twentieth of what is stored is written anew each day, and less for a longer window.
    let a_day = figures.rewritten / DAYS as u64;
    assert!(a_day <= figures.minimum / 15, "{a_day} of {figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_days_of_noise_seven_kept() {
    sixty_days(Content::Incompressible, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_days_of_noise_thirty_five_kept() {
    sixty_days(Content::Incompressible, 35).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_days_of_rows_seven_kept() {
    sixty_days(Content::HalfText, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_days_of_rows_thirty_five_kept() {
    sixty_days(Content::HalfText, 35).await;
}

/// What the figures would be otherwise, so that the ones above say something.
#[tokio::test(flavor = "multi_thread")]
async fn without_rewriting_sixty_days_are_too_much() {
    let figures = Sixty::live(Content::HalfText, 7, false).await;
    assert!(figures.stored * 100 / figures.minimum > 150, "{figures:?}");
}
