// SPDX-License-Identifier: GPL-2.0
//! [`Node`]: a loaded node of the sector table.

use crate::engine::format::{Entry, NODE_ENTRIES};
use crate::engine::Result;
use crate::platform::mem::{Box, Vec};
use core::sync::atomic::AtomicBool;

/// A loaded node.
pub(super) struct Node {
    /// Leaf: where blocks are. Inner: where the children's stored copies are.
    pub(super) entries: Vec<u64>,
    /// Inner: loaded children. Empty for a leaf.
    pub(super) kids: Vec<Option<Box<Node>>>,
    /// Differs from its stored copy.
    pub(super) dirty: bool,
    /// Number of the checkpoint that had begun last when the node became dirty.
    pub(super) since: u64,
    /// Inner: a node below may be dirty.
    pub(super) dirty_below: bool,
    /// A checkpoint is storing it: its stored copy is an older one.
    pub(super) being_stored: bool,
    /// Leaf: used since eviction last came by (the reference bit of the clock algorithm).
    pub(super) referenced: AtomicBool,
}

impl Node {
    pub(super) fn new(level: u8, entries: Vec<u64>) -> Result<Self> {
        let mut kids = Vec::new();
        if level > 0 {
            kids = Vec::with_capacity(NODE_ENTRIES)?;
            for _ in 0..NODE_ENTRIES {
                kids.push(None)?;
            }
        }
        Ok(Self {
            entries,
            kids,
            dirty: false,
            since: 0,
            dirty_below: false,
            being_stored: false,
            referenced: AtomicBool::new(true),
        })
    }

    /// True if the next checkpoint may have to store it: it is dirty, or leads to a dirty node.
    pub(super) fn needs_storing(&self) -> bool {
        self.dirty || self.dirty_below
    }

    /// True if a child is detached. A leaf has no children.
    pub(super) fn has_detached(&self) -> bool {
        !self.kids.is_empty() && self.entries.iter().any(|&word| Entry(word).is_detached())
    }

    /// True if no child is loaded.
    pub(super) fn is_bottom(&self) -> bool {
        self.kids.iter().all(Option::is_none)
    }

    /// True if the node maps nothing, has no loaded child, and need not be stored.
    pub(super) fn is_unused(&self) -> bool {
        !self.dirty && self.is_bottom() && self.entries.iter().all(|&word| word == 0)
    }

    /// Bytes of memory of this node, which is one of `level`, and of all loaded ones below it.
    // As deep as the tree: at most 5 levels for the largest device.
    pub(super) fn memory_below(&self, level: u8) -> u64 {
        let kids = self.kids.iter().flatten();
        let below: u64 = kids
            .map(|kid| kid.memory_below(level.saturating_sub(1)))
            .sum();
        Self::memory(level) + below
    }

    /// Bytes of memory that a loaded node of this level takes, near enough for accounting.
    pub(super) fn memory(level: u8) -> u64 {
        let words = (NODE_ENTRIES * core::mem::size_of::<u64>()) as u64;
        match level {
            0 => words,
            // The pointers to the children take as much again.
            _ => 2 * words,
        }
    }
}
