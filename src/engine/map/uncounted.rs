// SPDX-License-Identifier: GPL-2.0
//! A table that a repair puts together without counting anything but its fingerprints, and counts in the end.

use super::range::Part;
use super::table::{Found, Table, Visibility};
use super::usage::{Change, Usage};
use super::{Map, BROKEN_TABLE};
use crate::engine::format::{Entry, Layout, NodeId, NODE_ENTRIES};
use crate::engine::Result;
use crate::platform::mem::Vec;

impl Map {
    /// Points a block to `entry`, and creates the leaf if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(crate) fn set_uncounted(&mut self, block: u64, entry: Entry) -> Result {
        loop {
            match self.table.find(block) {
                Found::Absent(_) if entry.is_hole() => return Ok(()),
                Found::Absent(id) => {
                    let words = Vec::filled(0, NODE_ENTRIES)?;
                    self.table.install(id, Entry::HOLE, words)?;
                }
                _ => break,
            }
        }
        self.fill_uncounted(block, 1, entry);
        Ok(())
    }

    /// Points the blocks from `from` up to `to` to nothing.
    ///
    /// # Errors
    ///
    /// None, if all leaves are loaded.
    pub(crate) fn clear_uncounted(&mut self, from: u64, to: u64) -> Result {
        self.for_each_part(from, to - from, &mut |map, part| {
            if let Part::Leaf(at, n) = part {
                if map.maps(at, n) {
                    map.fill_uncounted(at, n, Entry::HOLE);
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Points a block that points to nothing to `entry`, creates the leaf if there is none, and counts the entry.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(crate) fn set_counted(&mut self, block: u64, entry: Entry) -> Result {
        self.set_uncounted(block, entry)?;
        self.mapped += 1;
        self.usage.account(entry, Visibility::Included, Change::Add)
    }

    /// Puts `entry` in the place of the node `id`, which has no mapped block and is not the root, and counts it. It stands
    /// for blocks of unknown contents, so the fingerprints there become unknown.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(crate) fn set_node_counted(&mut self, id: NodeId, entry: Entry) -> Result {
        while let Found::Absent(above) = self.table.find_node(id.parent()) {
            let words = Vec::filled(0, NODE_ENTRIES)?;
            self.table.install(above, Entry::HOLE, words)?;
        }
        self.table.replace_node(id, entry);
        self.fingerprints.forget(id.first_block(), id.end_block());
        self.usage.account(entry, Visibility::Included, Change::Add)
    }

    /// Forgets the whole table.
    pub(crate) fn forget_table(&mut self) {
        self.fingerprints.clear();
        self.table = Table::new(self.table.height(), Entry::HOLE);
    }

    /// Points blocks of one leaf, if that is loaded, to `entry`.
    pub(crate) fn fill_uncounted(&mut self, block: u64, count: usize, entry: Entry) {
        if let Some((leaf, _)) = self.table.leaf_mut(block) {
            let first = block as usize % NODE_ENTRIES;
            let blocks = (block..).zip(&mut leaf[first..first + count]);
            for (block, word) in blocks {
                let old = Entry(core::mem::replace(word, entry.0));
                self.fingerprints
                    .replace(block, old, entry, Visibility::Included);
            }
        }
    }

    /// Counts all entries of loaded leaves, of `blocks` blocks in all, and nothing else.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when an entry points outside the segments.
    pub(crate) fn count_all(&mut self, blocks: u64) -> Result {
        self.mapped = 0;
        self.for_each_part(0, blocks, &mut |map, part| {
            let Part::Leaf(at, count) = part else {
                return Ok(());
            };
            let first = at as usize % NODE_ENTRIES;
            let leaf = map.table.leaf(at).ok_or(BROKEN_TABLE)?;
            for &word in &leaf[first..first + count] {
                map.usage
                    .account(Entry(word), Visibility::Included, Change::Add)?;
                map.mapped += u64::from(word != 0);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Forgets all segments.
    pub(crate) fn forget_segments(&mut self, layout: Layout) {
        *self.usage = Usage::new(layout);
    }
}
