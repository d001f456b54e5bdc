// SPDX-License-Identifier: GPL-2.0
//! [`Fingerprints`]: sums over parts of the sector table, which a superblock has behind its fields.
//!
//! Opening an image does not need them. They prove to a repair that a part of the table that it put together is the one
//! of the checkpoint, and to a check that the table is.

use super::{le32, le64, put, Entry, Superblock, BLOCK_SIZE, SUPERBLOCK_RECORD};
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{Platform, Sabotage};
use core::ops::Range;

/// Bytes that a disk writes atomically. Each such sector of a superblock has its own header, because a power cut may
/// leave some of the new sectors beside old ones.
const SECTOR: usize = 512;
/// Sectors of fingerprints in a superblock: first those of ranges, then those of stripes.
const SECTORS: usize = (BLOCK_SIZE - SUPERBLOCK_RECORD) / SECTOR;
const RANGE_SECTORS: usize = 4;
/// Fingerprints in a sector.
const IN_SECTOR: usize = 61;
/// Fingerprints of ranges in a superblock; they are the first ones.
pub const RANGES: usize = RANGE_SECTORS * IN_SECTOR;
/// Fingerprints of stripes in a superblock; they follow.
pub const STRIPES: usize = FINGERPRINTS - RANGES;
/// Fingerprints in a superblock.
pub const FINGERPRINTS: usize = SECTORS * IN_SECTOR;
/// log2 of the blocks that belong to one stripe before the next begins.
const STRIPE_SHIFT: u32 = 4;
/// All fingerprints of a sector are known.
const ALL_KNOWN: u64 = (1 << IN_SECTOR) - 1;
/// Largest log2 of the blocks of a range: a record names no larger block.
const MOST_SHIFT: u32 = 44;

/// Places in a sector.
const KNOWN: usize = 8;
const SUMS: usize = 16;
const SHIFT: usize = SUMS + 8 * IN_SECTOR;
const BALANCE: usize = SHIFT + 4;

const _: () = assert!(SUPERBLOCK_RECORD % SECTOR == 0 && BALANCE + 4 == SECTOR);

/// The value of the entry of a block in a sum: 0 for a hole, otherwise the finalizer of SplitMix64 over both.
pub fn fingerprint(block: u64, entry: Entry) -> u64 {
    if entry.is_hole() {
        return 0;
    }
    let mut x = entry
        .0
        .wrapping_add(block.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Fingerprints of parts of a sector table. Each is the sum, modulo 2^64, of the values of the entries of its blocks, so
/// a change of an entry changes it without a look at the others.
///
/// Each block belongs to two parts. A *range* is a number of neighbouring blocks, so large that [`RANGES`] of them are
/// the device. A *stripe* is every [`STRIPES`]th piece of 16 blocks. A few lost blocks spoil few of either, and a block
/// is proven by one of its two parts.
///
/// ```text
/// 0    u64      tag of the superblock that the sector was written with: its salt XOR its generation
/// 8    u64      bit i: fingerprint i of the sector is known
/// 16   u64[61]  fingerprints: in sectors 0 to 3 of ranges, in sectors 4 to 6 of stripes
/// 504  u8       log2 of the blocks of a range, or of a piece of a stripe
/// 505  zero
/// 508  u32      balance: the sector leaves the checksum of the superblock as it is with zeros in its place
/// ```
pub struct Fingerprints {
    /// log2 of the blocks of a range.
    shift: u32,
    /// Bit `i` of word `s`: fingerprint `IN_SECTOR * s + i` is known.
    known: [u64; SECTORS],
    sums: Vec<u64>,
}

/// log2 of the blocks of the smallest ranges that `blocks` blocks can be divided into.
fn shift_for(blocks: u64) -> u32 {
    let mut shift = 0;
    while blocks.saturating_sub(1) >> shift >= RANGES as u64 {
        shift += 1;
    }
    shift
}

/// The number of the stripe that a block belongs to, as that of a fingerprint.
fn stripe_of(block: u64) -> usize {
    RANGES + ((block >> STRIPE_SHIFT) % STRIPES as u64) as usize
}

impl Fingerprints {
    /// Those of an empty table for `blocks` blocks.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub fn empty(blocks: u64) -> Result<Self> {
        Ok(Self {
            shift: shift_for(blocks),
            known: [ALL_KNOWN; SECTORS],
            sums: Vec::filled(0, FINGERPRINTS)?,
        })
    }

    /// Those of an empty table, with the same ranges.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(crate) fn emptied(&self) -> Result<Self> {
        Ok(Self {
            shift: self.shift,
            ..Self::empty(1)?
        })
    }

    /// The numbers of the two fingerprints that a block belongs to: that of its range, and that of its stripe. The
    /// former is out of bounds for a block behind the end of the device that the ranges were chosen for.
    pub fn parts_of(&self, block: u64) -> [usize; 2] {
        let range = (block >> self.shift).min(FINGERPRINTS as u64) as usize;
        let range = if range < RANGES { range } else { FINGERPRINTS };
        [range, stripe_of(block)]
    }

    /// The blocks of the range with this fingerprint; `None` for a stripe.
    pub fn blocks_of(&self, part: usize) -> Option<Range<u64>> {
        let range = part as u64;
        (part < RANGES).then(|| range << self.shift..(range + 1) << self.shift)
    }

    /// The block after the last one that belongs to the same range and the same stripe as `block`, without a gap.
    pub(crate) fn end_of_piece(&self, block: u64) -> u64 {
        let shift = self.shift.min(STRIPE_SHIFT);
        ((block >> shift) + 1) << shift
    }

    /// A fingerprint, if it is known.
    pub fn get(&self, part: usize) -> Option<u64> {
        let known = (self.known.get(part / IN_SECTOR)? >> (part % IN_SECTOR)) & 1 == 1;
        self.sums.get(part).copied().filter(|_| known)
    }

    /// Replaces an entry of the table.
    #[inline]
    pub fn replace(&mut self, block: u64, old: Entry, new: Entry) {
        let (old, new) = (fingerprint(block, old), fingerprint(block, new));
        self.add(block, new.wrapping_sub(old));
    }

    /// Adds to the fingerprints that a block belongs to.
    #[inline]
    pub(crate) fn add(&mut self, block: u64, change: u64) {
        for part in self.parts_of(block) {
            if let Some(sum) = self.sums.get_mut(part) {
                *sum = sum.wrapping_add(change);
            }
        }
    }

    /// Forgets the fingerprints that any of these blocks belongs to.
    pub(crate) fn forget(&mut self, blocks: Range<u64>) {
        let Some(last) = blocks
            .end
            .checked_sub(1)
            .filter(|&last| last >= blocks.start)
        else {
            return;
        };
        let mut forget = |part: usize| {
            if let Some(known) = self.known.get_mut(part / IN_SECTOR) {
                *known &= !(1 << (part % IN_SECTOR));
            }
        };
        let ranges = blocks.start >> self.shift..=(last >> self.shift).min(RANGES as u64 - 1);
        ranges.for_each(|range| forget(range as usize));
        let pieces = blocks.start >> STRIPE_SHIFT..=last >> STRIPE_SHIFT;
        let pieces = pieces.take(STRIPES);
        pieces.for_each(|piece| forget(stripe_of(piece << STRIPE_SHIFT)));
    }

    /// Makes the ranges large enough for a table of `blocks` blocks. Two ranges that become one are known if both were.
    pub(crate) fn fit(&mut self, blocks: u64) {
        while self.shift < shift_for(blocks) {
            // Nothing is behind the last range, unless the ranges were chosen without any knowledge of the table.
            let ranges = &self.known[..RANGE_SECTORS];
            let behind = ranges.iter().any(|&known| known != 0).then_some(0);
            let mut known = [0; RANGE_SECTORS];
            for range in 0..RANGES {
                let half = |at: usize| match at < RANGES {
                    true => self.get(at),
                    false => behind,
                };
                let (low, high) = (half(2 * range), half(2 * range + 1));
                if low.is_some() && high.is_some() {
                    known[range / IN_SECTOR] |= 1 << (range % IN_SECTOR);
                }
                self.sums[range] = low.unwrap_or(0).wrapping_add(high.unwrap_or(0));
            }
            self.known[..RANGE_SECTORS].copy_from_slice(&known);
            self.shift += 1;
        }
    }

    /// The table is empty but for what `other` has, whose ranges are the same.
    pub(crate) fn restart(&mut self, other: &Self) {
        self.known = [ALL_KNOWN; SECTORS];
        self.sums.copy_from_slice(&other.sums);
    }

    /// Becomes `all` without `part`, whose ranges are the same.
    pub(crate) fn set_difference(&mut self, all: &Self, part: &Self) {
        (self.shift, self.known) = (all.shift, all.known);
        let pairs = all.sums.iter().zip(part.sums.iter());
        for (sum, (&all, &part)) in self.sums.iter_mut().zip(pairs) {
            *sum = all.wrapping_sub(part);
        }
    }

    /// Makes all fingerprints 0.
    pub(crate) fn clear(&mut self) {
        self.sums.fill(0);
    }

    /// Puts them behind the fields of the encoded `superblock` in `page`, whose checksum stays right.
    pub fn encode<P: Platform>(&self, superblock: &Superblock, page: &mut [u8]) {
        let sectors = page[SUPERBLOCK_RECORD..BLOCK_SIZE].chunks_exact_mut(SECTOR);
        let sums = self.sums.chunks_exact(IN_SECTOR);
        for (at, ((sector, sums), known)) in sectors.zip(sums).zip(self.known).enumerate() {
            sector.fill(0);
            put(sector, 0, &tag(superblock).to_le_bytes());
            put(sector, KNOWN, &known.to_le_bytes());
            for (place, sum) in sector[SUMS..SHIFT].chunks_exact_mut(8).zip(sums) {
                place.copy_from_slice(&sum.to_le_bytes());
            }
            let shift = if at < RANGE_SECTORS {
                self.shift
            } else {
                STRIPE_SHIFT
            };
            sector[SHIFT] = shift as u8;
            let balance = balance::<P>(sector);
            put(sector, BALANCE, &balance.to_le_bytes());
        }
    }

    /// Reads them from behind the fields of `superblock` in `page`. Those of a sector that was not written together with
    /// this superblock are unknown: older software wrote zeros, and a power cut may leave what was there before.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub fn decode<P: Platform>(page: &[u8], superblock: &Superblock) -> Result<Self> {
        let smallest = shift_for(superblock.size.blocks());
        let mut found = Self {
            shift: smallest,
            known: [0; SECTORS],
            sums: Vec::filled(0, FINGERPRINTS)?,
        };
        let mut shift = None;
        let sectors = page[SUPERBLOCK_RECORD..BLOCK_SIZE].chunks_exact(SECTOR);
        let sums = found.sums.chunks_exact_mut(IN_SECTOR);
        for (at, ((sector, sums), known)) in sectors.zip(sums).zip(&mut found.known).enumerate() {
            let own = u32::from(sector[SHIFT]);
            let current = le64(sector, 0) == tag(superblock)
                || P::sabotaged(Sabotage::MixedFingerprints) && le64(sector, 0) != 0;
            let whole = le32(sector, BALANCE) == balance::<P>(sector);
            let plausible = match at < RANGE_SECTORS {
                true => {
                    (smallest..=MOST_SHIFT).contains(&own) && shift.is_none_or(|shift| shift == own)
                }
                false => own == STRIPE_SHIFT,
            };
            if !(current && whole && plausible) {
                continue;
            }
            if at < RANGE_SECTORS {
                shift = Some(own);
            }
            *known = le64(sector, KNOWN) & ALL_KNOWN;
            for (place, sum) in sector[SUMS..SHIFT].chunks_exact(8).zip(sums) {
                *sum = le64(place, 0);
            }
        }
        found.shift = shift.unwrap_or(smallest);
        Ok(found)
    }
}

/// What tells the superblocks that one slot may have held from each other. The generation alone does not: if the power fails
/// while a superblock is written, an opening may write another one of the same generation, with another salt.
fn tag(superblock: &Superblock) -> u64 {
    superblock.salt ^ superblock.generation
}

/// The balance of a sector: the remainder of CRC-32C, without its inversions, over the bytes before it. With it behind
/// them the remainder of the whole sector is zero, as that of zeros is. So whichever of old and new sectors are in a
/// slot, the checksum of the superblock tells of its first sector alone.
fn balance<P: Platform>(sector: &[u8]) -> u32 {
    !P::crc32c(!0, &sector[..BALANCE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::DeviceSize;
    use crate::engine::{CreateOptions, Recompression, Volume, DEFAULT_SEGMENT_SIZE};
    use crate::platform::mem::Buf;
    use crate::platform::std::{Std, StdFile};
    use crate::platform::BackingFile;

    fn entry(n: u64) -> Entry {
        Entry::new((1 << 20) + 16 * n, 4, 0, 1)
    }

    /// A superblock of a new image, encoded without fingerprints.
    fn superblock(blocks: u64) -> (Superblock, Buf) {
        let file = StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
        let options = CreateOptions {
            size: blocks * BLOCK_SIZE as u64,
            record_size: 4096,
            segment_size: DEFAULT_SEGMENT_SIZE,
            compression: crate::engine::Compression::of(crate::engine::Algorithm::Raw),
            recompression: Recompression::OFF,
            uuid: [7; 16],
        };
        Volume::<Std>::create(&file, &options).unwrap();
        let mut page = Buf::zeroed(BLOCK_SIZE).unwrap();
        file.read_at(&mut page, 0).unwrap();
        let superblock = Superblock::decode::<Std>(&mut page, 0).unwrap();
        superblock.encode::<Std>(&mut page);
        (superblock, page)
    }

    #[test]
    fn the_order_of_changes_does_not_matter() {
        let (mut one, mut other) = (
            Fingerprints::empty(1000).unwrap(),
            Fingerprints::empty(1000).unwrap(),
        );
        one.replace(5, Entry::HOLE, entry(1));
        one.replace(6, Entry::HOLE, entry(2));
        one.replace(5, entry(1), entry(3));
        other.replace(6, Entry::HOLE, entry(2));
        other.replace(5, Entry::HOLE, entry(3));
        for part in one.parts_of(5) {
            assert_eq!(one.get(part), other.get(part));
            assert_ne!(one.get(part), Some(0));
        }
        // Two blocks that change places are not the same.
        other.replace(5, entry(3), entry(2));
        other.replace(6, entry(2), entry(3));
        for part in one.parts_of(5) {
            assert_ne!(one.get(part), other.get(part));
        }
    }

    #[test]
    fn all_blocks_of_any_device_belong_to_a_range_and_a_stripe() {
        for blocks in [1, 244, 245, 1024, 1 << 18, 1 << 38] {
            let prints = Fingerprints::empty(blocks).unwrap();
            let last = blocks - 1;
            let [range, stripe] = prints.parts_of(last);
            assert!(prints.blocks_of(range).unwrap().contains(&last));
            assert!((RANGES..FINGERPRINTS).contains(&stripe));
            let end = prints.end_of_piece(last);
            assert!(end > last && prints.parts_of(end - 1) == [range, stripe]);
        }
        assert_eq!(Fingerprints::empty(1024).unwrap().blocks_of(1), Some(8..16));
        assert_eq!(Fingerprints::empty(1024).unwrap().blocks_of(RANGES), None);
    }

    #[test]
    fn larger_ranges_have_the_sums_of_the_smaller_ones() {
        let (mut small, mut large) = (
            Fingerprints::empty(1000).unwrap(),
            Fingerprints::empty(100_000).unwrap(),
        );
        for block in (0..1000).step_by(7) {
            small.replace(block, Entry::HOLE, entry(block));
            large.replace(block, Entry::HOLE, entry(block));
        }
        small.forget(300..301);
        small.fit(100_000);
        let unknown = large.parts_of(300);
        for part in 0..FINGERPRINTS {
            let expected = large.get(part).filter(|_| !unknown.contains(&part));
            assert_eq!(small.get(part), expected, "{part}");
        }
    }

    #[test]
    fn they_are_read_as_they_were_written() {
        let (superblock, mut page) = superblock(1000);
        let mut prints = Fingerprints::empty(1000).unwrap();
        for block in 0..1000 {
            prints.replace(block, Entry::HOLE, entry(block));
        }
        prints.forget(500..502);
        prints.encode::<Std>(&superblock, &mut page);
        let found = Fingerprints::decode::<Std>(&page, &superblock).unwrap();
        assert_eq!(
            Superblock::decode::<Std>(&mut page, superblock.offset()),
            Ok(superblock)
        );
        for part in 0..FINGERPRINTS {
            assert_eq!(found.get(part), prints.get(part));
        }
        let known = |block| found.parts_of(block).map(|part| found.get(part).is_some());
        assert_eq!((known(501), known(516)), ([false; 2], [true; 2]));
    }

    /// Sectors of two superblocks in one slot, in every combination: the superblock is valid, and only the fingerprints
    /// that belong to it are known. The other one has another generation, or was written by an opening that failed.
    #[test]
    fn a_power_cut_may_mix_sectors() {
        let (superblock, mut page) = superblock(1000);
        let mut prints = Fingerprints::empty(1000).unwrap();
        prints.replace(3, Entry::HOLE, entry(3));
        prints.encode::<Std>(&superblock, &mut page);
        prints.replace(3, entry(3), entry(4));
        for (generation, salt) in [(2, 0), (0, 1)] {
            let before = Superblock {
                generation: superblock.generation + generation,
                salt: superblock.salt.wrapping_add(salt),
                ..superblock
            };
            let mut other = page[..].to_vec();
            prints.encode::<Std>(&before, &mut other);
            for mix in 0..1 << SECTORS {
                let old = |at: usize| (mix >> at) & 1 == 1;
                let mut mixed = Buf::zeroed(BLOCK_SIZE).unwrap();
                mixed.copy_from_slice(&page);
                for at in (0..SECTORS).filter(|&at| old(at)) {
                    let place = SECTOR * (1 + at)..SECTOR * (2 + at);
                    mixed[place.clone()].copy_from_slice(&other[place]);
                }
                let found = Fingerprints::decode::<Std>(&mixed, &superblock).unwrap();
                assert!(Superblock::decode::<Std>(&mut mixed, superblock.offset()).is_ok());
                for part in 0..FINGERPRINTS {
                    assert_eq!(found.get(part).is_none(), old(part / IN_SECTOR));
                }
            }
        }
    }

    #[test]
    fn what_older_software_wrote_is_unknown() {
        let (superblock, page) = superblock(1000);
        let found = Fingerprints::decode::<Std>(&page, &superblock).unwrap();
        assert!((0..FINGERPRINTS).all(|part| found.get(part).is_none()));
    }

    #[test]
    fn ranges_that_miss_blocks_of_the_device_are_unknown() {
        let (mut superblock, mut page) = superblock(1000);
        let prints = Fingerprints::empty(1000).unwrap();
        prints.encode::<Std>(&superblock, &mut page);
        superblock.size = DeviceSize::from_blocks(1 << 20);
        let found = Fingerprints::decode::<Std>(&page, &superblock).unwrap();
        assert!((0..RANGES).all(|range| found.get(range).is_none()));
        assert!((RANGES..FINGERPRINTS).all(|stripe| found.get(stripe).is_some()));
    }
}
