// SPDX-License-Identifier: GPL-2.0
//! Step 3: the segment usage goes into the log, changed pages first and then the index above them.

use super::node::append_node;
use super::CheckpointState;
use crate::engine::format::{height_for, Entry, Kind, NodeId, RecordHeader, NODE_ENTRIES};
use crate::engine::freeing;
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::Platform;

impl<P: Platform> CheckpointState<P> {
    /// Appends the pages of the segment usage that changed, and the index nodes above them. Returns how
    /// many segments the stored usage covers.
    pub(super) fn write_usage(&mut self, store: &Store<P>) -> Result<u64> {
        self.write_changed(store).inspect_err(|_| {
            // Some pages moved and their index did not: the next checkpoint stores all of them.
            store.map.lock().mark_all_pages_dirty();
        })
    }

    /// The entry of the topmost node.
    pub(super) fn usage_root(&self) -> Entry {
        let top = self.usage_nodes.last().and_then(|top| top.first());
        Entry(top.map_or(0, |&word| word))
    }

    /// The entries of all stored nodes.
    pub(crate) fn usage_entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let nodes = self.usage_nodes.iter().flat_map(|level| level.iter());
        nodes.map(|&word| Entry(word))
    }

    /// True if the node in the record with this header, at `address`, is the stored one.
    pub(crate) fn stores_usage(&self, header: &RecordHeader, address: u64) -> bool {
        let known = self.usage_nodes.get(usize::from(header.count));
        let node = known.and_then(|nodes| nodes.get(header.number as usize));
        node.is_some_and(|&word| Entry(word).address() == address)
    }

    fn write_changed(&mut self, store: &Store<P>) -> Result<u64> {
        // Free segments at the end of the image are not stored.
        let segments = {
            let log = store.log.lock();
            let map = store.map.lock();
            freeing::extent(&log, &map).min(map.segment_count())
        };
        let pages = segments.div_ceil(NODE_ENTRIES as u64) as usize;
        let height = height_for(segments);
        self.drop_nodes(store, height, pages)?;
        self.add_nodes(height, pages)?;
        let mut changed = self.write_pages(store, pages)?;
        for level in 1..height {
            changed = self.write_index(store, level, &changed)?;
        }
        Ok(segments)
    }

    /// Appends the pages that changed. Returns which did.
    fn write_pages(&mut self, store: &Store<P>, pages: usize) -> Result<Vec<bool>> {
        let mut changed: Vec<bool> = Vec::filled(false, pages)?;
        for page in 0..pages {
            let dirty = store.map.lock().take_dirty_page(page, &mut self.ws.words);
            if dirty {
                changed[page] = true;
                self.append_usage(store, 0, page)?;
            }
        }
        Ok(changed)
    }

    /// Appends the index nodes of a level that are new, or have a node below that is in `changed`. Returns which were
    /// appended.
    fn write_index(&mut self, store: &Store<P>, level: u8, changed: &[bool]) -> Result<Vec<bool>> {
        let below = usize::from(level) - 1;
        let count = self.usage_nodes[usize::from(level)].len();
        let mut written: Vec<bool> = Vec::filled(false, count)?;
        for index in 0..count {
            let first = index * NODE_ENTRIES;
            let last = changed.len().min(first + NODE_ENTRIES);
            let new = self.usage_nodes[usize::from(level)][index] == 0;
            if new || changed[first..last].iter().any(|&c| c) {
                self.ws.words.fill(0);
                let words = &self.usage_nodes[below][first..last];
                self.ws.words[..words.len()].copy_from_slice(words);
                written[index] = true;
                self.append_usage(store, level, index)?;
            }
        }
        Ok(written)
    }

    /// Makes room for the addresses of the nodes that `pages` pages need.
    fn add_nodes(&mut self, height: u8, pages: usize) -> Result {
        let mut nodes = pages;
        for level in 0..usize::from(height) {
            if self.usage_nodes.len() <= level {
                self.usage_nodes.push(Vec::new())?;
            }
            let known = &mut self.usage_nodes[level];
            while known.len() < nodes {
                known.push(0)?;
            }
            nodes = nodes.div_ceil(NODE_ENTRIES);
        }
        Ok(())
    }

    /// Drops stored nodes that fewer segments do not need.
    fn drop_nodes(&mut self, store: &Store<P>, height: u8, pages: usize) -> Result {
        let mut nodes = pages;
        for level in 0..self.usage_nodes.len() {
            let keep = if level < usize::from(height) {
                nodes
            } else {
                0
            };
            while self.usage_nodes[level].len() > keep {
                if let Some(word) = self.usage_nodes[level].pop() {
                    let mut map = store.map.lock();
                    map.move_usage_node(Entry(word), Entry::HOLE)?;
                }
            }
            nodes = nodes.div_ceil(NODE_ENTRIES);
        }
        while self.usage_nodes.len() > usize::from(height) {
            self.usage_nodes.pop();
        }
        Ok(())
    }

    /// Appends the node of the segment usage in `ws.words`.
    fn append_usage(&mut self, store: &Store<P>, level: u8, index: usize) -> Result {
        let id = NodeId {
            level,
            index: index as u64,
        };
        let place = &mut self.usage_nodes[usize::from(level)][index];
        append_node(store, &mut self.ws, Kind::UsageNode, id, &mut |entry, _| {
            let old = Entry(core::mem::replace(place, entry.0));
            store.map.lock().move_usage_node(old, entry)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::recovery::create::{create, CreateOptions};
    use crate::engine::recovery::open::{begin_writing, open, Expected};
    use crate::engine::{Access, Algorithm, Compression, Recompression, DEFAULT_SEGMENT_SIZE};
    use crate::platform::std::{Std, StdFile};

    /// When the tree of the segment usage becomes lower, the nodes of the levels above are not needed any more, and
    /// their space is garbage.
    #[test]
    fn a_lower_tree_gives_back_the_nodes_above() {
        let file = StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
        let options = CreateOptions {
            size: 1 << 24,
            record_size: 4096,
            segment_size: DEFAULT_SEGMENT_SIZE,
            compression: Compression::of(Algorithm::Raw),
            recompression: Recompression::OFF,
            uuid: [7; 16],
        };
        create::<Std>(&file, &options, false).unwrap();
        let mut opened = open::<Std>(file, Access::Write, Expected::Complete).unwrap();
        begin_writing(&mut opened).unwrap();
        let store = &*opened.store;
        let state = opened.maintenance.checkpoint_state_mut();
        let node = state.usage_nodes[0][0];
        let segment = store.layout.segment_of(Entry(node).address()).unwrap();
        let live = || store.map.lock().segment(segment).unwrap().live_bytes();
        let before = live();

        // One page more than one node has addresses for makes a second level, whose first node is stored, too.
        state.add_nodes(2, NODE_ENTRIES + 1).unwrap();
        let levels = state.usage_nodes.iter().map(|level| level.len());
        assert!(levels.eq([NODE_ENTRIES + 1, 2]));
        store
            .map
            .lock()
            .move_usage_node(Entry::HOLE, Entry(node))
            .unwrap();
        state.usage_nodes[1][0] = node;
        assert!(live() > before);

        state.drop_nodes(store, 1, 1).unwrap();
        assert_eq!(state.usage_nodes.len(), 1);
        assert_eq!(state.usage_nodes[0].len(), 1);
        assert_eq!(state.usage_nodes[0][0], node);
        assert_eq!(live(), before);
    }
}
