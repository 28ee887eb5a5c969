//! What the scheduler does by itself, over virtual days and weeks, on a real metadata store.

mod compaction;
mod jobs;
mod on_demand;
mod retention;
mod snapshot;
