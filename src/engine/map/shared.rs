// SPDX-License-Identifier: GPL-2.0
//! [`SharedMap`]: the lock around the map, and the figures that are read without it.

use super::Map;
use crate::engine::log::LogState;
use crate::engine::space::CheckpointCost;
use crate::engine::Result;
use crate::platform::mem::Arc;
use crate::platform::{Monitor, Platform, Rank, Sabotage};
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes of dirty nodes for which writers wait until a checkpoint has stored them, however large the limit on the
/// memory of the table is: an opening after a crash needs as much memory to replay the log.
const MOST_DIRTY: u64 = 256 << 20;

/// The map of an open image, under [`Rank::Map`].
pub(crate) struct SharedMap<P: Platform> {
    map: P::Monitor<Map>,
    figures: Figures,
}

/// Figures of the map for readers without the lock: those of the moment when it was last unlocked.
struct Figures {
    /// Bytes of memory of the loaded nodes.
    memory: AtomicU64,
    /// Bytes of memory that the loaded nodes should not exceed.
    limit: AtomicU64,
    /// There may be detached subtrees.
    detached: AtomicBool,
    /// The nodes that the next checkpoint has to store.
    checkpoint_cost: Arc<CheckpointCost>,
    /// The most work under the lock at a time, and the sum: nodes looked at and entries changed.
    #[cfg(test)]
    work: [AtomicU64; 2],
}

impl Figures {
    fn publish(&self, map: &Map) {
        self.memory.store(map.memory(), Ordering::Relaxed);
        self.detached
            .store(map.may_have_detached(), Ordering::Relaxed);
        self.checkpoint_cost.set(map.dirty_nodes());
    }
}

/// The locked map. Its figures are published when it is unlocked, if it was changed.
pub(crate) struct MapGuard<'a, P: Platform> {
    map: <P::Monitor<Map> as Monitor<Map>>::Guard<'a>,
    figures: &'a Figures,
    changed: bool,
}

impl<P: Platform> Deref for MapGuard<'_, P> {
    type Target = Map;

    fn deref(&self) -> &Map {
        &self.map
    }
}

impl<P: Platform> DerefMut for MapGuard<'_, P> {
    fn deref_mut(&mut self) -> &mut Map {
        self.changed = true;
        &mut self.map
    }
}

impl<P: Platform> Drop for MapGuard<'_, P> {
    fn drop(&mut self) {
        if self.changed {
            self.figures.publish(&self.map);
        }
        #[cfg(test)]
        {
            let work = self.map.work.take();
            self.figures.work[0].fetch_max(work, Ordering::Relaxed);
            self.figures.work[1].fetch_add(work, Ordering::Relaxed);
        }
    }
}

impl<P: Platform> SharedMap<P> {
    /// Shares `map`, and keeps `checkpoint_cost` up to date with its dirty nodes. There is no limit on its memory.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    // A frame of its own, as that of `Log::new`.
    #[inline(never)]
    pub(crate) fn new(map: Map, checkpoint_cost: Arc<CheckpointCost>) -> Result<Self> {
        let figures = Figures {
            memory: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            detached: AtomicBool::new(false),
            checkpoint_cost,
            #[cfg(test)]
            work: [const { AtomicU64::new(0) }; 2],
        };
        figures.publish(&map);
        Ok(Self {
            map: P::Monitor::new(map, Rank::Map)?,
            figures,
        })
    }

    /// Takes the lock.
    pub(crate) fn lock(&self) -> MapGuard<'_, P> {
        MapGuard {
            map: self.map.lock(),
            figures: &self.figures,
            changed: false,
        }
    }

    /// The most work under the lock at a time since the last call, and the sum: nodes looked at and entries changed.
    #[cfg(test)]
    pub(crate) fn take_work(&self) -> [u64; 2] {
        self.figures
            .work
            .each_ref()
            .map(|work| work.swap(0, Ordering::Relaxed))
    }

    /// Bytes of memory of the loaded nodes, near enough. Takes no lock.
    pub(crate) fn memory(&self) -> u64 {
        self.figures.memory.load(Ordering::Relaxed)
    }

    /// Bytes of memory that the loaded nodes should not exceed. Nodes that wait for a checkpoint may exceed them.
    pub(crate) fn limit(&self) -> u64 {
        self.figures.limit.load(Ordering::Relaxed)
    }

    /// Limits the memory of the loaded nodes to `bytes`, from the next loading or eviction on.
    pub(crate) fn set_limit(&self, bytes: u64) {
        self.figures.limit.store(bytes, Ordering::Relaxed);
        // A quarter is left for the pointers of inner nodes, and for writers that have passed the check already.
        let dirty = (bytes - bytes / 4).min(MOST_DIRTY);
        self.figures.checkpoint_cost.bound(dirty);
    }

    /// True if there may be detached subtrees. Takes no lock.
    pub(crate) fn may_have_detached(&self) -> bool {
        self.figures.detached.load(Ordering::Relaxed)
    }

    /// Evicts nodes that can be loaded again until the loaded ones take a little less than the limit, see
    /// [`evict_to`](Self::evict_to).
    pub(crate) fn evict(&self, log: &LogState) {
        let limit = self.limit();
        self.evict_to(limit - limit / 8, log);
    }

    /// Evicts nodes that can be loaded again until `target` bytes are left. Who holds the lock of the log relies on
    /// loaded nodes, so the state of the log is the proof that no other thread does.
    pub(crate) fn evict_to(&self, target: u64, _log: &LogState) {
        let mut map = self.lock();
        if P::sabotaged(Sabotage::EvictDirty) {
            map.table.forget_dirty();
        }
        map.table.evict(target);
    }
}
