// SPDX-License-Identifier: GPL-2.0
//! [`Reaper`]: takes detached subtrees of the sector table off the counts, in the background.
//!
//! A discard of a stored node changes only the entry that leads to it (see [`Table::detach`]), so its time does not
//! depend on how much it discards. The reaper subtracts the blocks below from the counts later, node by node, beside
//! other operations. The log does not record that: until a checkpoint has stored the result, a crash brings the
//! subtree back, together with its counts. So space that the reaper frees is usable after two checkpoints.
//!
//! [`Table::detach`]: super::table::Table

use super::load::{Loader, Missing};
use super::table::{Scope, Search};
use super::Map;
use crate::engine::format::{Entry, NodeId};
use crate::engine::records::ReadBuffers;
use crate::engine::Result;
use crate::platform::Platform;

/// Whether the reaper has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There may be more detached subtrees.
    More,
    /// A search through the whole table found no more.
    Done,
}

/// The search for detached subtrees, under [`Rank::Checkpoint`](crate::platform::Rank::Checkpoint): no checkpoint may be
/// under way, because its counts must be those of its table.
pub(crate) struct Reaper {
    /// Leaf to go on with.
    at: u64,
    /// Number of detachments when the search began at the first leaf.
    seen: u64,
    scope: Scope,
    /// A detached node could not be read: the next opening searches again.
    damaged: bool,
}

impl Reaper {
    /// A reaper of a table that has detached subtrees, as far as its superblock says, if `detached` is set.
    pub(crate) fn new(detached: bool) -> Self {
        Self {
            at: 0,
            seen: 0,
            scope: match detached {
                true => Scope::All,
                false => Scope::Loaded,
            },
            damaged: false,
        }
    }

    /// True if there may be detached subtrees that the table does not know of.
    pub(crate) fn may_have_missed(&self) -> bool {
        self.scope == Scope::All || self.damaged
    }

    /// Takes detached subtrees of the loader's table off the counts, looking at `limit` nodes at most.
    ///
    /// # Errors
    ///
    /// Those of memory. A detached node that is damaged or cannot be read stays.
    pub(crate) fn reap<P: Platform>(
        &mut self,
        loader: &Loader<'_, P>,
        buffers: &mut ReadBuffers,
        limit: usize,
    ) -> Result<Progress> {
        for _ in 0..limit {
            let Some(search) = self.next(&mut loader.map.lock()) else {
                return Ok(match loader.map.may_have_detached() {
                    true => Progress::More,
                    false => Progress::Done,
                });
            };
            let (Search::Detached(id, _) | Search::Unknown(id)) = search;
            // There is nothing before it.
            self.at = id.first_leaf();
            let result = match search {
                Search::Detached(_, entry) => reap_node(loader, buffers, id, entry),
                Search::Unknown(_) => loader.node(buffers, id, Missing::Leave).map(|_| ()),
            };
            match result {
                Ok(()) => {}
                Err(error) if error.is_damage() => {
                    self.damaged = true;
                    self.at = id.end_leaf();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::More)
    }

    /// The next node to look at; `None` when the search has come to the end of the table.
    fn next(&mut self, map: &mut Map) -> Option<Search> {
        if self.at < map.leaves() {
            let found = map.table.next_detached(self.at, self.scope);
            if found.is_some() {
                return found;
            }
        }
        // Nodes that were detached since the search began may lie before the place it has come to.
        map.table.searched(self.seen);
        (self.at, self.seen) = (0, map.table.detachments());
        self.scope = Scope::Loaded;
        None
    }
}

/// Takes a detached leaf off the counts; of an inner node, detaches each child.
fn reap_node<P: Platform>(
    loader: &Loader<'_, P>,
    buffers: &mut ReadBuffers,
    id: NodeId,
    entry: Entry,
) -> Result {
    let (incarnation, segments) = {
        let map = loader.map.lock();
        (map.incarnation(entry)?, map.segment_count())
    };
    let words = loader.read(buffers, id, entry, incarnation, segments)?;
    let log = loader.log().lock();
    let mut map = loader.map.lock();
    // A write there may have reattached the node meanwhile.
    if map.table.detached_at(id) == Some(entry) {
        match id.level {
            0 => map.reap_leaf(id, &words, &log)?,
            _ => map.reattach(id, entry, &words)?,
        }
    }
    Ok(())
}
