//! (being written)
#[derive(Debug)] pub enum Refusal {}
