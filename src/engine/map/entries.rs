// SPDX-License-Identifier: GPL-2.0
//! Changes of entries. Each is counted: an entry that comes into being is added to the live count of the segment that it
//! points into, and one that goes is subtracted.

use super::table::Visibility;
use super::usage::Change;
use super::{Map, BROKEN_TABLE};
use crate::engine::format::{Entry, NodeId, NODE_ENTRIES};
use crate::engine::log::LogState;
use crate::engine::{Error, Result};

impl Map {
    /// Replaces the entries of `count` blocks, all in one loaded leaf, by those that `new` returns.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the leaf is not loaded or the counts contradict the table.
    pub(crate) fn replace(
        &mut self,
        block: u64,
        count: usize,
        new: &mut dyn FnMut(usize) -> Entry,
    ) -> Result {
        let (leaf, visibility) = self.table.leaf_mut(block).ok_or(BROKEN_TABLE)?;
        let visibility = match self.writing {
            true => visibility,
            false => Visibility::Included,
        };
        #[cfg(test)]
        self.work.set(self.work.get() + count as u64);
        let first = block as usize % NODE_ENTRIES;
        let mut delta = 0;
        for (i, word) in leaf[first..first + count].iter_mut().enumerate() {
            let new = new(i);
            let old = Entry(core::mem::replace(word, new.0));
            let at = block + i as u64;
            self.fingerprints.replace(at, old, new, visibility);
            self.usage.account(new, visibility, Change::Add)?;
            self.usage.account(old, visibility, Change::RemoveLogged)?;
            delta += i64::from(!new.is_hole()) - i64::from(!old.is_hole());
        }
        self.count_mapped(delta, visibility)
    }

    /// The stored copy of a node of the sector table is now at `entry`; a hole if the node is empty. An empty node is
    /// removed from memory. Who holds the lock of the log relies on loaded nodes, so the state of the log is the proof
    /// that no other thread does.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    pub(crate) fn set_stored(&mut self, id: NodeId, entry: Entry, _log: &LogState) -> Result {
        let old = self.table.set_stored(id, entry);
        self.usage
            .account(entry, Visibility::Included, Change::Add)?;
        self.usage
            .account(old, Visibility::Included, Change::RemoveUnlogged)
    }

    /// The stored copy of a node of the sector table was relocated to `entry`. A detached node stays detached.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    pub(crate) fn move_stored(&mut self, id: NodeId, entry: Entry, log: &LogState) -> Result {
        let detached = self.table.stored_at(id).is_some_and(Entry::is_detached);
        let entry = if detached { entry.detached() } else { entry };
        self.set_stored(id, entry, log)
    }

    /// The record of a node of the segment usage moved from `old` to `new`; holes for a new node and for one that is
    /// not needed any more.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    pub(crate) fn move_usage_node(&mut self, old: Entry, new: Entry) -> Result {
        self.usage.account_own(new, Change::Add)?;
        self.usage.account_own(old, Change::RemoveUnlogged)
    }

    /// Reattaches the detached node `id` at `entry`, whose stored copy holds `words`: as a leaf without any block, or
    /// as an inner node whose children are detached. Nothing happens if it is gone.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace), and [`Error::NoMemory`].
    pub(super) fn reattach(&mut self, id: NodeId, entry: Entry, words: &[u64]) -> Result {
        if !self.table.reattach(id, entry, words)? || id.level > 0 {
            return Ok(());
        }
        // As if the leaf had been loaded and all of it discarded now.
        let visibility = match self.writing {
            true => Visibility::After,
            false => Visibility::Included,
        };
        self.drop_blocks(id, words, visibility)
    }

    /// Takes a detached leaf with these `words` off the counts and out of the table. Not while a checkpoint is written,
    /// whose counts must be those of its table.
    pub(super) fn reap_leaf(&mut self, id: NodeId, words: &[u64], log: &LogState) -> Result {
        self.drop_blocks(id, words, Visibility::Included)?;
        self.set_stored(id, Entry::HOLE, log)
    }

    /// Takes the blocks of the leaf `id` off the counts.
    fn drop_blocks(&mut self, id: NodeId, words: &[u64], visibility: Visibility) -> Result {
        let blocks = (id.first_block()..).zip(words);
        for (block, &word) in blocks.filter(|(_, &word)| word != 0) {
            self.usage
                .account(Entry(word), visibility, Change::RemoveUnlogged)?;
            self.fingerprints
                .replace(block, Entry(word), Entry::HOLE, visibility);
            self.count_mapped(-1, visibility)?;
        }
        Ok(())
    }

    fn count_mapped(&mut self, delta: i64, visibility: Visibility) -> Result {
        // A stored count that was too low is damage like any other.
        self.mapped = self
            .mapped
            .checked_add_signed(delta)
            .ok_or(Error::Corrupt {
                what: "count of mapped blocks",
                offset: 0,
            })?;
        if visibility == Visibility::After {
            self.mapped_after += delta;
        }
        Ok(())
    }
}
