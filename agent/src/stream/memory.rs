//! What a stream holds in memory while stores are slower than PostgreSQL.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// Bytes in the hands of puts: plaintext until it is sealed, then what it has become.
#[derive(Debug, Default)]
pub(super) struct Memory(Arc<Held>);

#[derive(Debug, Default)]
struct Held {
    bytes: AtomicUsize,
    less: Notify,
}

impl Memory {
    pub fn held(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    pub fn hold(&self, bytes: usize) -> Holding {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Holding {
            of: Arc::clone(&self.0),
            bytes,
        }
    }

    /// Comes back when something was let go since the last time.
    pub async fn less(&self) {
        self.0.less.notified().await;
    }
}

/// One put's share. Dropping it lets go.
#[derive(Debug)]
pub(super) struct Holding {
    of: Arc<Held>,
    bytes: usize,
}

impl Holding {
    pub fn set(&mut self, bytes: usize) {
        if bytes >= self.bytes {
            self.of
                .bytes
                .fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            self.of
                .bytes
                .fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            self.of.less.notify_one();
        }
        self.bytes = bytes;
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The memory of a unit that was sealed, for the next one: fresh memory costs a fault for every four
/// kilobytes, more than reading the records in them. Kept only while the stream is busy.
#[derive(Debug, Clone, Default)]
pub(super) struct Spare(Arc<Mutex<Option<BytesMut>>>);

impl Spare {
    /// Nothing comes of it when somebody else still reads the bytes.
    pub fn give(&self, bytes: Bytes) {
        if let Ok(mut memory) = bytes.try_into_mut() {
            memory.clear();
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        }
    }

    pub fn take(&self) -> Option<BytesMut> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_held_shrinks_and_goes_and_that_is_heard() {
        let memory = Memory::default();
        let mut one = memory.hold(100);
        let other = memory.hold(50);
        one.set(120);
        assert_eq!(memory.held(), 170);
        one.set(20);
        memory.less().await;
        assert_eq!(memory.held(), 70);
        drop(other);
        memory.less().await;
        drop(one);
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn memory_is_given_on_unless_it_is_read() {
        let spare = Spare::default();
        let mut memory = BytesMut::with_capacity(1 << 20);
        memory.resize(1 << 20, 7);
        let bytes = memory.split().freeze();
        drop(memory);
        let reader = bytes.clone();
        spare.give(bytes);
        assert!(spare.take().is_none());
        spare.give(reader);
        let again = spare.take().expect("nobody reads it");
        assert!(again.is_empty() && again.capacity() >= 1 << 20);
    }
}
