// SPDX-License-Identifier: GPL-2.0
//! [`SegmentUsage`]: the 8 bytes of the segment usage that describe one segment.

use super::{SEGMENT_SHIFTS, UNIT};

/// How one segment is used, as a checkpoint stores it.
///
/// ```text
/// 63    62       55 54        32 31    0
/// | free | unused  | live units | seed |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentUsage {
    /// Neither this checkpoint nor the one before it needs the segment.
    pub free: bool,
    /// The end that the log left unused, in 1/256 of a segment; 0 as long as that is not known.
    pub unused_end: u8,
    /// Compressing its data records again gains nothing.
    pub recompressed: bool,
    /// Live units of data and of the sector table, as the table of this checkpoint sees them.
    pub live: u32,
    /// Checksum seed of the present incarnation.
    pub seed: u32,
}

/// Bits of the fields, lowest first.
const SEED_BITS: u32 = u32::BITS;
const LIVE_BITS: u32 = 22;
const UNUSED_BITS: u32 = u8::BITS;
/// Places of the fields.
const LIVE_SHIFT: u32 = SEED_BITS;
const RECOMPRESSED_SHIFT: u32 = LIVE_SHIFT + LIVE_BITS;
const UNUSED_SHIFT: u32 = RECOMPRESSED_SHIFT + 1;
const FREE_SHIFT: u32 = UNUSED_SHIFT + UNUSED_BITS;

const _: () = {
    // The flag is the highest bit.
    assert!(FREE_SHIFT + 1 == u64::BITS);
    // While there are detached subtrees, a segment may count twice the units that it holds.
    assert!((2u64 << *SEGMENT_SHIFTS.end()) / (UNIT as u64) < 1 << LIVE_BITS);
};

impl SegmentUsage {
    /// The word that is stored.
    pub fn pack(self) -> u64 {
        let live = u64::from(self.live) & ((1 << LIVE_BITS) - 1);
        (u64::from(self.free) << FREE_SHIFT)
            | (u64::from(self.unused_end) << UNUSED_SHIFT)
            | (u64::from(self.recompressed) << RECOMPRESSED_SHIFT)
            | (live << LIVE_SHIFT)
            | u64::from(self.seed)
    }

    /// The inverse of [`pack`](Self::pack). Every word has a meaning; whether the counts are possible is for the caller to
    /// check.
    pub fn unpack(word: u64) -> Self {
        Self {
            free: word >> FREE_SHIFT == 1,
            unused_end: (word >> UNUSED_SHIFT) as u8,
            recompressed: (word >> RECOMPRESSED_SHIFT) & 1 == 1,
            live: (word >> LIVE_SHIFT) as u32 & ((1 << LIVE_BITS) - 1),
            seed: word as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_page_of_the_format_puts_them() {
        let usage = SegmentUsage {
            free: false,
            unused_end: 0x81,
            recompressed: false,
            live: 0x12_3456,
            seed: 0xdead_beef,
        };
        assert_eq!(usage.pack(), 0x4092_3456_dead_beef);
        let free = SegmentUsage {
            free: true,
            ..SegmentUsage::default()
        };
        assert_eq!(free.pack(), 1 << 63);
        let recompressed = SegmentUsage {
            recompressed: true,
            ..usage
        };
        assert_eq!(recompressed.pack(), usage.pack() | (1 << 54));
        for word in [0, u64::MAX, usage.pack(), free.pack(), recompressed.pack()] {
            assert_eq!(SegmentUsage::unpack(word).pack(), word);
        }
    }
}
