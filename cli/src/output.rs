//! What a command says. A reader that has seen enough (`holdfast status | head -1`) is no error and no
//! panic, which is what `println!` would make of it.

use std::fmt::Display;
use std::io::Write;

/// Writes a line to standard output. Nobody is left to be told when that fails.
pub fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
