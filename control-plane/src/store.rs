//! How things are kept.
