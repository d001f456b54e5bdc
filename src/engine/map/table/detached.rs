// SPDX-License-Identifier: GPL-2.0
//! Detached subtrees: how a discard of any size changes a few entries only.
//!
//! A discard does not load what it covers. Where the reach of a stored node lies in the range as a whole, the entry of
//! the node is marked as [detached](Entry::detached), and a search finds nothing below it. The records that its stored
//! copy refers to count as live until the [reaper](crate::engine::map::reaper) or a write there has loaded the node and
//! taken them off the counts. A loaded child of a detached entry was reattached: it began empty.

use super::node::Node;
use super::Table;
use crate::engine::format::{Entry, NodeId, NODE_ENTRIES};
use crate::engine::Result;
use crate::platform::mem::Vec;

/// Where a search for detached subtrees stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    /// A detached node, with its entry.
    Detached(NodeId, Entry),
    /// A stored inner node below which there may be detached ones.
    Unknown(NodeId),
}

/// Which nodes a search for detached subtrees looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The loaded ones: all that this opening has detached is there.
    Loaded,
    /// The stored ones as well, which an earlier opening may have left above detached nodes.
    All,
}

/// How often subtrees were detached, and whether any are left.
#[derive(Default)]
pub(super) struct Detached {
    /// There may be detached subtrees.
    possible: bool,
    /// Number of times that nodes were detached.
    count: u64,
}

impl Table {
    /// The same table, which may have detached subtrees if its superblock says so.
    pub(crate) fn with_detached(mut self, possible: bool) -> Self {
        self.detached.possible = possible;
        self
    }

    /// True if there may be detached subtrees.
    pub(in crate::engine::map) fn may_have_detached(&self) -> bool {
        self.detached.possible
    }

    /// Number of times that nodes were detached.
    pub(in crate::engine::map) fn detachments(&self) -> u64 {
        self.detached.count
    }

    /// Notes that a search through the whole table is over, which began when nodes had been detached `before` times.
    /// It found all detached subtrees but those that were detached since.
    pub(in crate::engine::map) fn searched(&mut self, before: u64) {
        self.detached.possible = self.detached.count != before;
    }

    /// Detaches the stored node `id` at `entry`, which is not loaded.
    pub(in crate::engine::map) fn detach(&mut self, id: NodeId, entry: Entry) {
        self.detached.possible = true;
        self.detached.count += 1;
        if id == self.root_id() {
            self.root_entry = entry.detached();
        } else if let Some(parent) = self.mark_dirty(id.parent()) {
            parent.entries[id.slot(id.level)] = entry.detached().0;
        }
    }

    /// The entry of `id` if that is detached and was not reattached since.
    pub(in crate::engine::map) fn detached_at(&self, id: NodeId) -> Option<Entry> {
        let entry = self.stored_at(id).filter(|entry| entry.is_detached())?;
        self.get(id).is_none().then_some(entry)
    }

    /// Reattaches the detached node `id` at `entry`, if it is still there: as a leaf without any block, or as an
    /// inner node whose children, the entries in `words`, are detached. Returns whether it was there. The node is
    /// dirty, so it stays in memory until a checkpoint has stored it.
    pub(in crate::engine::map) fn reattach(
        &mut self,
        id: NodeId,
        entry: Entry,
        words: &[u64],
    ) -> Result<bool> {
        if self.detached_at(id) != Some(entry) {
            return Ok(false);
        }
        let mut entries = Vec::filled(0, NODE_ENTRIES)?;
        if id.level > 0 {
            self.detached.count += 1;
            for (entry, &word) in entries.iter_mut().zip(words).filter(|(_, &word)| word != 0) {
                *entry = Entry(word).detached().0;
            }
        }
        self.install(id, entry, entries)?;
        Ok(self.mark_dirty(id).is_some())
    }

    /// The first detached node at or behind leaf `from`, or, in [`Scope::All`], the first node that must be loaded to
    /// go on.
    pub(in crate::engine::map) fn next_detached(&self, from: u64, scope: Scope) -> Option<Search> {
        let id = self.root_id();
        match self.root.as_deref() {
            Some(root) => next_below(root, id, from, scope),
            None => search_at(id, self.root_entry, scope),
        }
    }
}

/// Tells whether a search stops at the entry of a node that is not loaded.
fn search_at(id: NodeId, entry: Entry, scope: Scope) -> Option<Search> {
    if entry.is_detached() {
        return Some(Search::Detached(id, entry));
    }
    let unknown = !entry.is_hole() && id.level > 0 && scope == Scope::All;
    unknown.then_some(Search::Unknown(id))
}

// As deep as the tree: at most 5 levels for the largest device.
fn next_below(node: &Node, id: NodeId, from: u64, scope: Scope) -> Option<Search> {
    if id.level == 0 {
        return None;
    }
    (id.first_slot(0, from)..NODE_ENTRIES).find_map(|at| match node.kids[at].as_deref() {
        Some(kid) => next_below(kid, id.child(at), from, scope),
        None => search_at(id.child(at), Entry(node.entries[at]), scope),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{leaf_of, table_with_leaves, zeros};
    use super::super::Found;
    use super::*;

    /// A table of which leaf 3 was detached, and the entry that the leaf had.
    fn detached_leaf() -> (Table, Entry) {
        let mut table = table_with_leaves(4);
        table.evict(0);
        table
            .install(table.root_id(), table.root_entry(), {
                let mut words = zeros();
                words[3] = Entry::new(1 << 21, 9, 0, 1).0;
                words
            })
            .unwrap();
        let Found::Stored(id, entry) = table.find(3 * 512) else {
            panic!("leaf 3 is not stored");
        };
        table.detach(id, entry);
        (table, entry)
    }

    #[test]
    fn a_search_finds_a_detached_leaf_from_its_place_on() {
        let (table, entry) = detached_leaf();
        let found = Some(Search::Detached(leaf_of(3), entry.detached()));
        assert_eq!(table.find(3 * 512 + 5), Found::Absent(leaf_of(3)));
        assert_eq!(table.next_detached(0, Scope::Loaded), found);
        assert_eq!(table.next_detached(4, Scope::Loaded), None);
    }

    #[test]
    fn a_reattached_leaf_begins_empty_and_stays_in_memory() {
        let (mut table, entry) = detached_leaf();
        assert!(table
            .reattach(leaf_of(3), entry.detached(), &zeros())
            .unwrap());
        assert_eq!(table.next_detached(0, Scope::Loaded), None);
        assert!(table.leaf(3 * 512).unwrap().iter().all(|&word| word == 0));
        // It differs from its stored copy.
        table.evict(0);
        assert_eq!(table.find(3 * 512), Found::Loaded);
    }

    #[test]
    fn a_node_that_moved_meanwhile_is_not_reattached() {
        let (mut table, _) = detached_leaf();
        let other = Entry::new(1 << 20, 4, 0, 1).detached();
        assert!(!table.reattach(leaf_of(3), other, &zeros()).unwrap());
    }

    #[test]
    fn nodes_that_are_not_loaded_are_unknown() {
        let table = Table::new(2, Entry::new(1 << 20, 4, 0, 1)).with_detached(true);
        let root = table.root_id();
        assert_eq!(table.next_detached(0, Scope::Loaded), None);
        assert_eq!(
            table.next_detached(0, Scope::All),
            Some(Search::Unknown(root))
        );
    }

    #[test]
    fn a_search_does_not_vouch_for_what_was_detached_meanwhile() {
        let (mut table, _) = detached_leaf();
        let before = table.detachments();
        let id = leaf_of(7);
        table.detach(id, Entry::new(1 << 22, 4, 0, 1));
        table.searched(before);
        assert!(table.may_have_detached());
        table.searched(table.detachments());
        assert!(!table.may_have_detached());
    }
}
