// SPDX-License-Identifier: GPL-2.0
//! The reaper: takes detached subtrees of the sector table off the counts, in the background.
//!
//! A discard of a stored node only changes the entry that leads to it (see [`table`](crate::engine::map::table)), so its time does
//! not follow what it discards. The blocks below are taken off the counts here, node by node, beside other
//! operations. No log is written for that: until a checkpoint has stored the result, a crash brings the subtree
//! back, together with its counts. So space that falls free in this way waits for checkpoints.

use crate::engine::checkpoint::Checkpoint;
use crate::engine::format::{Entry, NODE_SHIFT};
use crate::engine::map::table::{NodeId, Search};
use crate::engine::store::Store;
use crate::engine::{Error, Result};
use crate::platform::{Monitor, Platform};
use core::sync::atomic::Ordering;

/// The search for detached subtrees, under [`Rank::Checkpoint`](crate::platform::Rank::Checkpoint): no checkpoint may be under
/// way, because its counts must be those of its table.
#[derive(Default)]
pub(crate) struct Reaper {
    /// Leaf to go on with.
    at: u64,
    /// [`Table::detached_count`](crate::engine::map::table::Table::detached_count) when the search began at the first leaf.
    seen: u64,
    /// Nodes that are not loaded may lead to detached ones, as an earlier opening left them.
    pub(crate) unknown: bool,
    /// There is one that cannot be read.
    pub(crate) stuck: bool,
}

impl Reaper {
    /// With `unknown`, any stored node may lead to detached ones.
    pub(crate) fn new(unknown: bool) -> Self {
        Self {
            unknown,
            ..Self::default()
        }
    }
}

/// First leaf in the reach of a node.
fn first_leaf(id: NodeId) -> u64 {
    id.index << (NODE_SHIFT * u32::from(id.level))
}

/// First leaf behind the reach of a node.
pub(crate) fn next_leaf(id: NodeId) -> u64 {
    (id.index + 1) << (NODE_SHIFT * u32::from(id.level))
}

impl<P: Platform> Store<P> {
    /// Takes detached subtrees off the counts, looking at `limit` nodes at most. True when there is more to do.
    ///
    /// # Errors
    ///
    /// Those of memory and of the backing file. A detached node that is damaged stays.
    pub(crate) fn reap(&self, state: &mut Checkpoint<P>, limit: usize) -> Result<bool> {
        for _ in 0..limit {
            let Some(search) = self.next_detached(state) else {
                return Ok(self.detached.load(Ordering::Relaxed));
            };
            let (Search::Detached(id, _) | Search::Unknown(id)) = search;
            // There is nothing before it.
            state.reaper.at = first_leaf(id);
            let result = match search {
                Search::Detached(_, entry) => self.reap_node(state, id, entry),
                Search::Unknown(_) => self.load(&mut state.ws, id, false).map(|_| ()),
            };
            match result {
                Ok(()) => {}
                Err(Error::Corrupt { .. }) => {
                    state.reaper.stuck = true;
                    state.reaper.at = next_leaf(id);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// What to look at next; nothing when the search has come to its end.
    fn next_detached(&self, state: &mut Checkpoint<P>) -> Option<Search> {
        let mut map = self.map.lock();
        let table = &mut map.table;
        let search = &mut state.reaper;
        if search.at < table.leaves() {
            let found = table.next_detached(search.at, search.unknown);
            if found.is_some() {
                return found;
            }
        }
        // New ones may lie before where it was.
        let again = search.seen != table.detached_count;
        (search.at, search.seen) = (0, table.detached_count);
        search.unknown = false;
        table.may_have_detached = again;
        self.detached.store(again, Ordering::Relaxed);
        None
    }

    /// Takes a detached leaf off the counts; of an inner node, detaches each child.
    fn reap_node(&self, state: &mut Checkpoint<P>, id: NodeId, entry: Entry) -> Result {
        let (seed, segments) = {
            let map = self.map.lock();
            (map.seed(entry)?, map.usage.len())
        };
        let words = self.map_node(&mut state.ws, id, entry, seed, segments)?;
        // Nodes are taken away only under the log's lock.
        let _tail = self.log.lock();
        let mut map = self.map.lock();
        // Meanwhile somebody may have written there.
        if map.table.detached_at(id) == Some(entry) {
            if id.level == 0 {
                map.reap_leaf(id, &words)?;
            } else {
                map.reattach(id, entry, &words)?;
            }
            self.log.demand.set(map.dirty_nodes());
            self.note_memory(&map);
        }
        Ok(())
    }
}
