// SPDX-License-Identifier: GPL-2.0
//! A few decompressed records, so that one that serves several small reads is decompressed once.

use crate::engine::format::{Layout, BLOCK_SIZE};
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{Monitor, Platform, Rank, Sabotage};

/// Records kept.
const SLOTS: usize = 16;

/// Names one stored record for ever: its address and the seed of its segment's incarnation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordKey {
    pub(crate) address: u64,
    pub(crate) seed: u32,
}

struct Slot {
    key: Option<RecordKey>,
    number: u64,
    mask: u32,
    used: u64,
    blocks: Vec<u8>,
}

struct Slots {
    slots: Vec<Slot>,
    clock: u64,
}

pub(crate) struct RecordCache<P: Platform> {
    slots: P::Monitor<Slots>,
}

/// The place of block `block` among the stored blocks of a record that begins at `number`.
pub(crate) fn place_of(block: u64, number: u64, mask: u32) -> Option<usize> {
    let bit = u32::try_from(block.checked_sub(number)?).ok()?;
    if bit >= u32::BITS || (mask >> bit) & 1 == 0 {
        return None;
    }
    Some((mask & ((1 << bit) - 1)).count_ones() as usize)
}

/// Whether the stored blocks of a record, from `index` on, are `n` neighbours from `block` on.
pub(crate) fn holds(block: u64, n: usize, index: usize, number: u64, mask: u32) -> bool {
    // Places grow with the blocks: if first and last are where they belong, so are those between.
    let last = n.saturating_sub(1);
    place_of(block, number, mask) == Some(index)
        && place_of(block + last as u64, number, mask) == Some(index + last)
}

impl<P: Platform> RecordCache<P> {
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        // A record of one block is never read twice for the sake of another block.
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

    /// Fills `out` with consecutive blocks from `block` on, if the record is here and holds
    /// `block` at `index`.
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

    /// Keeps a verified record, in the place of the one not used for the longest time.
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
