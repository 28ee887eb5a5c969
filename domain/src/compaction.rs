//! Which objects are worth rewriting, so that stored bytes follow what is restorable (ADR 18).
//!
//! A pack goes when no backup names it any more; until then pages in it that no backup needs are dead
//! weight. Rewriting copies what lives into new packs, and all backups that named the old one name the
//! new ones instead.

use serde::{Deserialize, Serialize};

/// A pack or leaf object, and how much of it the complete backups need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectUse {
    pub key: String,
    pub bytes: u64,
    /// About; at most `bytes`. A wrong number costs work or space and never a page: what is copied is
    /// what the backups' leaves name, found when it is done.
    pub living: u64,
}

impl ObjectUse {
    fn living(&self) -> u64 {
        self.living.min(self.bytes)
    }

    fn dead(&self) -> u64 {
        self.bytes - self.living()
    }
}

/// Dead bytes for every hundred living ones that nothing is done about: copying them would cost more
/// requests and bytes than they do.
const TOLERATED_PERCENT: u64 = 10;
/// Where a run stops. A run a day from here on keeps below what is tolerated.
const GOAL_PERCENT: u64 = 5;
/// What has this many living bytes of a hundred is left alone: to free little, much would be copied.
const LEFT_ALONE_PERCENT: u64 = 90;
/// A run copies at most this share of what lives, or [`SMALL_RUN`], or one object.
const RUN_PERCENT: u64 = 10;
/// A pack as this version writes them. What is copied lies there twice for the grace, also where little lies.
const SMALL_RUN: u64 = 8 << 20;

/// The objects to rewrite now, the deadest first; none when it is not worth it.
#[must_use]
pub fn choose(objects: &[ObjectUse]) -> Vec<&ObjectUse> {
    let living: u64 = objects.iter().map(ObjectUse::living).sum();
    let mut dead: u64 = objects.iter().map(ObjectUse::dead).sum();
    if dead <= percent(living, TOLERATED_PERCENT) {
        return Vec::new();
    }
    let mut candidates: Vec<&ObjectUse> = objects
        .iter()
        .filter(|object| object.living() < percent(object.bytes, LEFT_ALONE_PERCENT))
        .collect();
    let share = |object: &ObjectUse| {
        u128::from(object.living()) * u128::from(u32::MAX) / u128::from(object.bytes.max(1))
    };
    candidates.sort_by(|a, b| (share(a), &a.key).cmp(&(share(b), &b.key)));
    let mut room = percent(living, RUN_PERCENT).max(SMALL_RUN);
    let mut chosen = Vec::new();
    for object in candidates {
        let fits = chosen.is_empty() || object.living() <= room;
        if dead <= percent(living, GOAL_PERCENT) || !fits {
            break;
        }
        room = room.saturating_sub(object.living());
        dead -= object.dead();
        chosen.push(object);
    }
    chosen
}

fn percent(of: u64, share: u64) -> u64 {
    u64::try_from(u128::from(of) * u128::from(share) / 100).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn objects() -> impl Strategy<Value = Vec<ObjectUse>> {
        proptest::collection::vec((1u64..=64 << 20, 0u64..=100), 0..200).prop_map(|sizes| {
            let object = |(number, (bytes, share))| ObjectUse {
                key: format!("packs/{number:03}"),
                bytes,
                living: percent(bytes, share),
            };
            sizes.into_iter().enumerate().map(object).collect()
        })
    }

    fn sums<'a>(objects: impl IntoIterator<Item = &'a ObjectUse>) -> (u64, u64) {
        objects.into_iter().fold((0, 0), |(living, dead), object| {
            (living + object.living(), dead + object.dead())
        })
    }

    proptest! {
        #[test]
        fn a_run_is_bounded_and_goes_as_far_as_it_may(objects in objects()) {
            let (living, dead) = sums(&objects);
            let chosen = choose(&objects);
            let (copied, freed) = sums(chosen.iter().copied());
            let bound = percent(living, RUN_PERCENT).max(SMALL_RUN);
            let bound = chosen.first().map_or(bound, |first| bound.max(first.living()));
            prop_assert!(copied <= bound, "{copied} of {bound}");
            if dead <= percent(living, TOLERATED_PERCENT) {
                prop_assert!(chosen.is_empty());
            } else {
                let left = || objects.iter().filter(|object| !chosen.contains(object));
                let next = left()
                    .filter(|object| object.living() < percent(object.bytes, LEFT_ALONE_PERCENT))
                    .map(|object| object.living())
                    .max()
                    .unwrap_or(0);
                let enough = dead - freed <= percent(living, GOAL_PERCENT);
                prop_assert!(enough || next == 0 || copied + next > bound);
            }
        }

        #[test]
        fn what_is_rewritten_is_deader_than_what_is_not(objects in objects()) {
            let chosen = choose(&objects);
            let share = |object: &ObjectUse| object.living() as f64 / object.bytes as f64;
            let most = chosen.iter().map(|object| share(object)).fold(0.0, f64::max);
            for object in objects.iter().filter(|object| !chosen.contains(object)) {
                prop_assert!(chosen.is_empty() || share(object) >= most - 1e-6);
            }
        }

        #[test]
        fn runs_come_to_an_end_and_little_is_dead_then(objects in objects()) {
            let mut objects = objects;
            let (lived, _) = sums(&objects);
            for run in 0.. {
                let chosen: Vec<ObjectUse> = choose(&objects).into_iter().cloned().collect();
                if chosen.is_empty() {
                    break;
                }
                prop_assert!(run < 200, "never enough");
                let (copied, _) = sums(&chosen);
                objects.retain(|object| !chosen.contains(object));
                objects.push(ObjectUse { key: format!("packs/new-{run}"), bytes: copied, living: copied });
            }
            let (living, dead) = sums(&objects);
            prop_assert_eq!(living, lived);
            // What is left alone can be dead by a ninth of what lives.
            prop_assert!(dead <= living / 8 + objects.len() as u64, "{dead} of {living}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_do_no_harm() {
        let odd = |bytes, living| ObjectUse {
            key: "packs/x".to_owned(),
            bytes,
            living,
        };
        assert!(choose(&[odd(1, u64::MAX)]).is_empty());
        assert_eq!(choose(&[odd(8 << 20, 0), odd(0, 5)]).len(), 1);
    }
}
