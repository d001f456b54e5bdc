// SPDX-License-Identifier: GPL-2.0
//! [`RecordCache`]: a few decompressed records, so that a record that serves several small reads is decompressed once.

use crate::engine::format::{Layout, BLOCK_SIZE};
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{Monitor, Platform, Rank, Sabotage};

/// Number of records in the cache.
const SLOTS: usize = 16;

/// Identifies one stored record. No other record ever gets the same key, because a seed is never used again (I5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordKey {
    /// Byte offset of the record in the image.
    pub(crate) address: u64,
    /// Checksum seed of the incarnation of its segment.
    pub(crate) seed: u32,
}

/// Memory for one record.
struct Slot {
    /// The record in it, if there is one.
    key: Option<RecordKey>,
    /// The first block that the record covers.
    number: u64,
    /// The blocks that are stored: bit `i` for block `number + i`.
    mask: u32,
    /// The time of the last use, by the clock of the cache.
    used: u64,
    /// The stored blocks, one after the other.
    blocks: Vec<u8>,
}

struct Slots {
    slots: Vec<Slot>,
    /// Number of uses.
    clock: u64,
}

/// The records that were decompressed last, under [`Rank::Cache`].
pub(crate) struct RecordCache<P: Platform> {
    slots: P::Monitor<Slots>,
}

/// The place of block `block` among the stored blocks of a record that begins at block `number` and stores the blocks of
/// `mask`. `None` if the record does not store it.
pub(crate) fn place_of(block: u64, number: u64, mask: u32) -> Option<usize> {
    let bit = u32::try_from(block.checked_sub(number)?).ok()?;
    if bit >= u32::BITS || (mask >> bit) & 1 == 0 {
        return None;
    }
    Some((mask & ((1 << bit) - 1)).count_ones() as usize)
}

/// True if the stored blocks of a record, from place `index` on, are the `n` neighbouring blocks from `block` on.
pub(crate) fn holds(block: u64, n: usize, index: usize, number: u64, mask: u32) -> bool {
    // Places ascend with block numbers: if the first and the last block are in their places, those between are as well.
    let last = n.saturating_sub(1);
    place_of(block, number, mask) == Some(index)
        && place_of(block + last as u64, number, mask) == Some(index + last)
}

impl<P: Platform> RecordCache<P> {
    /// An empty cache for images of this layout.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        // A record of one block serves reads of that block only, so keeping it gains nothing.
        let count = if layout.record_blocks() > 1 { SLOTS } else { 0 };
        let mut slots = Vec::with_capacity(count)?;
        for _ in 0..count {
            slots.push(Slot {
                key: None,
                number: 0,
                mask: 0,
                used: 0,
                blocks: Vec::filled(0, layout.record_size as usize)?,
            })?;
        }
        let slots = P::Monitor::new(Slots { slots, clock: 0 }, Rank::Cache)?;
        Ok(Self { slots })
    }

    /// Copies neighbouring blocks from `block` on to `out`, if the record is in the cache and stores them from place
    /// `index` on. Returns whether it did.
    pub(crate) fn get(&self, key: RecordKey, block: u64, index: usize, out: &mut [u8]) -> bool {
        let mut cache = self.slots.lock();
        let cache = &mut *cache;
        let same = |found: RecordKey| match P::sabotaged(Sabotage::StaleCache) {
            true => found.address == key.address,
            false => found == key,
        };
        let Some(slot) = cache.slots.iter_mut().find(|s| s.key.is_some_and(same)) else {
            return false;
        };
        let at = index * BLOCK_SIZE;
        let n = out.len() / BLOCK_SIZE;
        if !holds(block, n, index, slot.number, slot.mask) {
            return false;
        }
        out.copy_from_slice(&slot.blocks[at..at + out.len()]);
        cache.clock += 1;
        slot.used = cache.clock;
        true
    }

    /// Puts the decompressed blocks of a verified record into the cache, in place of the record that was not used for the
    /// longest time. The record begins at block `number` and stores the blocks of `mask`.
    pub(crate) fn put(&self, key: RecordKey, number: u64, mask: u32, blocks: &[u8]) {
        let mut cache = self.slots.lock();
        let cache = &mut *cache;
        if cache.slots.iter().any(|s| s.key == Some(key)) {
            return;
        }
        let Some(slot) = cache.slots.iter_mut().min_by_key(|s| s.used) else {
            return;
        };
        slot.blocks[..blocks.len()].copy_from_slice(blocks);
        (slot.key, slot.number, slot.mask) = (Some(key), number, mask);
        cache.clock += 1;
        slot.used = cache.clock;
    }
}
