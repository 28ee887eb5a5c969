//! Random histories: backups, retention, compactions, prunes and restores in any order, and in the middle of some the
//! process or its store dies and another attempt follows, or none. Whatever happened, each backup that stands restores to
//! its bytes, and at last nothing lies in the store that nobody needs.
//!
//! `HOLDFAST_HISTORIES=200` runs more of them than usual. A failure prints its history, made as small as can be, and the
//! seed that repeats the run: `HOLDFAST_HISTORY_SEED=7`.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::TimeDelta;
use holdfast_vault::DataKey;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::assert_whole;
use super::catalogue::{Life, Proven};
use super::content::{Content, half_text};
use super::mortal::{Death, Mortal};

const HISTORIES: u32 = 6;

#[derive(Debug, Clone)]
enum Step {
    /// Days pass, something is written, and a backup taken.
    Backup {
        days: i64,
        writes: u64,
        dies: Option<Death>,
        again: bool,
    },
    Sweep,
    Compact {
        dies: Option<Death>,
        again: bool,
    },
    Prune {
        dies: Option<Death>,
    },
    /// A restore of one of the backups begins, and reads by the manifest of this moment.
    ReadingBegins(u8),
    ReadingEnds,
}

fn death() -> impl Strategy<Value = Option<Death>> {
    let death = (0u32..24, any::<bool>()).prop_map(|(after, done)| Death { after, done });
    proptest::option::weighted(0.4, death)
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let backup = (1..4i64, any::<u64>(), death(), any::<bool>());
    let backup = backup.prop_map(|(days, writes, dies, again)| Step::Backup {
        days,
        writes,
        dies,
        again,
    });
    let step = prop_oneof![
        6 => backup,
        3 => Just(Step::Sweep),
        4 => (death(), any::<bool>()).prop_map(|(dies, again)| Step::Compact { dies, again }),
        3 => death().prop_map(|dies| Step::Prune { dies }),
        1 => any::<u8>().prop_map(Step::ReadingBegins),
        1 => Just(Step::ReadingEnds),
    ];
    proptest::collection::vec(step, 15..45)
}

struct World {
    life: Life,
    store: Arc<Mortal>,
    content: Content,
    next_seed: u64,
    deaths: u32,
}

impl World {
    async fn new() -> Self {
        let (store, mortal) = Mortal::open().await;
        let mut it = Self {
            life: Life::new(store, DataKey::generate().unwrap(), 7, half_text),
            store: mortal,
            content: Content::new(),
            next_seed: 1000,
            deaths: 0,
        };
        for (name, pages) in [("1259", 24), ("16384", 14), ("16385", 7), ("16386", 2)] {
            let pages = it.fresh(pages);
            it.content.insert(format!("base/5/{name}"), pages);
        }
        it
    }

    fn fresh(&mut self, pages: usize) -> Vec<u64> {
        let from = self.next_seed;
        self.next_seed += pages as u64;
        (from..self.next_seed).collect()
    }

    /// A few changes of all kinds that files undergo.
    fn write(&mut self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..random.random_range(1..5) {
            let names: Vec<String> = self.content.keys().cloned().collect();
            let name = names[random.random_range(0..names.len())].clone();
            let pages = self.content[&name].len();
            match random.random_range(0..8) {
                0 if names.len() > 2 => {
                    self.content.remove(&name);
                }
                1 => {
                    let fresh = self.fresh(random.random_range(0..12));
                    let name = format!("base/5/{}", self.next_seed);
                    self.content.insert(name, fresh);
                }
                2 => {
                    let fresh = self.fresh(random.random_range(1..6));
                    self.content.get_mut(&name).unwrap().extend(fresh);
                }
                3 => {
                    let left = random.random_range(0..=pages);
                    self.content.get_mut(&name).unwrap().truncate(left);
                }
                kind => {
                    let share = random.random_range(0.02..0.6);
                    for page in 0..pages {
                        if random.random_bool(share) {
                            let seed = if kind == 4 { 0 } else { self.fresh(1)[0] };
                            self.content.get_mut(&name).unwrap()[page] = seed;
                        }
                    }
                }
            }
        }
    }

    /// Whether what was just done came to nothing because the store died in it.
    async fn has_died(&mut self, failed: bool, when: &str) -> bool {
        let died = self.store.revive();
        assert!(died || !failed, "{when} failed though nothing died");
        if died {
            self.deaths += 1;
            assert_whole(&mut self.life, when).await;
        }
        failed
    }

    async fn take(&mut self, step: &Step) {
        let when = format!("{step:?}");
        match step {
            Step::Backup {
                days,
                writes,
                dies,
                again,
            } => {
                self.life.now += TimeDelta::days(*days);
                self.write(*writes);
                let mut job = self.life.plan_snapshot(&self.content);
                self.store.dies(*dies);
                let made = self.life.snapshot(&mut job).await;
                if self.has_died(made.is_err(), &when).await {
                    match again {
                        true => self.life.snapshot(&mut job).await.unwrap(),
                        false => self.life.give_up_snapshot(&job),
                    }
                }
            }
            Step::Sweep => self.life.sweep(),
            Step::Compact { dies, again } => {
                let Some(mut job) = self.life.plan_compaction() else {
                    return;
                };
                self.store.dies(*dies);
                let done = self.life.compact(&mut job).await;
                if self.has_died(done.is_err(), &when).await {
                    match again {
                        true => {
                            self.life.compact(&mut job).await.unwrap();
                        }
                        false => self.life.give_up_compaction(&job),
                    }
                }
            }
            Step::Prune { dies } => {
                let prune = self.life.plan_prune();
                self.store.dies(*dies);
                let done = self.life.prune(&prune).await;
                self.has_died(done.is_err(), &when).await;
            }
            Step::ReadingBegins(which) => {
                let standing: Vec<_> = self.life.kept.iter().filter(|kept| !kept.going).collect();
                if !standing.is_empty() {
                    let read = standing[*which as usize % standing.len()];
                    let named = read.backup.manifest.clone();
                    self.life.reading.push(named);
                }
            }
            Step::ReadingEnds => self.life.reading.clear(),
        }
        if !matches!(step, Step::Sweep | Step::ReadingEnds) {
            assert_whole(&mut self.life, &when).await;
        }
    }
}

/// Days on which nothing new happens and nothing fails. At their end what lies in the store is what backups name, and
/// little of it is dead.
pub async fn converges(life: &mut Life, when: &str) {
    life.reading.clear();
    let mut runs = 0;
    for day in 0.. {
        assert!(
            day < 30,
            "{when}: after {day} days and {runs} runs there is still something to do"
        );
        let rewriting = life.plan_compaction();
        if rewriting.is_none() && life.is_tidy() {
            break;
        }
        if let Some(mut job) = rewriting {
            runs += 1;
            life.compact(&mut job).await.unwrap();
        }
        life.now += TimeDelta::days(1);
        let prune = life.plan_prune();
        life.prune(&prune).await.unwrap();
    }
    assert_whole(life, when).await;
    let stored = life.store.list("").await.unwrap();
    let keys = stored.iter().map(|object| &*object.key);
    // A process that was killed while it tried its store out has left what it tried with.
    let stored: BTreeSet<&str> = keys.filter(|key| !key.starts_with("probe/")).collect();
    let named = life.named();
    let (lost, left): (Vec<_>, Vec<_>) = (
        named.difference(&stored).collect(),
        stored.difference(&named).collect(),
    );
    assert!(
        lost.is_empty() && left.is_empty(),
        "{when}: lost {lost:?}, left {left:?}"
    );
    if named.is_empty() {
        return;
    }
    let (empty, _) = Mortal::open().await;
    let least = life.minimum(empty).await.stored("packs/").await;
    let packs = life.stored("packs/").await;
    // Of packs alone: leaves and manifests are a hundredth of a real server, and half of these.
    assert!(
        packs * 100 <= least * 125 + 64 * 1024,
        "{when}: {packs} of {least}"
    );
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let number = text.parse().ok();
    Some(number.unwrap_or_else(|| panic!("{name} is a number")))
}

fn config() -> ProptestConfig {
    #[expect(
        clippy::disallowed_methods,
        reason = "another history in each run, and its seed is printed"
    )]
    let seed = number("HOLDFAST_HISTORY_SEED").unwrap_or_else(rand::random);
    eprintln!("HOLDFAST_HISTORY_SEED={seed}");
    ProptestConfig {
        cases: number("HOLDFAST_HISTORIES").unwrap_or(HISTORIES),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_backups_restore_and_nothing_is_left_over(steps in history()) {
        runtime().block_on(async {
            let mut world = World::new().await;
            for step in &steps {
                world.take(step).await;
            }
            converges(&mut world.life, "at the end").await;
            world.life.proven = Proven::default();
            assert_whole(&mut world.life, "at the end, nothing believed").await;
        });
    }
}

/// Twelve days with a backup every second, the first ones unlinked and gone: there is something to rewrite and to delete.
async fn middle_of_life(seed: u64) -> World {
    let mut world = World::new().await;
    for backup in 0..7 {
        let step = Step::Backup {
            days: 2,
            writes: seed + backup,
            dies: None,
            again: false,
        };
        world.take(&step).await;
        world.life.sweep();
        let prune = world.life.plan_prune();
        world.life.prune(&prune).await.unwrap();
    }
    world
}

/// The attempt dies at each of its puts, before it and after it. Then a next attempt succeeds, or none follows: by turns.
#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_may_die_at_any_put() {
    let mut world = middle_of_life(1).await;
    let saved = world.store.saved();
    let job = world.life.plan_compaction().expect("much is dead");
    for done in [false, true] {
        for after in 0.. {
            let when = format!("dead after {after} puts, the next one done: {done}");
            world.store.back_to(&saved);
            let (mut life, mut job) = (world.life.clone(), job.clone());
            world.store.dies(Some(Death { after, done }));
            let ended = life.compact(&mut job).await;
            let died = world.store.revive();
            assert_eq!(ended.is_err(), died, "{when}");
            if !died {
                assert!(after > 6, "a run of {after} puts says little");
                break;
            }
            assert_whole(&mut life, &when).await;
            if (after + u32::from(done)) % 2 == 0 {
                life.compact(&mut job).await.unwrap();
                assert_whole(&mut life, &when).await;
            } else {
                life.give_up_compaction(&job);
            }
            converges(&mut life, &when).await;
        }
    }
}

/// And so may the prune that follows, at each of its deletes.
#[tokio::test(flavor = "multi_thread")]
async fn a_prune_may_die_at_any_delete() {
    let mut world = middle_of_life(2).await;
    let mut in_vain = world.life.plan_compaction().expect("much is dead");
    world.store.dies(Some(Death {
        after: 4,
        done: true,
    }));
    world.life.compact(&mut in_vain).await.unwrap_err();
    world.store.revive();
    world.life.compact(&mut in_vain).await.unwrap();
    world.life.now += TimeDelta::days(2);
    world.life.sweep();
    let saved = world.store.saved();
    let prune = world.life.plan_prune();
    for done in [false, true] {
        for after in 0.. {
            let when = format!("dead after {after} deletes, the next one done: {done}");
            world.store.back_to(&saved);
            let mut life = world.life.clone();
            world.store.dies(Some(Death { after, done }));
            let ended = life.prune(&prune).await;
            let died = world.store.revive();
            assert_eq!(ended.is_err(), died, "{when}");
            if !died {
                assert!(after > 6, "a prune of {after} deletes says little");
                break;
            }
            assert_whole(&mut life, &when).await;
            converges(&mut life, &when).await;
        }
    }
}
