// SPDX-License-Identifier: GPL-2.0
//! [`Map`]: the sector table and the segment usage, changed together under [`Rank::Map`].
//!
//! [`Rank::Map`]: crate::platform::Rank::Map

pub(crate) mod detached;
pub(crate) mod table;
pub(crate) mod usage;

use crate::engine::format::{Entry, Layout, NODE_ENTRIES, NODE_SHIFT};
use crate::engine::log::Placed;
use crate::engine::map::table::{Found, NodeId, Table, Visibility};
use crate::engine::map::usage::{Change, Class, Usage};
use crate::engine::{Error, Result};

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

/// Part of a range of blocks.
pub(crate) enum Part {
    /// So many blocks from this one on, in a loaded leaf.
    Leaf(u64, usize),
    /// All of what is below a node that is stored and not loaded.
    Node(NodeId, Entry),
}

/// First block in the reach of a node.
fn start_of(id: NodeId) -> u64 {
    id.index << (NODE_SHIFT * (u32::from(id.level) + 1))
}

/// First block behind the reach of a node.
pub(crate) fn end_of(id: NodeId) -> u64 {
    (id.index + 1) << (NODE_SHIFT * (u32::from(id.level) + 1))
}

impl Map {
    /// A sector table with `mapped` mapped blocks, and the segment usage of an image without segments.
    pub(crate) fn new(table: Table, layout: Layout, mapped: u64) -> Self {
        Self {
            table,
            usage: Usage::new(layout),
            writing: false,
            mapped,
            mapped_after: 0,
        }
    }

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

    /// Notes the segment a record went to, which may just have begun a new incarnation.
    pub(crate) fn enter(&mut self, placed: &Placed) -> Result {
        self.usage.grow(placed.segment)?;
        if let Some(known) = self.usage.get(placed.segment) {
            if known.seq != placed.seq || known.free {
                self.usage.change(placed.segment, |segment| {
                    segment.seed = placed.seed;
                    segment.seq = placed.seq;
                    segment.dead_since = 0;
                    segment.free = false;
                    segment.tail = 0;
                    segment.stuck = false;
                    segment.set_punched(0);
                });
                if let Some((before, tail)) = placed.before {
                    self.usage.change(before, |segment| segment.tail = tail);
                }
            }
        }
        Ok(())
    }

    /// Nodes that the next checkpoint will store: at least as many as there are.
    pub(crate) fn dirty_nodes(&self) -> u64 {
        self.table.dirty_nodes + self.usage.dirty
    }

    /// The checksum seed of the segment an entry points into.
    pub(crate) fn seed(&self, entry: Entry) -> Result<u32> {
        self.usage
            .at(entry.address())
            .map(|segment| segment.seed)
            .ok_or(Error::Corrupt {
                what: "sector table entry",
                offset: entry.address(),
            })
    }

    /// Replaces the entries of `count` blocks, all in one loaded leaf, by what `new` gives for each.
    pub(crate) fn replace(
        &mut self,
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
        let mut delta = 0;
        for (i, word) in leaf[first..first + count].iter_mut().enumerate() {
            let new = new(i);
            let old = Entry(core::mem::replace(word, new.0));
            self.usage.account(new, class, Change::Add)?;
            self.usage.account(old, class, Change::Remove)?;
            delta += i64::from(!new.is_hole()) - i64::from(!old.is_hole());
        }
        self.count_mapped(delta, class)
    }

    /// Walks a range of blocks: calls `f` with what is loaded or stored of it, and skips what is absent. Stops
    /// early at a node that must be loaded because it lies in the range in part only, and returns a block below it.
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
                Found::Stored(id, entry) if start_of(id) >= block && end_of(id) <= end => {
                    f(self, Part::Node(id, entry))?;
                    at = end_of(id);
                }
                Found::Stored(..) => return Ok(Some(at)),
                Found::Absent(id) => at = end_of(id),
                Found::Loaded => {
                    let leaf_end = end_of(NodeId::leaf(at)).min(end);
                    f(self, Part::Leaf(at, (leaf_end - at) as usize))?;
                    at = leaf_end;
                }
            }
        }
        Ok(None)
    }

    /// Whether the range of blocks may have any that is mapped (a stored node is there for a reason), and what must
    /// be loaded to know, see [`for_each_part`](Self::for_each_part).
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

    /// Points blocks to nothing, without loading anything. Stops as [`for_each_part`](Self::for_each_part) does.
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

    /// Reattaches the detached node `id` at `entry`, whose stored copy holds `words`, as an empty one. Nothing happens if
    /// it is gone.
    pub(crate) fn reattach(&mut self, id: NodeId, entry: Entry, words: &[u64]) -> Result {
        if !self.table.reattach(id, entry, words)? || id.level > 0 {
            return Ok(());
        }
        // As if the leaf had been loaded and all of it discarded now.
        let class = if self.writing {
            Class::After
        } else {
            Class::Live
        };
        self.forget(words, class)
    }

    /// Takes the blocks of a leaf off the counts.
    fn forget(&mut self, words: &[u64], class: Class) -> Result {
        for &word in words.iter().filter(|&&word| word != 0) {
            self.usage.account(Entry(word), class, Change::Drop)?;
            self.count_mapped(-1, class)?;
        }
        Ok(())
    }

    /// Takes a detached leaf off the counts and out of the table. Not while a checkpoint is written, whose
    /// counts must be those of its table.
    pub(crate) fn reap_leaf(&mut self, id: NodeId, words: &[u64]) -> Result {
        self.forget(words, Class::Live)?;
        self.set_stored(id, Entry::HOLE)
    }

    /// The stored copy of a node of the sector table moves to `entry`.
    pub(crate) fn set_stored(&mut self, id: NodeId, entry: Entry) -> Result {
        let old = self.table.set_stored(id, entry);
        self.usage.account(entry, Class::Live, Change::Add)?;
        self.usage.account(old, Class::Live, Change::Drop)
    }

    fn count_mapped(&mut self, delta: i64, class: Class) -> Result {
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
        Ok(())
    }

    /// Whether any of `count` blocks of one loaded leaf is mapped.
    pub(crate) fn maps(&self, block: u64, count: usize) -> bool {
        let first = block as usize % NODE_ENTRIES;
        self.table
            .leaf(block)
            .is_some_and(|leaf| leaf[first..first + count].iter().any(|&word| word != 0))
    }
}
