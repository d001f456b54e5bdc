// SPDX-License-Identifier: GPL-2.0
//! Space: which segments are free, how many the log keeps in reserve, and for whom.
//!
//! Space is reserved before a write is acknowledged (promise P2), and on a full backing file system the
//! operations that give space back must still find some: a discard takes its place in the log, reclaim
//! moves what is live, and a checkpoint makes it count. So the log reserves segments ahead, and each
//! [`SpaceClass`] has to leave a part of them to those that depend on it less than it does.

mod class;

pub(crate) use self::class::{for_metadata, SpaceClass};

use crate::engine::format::{DeviceSize, Layout, NODE_BYTES, RECORD_HEADER};
use crate::engine::Result;
use crate::platform::mem::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// Segments that users may fill after an open under a metadata class, until they first flush: a file system replays its
/// journal through the page cache of the device, which does not set REQ_META.
pub(crate) const JOURNAL_REPLAY: u64 = 16;
/// Segments after an open that always count as metadata: after replaying its journal, ext4 writes its superblock without
/// REQ_META.
pub(crate) const POST_MOUNT: u64 = 2;

/// Segments below the bound on the image's size that are left to checkpoints.
const BELOW_BOUND: u64 = 3;

/// Space the stored copy of a node takes at most, in bytes.
const NODE_SPACE: u64 = (NODE_BYTES + RECORD_HEADER) as u64;
/// Nodes that one more record can make dirty, and that two checkpoints store in any case: the nodes above a
/// leaf, pages of the segment usage and the index above them.
const NODES_BESIDES: u64 = 48;

/// What the next checkpoint has to store, kept up to date by those who change the table.
#[derive(Default)]
pub(crate) struct Demand {
    nodes: AtomicU64,
    most: AtomicU64,
}

impl Demand {
    /// `nodes` of the sector table and the segment usage are dirty.
    pub(crate) fn set(&self, nodes: u64) {
        self.nodes.store(nodes, Ordering::Relaxed);
    }

    /// From `bytes` of dirty nodes on, writers wait for a checkpoint: the nodes must stay in memory until then.
    pub(crate) fn bound(&self, bytes: u64) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    /// Whether writers are to wait for a checkpoint.
    pub(crate) fn too_much(&self) -> bool {
        self.bytes() >= self.most.load(Ordering::Relaxed)
    }

    /// Bytes of the stored nodes.
    pub(crate) fn bytes(&self) -> u64 {
        self.nodes.load(Ordering::Relaxed) * NODE_SPACE
    }

    /// Segments for them. What is left of a segment that the next node does not fit into is lost.
    pub(crate) fn segments(&self, layout: &Layout) -> u64 {
        let usable = u64::from(layout.segment_size) - 2 * NODE_SPACE;
        (self.bytes() + NODES_BESIDES * NODE_SPACE).div_ceil(usable)
    }
}

/// Most segments that come into use behind those that the stored segment usage covers. Whoever opens the
/// image makes room for all of them.
pub(crate) const MAX_UNCOVERED: u64 = 1 << 16;

/// Free segments of the image.
pub(crate) struct Allocator {
    /// Segments that were in use and are free again: a bit each.
    free: Vec<u64>,
    /// Bits that are set.
    available: u64,
    /// No word before this one has any.
    first: usize,
    /// Segments the image has; the next new one gets this index.
    pub(crate) count: u64,
    /// Segments that the stored segment usage covers.
    pub(crate) covered: u64,
}

impl Allocator {
    /// `count` segments, all in use.
    pub(crate) fn new(count: u64, covered: u64) -> Self {
        Self {
            free: Vec::new(),
            available: 0,
            first: 0,
            count,
            covered,
        }
    }

    /// Makes segment `index` available.
    pub(crate) fn release(&mut self, index: u64) -> Result {
        let word = (index / 64) as usize;
        while self.free.len() <= word {
            self.free.push(0)?;
        }
        self.available += u64::from(!self.is_free(index));
        self.free[word] |= 1 << (index % 64);
        self.first = self.first.min(word);
        Ok(())
    }

    fn remove(&mut self, index: u64) {
        self.free[(index / 64) as usize] &= !(1 << (index % 64));
        self.available -= 1;
    }

    fn is_free(&self, index: u64) -> bool {
        let word = self.free.get((index / 64) as usize);
        word.is_some_and(|word| (word >> (index % 64)) & 1 == 1)
    }

    /// The lowest free segment, or a new one while there are fewer than `max`.
    pub(crate) fn take(&mut self, max: u64) -> Option<u64> {
        let end = self.covered + MAX_UNCOVERED;
        match self.lowest() {
            Some(lowest) if lowest < end => {
                self.remove(lowest);
                Some(lowest)
            }
            None if self.count < max.min(end) => {
                self.count += 1;
                Some(self.count - 1)
            }
            _ => None,
        }
    }

    /// The free segment nearest to the beginning of the image.
    pub(crate) fn lowest(&mut self) -> Option<u64> {
        while *self.free.get(self.first)? == 0 {
            self.first += 1;
        }
        let bit = self.free[self.first].trailing_zeros();
        Some(self.first as u64 * 64 + u64::from(bit))
    }

    /// Forgets the free segments at the end; what is left ends with one in use.
    pub(crate) fn shrink(&mut self) {
        while self.count > 0 && self.is_free(self.count - 1) {
            self.count -= 1;
            self.remove(self.count);
        }
    }

    /// Number of free segments.
    pub(crate) fn available(&self) -> u64 {
        self.available
    }

    /// Number of segments that are not free.
    pub(crate) fn in_use(&self) -> u64 {
        self.count - self.available
    }
}

/// Bytes the image of a device may take, but for checkpoints: the bound on its size less what those may take at
/// that moment.
fn image_bound(layout: &Layout, size: DeviceSize) -> u64 {
    size.image_bound()
        .saturating_sub(BELOW_BOUND * u64::from(layout.segment_size))
}

/// The log's part of the space, under [`Rank::Log`](crate::platform::Rank::Log).
pub(crate) struct Space {
    pub(crate) allocator: Allocator,
    /// Segments with their space, for the log to use.
    pub(crate) ready: Vec<u64>,
    /// A thread is reserving one more, or cutting the file: nobody else does.
    pub(crate) reserving: bool,
    /// Somebody waits for reclaim to find space.
    pub(crate) wanted: bool,
    /// Reclaim found nothing, and nothing was written or discarded since. An image of its largest size
    /// may then grow beyond it.
    pub(crate) hopeless: bool,
    /// The backing file system had no space when it was last asked for a segment.
    pub(crate) crowded: bool,
    /// The last write that needed space found none.
    pub(crate) full: bool,
    /// Rounds of reclaim that were made for those who wait.
    pub(crate) rounds: u64,
    /// Size of the device.
    pub(crate) size: DeviceSize,
    layout: Layout,
}

impl Space {
    pub(crate) fn new(allocator: Allocator, layout: Layout, size: DeviceSize) -> Self {
        Self {
            allocator,
            ready: Vec::new(),
            reserving: false,
            wanted: false,
            hopeless: false,
            crowded: false,
            full: false,
            rounds: 0,
            size,
            layout,
        }
    }

    /// Bytes the image may take, but for checkpoints.
    pub(crate) fn bound(&self) -> u64 {
        image_bound(&self.layout, self.size)
    }

    /// Number of segments ready to be used.
    pub(crate) fn available(&self) -> u64 {
        self.ready.len() as u64
    }

    /// Takes the ready segment nearest to the beginning of the image.
    pub(crate) fn next(&mut self) -> Option<u64> {
        let (at, _) = self
            .ready
            .iter()
            .enumerate()
            .min_by_key(|(_, &index)| index)?;
        self.ready.remove(at)
    }

    /// Takes the ready segment farthest from the beginning of the image.
    pub(crate) fn last(&mut self) -> Option<u64> {
        let (at, _) = self
            .ready
            .iter()
            .enumerate()
            .max_by_key(|(_, &index)| index)?;
        self.ready.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_segments_are_taken_from_the_beginning_and_forgotten_at_the_end() {
        let mut allocator = Allocator::new(6, 6);
        for index in [4, 1, 5] {
            allocator.release(index).unwrap();
        }
        assert_eq!((allocator.available(), allocator.in_use()), (3, 3));
        allocator.shrink();
        assert_eq!((allocator.count, allocator.available()), (4, 1));
        assert_eq!(allocator.take(9), Some(1));
        assert_eq!(allocator.take(9), Some(4));
        assert_eq!(allocator.take(5), None);
    }
}
