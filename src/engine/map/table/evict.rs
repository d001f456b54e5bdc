// SPDX-License-Identifier: GPL-2.0
//! Eviction: takes nodes out of memory that can be loaded again, by the clock algorithm.

use super::node::Node;
use super::Table;
use crate::engine::format::{NodeId, NODE_ENTRIES};

/// Where the clock algorithm goes on, and when it is worth trying.
#[derive(Default)]
pub(super) struct Clock {
    /// Leaf at which the next sweep begins.
    hand: u64,
    /// A sweep does not begin below this many bytes of loaded nodes, because the last one found nothing more there.
    threshold: u64,
}

impl Clock {
    /// A checkpoint has made nodes clean: the next sweep may find some.
    pub(super) fn reset(&mut self) {
        self.threshold = 0;
    }
}

impl Table {
    /// Evicts nodes that can be loaded again and were not used lately, until `target` bytes are left.
    pub(in crate::engine::map) fn evict(&mut self, target: u64) {
        if self.memory < self.clock.threshold {
            return;
        }
        self.clock.threshold = 0;
        let id = self.root_id();
        // The first time around may do no more than clear the reference bits.
        for from in [self.clock.hand, 0, 0] {
            let Some(root) = self.root.as_deref_mut() else {
                return;
            };
            self.clock.hand = sweep(root, id, from, target, &mut self.memory).unwrap_or(0);
            if self.memory <= target {
                return;
            }
        }
        // The rest waits for a checkpoint. Until then a sweep for each loaded node would be wasted.
        self.clock.threshold = self.memory + self.memory / 16;
    }

    /// Sabotage: treats every node as if its stored copy had the same contents.
    pub(in crate::engine::map) fn forget_dirty(&mut self) {
        if let Some(root) = self.root.as_deref_mut() {
            forget_dirty(root);
        }
        self.dirty_nodes = 0;
    }
}

/// True if the node can be loaded again as it is. A node above a detached one stays, so that the reaper finds that.
fn is_evictable(node: &Node) -> bool {
    !node.needs_storing() && !node.being_stored && node.is_bottom() && !node.has_detached()
}

// The recursions below are as deep as the tree: at most 5 levels for the largest device.

/// Evicts below `node`, from leaf `from` on. Returns the leaf to go on with when `target` was reached.
fn sweep(node: &mut Node, id: NodeId, from: u64, target: u64, memory: &mut u64) -> Option<u64> {
    if id.level == 0 {
        return None;
    }
    for at in id.first_slot(0, from)..NODE_ENTRIES {
        let Some(kid) = node.kids[at].as_deref_mut() else {
            continue;
        };
        let kid_id = id.child(at);
        let stopped = sweep(kid, kid_id, from, target, memory);
        if stopped.is_some() {
            return stopped;
        }
        let referenced = core::mem::take(kid.referenced.get_mut());
        if is_evictable(kid) && !(kid_id.level == 0 && referenced) {
            node.kids[at] = None;
            *memory -= Node::memory(kid_id.level);
        }
        if *memory <= target {
            return Some(kid_id.end_leaf());
        }
    }
    None
}

fn forget_dirty(node: &mut Node) {
    (node.dirty, node.dirty_below, node.being_stored) = (false, false, false);
    for kid in node.kids.iter_mut().flatten() {
        forget_dirty(kid);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{leaf_of, table_with_leaves};
    use super::super::Found;
    use super::*;

    #[test]
    fn a_used_leaf_outlives_one_that_is_not() {
        let mut table = table_with_leaves(4);
        // The first sweep clears the reference bits that loading has set.
        table.evict(table.memory() - 1);
        let used = (0..4).find(|&at| table.find(at * 512) == Found::Loaded);
        let used = used.unwrap();
        table.leaf(used * 512);
        table.evict(table.memory() - 1);
        assert_eq!(table.find(used * 512), Found::Loaded);
    }

    #[test]
    fn dirty_nodes_and_their_parents_stay() {
        let mut table = table_with_leaves(4);
        table.leaf_mut(2 * 512).unwrap();
        table.evict(0);
        assert_eq!(table.find(2 * 512), Found::Loaded);
        assert!(matches!(table.find(512), Found::Stored(id, _) if id == leaf_of(1)));
        let memory = table.memory();
        assert_eq!(memory, Node::memory(0) + Node::memory(1));
    }
}
