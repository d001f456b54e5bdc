// SPDX-License-Identifier: GPL-2.0
//! [`CheckpointCost`]: the space that the next checkpoints need.

use crate::engine::format::{Layout, NODE_BYTES, RECORD_HEADER};
use core::sync::atomic::{AtomicU64, Ordering};

/// Space the stored copy of a node takes at most, in bytes.
const NODE_SPACE: u64 = (NODE_BYTES + RECORD_HEADER) as u64;
/// Nodes that one more record can make dirty, and that two checkpoints store in any case: the nodes above a
/// leaf, pages of the segment usage and the index above them.
const NODES_BESIDES: u64 = 48;

/// The nodes of the sector table and the segment usage that the next checkpoint has to store. The guard of the map keeps
/// it up to date, and it is read without a lock.
#[derive(Default)]
pub(crate) struct CheckpointCost {
    /// Dirty nodes.
    nodes: AtomicU64,
    /// Bytes of them from which on writers wait.
    most: AtomicU64,
}

impl CheckpointCost {
    /// Segments that two checkpoints take when next to no node is dirty.
    pub(crate) const LEAST_SEGMENTS: u64 = 1;

    /// Notes that `nodes` of the sector table and the segment usage are dirty.
    pub(crate) fn set(&self, nodes: u64) {
        self.nodes.store(nodes, Ordering::Relaxed);
    }

    /// Has writers wait for a checkpoint from `bytes` of dirty nodes on: the nodes must stay in memory until then.
    pub(crate) fn bound(&self, bytes: u64) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    /// True if writers must wait for a checkpoint.
    pub(crate) fn too_much(&self) -> bool {
        self.bytes() >= self.most.load(Ordering::Relaxed)
    }

    /// Bytes that the checkpoint will append at most.
    pub(crate) fn bytes(&self) -> u64 {
        self.nodes.load(Ordering::Relaxed) * NODE_SPACE
    }

    /// Segments that two checkpoints take at most. The rest of a segment that the next node does not fit into is lost.
    pub(crate) fn segments(&self, layout: &Layout) -> u64 {
        let usable = u64::from(layout.segment_size) - 2 * NODE_SPACE;
        (self.bytes() + NODES_BESIDES * NODE_SPACE).div_ceil(usable)
    }
}
