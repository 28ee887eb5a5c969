//! PostgreSQL's page checksum, and what a page found in a running server's file may look like.
//!
//! A backup reads files while PostgreSQL writes them, so a page can be torn; WAL repairs every page
//! that was written after the backup began. A page that is wrong *and* older than that is damage
//! that a restore would bring back, which is what this finds (RELIABILITY §5.2.5).
//!
//! The algorithm is the one of `storage/checksum_impl.h`: 32 interleaved FNV-1a sums over the page
//! taken as little-endian words, folded, mixed with the block number.

use holdfast_domain::Lsn;

/// PostgreSQL's block size. Clusters of another are refused when a backup starts.
pub const PAGE_BYTES: usize = 8192;

/// Blocks of one relation segment file: 1 GiB.
pub const SEGMENT_BLOCKS: u32 = 131_072;

/// `pd_checksum`, counted as zero while the sum is made.
const CHECKSUM: std::ops::Range<usize> = 8..10;
/// `pd_upper`, which is 0 on a page that was never initialised.
const UPPER: std::ops::Range<usize> = 14..16;

const LANES: usize = 32;
const FNV_PRIME: u32 = 16_777_619;

/// Where each lane starts, so that equal words in different lanes count differently.
const BASE: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// How a page stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All zero: allocated, never written.
    New,
    Good,
    /// The sum does not fit. `lsn` is what the page says was its last change.
    Bad {
        lsn: Lsn,
    },
}

/// Checks one whole page. `block` counts from the start of the relation, not of the segment file.
#[must_use]
pub fn check(page: &[u8], block: u32) -> Verdict {
    debug_assert_eq!(page.len(), PAGE_BYTES);
    let uninitialised = page[UPPER] == [0, 0];
    if uninitialised {
        if page.iter().all(|byte| *byte == 0) {
            return Verdict::New;
        }
    } else if checksum(page, block).to_le_bytes() == page[CHECKSUM] {
        return Verdict::Good;
    }
    Verdict::Bad {
        lsn: last_change(page),
    }
}

/// `pd_lsn`: two little-endian halves, the high one first.
#[must_use]
pub fn last_change(page: &[u8]) -> Lsn {
    let half = |at: usize| {
        u64::from(u32::from_le_bytes([
            page[at],
            page[at + 1],
            page[at + 2],
            page[at + 3],
        ]))
    };
    Lsn(half(0) << 32 | half(4))
}

/// The sum that a page of this content has at this block.
#[must_use]
pub fn checksum(page: &[u8], block: u32) -> u16 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(
            unsafe_code,
            reason = "the processor has just said that it has these instructions"
        )]
        return unsafe { checksum_avx2(page, block) };
    }
    checksum_of(page, block)
}

/// The same with instructions that not every processor of this architecture has: the oldest cannot
/// multiply a whole register of words at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn checksum_avx2(page: &[u8], block: u32) -> u16 {
    checksum_of(page, block)
}

#[inline(always)]
fn checksum_of(page: &[u8], block: u32) -> u16 {
    let mut sums = BASE;
    for (row_number, row) in page.chunks_exact(LANES * 4).enumerate() {
        for (lane, (sum, word)) in sums.iter_mut().zip(row.chunks_exact(4)).enumerate() {
            let mut value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            if row_number == 0 && lane == CHECKSUM.start / 4 {
                value &= 0xFFFF_0000;
            }
            *sum = mix(*sum, value);
        }
    }
    // Two rounds of zeroes let the last words reach every bit of their sums.
    for sum in &mut sums {
        *sum = mix(mix(*sum, 0), 0);
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    // Never 0, which would read as "no checksum".
    (folded % 65_535 + 1) as u16
}

#[inline(always)]
fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_with(checksum_of: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..PAGE_BYTES).map(|at| (at * 31 % 251) as u8).collect();
        let sum = checksum(&page, checksum_of).to_le_bytes();
        page[CHECKSUM].copy_from_slice(&sum);
        page
    }

    #[test]
    fn a_zero_page_is_new_and_not_damaged() {
        assert_eq!(check(&[0; PAGE_BYTES], 7), Verdict::New);
    }

    #[test]
    fn the_sum_covers_every_byte_and_the_block_number() {
        let page = page_with(3);
        assert_eq!(check(&page, 3), Verdict::Good);
        assert!(
            matches!(check(&page, 4), Verdict::Bad { .. }),
            "a page at another block's place"
        );
        for at in [0, 9, 100, 4096, PAGE_BYTES - 1] {
            let mut flipped = page.clone();
            flipped[at] ^= 0x10;
            assert!(
                matches!(check(&flipped, 3), Verdict::Bad { .. }),
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_page_that_was_never_initialised_but_is_not_zero_is_bad() {
        let mut page = vec![0; PAGE_BYTES];
        page[5000] = 1;
        assert!(matches!(check(&page, 0), Verdict::Bad { .. }));
    }

    #[test]
    fn a_bad_page_names_its_last_change() {
        let mut page = page_with(0);
        page[0..8].copy_from_slice(&[0x16, 0, 0, 0, 0x48, 0xD8, 0x74, 0xB3]);
        assert_eq!(
            check(&page, 0),
            Verdict::Bad {
                lsn: Lsn(0x16_B374_D848)
            }
        );
    }
}
