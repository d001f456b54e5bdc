// SPDX-License-Identifier: GPL-2.0
//! Doubt: blocks whose newest record may be lost. They get an entry that no software reads as data.
//!
//! A block below a node of the newest table that cannot be read is certain if a record behind the older superblock's
//! log start changed it and no later part of the log is lost; or if the older table can be read there, and all of the
//! log behind it is whole; or if a [fingerprint](super::proof) proves it. All other blocks below such a node are
//! doubtful: what a repair finds of them in the log may be older than what was lost, and the record that made them zero
//! may be gone.

use super::proof::Grain;
use super::{Doubtful, Repair, Report};
use crate::engine::format::{Entry, NodeId, DATA_START, NODE_ENTRIES, NODE_SHIFT, UNIT};
use crate::engine::map::table::Found;
use crate::engine::{Error, Result};
use crate::platform::mem::Vec;
use crate::platform::{Platform, Sabotage};

/// Most doubtful blocks that are told from proven ones by stripes. Each piece of a stripe needs a leaf of the table, or an
/// entry of its own.
const MOST_SCATTERED: u64 = 1 << 16;

/// Most blocks that get an entry of their own. More take much memory, and nodes of the table tell of them.
const MOST_BLOCKS: u64 = 1 << 24;

/// Gives out entries that name no record: the address of a segment's header. Each takes one unit of its segment's live
/// count, up to the size of the segment.
struct Marks {
    /// Segment, and units that it has left.
    left: Vec<(u64, u64)>,
}

impl Marks {
    fn room(&self) -> u64 {
        self.left.iter().map(|&(_, units)| units).sum()
    }

    /// The next entry.
    fn take(&mut self, shift: u32) -> Result<Entry> {
        while let Some((index, units)) = self.left.pop() {
            if units > 0 {
                self.left.push((index, units - 1))?;
                return Ok(Entry::new(DATA_START + (index << shift), 1, 0, 1));
            }
        }
        Err(Error::NoSpace)
    }
}

impl<P: Platform> Repair<'_, P> {
    /// Collects the runs of doubtful blocks in `doubtful`: first block, and the block after the last.
    pub(super) fn find_doubtful(&mut self) -> Result {
        if P::sabotaged(Sabotage::TrustFound) {
            return Ok(());
        }
        self.collect_doubtful(Grain::Fine)?;
        if self.doubtful_blocks > MOST_SCATTERED {
            self.doubtful.clear();
            self.doubtful_blocks = 0;
            self.collect_doubtful(Grain::Coarse)?;
        }
        self.doubtful.sort_unstable();
        Ok(())
    }

    fn collect_doubtful(&mut self, grain: Grain) -> Result {
        for at in 0..self.lost.len() {
            let (from, to) = self.lost[at];
            self.doubt(from, to, grain)?;
        }
        if !self.gapped {
            return Ok(());
        }
        for at in 0..self.older.len() {
            let (mut from, to) = self.older[at];
            while from < to {
                // What neither table has is in both lists.
                let next = self.lost.partition_point(|range| range.1 <= from);
                let (begin, end) = self.lost.get(next).copied().unwrap_or((to, to));
                self.doubt(from, begin.clamp(from, to), grain)?;
                from = end.clamp(from + 1, to);
            }
        }
        Ok(())
    }

    /// Doubts the blocks up to `to` that are neither certain nor proven; with a fine grain, until there are too many.
    fn doubt(&mut self, from: u64, to: u64, grain: Grain) -> Result {
        let mut at = from;
        while at < to && (grain == Grain::Coarse || self.doubtful_blocks <= MOST_SCATTERED) {
            let (proven, end) = self.proof.look_up(at, grain);
            let end = end.min(to);
            if proven {
                at = end;
                continue;
            }
            let end = match self.certain.find(at) {
                Found::Absent(id) => id.end_block().min(end),
                _ => {
                    let place = at as usize % NODE_ENTRIES;
                    let leaf = self.certain.leaf(at).unwrap_or(&[]);
                    if leaf.get(place).is_some_and(|&word| word != 0) {
                        at += 1;
                        continue;
                    }
                    at + 1
                }
            };
            match self.doubtful.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => self.doubtful.push((at, end))?,
            }
            self.doubtful_blocks += end - at;
            at = end;
        }
        Ok(())
    }

    /// Reports the doubtful blocks, and points them to nothing, to be marked later, if they are not to be kept. Returns
    /// their number.
    pub(super) fn drop_doubtful(&mut self) -> Result<u64> {
        for &(from, to) in self.doubtful.iter() {
            (self.report)(&Report::Doubtful(from, to - from));
        }
        if self.choice == Doubtful::Keep {
            return Ok(self.doubtful_blocks);
        }
        self.unmarked = core::mem::replace(&mut self.doubtful, Vec::new());
        for &(from, to) in self.unmarked.iter() {
            self.store.map.lock().clear_uncounted(from, to)?;
        }
        Ok(self.doubtful_blocks)
    }

    /// Gives the blocks of `unmarked` entries that name no record. The segments are counted, and have room for that.
    pub(super) fn mark_lost(&mut self) -> Result {
        if self.unmarked.is_empty() {
            return Ok(());
        }
        self.unmarked.sort_unstable();
        let shift = self.store.layout.segment_shift();
        let mut marks = self.marks()?;
        let blocks: u64 = self.unmarked.iter().map(|&(from, to)| to - from).sum();
        // Whole nodes, if there are too many blocks: the largest first.
        let height = self.store.map.lock().height();
        let mut level = height;
        let mut left = blocks;
        while left > marks.room().min(MOST_BLOCKS) && level > 0 {
            level -= 1;
            // The root of a small table has no entry in another node.
            if level + 1 == height {
                continue;
            }
            left = self.mark_nodes(level, &mut marks)?;
        }
        for &(from, to) in self.unmarked.iter() {
            for block in from..to {
                let entry = marks.take(shift)?;
                self.store.map.lock().set_counted(block, entry)?;
            }
        }
        Ok(())
    }

    /// Marks nodes of one level that have no blocks but those of `unmarked`. Returns the number of blocks left.
    fn mark_nodes(&mut self, level: u8, marks: &mut Marks) -> Result<u64> {
        let shift = self.store.layout.segment_shift();
        let reach = NODE_SHIFT * (u32::from(level) + 1);
        let device = self.store.blocks();
        let (mut rest, mut left): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
        for &(from, to) in self.unmarked.iter() {
            let first = from.div_ceil(1 << reach);
            let last = match to == device {
                true => to.div_ceil(1 << reach),
                false => to >> reach,
            };
            let whole = first.min(last)..last;
            for index in whole.clone() {
                let entry = marks.take(shift)?;
                let id = NodeId { level, index };
                self.store.map.lock().set_node_counted(id, entry)?;
            }
            let (begin, end) = (whole.start << reach, (whole.end << reach).min(device));
            let parts = match whole.is_empty() {
                true => [(from, to), (to, to)],
                false => [(from, begin), (end, to)],
            };
            for (from, to) in parts.into_iter().filter(|part| part.0 < part.1) {
                rest.push((from, to))?;
                left += to - from;
            }
        }
        self.unmarked = rest;
        Ok(left)
    }

    /// All segments, with the units that they have left.
    fn marks(&self) -> Result<Marks> {
        let size = u64::from(self.store.layout.segment_size);
        let (map, mut left) = (self.store.map.lock(), Vec::new());
        for (index, segment) in (0..).zip(map.segments()) {
            left.push((
                index,
                size.saturating_sub(segment.live_bytes()) / UNIT as u64,
            ))?;
        }
        // Segments that have a header are taken first, because a check misses it in the others. Of them the first, so
        // that the end of the image can be given back.
        let known = |index: u64| self.incarnations.iter().any(|i| i.header.index == index);
        left.sort_unstable_by_key(|&(index, _)| (known(index), core::cmp::Reverse(index)));
        Ok(Marks { left })
    }
}
