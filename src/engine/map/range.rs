// SPDX-License-Identifier: GPL-2.0
//! Ranges of blocks: whether any is mapped, and discarding them without loading the nodes in between.

use super::table::Found;
use super::Map;
use crate::engine::format::{Entry, NodeId, NODE_ENTRIES};
use crate::engine::Result;
use core::ops::Range;

/// The cost of looking at a node is 1. Changing the entries of a loaded leaf costs about as much as looking at so many
/// nodes.
const LEAF_COST: u32 = 16;

/// The cost at which one critical section ends, so that it takes a fraction of a millisecond: four leaves, or 64 other
/// nodes.
const MOST_COST: u32 = 4 * LEAF_COST;

/// Part of a range of blocks.
pub(crate) enum Part {
    /// A block and the number of blocks from it on, in a loaded leaf.
    Leaf(u64, usize),
    /// Everything below a node that is stored and not loaded.
    Node(NodeId, Entry),
}

/// What lies at the beginning of a range of blocks.
enum Step {
    /// A part of the range.
    Part(Part),
    /// Nothing is mapped.
    Absent,
    /// This node is stored, and a part of its reach lies outside of the range: it must be loaded first.
    Unloaded(NodeId),
}

/// What a discard finds at the beginning of its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Survey {
    /// Nothing is mapped from the beginning of the range up to this block.
    Nothing(u64),
    /// Blocks may be mapped in this piece of the range, and nowhere before it. It is short enough to be discarded in one
    /// critical section.
    Piece(Range<u64>),
    /// This node must be loaded first.
    Unloaded(NodeId),
}

impl Map {
    /// What lies at block `at` of a range, and the block behind that.
    fn step(&self, at: u64, range: &Range<u64>) -> (Step, u64) {
        #[cfg(test)]
        self.work.set(self.work.get() + 1);
        match self.table.find(at) {
            Found::Stored(id, entry)
                if id.first_block() >= range.start && id.end_block() <= range.end =>
            {
                (Step::Part(Part::Node(id, entry)), id.end_block())
            }
            Found::Stored(id, _) => (Step::Unloaded(id), at),
            Found::Absent(id) => (Step::Absent, id.end_block().min(range.end)),
            Found::Loaded => {
                let end = NodeId::leaf(at).end_block().min(range.end);
                (Step::Part(Part::Leaf(at, (end - at) as usize)), end)
            }
        }
    }

    /// Walks a range of blocks: calls `f` with its loaded and its stored parts, and skips absent ones. Stops early at a
    /// node that must be loaded first, because a part of its reach lies outside of the range, and returns a block
    /// below it.
    pub(crate) fn for_each_part(
        &mut self,
        block: u64,
        count: u64,
        f: &mut dyn FnMut(&mut Self, Part) -> Result,
    ) -> Result<Option<u64>> {
        let range = block..block + count;
        let mut at = block;
        while at < range.end {
            let (step, next) = self.step(at, &range);
            match step {
                Step::Part(part) => f(self, part)?,
                Step::Absent => {}
                Step::Unloaded(_) => return Ok(Some(at)),
            }
            at = next;
        }
        Ok(None)
    }

    /// The cost of discarding a part; 0 if nothing of it is mapped. A stored node is counted as mapped, because it would
    /// not exist otherwise.
    fn cost(&self, part: &Part) -> u32 {
        match *part {
            Part::Leaf(at, n) if self.maps(at, n) => LEAF_COST,
            Part::Leaf(..) => 0,
            Part::Node(..) => 1,
        }
    }

    /// Looks for the first blocks of a range that may be mapped, as far as one critical section goes. A piece lies within
    /// one unit of `unit` blocks.
    pub(crate) fn survey(&self, range: Range<u64>, unit: u64) -> Survey {
        let (mut at, mut end, mut cost) = (range.start, range.end, 0);
        let mut piece: Option<Range<u64>> = None;
        while at < end && cost < MOST_COST {
            let unit_end = (at / unit + 1) * unit;
            let inside = range.start.max(unit_end - unit)..end.min(unit_end);
            let (step, next) = match self.step(at, &inside) {
                // Nothing is mapped below a node of any size.
                (Step::Absent, _) => self.step(at, &(range.start..end)),
                found => found,
            };
            cost += 1;
            match step {
                Step::Part(part) => {
                    let part = self.cost(&part);
                    cost += part;
                    if part > 0 {
                        end = end.min(unit_end);
                        piece = Some(piece.map_or(at, |piece| piece.start)..next);
                    }
                }
                Step::Absent => {}
                Step::Unloaded(id) if at == range.start => return Survey::Unloaded(id),
                Step::Unloaded(_) => break,
            }
            at = next;
        }
        match piece {
            Some(piece) => Survey::Piece(piece),
            None => Survey::Nothing(at),
        }
    }

    /// True if a piece that a survey has found, which the table may have changed since, can be discarded at once.
    pub(crate) fn can_discard(&self, piece: &Range<u64>) -> bool {
        let (mut at, mut cost) = (piece.start, 0);
        while at < piece.end {
            let (step, next) = self.step(at, piece);
            match step {
                Step::Part(part) => cost += self.cost(&part),
                Step::Absent => {}
                Step::Unloaded(_) => return false,
            }
            cost += 1;
            // A little more than a survey allows, because others may have mapped blocks.
            if cost > 2 * MOST_COST {
                return false;
            }
            at = next;
        }
        true
    }

    /// Points the blocks of the range to nothing, without loading anything. Stops as
    /// [`for_each_part`](Self::for_each_part) does.
    pub(crate) fn discard(&mut self, block: u64, count: u64) -> Result<Option<u64>> {
        self.for_each_part(block, count, &mut |map, part| {
            match part {
                Part::Leaf(at, n) if map.maps(at, n) => {
                    map.replace(at, n, &mut |_| Entry::HOLE)?;
                }
                Part::Leaf(..) => {}
                Part::Node(id, entry) => map.table.detach(id, entry),
            }
            Ok(())
        })
    }

    /// True if any of `count` blocks of one loaded leaf is mapped.
    pub(crate) fn maps(&self, block: u64, count: usize) -> bool {
        let first = block as usize % NODE_ENTRIES;
        self.leaf(block)
            .is_some_and(|leaf| leaf[first..first + count].iter().any(|&word| word != 0))
    }
}
