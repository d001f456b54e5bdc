// SPDX-License-Identifier: GPL-2.0
//! [`Table`]: the sector table, a radix tree from block number to [`Entry`], allocated and loaded on demand.
//!
//! A pure data structure: it does no I/O, and counts nothing in the segment usage. Level 0 holds the leaves (512 entries
//! each, 2 MiB of the device). An inner node holds the entries of its children's stored copies and, where they are
//! loaded, the children themselves.

mod detached;
mod evict;
mod node;

pub(crate) use self::detached::{Scope, Search};

use self::detached::Detached;
use self::evict::Clock;
use self::node::Node;
use crate::engine::format::{Entry, NodeId, NODE_ENTRIES};
use crate::engine::Result;
use crate::platform::mem::{boxed, Box, Vec};
use core::sync::atomic::Ordering;

/// The result of a search for a node, mostly the leaf of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The node is loaded.
    Loaded,
    /// Nothing is mapped in the reach of this node: it does not exist, or is detached.
    Absent(NodeId),
    /// This node has a stored copy that must be loaded first.
    Stored(NodeId, Entry),
}

/// Whether the checkpoint being written sees a change of a leaf. Without one, every change is included in the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// The leaf is still to be stored: the change will be in the checkpoint.
    Included,
    /// The checkpoint stores, or has stored, the leaf without the change.
    After,
}

/// The sector table of a device.
pub(crate) struct Table {
    height: u8,
    root: Option<Box<Node>>,
    root_entry: Entry,
    /// Number of the newest checkpoint that was begun.
    generation: u64,
    /// Bytes of loaded nodes.
    memory: u64,
    /// Nodes that the next checkpoint will store: at least as many as there are.
    dirty_nodes: u64,
    clock: Clock,
    detached: Detached,
}

impl Table {
    /// A table of `height` levels whose root is stored at `root_entry`, without detached subtrees.
    pub(crate) fn new(height: u8, root_entry: Entry) -> Self {
        Self {
            height,
            root: None,
            root_entry,
            generation: 0,
            memory: 0,
            dirty_nodes: 0,
            clock: Clock::default(),
            detached: Detached::default(),
        }
    }

    /// The node that leads to all others.
    pub(super) fn root_id(&self) -> NodeId {
        NodeId {
            level: self.height - 1,
            index: 0,
        }
    }

    /// Where the root's stored copy is.
    pub(super) fn root_entry(&self) -> Entry {
        self.root_entry
    }

    /// Levels of the tree.
    pub(super) fn height(&self) -> u8 {
        self.height
    }

    /// Number of leaves that the tree reaches.
    pub(super) fn leaves(&self) -> u64 {
        self.root_id().end_leaf()
    }

    /// Bytes of loaded nodes.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// Nodes that the next checkpoint will store: at least as many as there are.
    pub(super) fn dirty_nodes(&self) -> u64 {
        self.dirty_nodes
    }

    /// Looks for the leaf of `block`.
    pub(super) fn find(&self, block: u64) -> Found {
        self.find_node(NodeId::leaf(block))
    }

    /// Looks for a node.
    pub(super) fn find_node(&self, wanted: NodeId) -> Found {
        let (mut id, mut entry, mut node) = (self.root_id(), self.root_entry, self.root.as_deref());
        loop {
            match node {
                None if entry.is_hole() || entry.is_detached() => return Found::Absent(id),
                None => return Found::Stored(id, entry),
                Some(_) if id.level <= wanted.level => return Found::Loaded,
                Some(inner) => {
                    let at = wanted.slot(id.level - 1);
                    id = id.child(at);
                    entry = Entry(inner.entries[at]);
                    node = inner.kids[at].as_deref();
                }
            }
        }
    }

    /// The loaded node `id`.
    fn get(&self, id: NodeId) -> Option<&Node> {
        let mut node = self.root.as_deref()?;
        for level in (id.level..self.height - 1).rev() {
            node = node.kids[id.slot(level)].as_deref()?;
        }
        Some(node)
    }

    /// The loaded node `id`, to be changed.
    fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        let mut node = self.root.as_deref_mut()?;
        for level in (id.level..self.height - 1).rev() {
            node = node.kids[id.slot(level)].as_deref_mut()?;
        }
        Some(node)
    }

    /// Marks the loaded node `id` as dirty, and the nodes above it as leading to a dirty one.
    fn mark_dirty(&mut self, id: NodeId) -> Option<&mut Node> {
        let (generation, height) = (self.generation, self.height);
        let mut node = self.root.as_deref_mut()?;
        for level in (id.level..height - 1).rev() {
            self.dirty_nodes += u64::from(!node.needs_storing());
            node.dirty_below = true;
            node = node.kids[id.slot(level)].as_deref_mut()?;
        }
        self.dirty_nodes += u64::from(!node.needs_storing());
        if !node.dirty {
            node.dirty = true;
            node.since = generation;
        }
        Some(node)
    }

    /// The entries of the loaded leaf that holds `block`.
    pub(super) fn leaf(&self, block: u64) -> Option<&[u64]> {
        let leaf = self.get(NodeId::leaf(block))?;
        leaf.referenced.store(true, Ordering::Relaxed);
        Some(&leaf.entries)
    }

    /// The entries of the loaded leaf that holds `block`, to be changed now, and whether the checkpoint
    /// being written will see the change.
    pub(super) fn leaf_mut(&mut self, block: u64) -> Option<(&mut [u64], Visibility)> {
        let generation = self.generation;
        let leaf = self.mark_dirty(NodeId::leaf(block))?;
        *leaf.referenced.get_mut() = true;
        let visibility = match leaf.since < generation {
            true => Visibility::Included,
            false => Visibility::After,
        };
        Some((&mut leaf.entries, visibility))
    }

    /// Puts node `id`, whose stored copy is at `stored`, with these entries into the tree. Does nothing
    /// when that is no longer true: the node was loaded, moved or dropped meanwhile.
    pub(super) fn install(&mut self, id: NodeId, stored: Entry, entries: Vec<u64>) -> Result {
        let node = boxed(Node::new(id.level, entries)?)?;
        let (place, entry) = if id == self.root_id() {
            (&mut self.root, self.root_entry)
        } else {
            let at = id.slot(id.level);
            match self.get_mut(id.parent()) {
                Some(parent) => (&mut parent.kids[at], Entry(parent.entries[at])),
                None => return Ok(()),
            }
        };
        if place.is_none() && entry == stored {
            *place = Some(node);
            self.memory += Node::memory(id.level);
        }
        Ok(())
    }

    /// Begins a checkpoint: leaves that become dirty from now on are for the one after it.
    pub(super) fn begin_checkpoint(&mut self) {
        self.generation += 1;
    }

    /// Finds the first node of `level` with an index of at least `from` that the checkpoint being
    /// written must store, copies its entries into `words`, and marks it clean.
    pub(super) fn take_dirty(&mut self, level: u8, from: u64, words: &mut [u64]) -> Option<NodeId> {
        let root = self.root_id();
        let generation = self.generation;
        let index = next_dirty(self.root.as_deref()?, root, level, from, generation)?;
        let id = NodeId { level, index };
        let node = self.get_mut(id)?;
        words.copy_from_slice(&node.entries);
        node.dirty = false;
        node.being_stored = true;
        if level == 0 {
            self.dirty_nodes = self.dirty_nodes.saturating_sub(1);
        }
        Some(id)
    }

    /// Undoes [`take_dirty`](Self::take_dirty) for a node that could not be stored.
    pub(super) fn put_back(&mut self, id: NodeId) {
        if let Some(node) = self.mark_dirty(id) {
            node.being_stored = false;
        }
    }

    /// Where the stored copy of `id` is; `None` when the node above is not loaded.
    pub(super) fn stored_at(&self, id: NodeId) -> Option<Entry> {
        if id.level + 1 >= self.height {
            return Some(self.root_entry);
        }
        let parent = self.get(id.parent())?;
        Some(Entry(parent.entries[id.slot(id.level)]))
    }

    /// True if the next checkpoint will store `id` in any case.
    pub(super) fn will_be_stored(&self, id: NodeId) -> bool {
        self.get(id)
            .is_some_and(|node| node.needs_storing() || node.being_stored)
    }

    /// Records that the stored copy of `id` is now at `entry` (a hole: the node is empty), and returns
    /// where it was. An empty node that stayed clean is dropped.
    pub(super) fn set_stored(&mut self, id: NodeId, entry: Entry) -> Entry {
        if let Some(node) = self.get_mut(id) {
            node.being_stored = false;
        }
        if id == self.root_id() {
            return core::mem::replace(&mut self.root_entry, entry);
        }
        let at = id.slot(id.level);
        let Some(parent) = self.mark_dirty(id.parent()) else {
            return Entry::HOLE;
        };
        let old = core::mem::replace(&mut parent.entries[at], entry.0);
        if entry.is_hole() && parent.kids[at].as_deref().is_some_and(Node::is_unused) {
            parent.kids[at] = None;
            self.memory -= Node::memory(id.level);
        }
        Entry(old)
    }

    /// Drops the node `id` with all below it, and puts `entry` in its place. The node above is loaded.
    pub(super) fn replace_node(&mut self, id: NodeId, entry: Entry) {
        let mut freed = 0;
        if let Some(parent) = self.mark_dirty(id.parent()) {
            let at = id.slot(id.level);
            parent.entries[at] = entry.0;
            freed = parent.kids[at]
                .take()
                .map_or(0, |kid| kid.memory_below(id.level));
        }
        self.memory -= freed;
    }

    /// Adds levels above the root until there are `height`.
    pub(crate) fn grow(&mut self, height: u8) -> Result {
        while self.height < height {
            let mut entries = Vec::filled(0, NODE_ENTRIES)?;
            entries[0] = self.root_entry.0;
            let mut root = boxed(Node::new(self.height, entries)?)?;
            root.dirty = true;
            root.dirty_below = self.root.as_deref().is_some_and(Node::needs_storing);
            root.kids[0] = self.root.take();
            self.root = Some(root);
            self.root_entry = Entry::HOLE;
            self.memory += Node::memory(self.height);
            self.dirty_nodes += 1;
            self.height += 1;
        }
        Ok(())
    }

    /// Ends a checkpoint, stored or not: counts the dirty nodes anew, and which inner nodes lead to them.
    pub(super) fn end_checkpoint(&mut self) {
        self.dirty_nodes = self.root.as_deref_mut().map_or(0, settle);
        self.clock.reset();
    }

    /// Calls `f` with the entry of the stored copy of every loaded inner node's children.
    pub(super) fn for_each_stored(&self, f: &mut dyn FnMut(Entry)) {
        f(self.root_entry);
        if let Some(root) = self.root.as_deref() {
            each_stored(root, f);
        }
    }
}

// The recursions below are as deep as the tree: at most 5 levels for the largest device.

fn next_dirty(node: &Node, id: NodeId, level: u8, from: u64, generation: u64) -> Option<u64> {
    if id.level == level {
        let store = node.dirty && (level > 0 || node.since < generation);
        return (store && id.index >= from).then_some(id.index);
    }
    if !node.dirty_below {
        return None;
    }
    (id.first_slot(level, from)..NODE_ENTRIES).find_map(|at| {
        let kid = node.kids[at].as_deref()?;
        next_dirty(kid, id.child(at), level, from, generation)
    })
}

/// Returns how many nodes need storing.
fn settle(node: &mut Node) -> u64 {
    let mut below = 0;
    if node.dirty_below {
        below = node.kids.iter_mut().flatten().map(|kid| settle(kid)).sum();
        node.dirty_below = below > 0;
    }
    below + u64::from(node.needs_storing())
}

fn each_stored(node: &Node, f: &mut dyn FnMut(Entry)) {
    for (at, kid) in node.kids.iter().enumerate() {
        f(Entry(node.entries[at]));
        if let Some(kid) = kid.as_deref() {
            each_stored(kid, f);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::NODE_SHIFT;

    pub(super) fn zeros() -> Vec<u64> {
        Vec::filled(0, NODE_ENTRIES).unwrap()
    }

    pub(super) fn leaf_of(index: u64) -> NodeId {
        NodeId { level: 0, index }
    }

    /// A stored table of two levels, of which the root and the first leaves are loaded.
    pub(super) fn table_with_leaves(leaves: u64) -> Table {
        let stored = Entry::new(1 << 20, 4, 0, 1);
        let mut table = Table::new(2, stored);
        let mut words = zeros();
        for at in 0..leaves {
            words[at as usize] = Entry::new((2 + at) << 20, 9, 0, 1).0;
        }
        table.install(table.root_id(), stored, words).unwrap();
        for at in 0..leaves {
            let entry = Entry::new((2 + at) << 20, 9, 0, 1);
            table.install(leaf_of(at), entry, zeros()).unwrap();
        }
        table
    }

    /// Creates the way to the leaf of a block.
    fn create(table: &mut Table, block: u64) {
        while let Found::Absent(id) = table.find(block) {
            table.install(id, Entry::HOLE, zeros()).unwrap();
        }
    }

    #[test]
    fn a_checkpoint_takes_leaves_in_order_and_then_the_nodes_above() {
        let mut table = Table::new(3, Entry::HOLE);
        let blocks = [5, 512, 300_000, 100_000_000];
        for &b in &blocks {
            create(&mut table, b);
            table.leaf_mut(b).unwrap().0[b as usize % NODE_ENTRIES] = b;
        }
        table.begin_checkpoint();
        let (mut from, mut words, mut seen) = (0, zeros(), 0);
        while let Some(id) = table.take_dirty(0, from, &mut words) {
            assert_eq!(id.index, blocks[seen] >> NODE_SHIFT);
            assert_eq!(words[blocks[seen] as usize % NODE_ENTRIES], blocks[seen]);
            table.set_stored(id, Entry::new(1 << 20, 4, 0, 1));
            (from, seen) = (id.index + 1, seen + 1);
        }
        assert_eq!(seen, blocks.len());
        // A leaf that becomes dirty now waits for the next checkpoint.
        assert_eq!(table.leaf_mut(5).unwrap().1, Visibility::After);
        assert_eq!(table.take_dirty(0, 0, &mut words), None);
        assert_eq!(table.take_dirty(1, 0, &mut words).unwrap().index, 0);
        assert_eq!(table.take_dirty(1, 1, &mut words).unwrap().index, 1);
        table.begin_checkpoint();
        table.end_checkpoint();
        assert_eq!(table.leaf_mut(5).unwrap().1, Visibility::Included);
        assert_eq!(table.take_dirty(0, 0, &mut words).unwrap().index, 0);
    }

    #[test]
    fn a_leaf_that_could_not_be_stored_is_taken_again() {
        let mut table = table_with_leaves(2);
        table.leaf_mut(512).unwrap();
        let mut words = zeros();
        for _ in 0..2 {
            table.begin_checkpoint();
            assert_eq!(table.take_dirty(0, 0, &mut words), Some(leaf_of(1)));
            assert!(table.will_be_stored(leaf_of(1)));
            table.put_back(leaf_of(1));
            table.end_checkpoint();
        }
    }

    #[test]
    fn an_empty_leaf_is_removed_instead_of_stored() {
        let mut table = Table::new(2, Entry::HOLE);
        create(&mut table, 0);
        table.leaf_mut(0).unwrap();
        table.begin_checkpoint();
        let mut words = zeros();
        let id = table.take_dirty(0, 0, &mut words).unwrap();
        table.set_stored(id, Entry::HOLE);
        assert_eq!(table.find(0), Found::Absent(id));
    }

    #[test]
    fn growing_keeps_every_block_in_its_place() {
        let mut table = table_with_leaves(2);
        table.leaf_mut(512).unwrap().0[3] = 77;
        table.grow(4).unwrap();
        assert_eq!((table.height(), table.leaves()), (4, 1 << 27));
        assert_eq!(table.leaf(512).unwrap()[3], 77);
        assert!(matches!(table.find(1 << 20), Found::Absent(_)));
    }
}
