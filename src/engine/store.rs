// SPDX-License-Identifier: GPL-2.0
//! [`Store`]: the parts of an open image, shared by the front of a volume and its background threads.

use crate::engine::access::Access;
use crate::engine::codec::Codecs;
use crate::engine::format::{DeviceSize, Fingerprints, Layout, Superblock};
use crate::engine::log::Log;
use crate::engine::map::load::Loader;
use crate::engine::map::shared::SharedMap;
use crate::engine::map::table::Table;
use crate::engine::map::usage::Total;
use crate::engine::map::Map;
use crate::engine::pool::Pool;
use crate::engine::records::cache::RecordCache;
use crate::engine::records::window::memory_of_windows;
use crate::engine::records::{Reads, Records};
use crate::engine::space::{Allocator, Watermark};
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{arc, Arc, Box, Buf, Need};
use crate::platform::{BackingFile, MonitorGuard, Platform};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters that many threads bump; they order nothing.
#[derive(Default)]
pub(crate) struct Counters {
    /// Flushes that users asked for.
    pub(crate) flushes: AtomicU64,
    /// Bytes that users wrote.
    pub(crate) bytes_written: AtomicU64,
    /// Bytes that users read.
    pub(crate) bytes_read: AtomicU64,
    /// Reads that found a damaged record.
    pub(crate) damaged: AtomicU64,
    /// Checkpoints written.
    pub(crate) checkpoints: AtomicU64,
    /// Bytes of live records moved by reclaim.
    pub(crate) moved: AtomicU64,
    /// Bytes of records that data was compressed to again.
    pub(crate) recompressed: AtomicU64,
    /// Segments that became free.
    pub(crate) freed: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// The map around a sector table that `superblock` leads to.
// A stack frame of its own: that of `Store::new` is large.
#[inline(never)]
fn map_of<P: Platform>(
    superblock: &Superblock,
    table: Table,
    fingerprints: Fingerprints,
    log: &Log<P>,
) -> Result<SharedMap<P>> {
    let mut map = Map::new(table, superblock.layout, superblock.mapped, fingerprints)?;
    map.announce_marks(superblock.marks);
    map.mark_for(superblock.recompression.compression);
    SharedMap::new(map, log.checkpoint_cost.clone())
}

fn codecs_of<P: Platform>(superblock: &Superblock) -> Result<Box<Codecs<P>>> {
    let most = superblock.layout.record_size as usize;
    let codecs = Codecs::new(superblock.compression, superblock.zstd, most)?;
    codecs.set_recompression(superblock.recompression);
    Ok(codecs)
}

/// The parts of an open image.
pub(crate) struct Store<P: Platform> {
    /// The backing file.
    pub(crate) file: Arc<P::File>,
    pub(crate) layout: Layout,
    /// Compression, of new records and of those that are read.
    pub(crate) codecs: Box<Codecs<P>>,
    pub(crate) log: Log<P>,
    pub(crate) map: SharedMap<P>,
    /// Records that were decompressed lately.
    pub(crate) cache: Box<RecordCache<P>>,
    /// Reads of the backing file.
    pub(crate) reads: Reads,
    /// Memory for large reads.
    pub(crate) windows: Box<Pool<P, Buf>>,
    /// Device size in blocks of 4096 bytes; [`resize`](crate::engine::Volume::resize) changes it.
    blocks: AtomicU64,
    /// The volume was closed: every operation fails.
    closed: AtomicBool,
    /// The machine is about to sleep: background work that no user waits for does not begin.
    quiet: AtomicBool,
    pub(crate) counters: Counters,
    /// Whether space runs low.
    pub(crate) watermark: Watermark,
}

impl<P: Platform> Store<P> {
    /// A store around a sector table that `superblock` leads to, with its `fingerprints`. Its log has not begun, its segment
    /// usage is empty, and the memory of the table has no limit.
    #[inline(never)]
    pub(crate) fn new(
        file: Arc<P::File>,
        superblock: &Superblock,
        table: Table,
        fingerprints: Fingerprints,
        allocator: Allocator,
        access: Access,
    ) -> Result<Arc<Self>> {
        let layout = superblock.layout;
        let log = Log::new(superblock, allocator, access)?;
        let map = map_of(superblock, table, fingerprints, &log)?;
        arc(Self {
            file,
            layout,
            codecs: codecs_of(superblock)?,
            map,
            log,
            cache: RecordCache::new(&layout)?,
            reads: Reads::default(),
            windows: memory_of_windows()?,
            blocks: AtomicU64::new(superblock.size.blocks()),
            closed: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            counters: Counters::default(),
            watermark: Watermark::default(),
        })
    }

    /// Looks how much space is left: for the warning before there is none, and for the pace of reclaim.
    pub(crate) fn watch_space(&self) {
        let free = match self.file.free_space() {
            Ok(free) => free.unwrap_or(u64::MAX),
            // It is asked again with the next segment.
            Err(_) => return,
        };
        let near_bound = self.log.lock().space.near_bound();
        let allocated = match near_bound && !self.file.fixed_size() {
            true => self.file.allocated().ok(),
            false => None,
        };
        // A block device has no other files: what the image does not use of it is left.
        let capacity = match self.file.fixed_size() {
            true => self.file.len().ok(),
            false => None,
        };
        let (free, garbage, mapped) = {
            let mut log = self.log.lock();
            let used = log.space.most_taken();
            let free = capacity.map_or(free, |capacity| capacity.saturating_sub(used));
            if capacity.is_none() {
                log.space.set_backing_left(free);
            }
            let held = log.space.held_bytes();
            let free = free.saturating_add(held);
            let map = self.map.lock();
            let total = map.total(log.held());
            let dead = total.dead * u64::from(self.layout.segment_size);
            let garbage = total.garbage - total.stuck + dead;
            // Ends of segments that were punched do not count, but asking the file costs a call.
            let bound = log.space.bound();
            let below = match allocated {
                Some(allocated) => bound.saturating_sub(allocated) + held,
                None => log.space.below_bound(),
            };
            let spare = self.log.spare(&log) * u64::from(self.layout.segment_size);
            let left = below.min(free).saturating_add(spare);
            log.space.set_left(left, garbage);
            (free, garbage, map.mapped())
        };
        let (device, mapped) = (self.size().bytes(), DeviceSize::from_blocks(mapped).bytes());
        let unmapped = device.saturating_sub(mapped);
        self.watermark.note(free, garbage, device, unmapped);
    }

    /// The sums over all segments.
    pub(crate) fn total(&self) -> Total {
        let log = self.log.lock();
        self.map.lock().total(log.held())
    }

    /// Bytes of memory of the sector table, of decompressed records, of contexts of compression, and of the buffers of large
    /// reads and of the log. Takes no lock.
    pub(crate) fn memory(&self) -> u64 {
        let caches = self.map.memory() + self.cache.memory();
        caches + self.windows.memory() + self.codecs.memory() + self.log.memory()
    }

    /// Bytes of memory that can be given back: loaded nodes of the sector table, decompressed records, and the memory of
    /// large reads, of compression and of the log. Takes no lock.
    pub(crate) fn sheddable(&self) -> u64 {
        let caches = self.map.memory() + self.cache.memory();
        caches + self.windows.memory() + self.codecs.sheddable() + self.log.sheddable()
    }

    /// Gives back about `bytes` bytes of memory. Nodes of the table come last, because reading them again costs every
    /// request for their blocks.
    pub(crate) fn shed(&self, bytes: u64) {
        let mut left = bytes.saturating_sub(self.windows.shed(bytes));
        left = left.saturating_sub(self.codecs.shed(left));
        left = left.saturating_sub(self.log.shed(left));
        left = left.saturating_sub(self.cache.shed(left));
        if left > 0 {
            let target = self.map.memory().saturating_sub(left);
            self.map.evict_to(target, &self.log.lock());
        }
    }

    /// Gives back memory that was not needed since the last call.
    pub(crate) fn trim(&self) {
        self.windows.trim();
        self.codecs.trim();
        self.log.trim();
    }

    /// Scratch memory for one request.
    pub(crate) fn workspace(&self) -> Result<Workspace<P>> {
        Workspace::new(Need::Required, &self.layout)
    }

    /// Device size in blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Device size.
    pub(crate) fn size(&self) -> DeviceSize {
        DeviceSize::from_blocks(self.blocks())
    }

    /// Changes the size of the device. The reserve of the log and the bound of the image follow from it.
    pub(crate) fn set_size(&self, size: DeviceSize) {
        let mut log = self.log.lock();
        self.blocks.store(size.blocks(), Ordering::Relaxed);
        log.space.resize(size);
        // A larger device has a larger reserve.
        log.notify_all();
    }

    /// Tells whether background work that no user waits for must not begin.
    pub(crate) fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Relaxed);
    }

    /// Whether background work that no user waits for must not begin.
    pub(crate) fn quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// Marks the volume as closed. Returns false if it was closed already.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    /// Checks that the volume is open.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub(crate) fn check_open(&self) -> Result {
        match self.closed.load(Ordering::Acquire) {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }

    /// Checks that the volume is open and that `count` blocks from `block` on lie on the device.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] and [`Error::Invalid`].
    pub(crate) fn check_range(&self, block: u64, count: u64) -> Result {
        self.check_open()?;
        match block.checked_add(count) {
            Some(end) if end <= self.blocks() => Ok(()),
            _ => Err(Error::Invalid("block range: it lies beyond the end")),
        }
    }

    /// The stored records.
    pub(crate) fn records(&self) -> Records<'_, P> {
        Records {
            file: &self.file,
            layout: &self.layout,
            codecs: &self.codecs,
            log: &self.log,
            windows: &self.windows,
            reads: &self.reads,
        }
    }

    /// Loads nodes of the sector table.
    pub(crate) fn loader(&self) -> Loader<'_, P> {
        Loader::new(&self.map, self.records())
    }
}
