// SPDX-License-Identifier: GPL-2.0
//! [`Volume`]: an open image, as front ends see it.

use crate::engine::access::Access;
use crate::engine::background::{maintain, write_behind};
use crate::engine::checkpoint::CheckpointKind;
use crate::engine::codec::{Compression, Recompression};
use crate::engine::format::{DeviceSize, Layout, Superblock, BLOCK_SIZE};
use crate::engine::freeing;
use crate::engine::io::batch::Batch;
use crate::engine::io::read::Reader;
use crate::engine::io::sink::{Filling, Sink};
use crate::engine::io::write::Writer;
use crate::engine::reclaim::{self, SharedMaintenance};
use crate::engine::recompress::RecompressionPass;
use crate::engine::records::ReadBuffers;
use crate::engine::recovery::create::{create, CreateOptions};
use crate::engine::recovery::open::{begin_writing, open, Expected, Opened};
use crate::engine::recovery::superblocks::read_superblocks;
use crate::engine::space::SpaceClass;
use crate::engine::store::{count, Store};
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{arc, Arc, Buf, Need, Vec};
use crate::platform::{BackingFile, Monitor, MonitorGuard, Platform, Rank, Sabotage, Thread};
use core::sync::atomic::Ordering;

/// Figures of an open volume. Bytes and counts since it was opened, unless they describe its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks that are stored. Those of a large discard count until the background has come to them.
    pub mapped_blocks: u64,
    /// Stored bytes, headers included, that blocks or the table still need.
    pub live_bytes: u64,
    /// Bytes of the segments in use.
    pub stored_bytes: u64,
    /// Bytes the image takes where it lies.
    pub allocated_bytes: u64,
    /// Segments in use, those reserved for the log included.
    pub segments: u64,
    /// Segments that wait to be used again.
    pub free_segments: u64,
    /// Bytes of memory of the loaded part of the sector table.
    pub table_memory: u64,
    /// Bytes users wrote.
    pub bytes_written: u64,
    /// Bytes users read.
    pub bytes_read: u64,
    /// Bytes appended to the log.
    pub log_bytes: u64,
    /// Flushes users asked for.
    pub flushes: u64,
    /// Times the backing file was made durable.
    pub syncs: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Reads that found a damaged record.
    pub damaged: u64,
    /// Errors of the backing file.
    pub errors: u64,
    /// The part of `errors` after which a write was tried again.
    pub retries: u64,
    /// Records replayed when the image was opened.
    pub replayed: u64,
    /// Bound on `table_memory`. Nodes that wait for a checkpoint may go beyond it.
    pub table_limit: u64,
    /// Bytes without use in segments that hold something live: what reclaim can gain.
    pub garbage_bytes: u64,
    /// Bytes of live records that reclaim moved.
    pub moved_bytes: u64,
    /// Segments that became free.
    pub freed_segments: u64,
    /// Bytes allocated for the log: those of its reserve, and those that free segments hold.
    pub reserved_bytes: u64,
    /// 1 when the last write that needed space found none.
    pub full: u64,
    /// Segments that reclaim has set aside: something in them is damaged or cannot be read.
    pub stuck_segments: u64,
    /// 1 when space runs low, see [`Volume::low`].
    pub low: u64,
    /// Writes and discards that had to wait for reclaim to find space.
    pub space_waits: u64,
    /// Records that were compressed with LZ4, because there was no memory for the algorithm chosen.
    pub replaced: u64,
    /// Bytes of records that cold data was compressed to again.
    pub recompressed_bytes: u64,
    /// Live bytes that may be worth compressing again. Of no meaning if cold data stays as it was written.
    pub pending_bytes: u64,
}

/// How a volume is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The image had been closed cleanly before it was opened.
    pub clean_at_open: bool,
    /// The error that made the volume stop writing, if any.
    pub error: Option<Error>,
    /// The error of a write that is tried again: memory or space was short for a moment, say. Flushes wait meanwhile.
    pub retrying: Option<Error>,
}

/// The number of blocks in `len` bytes of a request.
fn whole_blocks(len: usize) -> Result<u64> {
    match len % BLOCK_SIZE {
        0 => Ok((len / BLOCK_SIZE) as u64),
        _ => Err(Error::Invalid("length: not a multiple of the block size")),
    }
}

/// What the end of a volume makes of the mark of an incomplete image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    /// It stays as it is.
    AsBefore,
    /// It goes.
    Complete,
}

/// An open image. All methods may be called from many threads at once.
///
/// Dropping it without [`close`](Self::close) is a crash as far as the image is concerned: what was flushed
/// is there the next time.
pub struct Volume<P: Platform> {
    pub(crate) store: Arc<Store<P>>,
    maintenance: Arc<SharedMaintenance<P>>,
    threads: P::Monitor<Vec<P::Thread>>,
    access: Access,
    clean_at_open: bool,
    replayed: u64,
    /// Bytes of the scratch memory of checkpoints.
    scratch: u64,
}

impl<P: Platform> Volume<P> {
    /// Writes an empty image into `file`. What was in it is lost.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for options out of their domain, and the backing file's errors.
    pub fn create(file: &P::File, options: &CreateOptions) -> Result {
        create::<P>(file, options, false)
    }

    /// The UUID of the image in `file`. Reads its superblocks only.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open) for a file without a valid superblock.
    pub fn uuid_of(file: &P::File) -> Result<[u8; 16]> {
        let mut page = Buf::zeroed(BLOCK_SIZE)?;
        Ok(read_superblocks::<P>(file, &mut page)?.newest.layout.uuid)
    }

    /// Writes an empty image into `file`, and opens it to be filled. Nothing else opens the image before it is closed by
    /// [`complete`](Self::complete), and never if it is not.
    ///
    /// # Errors
    ///
    /// Those of [`create`](Self::create) and [`open`](Self::open).
    pub fn create_incomplete(file: P::File, options: &CreateOptions) -> Result<Self> {
        create::<P>(&file, options, true)?;
        Self::open_expected(file, Access::Write, Expected::Incomplete)
    }

    /// Opens an image and replays its log. With write access, it then marks the image as being in use and
    /// starts the background threads.
    ///
    /// # Errors
    ///
    /// [`Error::NotAnImage`], [`Error::Version`], [`Error::Feature`], [`Error::Incomplete`] and [`Error::Corrupt`] for
    /// what cannot be opened; the image is unchanged then. [`Error::NoSpace`] without room for two segments.
    pub fn open(file: P::File, access: Access) -> Result<Self> {
        Self::open_expected(file, access, Expected::Complete)
    }

    fn open_expected(file: P::File, access: Access, expected: Expected) -> Result<Self> {
        let mut opened = open::<P>(file, access, expected)?;
        if access == Access::Write {
            begin_writing(&mut opened)?;
        }
        let Opened {
            store,
            maintenance,
            replayed,
            clean,
            spare: _,
            length: _,
        } = opened;
        let scratch = maintenance.memory();
        let volume = Self {
            store,
            maintenance: arc(P::Monitor::new(maintenance, Rank::Checkpoint)?)?,
            threads: P::Monitor::new(Vec::with_capacity(2)?, Rank::Pool)?,
            access,
            clean_at_open: clean,
            replayed: replayed.records,
            scratch,
        };
        if access == Access::Write {
            volume.start_threads()?;
        }
        Ok(volume)
    }

    fn start_threads(&self) -> Result {
        let store = self.store.clone();
        let writer = P::spawn("cloop-write", move || write_behind(&store))?;
        self.threads.lock().push(writer)?;
        let (store, maintenance) = (self.store.clone(), self.maintenance.clone());
        let maintainer = P::spawn("cloop-maintain", move || maintain(&store, &maintenance))?;
        self.threads.lock().push(maintainer)
    }

    fn stop_threads(&self) {
        {
            let mut log = self.store.log.lock();
            log.stop();
            log.notify_all();
        }
        loop {
            let thread = self.threads.lock().pop();
            match thread {
                Some(mut thread) => thread.join(),
                None => return,
            }
        }
    }

    /// What is fixed about the image.
    pub fn layout(&self) -> Layout {
        self.store.layout
    }

    /// Compression of new records.
    pub fn compression(&self) -> Compression {
        self.store.codecs.chosen()
    }

    /// Changes the compression of new records, in the image and for the writes that begin when this has returned. Records
    /// that are stored already stay as they are.
    ///
    /// # Errors
    ///
    /// As [`checkpoint`](Self::checkpoint).
    pub fn set_compression(&self, compression: Compression) -> Result {
        self.writable()?;
        let store = &*self.store;
        let mut maintenance = self.maintenance.lock();
        store.check_open()?;
        if store.codecs.chosen() != compression {
            // Each change takes space of the log that only checkpoints give back.
            maintenance.checkpoint(store, CheckpointKind::Running)?;
            let checkpoint = maintenance.checkpoint_state_mut();
            checkpoint.rewrite(store, |superblock| superblock.compression = compression)?;
            store.codecs.choose(compression);
        }
        Ok(())
    }

    /// How data is compressed again that has become cold.
    pub fn recompression(&self) -> Recompression {
        self.store.codecs.recompression()
    }

    /// Changes how data is compressed again that has become cold, in the image and from now on. With another compression than
    /// before, all data is looked at again.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the compression compresses nothing, and as [`checkpoint`](Self::checkpoint).
    pub fn set_recompression(&self, recompression: Recompression) -> Result {
        self.change_recompression(|now| *now = recompression)
    }

    /// As [`set_recompression`](Self::set_recompression), with a part of the choice that `change` makes.
    ///
    /// # Errors
    ///
    /// As [`set_recompression`](Self::set_recompression).
    pub fn change_recompression(&self, change: impl FnOnce(&mut Recompression)) -> Result {
        self.writable()?;
        let store = &*self.store;
        let mut maintenance = self.maintenance.lock();
        store.check_open()?;
        let now = store.codecs.recompression();
        let mut recompression = now;
        change(&mut recompression);
        if recompression != now {
            maintenance.set_recompression(store, recompression)?;
            store.log.lock().notify_all();
        }
        Ok(())
    }

    /// Makes the image say, once in its life, that there are records that older versions cannot read, if the next write makes
    /// the first of them. If that is not possible, the write goes on with records that they can read.
    // A stack frame of its own, because writes seldom need it.
    #[inline(never)]
    fn announce(&self) {
        let store = &*self.store;
        store.codecs.await_announcement(true);
        let mut maintenance = self.maintenance.lock();
        store.codecs.await_announcement(false);
        if store.check_open().is_ok() && store.codecs.wants_announcement() {
            // Without it the write is compressed with LZ4.
            let _ = maintenance.checkpoint_state_mut().announce_zstd(store);
        }
    }

    /// Size of the device at this moment.
    pub fn size(&self) -> DeviceSize {
        self.store.size()
    }

    /// Whether it was opened read-only.
    pub fn read_only(&self) -> bool {
        self.access == Access::Read
    }

    /// The backing file.
    pub fn file(&self) -> &P::File {
        &self.store.file
    }

    /// Allocates scratch memory for one request at a time.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn workspace(&self) -> Result<Workspace<P>> {
        self.store.workspace()
    }

    /// As [`workspace`](Self::workspace), with memory that is needed this much.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn workspace_if(&self, need: Need) -> Result<Workspace<P>> {
        Workspace::new(need, &self.store.layout)
    }

    /// Allocates scratch memory to read, for one request at a time, with memory that is needed this much: a part of a
    /// [`workspace`](Self::workspace).
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn read_buffers_if(&self, need: Need) -> Result<ReadBuffers> {
        ReadBuffers::new(need, &self.store.layout)
    }

    /// Reads `out.len() / 4096` blocks from `block` on. What is not mapped reads as zeros.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when a record fails its checks; other blocks stay readable.
    pub fn read(&self, ws: &mut Workspace<P>, block: u64, out: &mut [u8]) -> Result {
        let blocks = whole_blocks(out.len())?;
        self.read_to(&mut ws.read, block, blocks, &mut Filling::new(out))
    }

    /// As [`read`](Self::read), for `blocks` blocks, into `sink`. If it fails, the sink may have got a part of them.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), and those of the sink.
    pub fn read_to(
        &self,
        buffers: &mut ReadBuffers,
        block: u64,
        blocks: u64,
        sink: &mut dyn Sink,
    ) -> Result {
        let store = &*self.store;
        store.check_range(block, blocks)?;
        count(&store.counters.bytes_read, blocks * BLOCK_SIZE as u64);
        Reader::new(store).read(buffers, block, blocks, sink)
    }

    /// Writes `data.len() / 4096` blocks from `block` on. `data` must not change meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], at once and without effect on what was acknowledged before.
    pub fn write(&self, ws: &mut Workspace<P>, block: u64, data: &[u8]) -> Result {
        self.write_as(SpaceClass::User, ws, block, data)
    }

    /// Writes what a file system is made of. It finds space longer than other data does: nothing can be
    /// deleted without it.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_metadata(&self, ws: &mut Workspace<P>, block: u64, data: &[u8]) -> Result {
        self.write_as(SpaceClass::Metadata, ws, block, data)
    }

    /// Writes `data.len() / 4096` blocks from `block` on, all of them or none: whenever the power fails, they are found
    /// all with their new contents or all with their old ones (promise P9). A read that runs at the same time may see
    /// some of each, as beside any other write.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write), and [`Error::Invalid`] if no record can hold the blocks: they must not be more than
    /// [`Layout::record_blocks`], nor lie on both sides of a multiple of it.
    pub fn write_atomic(&self, ws: &mut Workspace<P>, block: u64, data: &[u8]) -> Result {
        self.writable()?;
        let store = &*self.store;
        let blocks = whole_blocks(data.len())?;
        store.check_range(block, blocks)?;
        if blocks == 0 || !store.layout.in_natural_unit(block, blocks) {
            return Err(Error::Invalid(
                "range: an atomic write must lie within one record",
            ));
        }
        count(&store.counters.bytes_written, data.len() as u64);
        if store.codecs.wants_announcement() {
            self.announce();
        }
        Writer::new(store).write_atomic(ws, block, data, SpaceClass::User)
    }

    fn write_as(
        &self,
        class: SpaceClass,
        ws: &mut Workspace<P>,
        block: u64,
        data: &[u8],
    ) -> Result {
        self.writable()?;
        let store = &*self.store;
        store.check_range(block, whole_blocks(data.len())?)?;
        count(&store.counters.bytes_written, data.len() as u64);
        if store.codecs.wants_announcement() {
            self.announce();
        }
        Writer::new(store).write(ws, block, data, class)
    }

    /// Allocates room for the records of `bytes` bytes of data, which are encoded before they are written.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn batch(&self, bytes: usize) -> Result<Batch> {
        Batch::new(bytes)
    }

    /// The first half of a [`write`](Self::write): compresses the blocks and adds them to `batch`. Changes nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the batch has no room, and those of a write that stands alone.
    pub fn encode(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
        data: &[u8],
        batch: &mut Batch,
    ) -> Result {
        self.writable()?;
        let store = &*self.store;
        store.check_range(block, whole_blocks(data.len())?)?;
        count(&store.counters.bytes_written, data.len() as u64);
        if store.codecs.wants_announcement() {
            self.announce();
        }
        Writer::new(store).encode(ws, block, data, batch)
    }

    /// The second half: writes what this volume has encoded, in the same order.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_batch(&self, ws: &mut Workspace<P>, batch: &Batch) -> Result {
        self.writable()?;
        Writer::new(&self.store).write_batch(ws, batch, SpaceClass::User)
    }

    /// Makes durable what a write that has just completed wrote, as forced unit access asks for: flushes.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn force_unit_access(&self) -> Result {
        if P::sabotaged(Sabotage::LazyFua) {
            return Ok(());
        }
        self.flush()
    }

    /// Makes `count` blocks from `block` on read as zeros and gives their space back: discard and
    /// write-zeroes.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn zero(&self, ws: &mut impl AsMut<ReadBuffers>, block: u64, count: u64) -> Result {
        self.writable()?;
        self.store.check_range(block, count)?;
        Writer::new(&self.store).zero(ws.as_mut(), block, count)
    }

    fn writable(&self) -> Result {
        if self.read_only() {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }

    /// Makes everything durable that completed before the call. Without anything new it does no I/O.
    ///
    /// # Errors
    ///
    /// An error of the backing file is reported to every flush from then on.
    pub fn flush(&self) -> Result {
        self.store.check_open()?;
        count(&self.store.counters.flushes, 1);
        self.store.log.flush(&self.store.file)
    }

    /// Writes a checkpoint now, so that recovery has next to nothing to replay. Flushes as well.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush), and [`Error::NoSpace`].
    pub fn checkpoint(&self) -> Result {
        self.writable()?;
        let mut maintenance = self.maintenance.lock();
        self.store.check_open()?;
        maintenance.checkpoint(&self.store, CheckpointKind::Running)?;
        Ok(())
    }

    /// Keeps background work that no user waits for from beginning, until [`wake`](Self::wake). For a device that
    /// appears while the machine is about to sleep; [`quiesce`](Self::quiesce) does more. Takes no lock.
    pub fn keep_quiet(&self) {
        self.store.set_quiet(true);
    }

    /// Brings the volume to rest before the machine sleeps: background work that no user waits for ends and does not
    /// begin again until [`wake`](Self::wake), and everything written so far is in a checkpoint. Reads, writes and
    /// flushes go on, and so does what they need: space, and checkpoints that are due.
    ///
    /// # Errors
    ///
    /// Those of [`checkpoint`](Self::checkpoint). Background work is stopped in any case.
    pub fn quiesce(&self) -> Result {
        self.keep_quiet();
        if self.read_only() {
            return Ok(());
        }
        // The thread that has the lock looks at the flag, and gives the lock back soon.
        let mut maintenance = self.maintenance.lock();
        self.store.check_open()?;
        if self.store.log.lock().unsettled() {
            maintenance.checkpoint(&self.store, CheckpointKind::Running)?;
        }
        Ok(())
    }

    /// Lets background work begin again after [`quiesce`](Self::quiesce) or [`keep_quiet`](Self::keep_quiet).
    pub fn wake(&self) {
        self.store.set_quiet(false);
        self.store.log.lock().notify_all();
    }

    /// Moves what is stored together until no more space can be given back that is worth the work. Beside
    /// other operations; `go_on` is asked between steps with what is left to gain, in bytes.
    ///
    /// # Errors
    ///
    /// As [`checkpoint`](Self::checkpoint).
    pub fn compact(&self, go_on: &mut dyn FnMut(u64) -> bool) -> Result {
        self.writable()?;
        reclaim::compact(&self.store, &self.maintenance, go_on)
    }

    /// Begins to compress all data again with `compression`, for [`recompress`](Self::recompress), whatever the image is told
    /// to do with cold data.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it compresses nothing, and as [`checkpoint`](Self::checkpoint).
    pub fn begin_recompression(&self, compression: Compression) -> Result<RecompressionPass> {
        self.writable()?;
        let mut maintenance = self.maintenance.lock();
        self.store.check_open()?;
        maintenance.begin_pass(&self.store, compression)
    }

    /// Compresses data of `pass` again, beside other operations, until none is left. Several threads may do so at a time; each
    /// takes other segments. `go_on` is asked between records.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write). What is damaged or cannot be read stays as it is.
    pub fn recompress(&self, pass: &RecompressionPass, go_on: &mut dyn FnMut() -> bool) -> Result {
        self.writable()?;
        self.store.check_open()?;
        pass.work(&self.store, go_on)
    }

    /// Changes the size of the device to `size` bytes. What lies beyond a smaller one is discarded.
    /// No other operation may be under way beyond the smaller of the two sizes.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a size that no image can have, [`Error::InUse`] when blocks beyond `size`
    /// are mapped and `force` is not set, and those of [`checkpoint`](Self::checkpoint).
    pub fn resize(&self, ws: &mut Workspace<P>, size: u64, force: bool) -> Result {
        self.writable()?;
        let size = DeviceSize::from_bytes(size)?;
        let (store, new) = (&*self.store, size.blocks());
        let (old, mut maintenance) = loop {
            let old = store.blocks();
            if new < old {
                let mapped = self.next_mapped(ws, new)?;
                if mapped.is_some() && !force {
                    return Err(Error::InUse);
                }
                // Not under the lock: on a full file system this waits for a checkpoint.
                self.zero(ws, new, old - new)?;
            }
            let maintenance = self.maintenance.lock();
            if store.blocks() == old {
                break (old, maintenance);
            }
        };
        if new > old {
            let _log = store.log.lock();
            let mut map = store.map.lock();
            map.grow_table(size.table_height())?;
            map.fit_fingerprints(new);
        }
        // With all that needs space and memory stored, what remains cannot fail half way but by an error of the
        // backing file, after which nothing more is written.
        maintenance.checkpoint(store, CheckpointKind::Running)?;
        let checkpoint = maintenance.checkpoint_state_mut();
        let mut next = *checkpoint.superblock();
        next.size = size;
        let slots = match P::sabotaged(Sabotage::HalfResize) {
            true => 1,
            false => 2,
        };
        // A repair that finds neither superblock learns the size from the log.
        let last = next.generation + slots;
        checkpoint.append_superblock(
            store,
            &Superblock {
                generation: last,
                ..next
            },
        )?;
        let durable = store.log.sync(&store.file)?;
        if new < old {
            store.set_size(size);
        }
        for _ in 0..slots {
            next.generation += 1;
            checkpoint.commit(store, &next, &durable)?;
        }
        store.set_size(size);
        Ok(())
    }

    /// Bounds the memory of the sector table, in bytes; at least 1 MiB.
    pub fn set_table_limit(&self, bytes: u64) {
        let bytes = bytes.max(1 << 20);
        self.store.map.set_limit(bytes);
        self.store.map.evict(&self.store.log.lock());
    }

    /// Takes what need not be there of the sector table out of memory, for a system that is short of it.
    pub fn shed_table(&self, bytes: u64) {
        let target = self.table_memory().saturating_sub(bytes);
        self.store.map.evict_to(target, &self.store.log.lock());
    }

    /// Bytes of memory that [`shed`](Self::shed) can give back, near enough. Takes no lock.
    pub fn sheddable(&self) -> u64 {
        self.store.sheddable()
    }

    /// Gives back about `bytes` bytes of memory for a system that is short of it: first that of large reads and idle
    /// buffers of the log, then decompressed records, then clean nodes of the sector table.
    pub fn shed(&self, bytes: u64) {
        self.store.shed(bytes);
    }

    /// Bytes of memory of the volume, near enough. That of requests is not among them: it belongs to the front end. Takes no
    /// lock.
    pub fn memory(&self) -> u64 {
        self.store.memory() + self.scratch
    }

    /// Gives back memory that was not needed since the last call: buffers of the log, and that of large reads. Front ends
    /// of devices that stay open for long call it every few seconds.
    pub fn trim(&self) {
        self.store.trim();
    }

    /// Bytes of memory of the loaded part of the sector table, near enough. Takes no lock.
    pub fn table_memory(&self) -> u64 {
        self.store.map.memory()
    }

    /// Whether the last write that needed space found none.
    pub fn full(&self) -> bool {
        self.store.log.lock().space.refused()
    }

    /// Whether space runs low: what the backing file system has left, together with what reclaim can gain, is less than
    /// [`warn_percent`](Self::warn_percent) of the size of the device, and less than the blocks need that are not mapped.
    /// Takes no lock.
    pub fn low(&self) -> bool {
        self.store.watermark.low()
    }

    /// Percent of the size of the device below which space counts as low; 0 for never.
    pub fn warn_percent(&self) -> u64 {
        self.store.watermark.percent()
    }

    /// Sets [`warn_percent`](Self::warn_percent), to 100 at most.
    pub fn set_warn_percent(&self, percent: u64) {
        self.store.watermark.set_percent(percent);
        self.store.watch_space();
    }

    /// The first run of mapped blocks at or after `block`: its first block and length.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn next_mapped(&self, ws: &mut Workspace<P>, block: u64) -> Result<Option<(u64, u64)>> {
        self.store.check_open()?;
        Reader::new(&self.store).next_mapped(&mut ws.read, block..self.store.blocks())
    }

    /// Makes everything durable, writes a last checkpoint, gives unused space back and stops the threads.
    /// Later calls do nothing; other operations fail with [`Error::Closed`].
    ///
    /// # Errors
    ///
    /// When the last checkpoint cannot be written. The volume is closed all the same, and what was
    /// flushed is there the next time.
    pub fn close(&self) -> Result {
        match self.store.close() && !self.read_only() {
            true => self.write_end(Content::AsBefore),
            false => Ok(()),
        }
    }

    /// Closes an image that [`create_incomplete`](Self::create_incomplete) made, as one that [`open`](Self::open) opens:
    /// all of its data is there.
    ///
    /// # Errors
    ///
    /// As [`close`](Self::close), after which the image is incomplete still, or complete. [`Error::Closed`] if the
    /// volume was closed before.
    pub fn complete(&self) -> Result {
        self.writable()?;
        match self.store.close() {
            true => self.write_end(Content::Complete),
            false => Err(Error::Closed),
        }
    }

    fn write_end(&self, content: Content) -> Result {
        {
            let mut log = self.store.log.lock();
            log.begin_closing();
            log.notify_all();
        }
        self.stop_threads();
        // What was acknowledged is safe first: on a full file system the checkpoint may fail.
        self.store.log.sync(&self.store.file)?;
        let mut maintenance = self.maintenance.lock();
        if content == Content::Complete {
            maintenance.checkpoint_state_mut().set_complete();
        }
        let mut before = maintenance.image_length();
        maintenance.checkpoint(&self.store, CheckpointKind::Closing)?;
        if maintenance.image_length() < before || content == Content::Complete {
            // Either superblock alone must do, and the older one says that the image is longer, or incomplete.
            before = maintenance.image_length();
            maintenance.checkpoint(&self.store, CheckpointKind::Closing)?;
        }
        freeing::shrink_to_fit(&self.store, before.max(maintenance.image_length()))
    }

    /// From now on, a write to the backing file that fails for a reason that passes, for lack of memory for example, is
    /// tried again until the volume is closed. Otherwise it is given up after some seconds, and the volume stops.
    pub fn wait_for_backing_file(&self) {
        self.store.log.wait_for_ever();
    }

    /// The figures of the moment.
    ///
    /// # Errors
    ///
    /// When the backing file does not tell its size.
    pub fn stats(&self) -> Result<Stats> {
        let store = &*self.store;
        let allocated_bytes = store.file.allocated()?;
        store.watch_space();
        let log = store.log.lock();
        let map = store.map.lock();
        let free_segments = log.space.free();
        let segments = log.space.in_use();
        let counters = &store.counters;
        let segment_size = u64::from(store.layout.segment_size);
        let total = map.total(log.held());
        Ok(Stats {
            mapped_blocks: map.mapped(),
            live_bytes: total.live,
            stored_bytes: segments * segment_size,
            allocated_bytes,
            segments,
            free_segments,
            table_memory: map.memory(),
            bytes_written: counters.bytes_written.load(Ordering::Relaxed),
            bytes_read: counters.bytes_read.load(Ordering::Relaxed),
            log_bytes: log.stats().bytes,
            flushes: counters.flushes.load(Ordering::Relaxed),
            syncs: log.stats().syncs,
            checkpoints: counters.checkpoints.load(Ordering::Relaxed),
            damaged: counters.damaged.load(Ordering::Relaxed),
            errors: log.stats().errors,
            retries: log.stats().retries,
            replayed: self.replayed,
            table_limit: store.map.limit(),
            garbage_bytes: total.garbage + total.dead * segment_size,
            moved_bytes: counters.moved.load(Ordering::Relaxed),
            freed_segments: counters.freed.load(Ordering::Relaxed),
            reserved_bytes: log.space.reserved() * segment_size + log.space.held_bytes(),
            full: u64::from(log.space.refused()),
            stuck_segments: total.stuck_segments,
            low: u64::from(store.watermark.low()),
            space_waits: log.space.next_ticket(),
            replaced: store.codecs.replaced(),
            recompressed_bytes: counters.recompressed.load(Ordering::Relaxed),
            pending_bytes: total.unmarked,
        })
    }

    /// How the volume is doing.
    pub fn state(&self) -> State {
        let log = self.store.log.lock();
        State {
            clean_at_open: self.clean_at_open,
            error: log.error().filter(|_| !self.read_only()),
            retrying: log.retrying(),
        }
    }
}

impl<P: Platform> Drop for Volume<P> {
    fn drop(&mut self) {
        self.stop_threads();
    }
}
