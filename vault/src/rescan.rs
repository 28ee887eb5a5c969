//! What a vault says by itself: a catalogue can be rebuilt from it (DESIGN §3.14). [`listing`] is what
//! keys alone show, [`scan`] reads what a data key opens.

pub mod listing;
pub mod scan;
