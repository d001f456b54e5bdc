// SPDX-License-Identifier: GPL-2.0
//! [`Map`]: where every block is stored, and how much of every segment is live.
//!
//! - [`table`]: the sector table, a tree in memory;
//! - [`usage`]: the segments, with their states, counts and sums;
//! - [`entries`]: changes of entries, which are counted;
//! - [`range`]: searching and discarding ranges of blocks;
//! - [`segments`]: the segments as other rooms see them;
//! - [`fingerprints`]: sums of the entries, which prove later that a table is this one;
//! - [`snapshot`]: the part that the checkpoint being written sees;
//! - [`uncounted`]: a table that a repair puts together;
//! - [`shared`]: the lock, and the figures that are read without it;
//! - [`load`]: loading nodes on demand, and making room for them;
//! - [`reaper`]: takes detached subtrees off the counts, in the background.
//!
//! Table and usage change together under [`Rank::Map`]: an entry that comes into being or goes is added to or removed
//! from the live count of the segment that it points into.
//!
//! [`Rank::Map`]: crate::platform::Rank::Map

mod entries;
mod fingerprints;
pub(crate) mod load;
pub(crate) mod range;
pub(crate) mod reaper;
mod segments;
pub(crate) mod shared;
mod snapshot;
pub(crate) mod table;
mod uncounted;
pub(crate) mod usage;

use self::fingerprints::TableFingerprints;
use self::table::{Found, Scope, Search, Table};
use self::usage::Usage;
use crate::engine::format::{Entry, Fingerprints, Layout, NodeId};
use crate::engine::{Error, Result};
use crate::platform::mem::{boxed, Box};

/// Sector table and segment usage of an image.
pub(crate) struct Map {
    table: Table,
    usage: Box<Usage>,
    /// A checkpoint is being written, and changes that its table does not contain are counted apart.
    writing: bool,
    /// Blocks mapped.
    mapped: u64,
    /// The part of `mapped` that the checkpoint being written does not see.
    mapped_after: i64,
    fingerprints: TableFingerprints,
    /// Nodes looked at and entries changed since the lock was taken.
    #[cfg(test)]
    work: core::cell::Cell<u64>,
}

/// A node that a caller has loaded is not in memory.
const BROKEN_TABLE: Error = Error::Corrupt {
    what: "sector table in memory",
    offset: 0,
};

impl Map {
    /// A map with a sector table of `mapped` mapped blocks and these `fingerprints`, and without segments.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(crate) fn new(
        table: Table,
        layout: Layout,
        mapped: u64,
        fingerprints: Fingerprints,
    ) -> Result<Self> {
        Ok(Self {
            table,
            usage: boxed(Usage::new(layout))?,
            writing: false,
            mapped,
            mapped_after: 0,
            fingerprints: TableFingerprints::new(fingerprints)?,
            #[cfg(test)]
            work: core::cell::Cell::new(0),
        })
    }

    /// Nodes and pages that the next checkpoint will store: at least as many as there are.
    pub(crate) fn dirty_nodes(&self) -> u64 {
        self.table.dirty_nodes() + self.usage.dirty_pages()
    }

    /// Blocks mapped, those below detached nodes included.
    pub(crate) fn mapped(&self) -> u64 {
        self.mapped
    }
}

impl Map {
    /// Levels of the table.
    pub(crate) fn height(&self) -> u8 {
        self.table.height()
    }

    /// Number of leaves that the table reaches.
    pub(crate) fn leaves(&self) -> u64 {
        self.table.leaves()
    }

    /// Adds levels above the root until there are `height`.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(crate) fn grow_table(&mut self, height: u8) -> Result {
        self.table.grow(height)
    }

    /// Where the stored copy of the root is.
    pub(crate) fn root_entry(&self) -> Entry {
        self.table.root_entry()
    }

    /// Bytes of memory of the loaded nodes.
    pub(crate) fn memory(&self) -> u64 {
        self.table.memory()
    }

    /// True if the table may have detached subtrees.
    pub(crate) fn may_have_detached(&self) -> bool {
        self.table.may_have_detached()
    }

    /// Looks for the leaf of `block`.
    pub(crate) fn find(&self, block: u64) -> Found {
        self.table.find(block)
    }

    /// The entries of the loaded leaf that holds `block`.
    pub(crate) fn leaf(&self, block: u64) -> Option<&[u64]> {
        self.table.leaf(block)
    }

    /// True if the stored copy of `id` is at this address, as far as the node above is loaded.
    pub(crate) fn stores(&self, id: NodeId, address: u64) -> bool {
        let stored = self.table.stored_at(id).filter(|entry| !entry.is_hole());
        stored.is_some_and(|entry| entry.address() == address)
    }

    /// True if the next checkpoint will store `id` in any case.
    pub(crate) fn will_be_stored(&self, id: NodeId) -> bool {
        self.table.will_be_stored(id)
    }

    /// The first detached node at or behind leaf `from` below loaded nodes.
    pub(crate) fn next_detached(&self, from: u64) -> Option<(NodeId, Entry)> {
        match self.table.next_detached(from, Scope::Loaded)? {
            Search::Detached(id, entry) => Some((id, entry)),
            Search::Unknown(_) => None,
        }
    }

    /// Calls `f` with the entry of the root, and with those of the children of all loaded inner nodes.
    pub(crate) fn for_each_stored(&self, f: &mut dyn FnMut(Entry)) {
        self.table.for_each_stored(f);
    }
}
