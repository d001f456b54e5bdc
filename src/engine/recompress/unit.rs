// SPDX-License-Identifier: GPL-2.0
//! The blocks of one natural unit become one record.

use super::{Goal, Recompressor};
use crate::engine::format::{Entry, IncarnationId, BLOCK_SIZE, NODE_ENTRIES, UNIT};
use crate::engine::io::data::{DataRecord, Extent};
use crate::engine::io::read::Reader;
use crate::engine::io::sink::Filling;
use crate::engine::map::Map;
use crate::engine::store::{count, Store};
use crate::engine::Result;
use crate::platform::{Platform, Sabotage};

/// The part of its space that a unit must gain: less is not worth writing it again.
const LEAST_GAIN: u64 = 32;

/// What became of a natural unit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is one record of the goal now, or would gain nothing by that.
    Done,
    /// A part of it was written or moved lately: it is to be looked at later.
    Later,
}

/// The blocks that are stored of those with these entries, which begin at `block`, and the units of space charged to them.
fn extent_of(block: u64, entries: impl Iterator<Item = Entry>) -> Option<(Extent, u64)> {
    let (mut mask, mut units) = (0u32, 0);
    for (bit, entry) in entries.enumerate().filter(|(_, entry)| !entry.is_hole()) {
        mask |= 1 << bit;
        units += u64::from(entry.charge());
    }
    if mask == 0 {
        return None;
    }
    let from = mask.trailing_zeros();
    let extent = Extent {
        block: block + u64::from(from),
        span: (u32::BITS - mask.leading_zeros() - from) as usize,
        mask: mask >> from,
    };
    Some((extent, units))
}

/// Moves the blocks of `mask` together at the beginning, and returns their bytes.
fn without_holes(blocks: &mut [u8], mask: u32) -> usize {
    let mut len = 0;
    for bit in (0..u32::BITS).filter(|bit| (mask >> bit) & 1 == 1) {
        let at = bit as usize * BLOCK_SIZE;
        blocks.copy_within(at..at + BLOCK_SIZE, len);
        len += BLOCK_SIZE;
    }
    len
}

/// True if the entries of the blocks from `first` on, in one leaf, are those that were `found`, in the same incarnations of
/// their segments: then they lead to the same contents. False also if the leaf is not loaded.
fn leads_to(map: &Map, first: u64, found: &[(Entry, IncarnationId)]) -> Result<bool> {
    let Some(leaf) = map.leaf(first) else {
        return Ok(false);
    };
    let at = first as usize % NODE_ENTRIES;
    for (&word, &(entry, incarnation)) in leaf[at..].iter().zip(found) {
        if Entry(word) != entry || !entry.is_hole() && map.incarnation(entry)? != incarnation {
            return Ok(false);
        }
    }
    Ok(true)
}

impl<P: Platform> Recompressor<P> {
    /// Compresses the blocks of a natural unit again, which begins at block `first`, if the record at `address` is one of
    /// theirs, all of them are cold, and that gains something.
    ///
    /// # Errors
    ///
    /// Those of the log and of memory. What is damaged or cannot be read stays as it is.
    pub(super) fn unit(
        &mut self,
        store: &Store<P>,
        goal: &Goal,
        first: u64,
        address: u64,
    ) -> Result<Outcome> {
        let reader = Reader::new(store);
        let blocks = store.layout.record_blocks();
        let blocks = blocks.min(store.blocks().saturating_sub(first));
        match reader.look_up(&mut self.ws.read, first, blocks) {
            Ok(_) => {}
            Err(error) if error.is_damage() => return Ok(Outcome::Done),
            Err(error) => return Err(error),
        }
        self.found.clear();
        for &found in self.ws.read.run.iter() {
            self.found.push(found)?;
        }
        let entries = || self.found.iter().map(|&(entry, _)| entry);
        let here = entries().any(|entry| !entry.is_hole() && entry.address() == address);
        let Some((extent, units)) = extent_of(first, entries()).filter(|_| here) else {
            return Ok(Outcome::Done);
        };
        let hot = |entry: Entry, incarnation: IncarnationId| {
            !entry.is_hole() && incarnation.seq >= goal.cold_before
        };
        if self
            .found
            .iter()
            .any(|&(entry, incarnation)| hot(entry, incarnation))
        {
            return Ok(Outcome::Later);
        }
        let content = &mut self.ws.gather[..extent.span * BLOCK_SIZE];
        let mut filling = Filling::new(content);
        match reader.read(
            &mut self.ws.read,
            extent.block,
            extent.span as u64,
            &mut filling,
        ) {
            Ok(()) => {}
            Err(error) if error.is_damage() => return Ok(Outcome::Done),
            Err(error) => return Err(error),
        }
        let len = without_holes(content, extent.mask);
        self.content += len as u64;
        let record = DataRecord::recompressed::<P>(
            &mut self.ws.encoder,
            &store.codecs,
            goal.compression,
            extent,
            &content[..len],
        )?;
        let needed = u64::from(record.encoded.header().units());
        if needed + (units / LEAST_GAIN).max(1) > units {
            return Ok(Outcome::Done);
        }
        let slot = store.log.slot(&store.file, &record.encoded, goal.class)?;
        let stored = record.stored(slot.placed());
        let unchanged = {
            let mut map = store.map.lock();
            map.enter(slot.placed())?;
            leads_to(&map, first, &self.found)?
                || P::sabotaged(Sabotage::BlindRecompression) && map.leaf(first).is_some()
        };
        if !unchanged {
            return Ok(Outcome::Later);
        }
        slot.commit(|_| stored.map(&mut store.map.lock()))?;
        let bytes = needed * UNIT as u64;
        self.appended += bytes;
        count(&store.counters.recompressed, bytes);
        Ok(Outcome::Done)
    }
}
