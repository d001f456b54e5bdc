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
use crate::engine::map::load::Loader;
use crate::engine::map::shared::SharedMap;
use crate::engine::map::table::{NodeId, Table};
use crate::engine::map::Map;
use crate::engine::space::Allocator;
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{arc, Arc, Buf, Vec};
use crate::platform::{BackingFile, Platform};
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
    pub(crate) map: SharedMap<P>,
    pub(crate) cache: RecordCache<P>,
    /// Device size in blocks of 4096 bytes; [`resize`](crate::engine::Volume::resize) changes it.
    pub(crate) blocks: AtomicU64,
    pub(crate) closed: AtomicBool,
    pub(crate) counters: Counters,
}

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
        let log = Log::new(superblock, allocator, access)?;
        let map = Map::new(table, layout, superblock.mapped);
        arc(Self {
            file,
            layout,
            algorithm: superblock.algorithm,
            map: SharedMap::new(map, log.demand.clone())?,
            log,
            cache: RecordCache::new(&layout)?,
            blocks: AtomicU64::new(superblock.size.blocks()),
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

    /// Loads nodes of the sector table.
    pub(crate) fn loader(&self) -> Loader<'_, P> {
        Loader::new(self)
    }
}
