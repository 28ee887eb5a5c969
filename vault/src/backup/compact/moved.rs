//! Where the pages of a frame go that is copied.

use crate::backup::{PAGES_PER_FRAME, PageHash};

/// A frame of a pack that is rewritten: which of its pages are needed, and where they begin among all
/// pages copied. Pages that the newest backup has are kept apart from those that only older ones have:
/// the latter go soon and all together, without being copied again.
#[derive(Default)]
pub struct Moved {
    pub newest: u128,
    pub older: u128,
    pub newest_at: u64,
    pub older_at: u64,
}

/// Pages on their way into a frame.
#[derive(Default)]
pub struct Filling {
    pub content: Vec<u8>,
    pub hashes: Vec<PageHash>,
}

impl Moved {
    /// Which of the new frames, and which page of it.
    pub fn place_of(&self, slot: u32) -> Option<(usize, u32)> {
        let bit = bits(slot, 1);
        let (kind, begins) = match self.newest & bit {
            0 => (self.older, self.older_at),
            _ => (self.newest, self.newest_at),
        };
        if kind & bit == 0 {
            return None;
        }
        let at = begins + u64::from((kind & (bit - 1)).count_ones());
        let per_frame = PAGES_PER_FRAME as u64;
        Some(((at / per_frame) as usize, (at % per_frame) as u32))
    }
}

/// Pages `slot` to `slot + pages` of a frame; [`PAGES_PER_FRAME`] are as many as there are bits.
pub fn bits(slot: u32, pages: u32) -> u128 {
    let ones = u128::MAX.checked_shr(128_u32.saturating_sub(pages));
    ones.unwrap_or(0).checked_shl(slot).unwrap_or(0)
}

pub fn slots(wanted: u128) -> impl Iterator<Item = usize> {
    (0..PAGES_PER_FRAME).filter(move |slot| wanted >> slot & 1 == 1)
}

const _: () = assert!(PAGES_PER_FRAME == u128::BITS as usize);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_are_the_slots_of_a_run(first in 0u32..128, length in 1u32..=128) {
            let pages = length.min(128 - first);
            let run: Vec<usize> = slots(bits(first, pages)).collect();
            let expected: Vec<usize> = (first..first + pages).map(|slot| slot as usize).collect();
            prop_assert_eq!(run, expected);
        }

        #[test]
        fn every_page_that_is_needed_has_a_place_of_its_own(
            newest in any::<u128>(), older in any::<u128>(), begins in 0u64..1000,
        ) {
            let frames = PAGES_PER_FRAME as u64;
            let moved = Moved {
                newest,
                older: older & !newest,
                newest_at: begins,
                older_at: (begins / frames + 5) * frames,
            };
            let place = |slot: u32| moved.place_of(slot);
            let mut places: Vec<_> = (0..128).filter_map(place).collect();
            prop_assert_eq!(places.len() as u32, (newest | older).count_ones());
            places.sort_unstable();
            places.dedup();
            prop_assert_eq!(places.len() as u32, (newest | older).count_ones());
            for slot in 0..128 {
                prop_assert_eq!(place(slot).is_some(), (newest | older) >> slot & 1 == 1);
            }
        }
    }
}
