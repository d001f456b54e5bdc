// SPDX-License-Identifier: GPL-2.0
//! [`Store`]: what the front of a volume and its background threads share, and access to stored records.

use crate::engine::access::Access;
use crate::engine::codec;
use crate::engine::format::{
    corrupt, decode_node, Algorithm, DeviceSize, Entry, Kind, Layout, RecordHeader, Superblock,
    BLOCK_SIZE, NODE_BYTES, NODE_ENTRIES,
};
use crate::engine::io::cache::RecordCache;
use crate::engine::log::Log;
use crate::engine::map::table::{Found, NodeId, Table};
use crate::engine::map::Map;
use crate::engine::space::Allocator;
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{arc, Arc, Buf, Vec};
use crate::platform::{BackingFile, Monitor, Platform, Rank, Sabotage};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters that many threads bump; they order nothing.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) flushes: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    /// Bytes of live records moved by reclaim.
    pub(crate) moved: AtomicU64,
    /// Segments that became free.
    pub(crate) freed: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(crate) struct Store<P: Platform> {
    pub(crate) file: Arc<P::File>,
    pub(crate) layout: Layout,
    /// Compression of new records.
    pub(crate) algorithm: Algorithm,
    pub(crate) log: Log<P>,
    pub(crate) map: P::Monitor<Map>,
    pub(crate) cache: RecordCache<P>,
    /// Bytes of memory the sector table should not exceed, see [`Stats::table_limit`](crate::engine::Stats).
    pub(crate) table_limit: AtomicU64,
    /// Bytes of memory of the sector table after the last load or eviction, for those who may not wait
    /// for a lock.
    pub(crate) table_memory: AtomicU64,
    /// Device size in blocks of 4096 bytes; [`resize`](crate::engine::Volume::resize) changes it.
    pub(crate) blocks: AtomicU64,
    /// The sector table may have detached subtrees, see [`detached`](crate::engine::map::detached).
    pub(crate) detached: AtomicBool,
    pub(crate) closed: AtomicBool,
    pub(crate) counters: Counters,
}

/// Bytes of nodes for which writers wait until a checkpoint has stored them, however large the limit on the sector
/// table is: whoever replays the log needs as much memory.
const MOST_DIRTY: u64 = 256 << 20;
/// Bytes of memory for the sector table while the log is replayed. What two checkpoints leave in the log
/// needs less.
pub(crate) const REPLAY_MEMORY: u64 = 2 << 30;

impl<P: Platform> Store<P> {
    /// A store around a sector table that `superblock` leads to. Its log has not begun, its segment usage is empty,
    /// and the memory of the table has no limit.
    pub(crate) fn new(
        file: Arc<P::File>,
        superblock: &Superblock,
        table: Table,
        allocator: Allocator,
        access: Access,
    ) -> Result<Arc<Self>> {
        let layout = superblock.layout;
        let detached = AtomicBool::new(table.may_have_detached);
        arc(Self {
            file,
            layout,
            algorithm: superblock.algorithm,
            log: Log::new(superblock, allocator, access)?,
            map: P::Monitor::new(Map::new(table, layout, superblock.mapped), Rank::Map)?,
            cache: RecordCache::new(&layout)?,
            table_limit: AtomicU64::new(u64::MAX),
            table_memory: AtomicU64::new(0),
            blocks: AtomicU64::new(superblock.size.blocks()),
            detached,
            closed: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }

    /// Scratch memory for one request.
    pub(crate) fn workspace(&self) -> Result<Workspace<P>> {
        Workspace::new(&self.layout)
    }

    /// Device size in blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Device size.
    pub(crate) fn size(&self) -> DeviceSize {
        DeviceSize::from_blocks(self.blocks())
    }

    /// Changes the size of the device, and what the log keeps in reserve and the image may take with it.
    pub(crate) fn set_size(&self, size: DeviceSize) {
        let mut tail = self.log.lock();
        self.blocks.store(size.blocks(), Ordering::Relaxed);
        tail.space.size = size;
    }

    /// Checks a range of blocks against the device, and that it is still open.
    pub(crate) fn check_range(&self, block: u64, count: u64) -> Result {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        match block.checked_add(count) {
            Some(end) if end <= self.blocks() => Ok(()),
            _ => Err(Error::Invalid("block range: it lies beyond the end")),
        }
    }

    /// Reads the sectors of a record into `out` and returns the record's bytes and what follows.
    fn fetch<'a>(&self, entry: Entry, out: &'a mut Buf) -> Result<&'a [u8]> {
        let address = entry.address();
        if let Some(n) = self.log.read_memory(address, out) {
            return Ok(&out[..n]);
        }
        let len = entry.sectors() * BLOCK_SIZE;
        if len > out.len() {
            return corrupt("sector table entry", address);
        }
        let skip = (address % BLOCK_SIZE as u64) as usize;
        self.file.read_at(&mut out[..len], address - skip as u64)?;
        Ok(&out[skip..len])
    }

    /// Reads and verifies the record at `entry`; gives its header and payload.
    pub(crate) fn record<'a>(
        &self,
        entry: Entry,
        seed: u32,
        out: &'a mut Buf,
    ) -> Result<(RecordHeader, &'a [u8])> {
        let bytes = self.fetch(entry, out)?;
        match RecordHeader::decode::<P>(bytes, seed, self.layout.offset_in_segment(entry.address()))
        {
            Some(found) => Ok(found),
            None => corrupt("record", entry.address()),
        }
    }

    /// Reads and verifies the node stored at `entry`, which must be the one of this kind, level and index.
    pub(crate) fn node(
        &self,
        ws: &mut Workspace<P>,
        kind: Kind,
        id: NodeId,
        entry: Entry,
        seed: u32,
    ) -> Result<Vec<u64>> {
        let (header, payload) = self.record(entry, seed, &mut ws.record)?;
        let bytes = &mut ws.blocks[..NODE_BYTES];
        let place = match kind {
            Kind::MapNode => entry.node(),
            _ => entry,
        };
        let right = header.kind == kind
            && place == Entry::new(entry.address(), header.units(), 0, 1)
            && header.count == id.level
            && header.number == id.index
            && codec::decompress::<P>(header.algorithm, payload, bytes);
        if !right {
            return corrupt("table node", entry.address());
        }
        let mut words = Vec::filled(0, NODE_ENTRIES)?;
        decode_node(bytes, &mut words);
        Ok(words)
    }

    /// Loads the way to the leaf of `block`. Where there is none it is made if `create` is set.
    /// The answer is what is there then: [`Found::Loaded`] or [`Found::Absent`].
    pub(crate) fn prepare(&self, ws: &mut Workspace<P>, block: u64, create: bool) -> Result<Found> {
        self.load(ws, NodeId::leaf(block), create)
    }

    /// As [`prepare`](Self::prepare), for any node.
    pub(crate) fn load(
        &self,
        ws: &mut Workspace<P>,
        wanted: NodeId,
        create: bool,
    ) -> Result<Found> {
        let mut tried = None;
        let mut evicted = false;
        loop {
            let mut map = self.map.lock();
            let found = map.table.find_node(wanted);
            let grows = matches!(found, Found::Stored(..)) || create && found != Found::Loaded;
            if grows && !evicted && map.table.memory >= self.table_limit.load(Ordering::Relaxed) {
                drop(map);
                self.evict();
                evicted = true;
                continue;
            }
            let (id, entry, detached) = match found {
                Found::Stored(id, entry) => (id, entry, false),
                Found::Absent(id) if create => match map.table.detached_at(id) {
                    Some(entry) => (id, entry, true),
                    None => {
                        let words = Vec::filled(0, NODE_ENTRIES)?;
                        map.table.install(id, Entry::HOLE, words)?;
                        self.note_memory(&map);
                        continue;
                    }
                },
                found => return Ok(found),
            };
            // A node that failed is tried again only if it has moved meanwhile.
            if let Some((place, error)) = tried {
                if place == (id, entry) {
                    return Err(error);
                }
            }
            let seed = map.seed(entry)?;
            let segments = map.usage.len();
            drop(map);
            match self.map_node(ws, id, entry, seed, segments) {
                Ok(words) => {
                    let mut map = self.map.lock();
                    if detached {
                        map.reattach(id, entry, &words)?;
                        self.log.demand.set(map.dirty_nodes());
                    } else {
                        map.table.install(id, entry, words)?;
                    }
                    self.note_memory(&map);
                }
                Err(error) => tried = Some(((id, entry), error)),
            }
        }
    }

    /// Bounds the memory of the sector table.
    pub(crate) fn limit_table(&self, bytes: u64) {
        self.table_limit.store(bytes, Ordering::Relaxed);
        // A quarter is for the pointers of the nodes above the leaves, and for those who were not told yet.
        self.log.demand.bound((bytes - bytes / 4).min(MOST_DIRTY));
    }

    /// Takes parts of the sector table out of memory that need not be there.
    pub(crate) fn evict(&self) {
        let limit = self.table_limit.load(Ordering::Relaxed);
        self.evict_to(limit - limit / 8);
    }

    /// As [`evict`](Self::evict), until `target` bytes are left.
    pub(crate) fn evict_to(&self, target: u64) {
        // Nodes are taken away only under the log's lock.
        let _tail = self.log.lock();
        let mut map = self.map.lock();
        if P::sabotaged(Sabotage::EvictDirty) {
            map.table.forget_dirty();
        }
        map.table.evict(target);
        self.note_memory(&map);
    }

    pub(crate) fn note_memory(&self, map: &Map) {
        self.table_memory.store(map.table.memory, Ordering::Relaxed);
    }

    pub(crate) fn map_node(
        &self,
        ws: &mut Workspace<P>,
        id: NodeId,
        entry: Entry,
        seed: u32,
        segments: u64,
    ) -> Result<Vec<u64>> {
        let words = self.node(ws, Kind::MapNode, id, entry, seed)?;
        // Segments may come into use while this runs, but no stored node points to those yet.
        if words
            .iter()
            .any(|&word| !Entry(word).plausible(&self.layout, segments))
        {
            return corrupt("table node", entry.address());
        }
        Ok(words)
    }
}
