// SPDX-License-Identifier: GPL-2.0
//! The sector table: a radix tree from block number to [`Entry`], allocated on demand and loaded on
//! demand. A pure data structure: what must be read from or written to the image is done by its users.
//!
//! Level 0 holds the leaves (512 entries each, 2 MiB of the device); an inner node holds the entries
//! of its children's stored copies and, where they are loaded, the children themselves. Nodes are taken away
//! only under the log's lock.
//!
//! A discard does not load what it covers. Where a stored node lies in it as a whole, its entry becomes that of
//! a [detached](Entry::detached) subtree, and a search finds nothing below it. What the stored copy
//! refers to is taken off the counts later ([`detached`](crate::engine::map::detached)), or when somebody writes there. A
//! loaded child of such an entry has begun anew, without anything in it.

use crate::engine::format::{Entry, NODE_ENTRIES, NODE_SHIFT};
use crate::engine::Result;
use crate::platform::mem::{boxed, Box, Vec};
use core::sync::atomic::{AtomicBool, Ordering};

/// Bytes of memory a loaded leaf takes, near enough for accounting.
const LEAF_MEMORY: u64 = (NODE_ENTRIES * 8) as u64;
/// Bytes of memory a loaded inner node takes.
const INNER_MEMORY: u64 = 2 * LEAF_MEMORY;

/// Names a node: its level (0: leaf) and its index in the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId {
    pub(crate) level: u8,
    pub(crate) index: u64,
}

impl NodeId {
    /// The leaf of a block.
    pub(crate) fn leaf(block: u64) -> Self {
        Self {
            level: 0,
            index: block >> NODE_SHIFT,
        }
    }
}

/// A loaded node.
pub(crate) struct Node {
    /// Leaf: where blocks are. Inner: where the children's stored copies are.
    pub(crate) entries: Vec<u64>,
    /// Inner: loaded children. Empty for a leaf.
    kids: Vec<Option<Box<Node>>>,
    /// Differs from its stored copy.
    dirty: bool,
    /// Checkpoint generation in which a leaf became dirty.
    since: u64,
    /// Inner: some node below may be dirty.
    dirty_below: bool,
    /// A checkpoint is storing it: its stored copy is an older one.
    being_stored: bool,
    /// Leaf: used since eviction last came by (the reference bit of the clock algorithm).
    referenced: AtomicBool,
}

impl Node {
    fn new(level: u8, entries: Vec<u64>) -> Result<Self> {
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

    /// Whether the next checkpoint may have to store it: it is dirty, or leads to a dirty node.
    fn needs_storing(&self) -> bool {
        self.dirty || self.dirty_below
    }

    /// Whether it can be loaded again as it is. A node above a detached one stays, so that the reaper finds that.
    fn stored(&self) -> bool {
        !self.needs_storing()
            && !self.being_stored
            && self.kids.iter().all(Option::is_none)
            && !self.has_detached()
    }

    /// Whether a child is detached. A leaf has no children.
    fn has_detached(&self) -> bool {
        !self.kids.is_empty() && self.entries.iter().any(|&word| Entry(word).is_detached())
    }

    fn memory(level: u8) -> u64 {
        if level == 0 {
            LEAF_MEMORY
        } else {
            INNER_MEMORY
        }
    }
}

/// What stands between a caller and a node, mostly the leaf of a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The node is loaded.
    Loaded,
    /// Nothing is mapped in the reach of this node, and no node exists, or a detached one.
    Absent(NodeId),
    /// This node has a stored copy that must be loaded first.
    Stored(NodeId, Entry),
}

/// How a change of a leaf relates to the checkpoint being written, see
/// [`checkpoint`](crate::engine::checkpoint).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// The leaf is still to be written by it: the change will be in the checkpoint.
    Included,
    /// The checkpoint will hold (or already holds) the leaf without the change.
    After,
}

pub(crate) struct Table {
    height: u8,
    root: Option<Box<Node>>,
    root_entry: Entry,
    /// Number of the newest checkpoint that was begun.
    pub(crate) generation: u64,
    /// Bytes of loaded nodes.
    pub(crate) memory: u64,
    /// Nodes that the next checkpoint will store: at least as many as there are.
    pub(crate) dirty_nodes: u64,
    /// Leaf at which the next sweep of eviction begins (as the hand of the clock algorithm).
    clock_hand: u64,
    /// Eviction does not sweep below this many bytes of loaded nodes: a sweep found nothing there.
    evict_above: u64,
    /// There may be detached subtrees.
    pub(crate) may_have_detached: bool,
    /// Detachments so far.
    pub(crate) detached_count: u64,
}

/// What a search for detached subtrees comes upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// This one, with its entry.
    Detached(NodeId, Entry),
    /// A stored inner node below which there may be some.
    Unknown(NodeId),
}

fn parent_of(id: NodeId) -> NodeId {
    NodeId {
        level: id.level + 1,
        index: id.index >> NODE_SHIFT,
    }
}

fn slot(id: NodeId, level: u8) -> usize {
    // Which child of its ancestor at `level + 1` leads to `id`.
    (id.index >> (NODE_SHIFT * u32::from(level - id.level))) as usize & (NODE_ENTRIES - 1)
}

impl Table {
    /// A table of `height` levels whose root is stored at `root_entry`.
    pub(crate) fn new(height: u8, root_entry: Entry) -> Self {
        Self {
            height,
            root: None,
            root_entry,
            generation: 0,
            memory: 0,
            dirty_nodes: 0,
            clock_hand: 0,
            evict_above: 0,
            may_have_detached: false,
            detached_count: 0,
        }
    }

    fn root_id(&self) -> NodeId {
        NodeId {
            level: self.height - 1,
            index: 0,
        }
    }

    /// Where the root's stored copy is.
    pub(crate) fn root_entry(&self) -> Entry {
        self.root_entry
    }

    /// Levels of the tree.
    pub(crate) fn height(&self) -> u8 {
        self.height
    }

    /// Leaves the tree reaches.
    pub(crate) fn leaves(&self) -> u64 {
        1 << (NODE_SHIFT * u32::from(self.height - 1))
    }

    /// Looks for the leaf of `block`.
    pub(crate) fn find(&self, block: u64) -> Found {
        self.find_node(NodeId::leaf(block))
    }

    /// Looks for a node.
    pub(crate) fn find_node(&self, wanted: NodeId) -> Found {
        let (mut id, mut entry, mut node) = (self.root_id(), self.root_entry, self.root.as_deref());
        loop {
            match node {
                None if entry.is_hole() || entry.is_detached() => return Found::Absent(id),
                None => return Found::Stored(id, entry),
                Some(_) if id.level <= wanted.level => return Found::Loaded,
                Some(inner) => {
                    let level = id.level - 1;
                    let at = slot(wanted, level);
                    id = NodeId {
                        level,
                        index: (id.index << NODE_SHIFT) | at as u64,
                    };
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
            node = node.kids[slot(id, level)].as_deref()?;
        }
        Some(node)
    }

    /// The loaded node `id`, to be changed; `mark` flags the way to it as leading to something dirty.
    fn get_mut(&mut self, id: NodeId, mark: bool) -> Option<&mut Node> {
        let mut node = self.root.as_deref_mut()?;
        for level in (id.level..self.height - 1).rev() {
            if mark {
                self.dirty_nodes += u64::from(!node.needs_storing());
                node.dirty_below = true;
            }
            node = node.kids[slot(id, level)].as_deref_mut()?;
        }
        Some(node)
    }

    /// Marks the loaded node `id` as dirty.
    fn mark_dirty(&mut self, id: NodeId) -> Option<&mut Node> {
        let generation = self.generation;
        let node = self.get_mut(id, true)?;
        let fresh = !node.needs_storing();
        if !node.dirty {
            node.dirty = true;
            node.since = generation;
        }
        self.dirty_nodes += u64::from(fresh);
        self.get_mut(id, false)
    }

    /// The entries of the loaded leaf that holds `block`.
    pub(crate) fn leaf(&self, block: u64) -> Option<&[u64]> {
        let leaf = self.get(NodeId::leaf(block))?;
        leaf.referenced.store(true, Ordering::Relaxed);
        Some(&leaf.entries)
    }

    /// The entries of the loaded leaf that holds `block`, to be changed now, and what the checkpoint
    /// being written will see of the change.
    pub(crate) fn leaf_mut(&mut self, block: u64) -> Option<(&mut [u64], Visibility)> {
        let generation = self.generation;
        let leaf = self.mark_dirty(NodeId::leaf(block))?;
        *leaf.referenced.get_mut() = true;
        let visibility = if leaf.since < generation {
            Visibility::Included
        } else {
            Visibility::After
        };
        Some((&mut leaf.entries, visibility))
    }

    /// Puts node `id`, whose stored copy is at `stored`, with these entries into the tree. Does nothing
    /// when that is no longer true: the node was loaded, moved or dropped meanwhile.
    pub(crate) fn install(&mut self, id: NodeId, stored: Entry, entries: Vec<u64>) -> Result {
        let node = boxed(Node::new(id.level, entries)?)?;
        let (place, entry) = if id.level == self.height - 1 {
            (&mut self.root, self.root_entry)
        } else {
            let at = slot(id, id.level);
            match self.get_mut(parent_of(id), false) {
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

    /// Finds the first node of `level` with an index of at least `from` that the checkpoint being
    /// written must store, copies its entries into `words`, and marks it clean.
    pub(crate) fn take_dirty(&mut self, level: u8, from: u64, words: &mut [u64]) -> Option<NodeId> {
        let root = self.root_id();
        let generation = self.generation;
        let index = next_dirty(self.root.as_deref()?, root, level, from, generation)?;
        let id = NodeId { level, index };
        let node = self.get_mut(id, false)?;
        words.copy_from_slice(&node.entries);
        node.dirty = false;
        node.being_stored = true;
        if level == 0 {
            self.dirty_nodes = self.dirty_nodes.saturating_sub(1);
        }
        Some(id)
    }

    /// Undoes [`take_dirty`](Self::take_dirty) for a node that could not be stored.
    pub(crate) fn put_back(&mut self, id: NodeId) {
        if let Some(node) = self.mark_dirty(id) {
            node.being_stored = false;
        }
    }

    /// Where the stored copy of `id` is; `None` when the node above is not loaded.
    pub(crate) fn stored_at(&self, id: NodeId) -> Option<Entry> {
        if id.level + 1 >= self.height {
            return Some(self.root_entry);
        }
        let parent = self.get(parent_of(id))?;
        Some(Entry(parent.entries[slot(id, id.level)]))
    }

    /// Whether the stored copy of `id` is at this address, as far as the node above is loaded.
    pub(crate) fn stores(&self, id: NodeId, address: u64) -> bool {
        let stored = self.stored_at(id).filter(|entry| !entry.is_hole());
        stored.is_some_and(|entry| entry.address() == address)
    }

    /// Whether the next checkpoint will store `id` in any case.
    pub(crate) fn will_be_stored(&self, id: NodeId) -> bool {
        self.get(id)
            .is_some_and(|node| node.needs_storing() || node.being_stored)
    }

    /// Records that the stored copy of `id` is now at `entry` (a hole: the node is empty), and returns
    /// where it was. An empty node that stayed clean is dropped.
    pub(crate) fn set_stored(&mut self, id: NodeId, entry: Entry) -> Entry {
        if let Some(node) = self.get_mut(id, false) {
            node.being_stored = false;
        }
        if id.level == self.height - 1 {
            return core::mem::replace(&mut self.root_entry, entry);
        }
        let at = slot(id, id.level);
        let mut freed = false;
        let Some(parent) = self.mark_dirty(parent_of(id)) else {
            return Entry::HOLE;
        };
        if entry.is_hole() && parent.kids[at].as_deref().is_some_and(unused) {
            parent.kids[at] = None;
            freed = true;
        }
        let old = core::mem::replace(&mut parent.entries[at], entry.0);
        if freed {
            self.memory -= Node::memory(id.level);
        }
        Entry(old)
    }

    /// Detaches the stored node `id` at `entry`, which is not loaded.
    pub(crate) fn detach(&mut self, id: NodeId, entry: Entry) {
        self.may_have_detached = true;
        self.detached_count += 1;
        if id.level == self.height - 1 {
            self.root_entry = entry.detached();
        } else if let Some(parent) = self.mark_dirty(parent_of(id)) {
            parent.entries[slot(id, id.level)] = entry.detached().0;
        }
    }

    /// The entry of `id` if that is detached and was not reattached since.
    pub(crate) fn detached_at(&self, id: NodeId) -> Option<Entry> {
        let entry = self.stored_at(id).filter(|entry| entry.is_detached())?;
        self.get(id).is_none().then_some(entry)
    }

    /// Reattaches the detached node `id` at `entry`, if it is still there: as a leaf without any block, or as an inner
    /// node whose children (`words`) are detached. It is dirty, so it stays in memory until a checkpoint has stored it.
    pub(crate) fn reattach(&mut self, id: NodeId, entry: Entry, words: &[u64]) -> Result<bool> {
        if self.detached_at(id) != Some(entry) {
            return Ok(false);
        }
        let mut entries = Vec::filled(0, NODE_ENTRIES)?;
        if id.level > 0 {
            self.detached_count += 1;
            for (entry, &word) in entries.iter_mut().zip(words).filter(|(_, &word)| word != 0) {
                *entry = Entry(word).detached().0;
            }
        }
        self.install(id, entry, entries)?;
        Ok(self.mark_dirty(id).is_some())
    }

    /// The first detached node at or behind leaf `from`, among the loaded nodes; with `all` also the first node
    /// that must be loaded to know.
    pub(crate) fn next_detached(&self, from: u64, all: bool) -> Option<Search> {
        let id = self.root_id();
        match self.root.as_deref() {
            Some(root) => next_detached(root, id, from, all),
            None if self.root_entry.is_detached() => Some(Search::Detached(id, self.root_entry)),
            None if self.root_entry.is_hole() || !all => None,
            None => Some(Search::Unknown(id)),
        }
    }

    /// Drops nodes that can be loaded again and were not used lately, until `target` bytes are left.
    pub(crate) fn evict(&mut self, target: u64) {
        if self.memory < self.evict_above {
            return;
        }
        self.evict_above = 0;
        let id = self.root_id();
        // Once around may do no more than forget who was used.
        for from in [self.clock_hand, 0, 0] {
            let Some(root) = self.root.as_deref_mut() else {
                return;
            };
            self.clock_hand = sweep(root, id, from, target, &mut self.memory).unwrap_or(0);
            if self.memory <= target {
                return;
            }
        }
        // The rest waits for a checkpoint: do not look at all of it for each node that is loaded.
        self.evict_above = self.memory + self.memory / 16;
    }

    /// Takes every node for one that is stored as it is.
    pub(crate) fn forget_dirty(&mut self) {
        if let Some(root) = self.root.as_deref_mut() {
            forget_dirty(root);
        }
        self.dirty_nodes = 0;
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

    /// Recomputes which inner nodes lead to dirty ones, after a checkpoint.
    pub(crate) fn settle(&mut self) {
        self.dirty_nodes = self.root.as_deref_mut().map_or(0, settle);
        self.evict_above = 0;
    }

    /// Calls `f` with the entry of the stored copy of every loaded inner node's children.
    pub(crate) fn for_each_stored(&self, f: &mut dyn FnMut(Entry)) {
        f(self.root_entry);
        if let Some(root) = self.root.as_deref() {
            each_stored(root, f);
        }
    }
}

/// Nothing mapped, nothing loaded below, nothing to write.
fn unused(node: &Node) -> bool {
    !node.dirty
        && node.kids.iter().all(Option::is_none)
        && node.entries.iter().all(|&word| word == 0)
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
    // Indices of `level` below the child in slot `at` start at `(id.index * 512 + at) << shift`.
    let shift = NODE_SHIFT * u32::from(id.level - 1 - level);
    let first = (from >> shift).saturating_sub(id.index << NODE_SHIFT);
    for at in (first as usize).min(NODE_ENTRIES)..NODE_ENTRIES {
        if let Some(kid) = node.kids[at].as_deref() {
            let kid_id = NodeId {
                level: id.level - 1,
                index: (id.index << NODE_SHIFT) | at as u64,
            };
            let found = next_dirty(kid, kid_id, level, from, generation);
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

fn next_detached(node: &Node, id: NodeId, from: u64, all: bool) -> Option<Search> {
    let level = id.level.checked_sub(1)?;
    let shift = NODE_SHIFT * u32::from(level);
    let first = (from >> shift).saturating_sub(id.index << NODE_SHIFT);
    for at in (first as usize).min(NODE_ENTRIES)..NODE_ENTRIES {
        let (kid, entry) = (node.kids[at].as_deref(), Entry(node.entries[at]));
        let kid_id = NodeId {
            level,
            index: (id.index << NODE_SHIFT) | at as u64,
        };
        let found = match kid {
            Some(kid) => next_detached(kid, kid_id, from, all),
            None if entry.is_detached() => Some(Search::Detached(kid_id, entry)),
            None if entry.is_hole() || level == 0 || !all => None,
            None => Some(Search::Unknown(kid_id)),
        };
        if found.is_some() {
            return found;
        }
    }
    None
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

fn forget_dirty(node: &mut Node) {
    (node.dirty, node.dirty_below, node.being_stored) = (false, false, false);
    node.kids
        .iter_mut()
        .flatten()
        .for_each(|kid| forget_dirty(kid));
}

/// Evicts below `node`, from leaf `from` on; the leaf to go on with when `target` was reached.
fn sweep(node: &mut Node, id: NodeId, from: u64, target: u64, memory: &mut u64) -> Option<u64> {
    let level = id.level.checked_sub(1)?;
    let shift = NODE_SHIFT * u32::from(level);
    let first = (from >> shift).saturating_sub(id.index << NODE_SHIFT);
    for at in (first as usize).min(NODE_ENTRIES)..NODE_ENTRIES {
        let kid_id = NodeId {
            level,
            index: (id.index << NODE_SHIFT) | at as u64,
        };
        let Some(kid) = node.kids[at].as_deref_mut() else {
            continue;
        };
        let stopped = sweep(kid, kid_id, from, target, memory);
        if stopped.is_some() {
            return stopped;
        }
        let referenced = core::mem::take(kid.referenced.get_mut());
        if kid.stored() && !(level == 0 && referenced) {
            node.kids[at] = None;
            *memory -= Node::memory(level);
        }
        if *memory <= target {
            return Some((kid_id.index + 1) << shift);
        }
    }
    None
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

    fn zeros() -> Vec<u64> {
        Vec::filled(0, NODE_ENTRIES).unwrap()
    }

    fn grow(table: &mut Table, block: u64) {
        while let Found::Absent(id) = table.find(block) {
            table.install(id, Entry::HOLE, zeros()).unwrap();
        }
    }

    #[test]
    fn grows_on_demand_and_finds_dirty_leaves_in_order() {
        let mut table = Table::new(3, Entry::HOLE);
        let blocks = [5, 512, 300_000, 100_000_000];
        for &b in &blocks {
            grow(&mut table, b);
            table.leaf_mut(b).unwrap().0[b as usize % NODE_ENTRIES] = b;
        }
        table.generation += 1;
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
        table.generation += 1;
        table.settle();
        assert_eq!(table.leaf_mut(5).unwrap().1, Visibility::Included);
        assert_eq!(table.take_dirty(0, 0, &mut words).unwrap().index, 0);
    }

    #[test]
    fn a_detached_leaf_is_absent_until_it_is_reattached() {
        let (at, stored) = (Entry::new(1 << 21, 9, 0, 1), Entry::new(1 << 20, 4, 0, 1));
        let mut table = Table::new(2, stored);
        let mut words = zeros();
        words[3] = at.0;
        table.install(table.root_id(), stored, words).unwrap();
        let id = NodeId { level: 0, index: 3 };
        assert_eq!(table.find(3 * 512), Found::Stored(id, at));
        assert_eq!(table.next_detached(0, true), None);
        table.detach(id, at);
        assert_eq!(table.find(3 * 512 + 5), Found::Absent(id));
        let detached = Some(Search::Detached(id, at.detached()));
        assert_eq!(table.next_detached(0, false), detached);
        assert_eq!(table.next_detached(4, false), None);
        // Somebody else was faster, with another copy.
        assert!(!table.reattach(id, stored.detached(), &zeros()).unwrap());
        assert!(table.reattach(id, at.detached(), &zeros()).unwrap());
        assert_eq!(table.find(3 * 512), Found::Loaded);
        assert_eq!(table.next_detached(0, false), None);
        assert!(table.leaf(3 * 512).unwrap().iter().all(|&word| word == 0));
        // It is not what its stored copy says, so it must not go.
        let memory = table.memory;
        table.evict(0);
        assert_eq!((table.memory, table.find(3 * 512)), (memory, Found::Loaded));
    }

    #[test]
    fn an_empty_leaf_is_dropped_when_it_is_stored() {
        let mut table = Table::new(2, Entry::HOLE);
        grow(&mut table, 0);
        table.leaf_mut(0).unwrap();
        table.generation += 1;
        let mut words = zeros();
        let id = table.take_dirty(0, 0, &mut words).unwrap();
        table.set_stored(id, Entry::HOLE);
        assert_eq!(table.find(0), Found::Absent(id));
    }
}
