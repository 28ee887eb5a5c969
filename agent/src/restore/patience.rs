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
    patiently_for(BUDGET, FIRST_PAUSE, what, attempt).await
}

async fn patiently_for<T, F>(
    budget: Duration,
    mut pause: Duration,
    what: &str,
    attempt: impl Fn() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + budget;
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
        Error::Failed {
            code: "ObjectStoreUnavailable",
            message: "503".into(),
            retryable,
        }
    }

    const SHORT: Duration = Duration::from_millis(1);

    // F36, in small
    #[tokio::test]
    async fn an_outage_shorter_than_the_budget_is_waited_out() {
        let tries = AtomicU32::new(0);
        let got = patiently_for(BUDGET, SHORT, "it", || async {
            if tries.fetch_add(1, Ordering::Relaxed) < 5 {
                Err(failure(true))
            } else {
                Ok(7)
            }
        })
        .await;
        assert!(matches!(got, Ok(7)));
        assert!(BUDGET > Duration::from_secs(60));
    }

    #[tokio::test]
    async fn an_endless_outage_ends_with_its_own_error() {
        let got: Result<()> =
            patiently_for(10 * SHORT, SHORT, "it", || async { Err(failure(true)) }).await;
        assert_eq!(got.expect_err("given up").code(), "ObjectStoreUnavailable");
    }

    #[tokio::test]
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
