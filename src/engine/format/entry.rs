// SPDX-License-Identifier: GPL-2.0
//! [`Entry`]: the 8 bytes of the sector table that say where one block is stored.

use super::{
    Layout, BLOCK_SIZE, MAX_IMAGE, MAX_RECORD_SIZE, MAX_SPAN, NODE_BYTES, RECORD_HEADER, UNIT,
};

/// Where a block (or a table node) is stored, packed into 64 bits; 0 means nowhere: the block reads
/// as zeros.
///
/// ```text
/// 63          20 19      14 13    9 8      0
/// | address/16  | sectors-1| index | charge|
/// ```
///
/// - *address*: byte offset of the record in the image, a multiple of 16;
/// - *sectors*: 4 KiB sectors of the image the record touches, so that one read fetches it;
/// - *index*: which of the record's blocks this is;
/// - *charge*: the part of the record's space, in units of 16 bytes, that this entry keeps alive. The charges
///   of a record's blocks add up to its space and each is at least 1, so a segment without live
///   bytes has no live entry either.
///
/// A node has an index of 0, or of 1 if it is [detached](Self::detached).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(pub u64);

/// Bits of the fields, lowest first.
const CHARGE_BITS: u32 = 9;
const INDEX_BITS: u32 = 5;
const SECTORS_BITS: u32 = 6;
const ADDRESS_BITS: u32 = 44;
/// Places of the fields.
const INDEX_SHIFT: u32 = CHARGE_BITS;
const SECTORS_SHIFT: u32 = INDEX_SHIFT + INDEX_BITS;
const ADDRESS_SHIFT: u32 = SECTORS_SHIFT + SECTORS_BITS;

// Each field has room for the largest value that the format allows.
const _: () = {
    // Header, mask and payload.
    let largest = RECORD_HEADER + 4 + MAX_RECORD_SIZE;
    assert!(ADDRESS_SHIFT + ADDRESS_BITS == u64::BITS);
    assert!(MAX_IMAGE / UNIT as u64 <= 1 << ADDRESS_BITS);
    // A record may begin in the last unit of a sector.
    assert!((BLOCK_SIZE - UNIT + largest).div_ceil(BLOCK_SIZE) <= 1 << SECTORS_BITS);
    assert!(MAX_SPAN <= 1 << INDEX_BITS);
    // A record of one block, or a node, has all of its space in one charge. Header and mask of a larger record are
    // divided among its blocks.
    assert!((RECORD_HEADER + 4 + BLOCK_SIZE).div_ceil(UNIT) < 1 << CHARGE_BITS);
    assert!((RECORD_HEADER + NODE_BYTES).div_ceil(UNIT) < 1 << CHARGE_BITS);
};

/// The field of `bits` bits at `shift`.
const fn field(word: u64, shift: u32, bits: u32) -> u64 {
    (word >> shift) & ((1 << bits) - 1)
}

impl Entry {
    /// The block is not stored.
    pub const HOLE: Self = Self(0);

    /// The entry for block `index` of `count` in a record of `units` units at byte `address`.
    ///
    /// `units` is at least `count`, see [`RecordHeader::units`](super::RecordHeader::units).
    pub fn new(address: u64, units: u32, index: u32, count: u32) -> Self {
        let charge = (index + 1) * units / count - index * units / count;
        let start = address % BLOCK_SIZE as u64;
        let sectors = (start + u64::from(units) * UNIT as u64).div_ceil(BLOCK_SIZE as u64);
        Self(
            ((address / UNIT as u64) << ADDRESS_SHIFT)
                | ((sectors - 1) << SECTORS_SHIFT)
                | (u64::from(index) << INDEX_SHIFT)
                | u64::from(charge),
        )
    }

    /// The index of the entry of a detached node.
    const DETACHED: u64 = 1 << INDEX_SHIFT;

    /// The entry of a table node after it was detached: the blocks below it were discarded together and read as
    /// zeros, and the records that its stored copy refers to count as live until the node is reaped.
    pub fn detached(self) -> Self {
        Self(self.0 | Self::DETACHED)
    }

    /// Whether this is the entry of a detached node. Only for entries of table nodes.
    pub fn is_detached(self) -> bool {
        self.0 & Self::DETACHED != 0
    }

    /// The entry of a table node as it is, or was before the node was detached.
    pub fn node(self) -> Self {
        Self(self.0 & !Self::DETACHED)
    }

    /// Whether the block is not stored.
    pub fn is_hole(self) -> bool {
        self.0 == 0
    }

    /// Byte offset of the record in the image.
    pub fn address(self) -> u64 {
        field(self.0, ADDRESS_SHIFT, ADDRESS_BITS) * UNIT as u64
    }

    /// Sectors of 4 KiB to read, from the one that holds [`address`](Self::address).
    pub fn sectors(self) -> usize {
        field(self.0, SECTORS_SHIFT, SECTORS_BITS) as usize + 1
    }

    /// Which of the record's stored blocks this is.
    pub fn index(self) -> usize {
        field(self.0, INDEX_SHIFT, INDEX_BITS) as usize
    }

    /// Whether this is the block `n` places after `first` in the same record.
    pub fn follows(self, first: Self, n: usize) -> bool {
        self.address() == first.address() && self.index() == first.index() + n
    }

    /// Units of 16 bytes that this entry keeps alive: they become garbage when it is overwritten.
    pub fn charge(self) -> u32 {
        field(self.0, 0, CHARGE_BITS) as u32
    }

    /// Whether an entry read from disk can be true in an image of `segments` segments: a hole, or a
    /// record that lies inside one segment.
    pub fn plausible(self, layout: &Layout, segments: u64) -> bool {
        if self.is_hole() {
            return true;
        }
        let Some(segment) = layout.segment_of(self.address()) else {
            return false;
        };
        let end = self.address() / BLOCK_SIZE as u64 + self.sectors() as u64;
        segment < segments
            && self.charge() > 0
            && end * BLOCK_SIZE as u64 <= layout.segment_offset(segment + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_the_largest_record() {
        let e = Entry::new((1 << 48) - 16, 128 * 1024 / 16 + 2, 31, 32);
        assert_eq!(e.address(), (1 << 48) - 16);
        assert_eq!(e.sectors(), 34);
        assert_eq!(e.index(), 31);
        assert!(e.charge() >= 256);
    }

    #[test]
    fn a_detached_entry_names_the_same_node() {
        let e = Entry::new(1 << 30, 200, 0, 1);
        assert!(!e.is_detached() && e.detached().is_detached());
        assert_eq!(e.detached().node(), e);
        assert_eq!(
            (e.detached().address(), e.detached().charge()),
            (1 << 30, 200)
        );
    }

    #[test]
    fn charges_of_a_record_add_up_and_are_never_zero() {
        for count in 1..=32 {
            for units in [count, count + 1, 257, 8194] {
                if units < count || units > 258 * count {
                    continue;
                }
                let charges = (0..count).map(|i| Entry::new(1 << 20, units, i, count).charge());
                assert!(charges.clone().all(|s| s > 0));
                assert_eq!(charges.sum::<u32>(), units);
            }
        }
    }
}
