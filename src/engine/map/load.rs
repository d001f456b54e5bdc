// SPDX-License-Identifier: GPL-2.0
//! [`Loader`]: loads nodes of the sector table on demand, and makes room for them in memory.

use super::shared::SharedMap;
use super::table::Found;
use crate::engine::format::{corrupt, Entry, IncarnationId, Kind, NodeId, NODE_ENTRIES};
use crate::engine::log::Log;
use crate::engine::records::{ReadBuffers, Records};
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{Platform, Sabotage};

/// How the loader treats a node that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Creates an empty node, or reattaches a detached one.
    Create,
    /// Leaves the table as it is, and tells that the node is absent.
    Leave,
}

/// The next step of loading a node.
enum Step {
    /// None: the node is loaded, or absent and to be left so.
    Done(Found),
    /// Evict other nodes: the loaded ones take too much memory.
    Evict,
    /// Read a stored node on the way, and install or reattach it.
    Read(Stored),
}

/// A node to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stored {
    id: NodeId,
    entry: Entry,
    detached: bool,
    /// The incarnation of its segment.
    incarnation: IncarnationId,
    /// Number of segments when its entry was found.
    segments: u64,
}

/// Loads nodes of a sector table from the records that it points to.
pub(crate) struct Loader<'a, P: Platform> {
    pub(super) map: &'a SharedMap<P>,
    records: Records<'a, P>,
}

impl<'a, P: Platform> Loader<'a, P> {
    /// A loader of the nodes of `map`, which are among `records`.
    pub(crate) fn new(map: &'a SharedMap<P>, records: Records<'a, P>) -> Self {
        Self { map, records }
    }

    /// The log, under whose lock nodes are removed from the table.
    pub(super) fn log(&self) -> &Log<P> {
        self.records.log
    }

    /// Loads the way to the leaf of `block`, see [`node`](Self::node).
    pub(crate) fn leaf(
        &self,
        buffers: &mut ReadBuffers,
        block: u64,
        missing: Missing,
    ) -> Result<Found> {
        self.node(buffers, NodeId::leaf(block), missing)
    }

    /// Loads the way to a node. Returns [`Found::Loaded`], or [`Found::Absent`] with [`Missing::Leave`]. The node may be evicted again as soon as the lock of the log is free.
    ///
    /// # Errors
    ///
    /// Those of memory and of the backing file, and [`Error::Corrupt`](crate::engine::Error::Corrupt) for a node on the
    /// way that is damaged.
    pub(crate) fn node(
        &self,
        buffers: &mut ReadBuffers,
        wanted: NodeId,
        missing: Missing,
    ) -> Result<Found> {
        let mut failed = None;
        let mut limit = self.map.limit();
        loop {
            let stored = match self.next_step(wanted, missing, limit)? {
                Step::Done(found) => return Ok(found),
                Step::Evict => {
                    self.map.evict(&self.log().lock());
                    // Once: the rest may be dirty, and waits for a checkpoint.
                    limit = u64::MAX;
                    continue;
                }
                Step::Read(stored) => stored,
            };
            // A node that failed is tried again only if another is stored there or elsewhere meanwhile.
            if let Some((place, error)) = failed {
                if place == (stored.id, stored.entry, stored.incarnation) {
                    return Err(error);
                }
            }
            match self.read(
                buffers,
                stored.id,
                stored.entry,
                stored.incarnation,
                stored.segments,
            ) {
                Ok(words) => self.install(&stored, words)?,
                Err(error) => failed = Some(((stored.id, stored.entry, stored.incarnation), error)),
            }
        }
    }

    /// Finds the next step of loading a node, when loaded nodes may take `limit` bytes of memory. Creates empty nodes on
    /// the way, because that needs no I/O.
    fn next_step(&self, wanted: NodeId, missing: Missing, limit: u64) -> Result<Step> {
        let mut map = self.map.lock();
        loop {
            let found = map.table.find_node(wanted);
            let grows = match found {
                Found::Loaded => false,
                Found::Stored(..) => true,
                Found::Absent(_) => missing == Missing::Create,
            };
            if !grows {
                return Ok(Step::Done(found));
            }
            if map.memory() >= limit {
                return Ok(Step::Evict);
            }
            let (id, entry, detached) = match found {
                Found::Stored(id, entry) => (id, entry, false),
                Found::Absent(id) => match map.table.detached_at(id) {
                    Some(entry) => (id, entry, true),
                    None => {
                        let words = Vec::filled(0, NODE_ENTRIES)?;
                        map.table.install(id, Entry::HOLE, words)?;
                        continue;
                    }
                },
                Found::Loaded => return Ok(Step::Done(found)),
            };
            return Ok(Step::Read(Stored {
                id,
                entry,
                detached,
                incarnation: map.incarnation(entry)?,
                segments: map.segment_count(),
            }));
        }
    }

    /// Puts a node that was read into the table, unless that has changed meanwhile.
    fn install(&self, stored: &Stored, words: Vec<u64>) -> Result {
        let mut map = self.map.lock();
        // The table may have stored the node elsewhere, its segment been used again, and the node stored at the same
        // place once more: the entry is the same then, and the incarnation is another.
        if map.incarnation(stored.entry)? != stored.incarnation {
            return Ok(());
        }
        let mut entry = stored.entry;
        if P::sabotaged(Sabotage::StaleLeaf) {
            if let Found::Stored(_, moved) = map.table.find_node(stored.id) {
                entry = moved;
            }
        }
        match stored.detached {
            true => map.reattach(stored.id, stored.entry, &words),
            false => map.table.install(stored.id, entry, words),
        }
    }

    /// Reads and verifies the node `id` that is stored at `entry` in this incarnation of a segment, when the image has
    /// `segments` segments.
    ///
    /// # Errors
    ///
    /// Those of memory and of the backing file, and [`Error::Corrupt`](crate::engine::Error::Corrupt).
    pub(crate) fn read(
        &self,
        buffers: &mut ReadBuffers,
        id: NodeId,
        entry: Entry,
        incarnation: IncarnationId,
        segments: u64,
    ) -> Result<Vec<u64>> {
        let words = self
            .records
            .node(buffers, Kind::MapNode, id, entry, incarnation)?;
        // Segments may come into use meanwhile, but no stored node points to those yet.
        let plausible = |&word| Entry(word).plausible(self.records.layout, segments);
        match words.iter().all(plausible) {
            true => Ok(words),
            false => corrupt("table node", entry.address()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::log::Placed;
    use crate::engine::{CreateOptions, Recompression, Volume, BLOCK_SIZE, DEFAULT_SEGMENT_SIZE};
    use crate::platform::std::{Std, StdFile};

    /// A node that was read before its segment was used again must not come into the table, although the entry of the
    /// node may be the same.
    #[test]
    fn a_node_of_an_earlier_incarnation_is_not_installed() {
        let file = || StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
        let image = file();
        let options = CreateOptions {
            size: 1 << 24,
            record_size: 4096,
            segment_size: DEFAULT_SEGMENT_SIZE,
            compression: crate::engine::Compression::of(crate::engine::Algorithm::Raw),
            recompression: Recompression::OFF,
            uuid: [7; 16],
        };
        Volume::<Std>::create(&image, &options).unwrap();
        let volume = Volume::<Std>::open(image, crate::engine::Access::Write).unwrap();
        let mut ws = volume.workspace().unwrap();
        volume.write(&mut ws, 0, &[1; BLOCK_SIZE]).unwrap();
        volume.checkpoint().unwrap();
        volume.shed_table(u64::MAX);

        let (store, leaf) = (&*volume.store, NodeId::leaf(0));
        let loader = store.loader();
        let root = loader.node(&mut ws.read, NodeId { level: 1, index: 0 }, Missing::Leave);
        assert_eq!(root, Ok(Found::Loaded));
        let Step::Read(stored) = loader.next_step(leaf, Missing::Leave, u64::MAX).unwrap() else {
            panic!("the leaf is not evicted");
        };
        let words = loader
            .read(
                &mut ws.read,
                stored.id,
                stored.entry,
                stored.incarnation,
                stored.segments,
            )
            .unwrap();
        let segment = store.layout.segment_of(stored.entry.address()).unwrap();
        let again = Placed {
            address: stored.entry.address(),
            segment,
            seq: 1 << 20,
            seed: !stored.incarnation.seed,
            before: None,
        };
        store.map.lock().enter(&again).unwrap();
        loader.install(&stored, words).unwrap();
        let found = store.map.lock().table.find_node(leaf);
        assert_eq!(found, Found::Stored(leaf, stored.entry));
    }
}
