//! How long a restore waits for a store that does not answer.
//!
//! A store that says 503 for 20 s must cost 20 s, not the restore (F36). One budget for everything a
//! restore reads, longer than any short outage and shorter than somebody's patience.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::Result;

const BUDGET: Duration = Duration::from_secs(120);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Tries again while the error is worth it and the budget lasts. The last error is the answer.
pub async fn patiently<T, F>(what: &str, attempt: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + BUDGET;
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt().await {
            Err(error) if error.is_retryable() && Instant::now() + pause < deadline => {
                tracing::warn!(%error, what, "cannot be read yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            settled => return settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::error::Error;

    fn failure(retryable: bool) -> Error {
        Error::Failed { code: "ObjectStoreUnavailable", message: "503".into(), retryable }
    }

    // F36, on paused time
    #[tokio::test(start_paused = true)]
    async fn an_outage_of_a_minute_is_waited_out() {
        let started = Instant::now();
        let got = patiently("it", || async {
            if started.elapsed() < Duration::from_secs(60) { Err(failure(true)) } else { Ok(7) }
        })
        .await;
        assert!(matches!(got, Ok(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_outage_ends_with_its_own_error() {
        let got: Result<()> = patiently("it", || async { Err(failure(true)) }).await;
        assert_eq!(got.expect_err("given up").code(), "ObjectStoreUnavailable");
    }

    #[tokio::test(start_paused = true)]
    async fn damage_is_not_tried_again() {
        let tries = AtomicU32::new(0);
        let got: Result<()> = patiently("it", || async {
            tries.fetch_add(1, Ordering::Relaxed);
            Err(failure(false))
        })
        .await;
        assert!(got.is_err());
        assert_eq!(tries.load(Ordering::Relaxed), 1);
    }
}
