//! Fairness: no caller has more than 32 requests under way (RELIABILITY §4.6). More wait their turn for a
//! while, because clients that retry are slower for everybody; a crowd that does not shrink is told so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const AT_ONCE: usize = 32;
const WAITING: Duration = Duration::from_secs(20);
/// Callers that are gone are forgotten when there are more than this.
const REMEMBERED: usize = 1_024;

#[derive(Default)]
pub struct Crowd(Mutex<HashMap<String, Arc<Semaphore>>>);

impl Crowd {
    /// A place, given back when dropped. `None`: none became free in time.
    pub async fn enter(&self, principal: &str) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if callers.len() > REMEMBERED {
                callers.retain(|_, places| Arc::strong_count(places) > 1);
            }
            let places = callers
                .entry(principal.to_owned())
                .or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)));
            Arc::clone(places)
        };
        tokio::time::timeout(WAITING, places.acquire_owned())
            .await
            .ok()?
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_one_caller_leaves_room_for_another() {
        let crowd = Crowd::default();
        let mut places = Vec::new();
        for _ in 0..AT_ONCE {
            places.push(crowd.enter("busy").await.expect("a place"));
        }
        assert!(crowd.enter("busy").await.is_none());
        assert!(crowd.enter("quiet").await.is_some());
        places.pop();
        assert!(crowd.enter("busy").await.is_some());
    }
}
