//! The API on a real metadata store, with a manual clock and scripted nodes: what it answers, whom it
//! lets in, what it refuses.

mod backup;
mod described;
mod hostile;
mod metrics;
mod operation;
mod refusals;
mod resources;
mod rights;
mod server;
mod terraform;
mod tokens;
mod with_server;
