//! How fast something may go: bytes a second, shared by everybody who takes from the same [`Pace`].
//!
//! A bucket that fills at the rate and is empty before it is waited for. Whoever comes first is served first,
//! so that one who takes much does not starve the others. Waiting is one timer for the one at the front; it can be given up at
//! any moment and has taken nothing until it ends.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// What may go at once after a pause: as much as in this part of a second, and never less than [`SMALLEST_BURST`].
const BURSTS_A_SECOND: u64 = 8;
/// One read of a backup. Timers tick in milliseconds, so that much smaller pieces would be slower than they may be.
const SMALLEST_BURST: u64 = 1 << 20;
/// Credit is counted in billionths of bytes, so that nanoseconds times bytes a second is exact.
const BILLION: i128 = 1_000_000_000;

/// A rate, or none. Clones share it.
///
/// In every window of time at most `rate × window + burst` bytes go, where `burst` is an eighth of what goes in a
/// second, at least 1 MiB, or the largest piece that was taken in one, if that is larger.
#[derive(Debug, Clone, Default)]
pub struct Pace(Option<Arc<Bucket>>);

#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    /// In bytes.
    burst: u64,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    /// Billionths of bytes that may go. Below zero after a piece larger than the burst.
    credit: i128,
    at: Instant,
}

impl Pace {
    /// As fast as it goes.
    #[must_use]
    pub fn unlimited() -> Self {
        Self(None)
    }

    /// So many bytes in each second. The first burst may go at once.
    #[must_use]
    pub fn of(bytes_per_second: NonZeroU64) -> Self {
        let bytes_per_second = bytes_per_second.get();
        let burst = (bytes_per_second / BURSTS_A_SECOND).max(SMALLEST_BURST);
        Self(Some(Arc::new(Bucket {
            bytes_per_second,
            burst,
            level: Mutex::new(Level {
                credit: i128::from(burst) * BILLION,
                at: Instant::now(),
            }),
        })))
    }

    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.0.is_none()
    }

    /// Waits until so many bytes may go, and counts them. Dropped before its end, it has counted none.
    pub async fn take(&self, bytes: u64) {
        let Some(bucket) = &self.0 else { return };
        // Fair: the lock is given in the order in which it was asked for, and kept while its holder waits.
        let mut level = bucket.level.lock().await;
        loop {
            level.fill(bucket, Instant::now());
            // What is larger than the bucket goes when that is full, and is paid for by those who come next.
            let lacking = i128::from(bytes.min(bucket.burst)) * BILLION - level.credit;
            if lacking <= 0 {
                level.credit -= i128::from(bytes) * BILLION;
                return;
            }
            let nanoseconds = lacking
                .unsigned_abs()
                .div_ceil(bucket.bytes_per_second.into());
            let wait = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            // A year from now is as good as never: another look does no harm.
            sleep_until(level.at + wait.min(Duration::from_secs(365 * 86_400))).await;
        }
    }
}

impl Level {
    fn fill(&mut self, bucket: &Bucket, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_nanos();
        let gained = i128::try_from(since)
            .unwrap_or(i128::MAX)
            .saturating_mul(bucket.bytes_per_second.into());
        let full = i128::from(bucket.burst) * BILLION;
        self.credit = self.credit.saturating_add(gained).min(full);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Book;

    use proptest::prelude::*;

    use super::*;

    fn pace(bytes_per_second: u64) -> Pace {
        Pace::of(NonZeroU64::new(bytes_per_second).expect("a rate"))
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_burst_every_byte_takes_its_time() {
        let begun = Instant::now();
        let pace = pace(1 << 20);
        pace.take(1 << 20).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        pace.take(1 << 20).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        // Larger than the bucket: it goes when that is full, and the next one waits for what it took.
        pace.take(4 << 20).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        pace.take(1 << 19).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(5500));
        // A long pause is worth one burst.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let rested = Instant::now();
        pace.take(1 << 20).await;
        pace.take(1 << 18).await;
        assert_eq!(rested.elapsed(), Duration::from_millis(250));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_has_taken_nothing() {
        let begun = Instant::now();
        let pace = pace(1 << 20);
        pace.take(1 << 20).await;
        let waited = tokio::time::timeout(Duration::from_millis(500), pace.take(1 << 20)).await;
        waited.expect_err("it would have taken a second");
        pace.take(1 << 20).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_take_from_one_pace_get_the_same() {
        let pace = pace(8 << 20);
        // The first burst would go to whoever is first.
        pace.take(1 << 20).await;
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let (pace, taken) = (pace.clone(), Arc::new(Book::new(0_u64)));
                let counter = Arc::clone(&taken);
                tokio::spawn(async move {
                    loop {
                        pace.take(64 << 10).await;
                        *counter.lock().expect("whole") += 1;
                    }
                });
                taken
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let taken: Vec<u64> = takers
            .iter()
            .map(|one| *one.lock().expect("whole"))
            .collect();
        let (least, most) = (taken.iter().min(), taken.iter().max());
        assert!(
            most.zip(least)
                .is_some_and(|(most, least)| most - least <= 1),
            "{taken:?}"
        );
        assert!(taken.iter().sum::<u64>() >= 10 * 128 - 4, "{taken:?}");
    }

    proptest! {
        #[test]
        fn no_window_sees_more_than_its_share_and_nobody_waits_for_longer_than_need_be(
            rate in 1_u64..64 << 20,
            pieces in proptest::collection::vec((1_u64..16 << 20, 0_u64..5_000), 1..60),
            takers in 1_usize..5,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            let (begun, gone) = runtime.block_on(async {
                let (begun, pace) = (Instant::now(), pace(rate));
                let gone = Arc::new(Book::new(Vec::new()));
                let shares = (0..takers).map(|nth| {
                    let (pace, gone) = (pace.clone(), Arc::clone(&gone));
                    let mine: Vec<_> = pieces.iter().copied().skip(nth).step_by(takers).collect();
                    tokio::spawn(async move {
                        for (bytes, pause_ms) in mine {
                            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                            pace.take(bytes).await;
                            gone.lock().expect("whole").push((Instant::now(), bytes));
                        }
                    })
                });
                for share in shares.collect::<Vec<_>>() {
                    share.await.expect("taken");
                }
                let gone = std::mem::take(&mut *gone.lock().expect("whole"));
                (begun, gone)
            });
            let largest = pieces.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0);
            let burst = u128::from((rate / BURSTS_A_SECOND).max(SMALLEST_BURST).max(largest));
            for (from, (start, _)) in gone.iter().enumerate() {
                let mut sum = 0;
                for (end, bytes) in &gone[from..] {
                    sum += u128::from(*bytes);
                    let window = (*end - *start).as_nanos();
                    let allowed = u128::from(rate) * window + burst * 1_000_000_000;
                    prop_assert!(sum * 1_000_000_000 <= allowed, "{sum} bytes in {window} ns");
                }
            }
            // All pauses of one taker, and the rate for everything; a timer may be late by its tick.
            let pauses: u64 = pieces.iter().map(|(_, pause)| pause).sum();
            let total: u128 = pieces.iter().map(|(bytes, _)| u128::from(*bytes)).sum();
            let longest = u128::from(pauses) * 1_000_000
                + total * 1_000_000_000 / u128::from(rate)
                + (SMALLEST_BURST as u128 * 1_000_000_000) / u128::from(rate)
                + pieces.len() as u128 * 2_000_000;
            let last = gone.iter().map(|(at, _)| *at).max().expect("something went");
            prop_assert!((last - begun).as_nanos() <= longest, "{:?}", last - begun);
        }
    }
}
