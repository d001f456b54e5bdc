// SPDX-License-Identifier: GPL-2.0
//! Ranges of blocks: whether any is mapped, and discarding them without loading the nodes in between.

use super::table::Found;
use super::Map;
use crate::engine::format::{Entry, NodeId, NODE_ENTRIES};
use crate::engine::Result;

/// Part of a range of blocks.
pub(crate) enum Part {
    /// A block and the number of blocks from it on, in a loaded leaf.
    Leaf(u64, usize),
    /// Everything below a node that is stored and not loaded.
    Node(NodeId, Entry),
}

impl Map {
    /// Walks a range of blocks: calls `f` with its loaded and its stored parts, and skips absent ones. Stops early at a
    /// node that must be loaded first, because a part of its reach lies outside of the range, and returns a block
    /// below it.
    pub(crate) fn for_each_part(
        &mut self,
        block: u64,
        count: u64,
        f: &mut dyn FnMut(&mut Self, Part) -> Result,
    ) -> Result<Option<u64>> {
        let end = block + count;
        let mut at = block;
        while at < end {
            match self.table.find(at) {
                Found::Stored(id, entry) if id.first_block() >= block && id.end_block() <= end => {
                    f(self, Part::Node(id, entry))?;
                    at = id.end_block();
                }
                Found::Stored(..) => return Ok(Some(at)),
                Found::Absent(id) => at = id.end_block(),
                Found::Loaded => {
                    let leaf_end = NodeId::leaf(at).end_block().min(end);
                    f(self, Part::Leaf(at, (leaf_end - at) as usize))?;
                    at = leaf_end;
                }
            }
        }
        Ok(None)
    }

    /// Whether a block of the range may be mapped. A stored node is counted as mapped, because it would not exist
    /// otherwise. Stops as [`for_each_part`](Self::for_each_part) does.
    pub(crate) fn survey(&mut self, block: u64, count: u64) -> Result<(bool, Option<u64>)> {
        let mut mapped = false;
        let stopped = self.for_each_part(block, count, &mut |map, part| {
            mapped |= match part {
                Part::Leaf(at, n) => map.maps(at, n),
                Part::Node(..) => true,
            };
            Ok(())
        })?;
        Ok((mapped, stopped))
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
