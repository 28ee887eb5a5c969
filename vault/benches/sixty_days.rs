//! What sixty days of daily differentials with 2 % change leave in a vault, against the least that can be stored: each
//! page version of the window once (DESIGN §3.1, ADR 18). Bytes of the whole store – packs, leaves, manifests, and what
//! waits for its grace – after the last day's prune.
//!
//!     cargo bench -p holdfast-vault --bench sixty_days
//!
//! `HOLDFAST_PAGES=131072` takes another size than 32768 pages (256 MiB). Everything is held in memory: about four times that.

#[path = "../tests/life/catalogue.rs"]
mod catalogue;
#[path = "../tests/life/content.rs"]
mod content;
#[path = "../tests/life/sixty_days.rs"]
mod sixty_days;

use std::time::Instant;

use content::{half_text, noise};
use sixty_days::{DAYS, live};

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let pages_of_it = std::env::var("HOLDFAST_PAGES").ok();
    let count = pages_of_it.map_or(32_768, |pages| pages.parse().expect("a number of pages"));
    println!("{count} pages, {DAYS} days, a differential each, 1 page of 50 changed at random; MB");
    println!(
        "kept  pages           compacted  minimum  stored  ratio  worst day  rewritten/day  backups  seconds"
    );
    let half_text = ("half text", half_text as fn(u64) -> Vec<u8>);
    let noise = ("noise", noise as fn(u64) -> Vec<u8>);
    for ((name, page), window, compacting) in [
        (half_text, 7, true),
        (half_text, 35, true),
        (noise, 7, true),
        (noise, 35, true),
        (half_text, 7, false),
    ] {
        let begun = Instant::now();
        let (_, figures) = runtime.block_on(live(page, count, window, compacting));
        let mb = |bytes: u64| bytes as f64 / 1e6;
        println!(
            "{window:>4}  {:<14}  {:<9}  {:>7.1}  {:>6.1}  {:>5.3}  {:>9.2}  {:>13.2}  {:>7}  {:>7.0}",
            name,
            if compacting { "daily" } else { "never" },
            mb(figures.minimum),
            mb(figures.stored),
            figures.stored as f64 / figures.minimum as f64,
            figures.worst_percent as f64 / 100.0,
            mb(figures.rewritten) / DAYS as f64,
            figures.backups,
            begun.elapsed().as_secs_f64(),
        );
    }
}
