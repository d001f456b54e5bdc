// SPDX-License-Identifier: GPL-2.0
//! Step 2: the sector table goes into the log, level by level.

use super::node::append_node;
use super::CheckpointState;
use crate::engine::format::{Entry, Kind};
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::{Platform, Sabotage};

impl<P: Platform> CheckpointState<P> {
    /// Appends all nodes of a level of the sector table that are dirty.
    pub(super) fn write_level(&mut self, store: &Store<P>, level: u8) -> Result {
        let mut from = 0;
        loop {
            let ws = &mut self.ws;
            let taken = store.map.lock().take_dirty_node(level, from, &mut ws.words);
            let Some(id) = taken else { return Ok(()) };
            from = id.index + 1;
            if P::sabotaged(Sabotage::LostDetach) && level > 0 {
                ws.words
                    .iter_mut()
                    .for_each(|word| *word = Entry(*word).node().0);
            }
            let leaf = P::sabotaged(Sabotage::ForgottenLeaf) && level == 0 && id.index == 1;
            if leaf || P::sabotaged(Sabotage::ForgottenNode) && level == 1 {
                continue;
            }
            let empty = ws.words.iter().all(|&word| word == 0);
            if empty {
                let log = store.log.lock();
                store.map.lock().set_stored(id, Entry::HOLE, &log)?;
                continue;
            }
            let stored = append_node(store, ws, Kind::MapNode, id, &mut |entry, log| {
                store.map.lock().set_stored(id, entry, log)
            });
            if let Err(error) = stored {
                // Not stored: it stays dirty.
                store.map.lock().put_back(id);
                return Err(error);
            }
        }
    }
}
