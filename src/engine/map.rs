// SPDX-License-Identifier: GPL-2.0
//! [`Map`]: the sector table and the segment usage, changed together under [`Rank::Map`].
//!
//! [`Rank::Map`]: crate::platform::Rank::Map

use super::format::{Entry, Geometry, NODE_ENTRIES, NODE_SHIFT};
use super::log::Placed;
use super::table::{Found, NodeId, Table, Visibility};
use super::usage::{Change, Class, Usage};
use super::{Error, Result};

pub(crate) struct Map {
    pub(crate) table: Table,
    pub(crate) usage: Usage,
    /// A checkpoint is being written.
    pub(crate) writing: bool,
    /// Blocks mapped.
    pub(crate) mapped: u64,
    /// The part of `mapped` that the checkpoint being written does not see.
    pub(crate) mapped_after: i64,
}

/// First block behind the reach of a node.
pub(crate) fn end_of(id: NodeId) -> u64 {
    (id.index + 1) << (NODE_SHIFT * (u32::from(id.level) + 1))
}

impl Map {
    /// Starts a checkpoint: what changes from now on in leaves that are clean or become dirty is
    /// not seen by it.
    pub(crate) fn begin_checkpoint(&mut self) {
        self.table.generation += 1;
        self.writing = true;
    }

    /// Ends a checkpoint, stored or not: everything counts for the next one.
    pub(crate) fn end_checkpoint(&mut self) {
        self.writing = false;
        self.mapped_after = 0;
        self.usage.forget_after();
        self.table.settle();
    }

    /// Notes the segment a record went to, which may just have begun a new life.
    pub(crate) fn enter(&mut self, placed: &Placed) -> Result {
        self.usage.grow(placed.segment)?;
        if let Some(known) = self.usage.get(placed.segment) {
            if known.seq != placed.seq || known.free {
                if let Some(segment) = self.usage.get_mut(placed.segment) {
                    segment.seed = placed.seed;
                    segment.seq = placed.seq;
                    segment.dead_since = 0;
                    segment.free = false;
                    segment.tail = 0;
                    segment.stuck = false;
                }
                if let Some((before, tail)) = placed.before {
                    if let Some(segment) = self.usage.get_mut(before) {
                        segment.tail = tail;
                    }
                }
            }
        }
        Ok(())
    }

    /// Nodes that the next checkpoint will store: at least as many as there are.
    pub(crate) fn due(&self) -> u64 {
        self.table.due + self.usage.due
    }

    /// The checksum seed of the segment an entry points into.
    pub(crate) fn seed(&self, geo: &Geometry, entry: Entry) -> Result<u32> {
        geo.segment_of(entry.address())
            .and_then(|index| self.usage.get(index))
            .map(|segment| segment.seed)
            .ok_or(Error::Corrupt {
                what: "sector table entry",
                offset: entry.address(),
            })
    }

    /// Replaces the entries of `count` blocks, all in one loaded leaf, by what `new` gives for each.
    pub(crate) fn replace(
        &mut self,
        geo: &Geometry,
        block: u64,
        count: usize,
        new: &mut dyn FnMut(usize) -> Entry,
    ) -> Result {
        let Some((leaf, visibility)) = self.table.leaf_mut(block) else {
            return Err(Error::Corrupt {
                what: "sector table in memory",
                offset: 0,
            });
        };
        let class = if self.writing && visibility == Visibility::After {
            Class::After
        } else {
            Class::Live
        };
        let first = block as usize % NODE_ENTRIES;
        for (i, word) in leaf[first..first + count].iter_mut().enumerate() {
            let new = new(i);
            let old = Entry(core::mem::replace(word, new.0));
            self.usage.account(geo, new, class, Change::Add)?;
            self.usage.account(geo, old, class, Change::Remove)?;
            let delta = i64::from(!new.is_hole()) - i64::from(!old.is_hole());
            // A stored count that was too low is damage like any other.
            self.mapped = self
                .mapped
                .checked_add_signed(delta)
                .ok_or(Error::Corrupt {
                    what: "count of mapped blocks",
                    offset: 0,
                })?;
            if class == Class::After {
                self.mapped_after += delta;
            }
        }
        Ok(())
    }

    /// Walks the leaves of a range of blocks: calls `f` with the part of the range that lies in each loaded
    /// leaf and skips what is absent. Stops early at a node that must be loaded, and returns it.
    pub(crate) fn for_each_leaf(
        &mut self,
        block: u64,
        count: u64,
        f: &mut dyn FnMut(&mut Self, u64, usize) -> Result,
    ) -> Result<Option<u64>> {
        let end = block + count;
        let mut at = block;
        while at < end {
            match self.table.find(at) {
                Found::Stored(..) => return Ok(Some(at)),
                Found::Absent(id) => at = end_of(id),
                Found::Loaded => {
                    let leaf_end = end_of(NodeId::leaf(at)).min(end);
                    f(self, at, (leaf_end - at) as usize)?;
                    at = leaf_end;
                }
            }
        }
        Ok(None)
    }

    /// Whether any of `count` blocks of one loaded leaf is mapped.
    pub(crate) fn any_mapped(&self, block: u64, count: usize) -> bool {
        let first = block as usize % NODE_ENTRIES;
        self.table
            .leaf(block)
            .is_some_and(|leaf| leaf[first..first + count].iter().any(|&word| word != 0))
    }
}
