// SPDX-License-Identifier: GPL-2.0
//! [`Volume`]: an open image, as front ends see it.

use super::checkpoint::{due, Checkpoint};
use super::format::Geometry;
use super::log::Log;
use super::open::{self, CreateOptions, Opened};
use super::shared::{count, Shared};
use super::workspace::Workspace;
use super::{Error, Result};
use crate::platform::mem::{arc, Arc, Vec};
use crate::platform::{BackingFile, Monitor, MonitorGuard, Platform, Rank, Sabotage, Thread};
use core::sync::atomic::Ordering;

/// Figures of an open volume. Bytes and counts since it was opened, unless they describe its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks that are stored.
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
    /// Records replayed when the image was opened.
    pub replayed: u64,
}

/// How a volume is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The image had been closed cleanly before it was opened.
    pub clean_at_open: bool,
    /// The error that made the volume stop writing, if any.
    pub error: Option<Error>,
}

/// An open image. All methods may be called from many threads at once.
///
/// Dropping it without [`close`](Self::close) is a crash as far as the image is concerned: what was flushed
/// is there the next time.
pub struct Volume<P: Platform> {
    pub(crate) shared: Arc<Shared<P>>,
    checkpoint: Arc<P::Monitor<Checkpoint<P>>>,
    threads: P::Monitor<Vec<P::Thread>>,
    read_only: bool,
    clean_at_open: bool,
    replayed: u64,
}

impl<P: Platform> Volume<P> {
    /// Writes an empty image into `file`. What was in it is lost.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for options out of their domain, and the backing file's errors.
    pub fn create(file: &P::File, options: &CreateOptions) -> Result {
        open::create::<P>(file, options)
    }

    /// Opens an image and replays its log. Unless `read_only`, it then marks the image as being in use and
    /// starts the background threads.
    ///
    /// # Errors
    ///
    /// [`Error::NotAnImage`], [`Error::Version`], [`Error::Feature`] and [`Error::Corrupt`] for what cannot be
    /// opened; the image is unchanged then. [`Error::NoSpace`] without room for two segments.
    pub fn open(file: P::File, read_only: bool) -> Result<Self> {
        let Opened {
            shared,
            mut checkpoint,
            replayed,
            clean,
            spare: _,
        } = open::open::<P>(file, read_only)?;
        if !read_only {
            shared.log.start(&shared.file, replayed.next_seq())?;
            // Twice: from here on neither slot holds the state before this opening, to which
            // everything written from now on would be lost.
            shared.checkpoint(&mut checkpoint, false)?;
            shared.checkpoint(&mut checkpoint, false)?;
        }
        let volume = Self {
            shared: arc(shared)?,
            checkpoint: arc(P::Monitor::new(checkpoint, Rank::Checkpoint)?)?,
            threads: P::Monitor::new(Vec::with_capacity(2)?, Rank::Pool)?,
            read_only,
            clean_at_open: clean,
            replayed: replayed.records,
        };
        if !read_only {
            volume.start_threads()?;
        }
        Ok(volume)
    }

    fn start_threads(&self) -> Result {
        let shared = self.shared.clone();
        let writer = P::spawn("cloop-write", move || write_behind(&shared))?;
        self.threads.lock().push(writer)?;
        let (shared, checkpoint) = (self.shared.clone(), self.checkpoint.clone());
        let checkpointer = P::spawn("cloop-checkpoint", move || {
            write_checkpoints(&shared, &checkpoint);
        })?;
        self.threads.lock().push(checkpointer)
    }

    fn stop_threads(&self) {
        {
            let mut tail = self.shared.log.lock();
            tail.stop = true;
            tail.notify_all();
        }
        loop {
            let thread = self.threads.lock().pop();
            match thread {
                Some(mut thread) => thread.join(),
                None => return,
            }
        }
    }

    /// What is fixed about the volume.
    pub fn geometry(&self) -> Geometry {
        self.shared.geo
    }

    /// Whether it was opened read-only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The backing file.
    pub fn file(&self) -> &P::File {
        &self.shared.file
    }

    /// Allocates scratch memory for one request at a time.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn workspace(&self) -> Result<Workspace<P>> {
        self.shared.workspace()
    }

    /// Reads `out.len() / 4096` blocks from `block` on. What is not mapped reads as zeros.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when a record fails its checks; other blocks stay readable.
    pub fn read(&self, ws: &mut Workspace<P>, block: u64, out: &mut [u8]) -> Result {
        self.shared.read(ws, block, out)
    }

    /// Writes `data.len() / 4096` blocks from `block` on. `data` must not change meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], at once and without effect on what was acknowledged before.
    pub fn write(&self, ws: &mut Workspace<P>, block: u64, data: &[u8]) -> Result {
        self.writable()?;
        self.shared.write(ws, block, data)
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
    pub fn zero(&self, ws: &mut Workspace<P>, block: u64, count: u64) -> Result {
        self.writable()?;
        self.shared.zero(ws, block, count)
    }

    fn writable(&self) -> Result {
        if self.read_only {
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
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        count(&self.shared.counters.flushes, 1);
        self.shared.log.sync(&self.shared.file).map(|_| ())
    }

    /// Writes a checkpoint now, so that recovery has next to nothing to replay. Flushes as well.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush), and [`Error::NoSpace`].
    pub fn checkpoint(&self) -> Result {
        self.writable()?;
        let mut state = self.checkpoint.lock();
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.shared.checkpoint(&mut state, false)
    }

    /// The first run of mapped blocks at or after `block`: its first block and length.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn next_mapped(&self, ws: &mut Workspace<P>, block: u64) -> Result<Option<(u64, u64)>> {
        self.shared.next_mapped(ws, block)
    }

    /// Makes everything durable, writes a last checkpoint, gives unused space back and stops the threads.
    /// Later calls do nothing; other operations fail with [`Error::Closed`].
    ///
    /// # Errors
    ///
    /// When the last checkpoint cannot be written. The volume is closed all the same, and what was
    /// flushed is there the next time.
    pub fn close(&self) -> Result {
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        if self.read_only {
            return Ok(());
        }
        self.shared.log.lock().closing = true;
        self.stop_threads();
        // What was acknowledged is safe first: on a full file system the checkpoint may fail.
        self.shared.log.sync(&self.shared.file)?;
        let mut checkpoint = self.checkpoint.lock();
        let before = checkpoint.superblock.length;
        self.shared.checkpoint(&mut checkpoint, true)?;
        // Either superblock alone must do, the older one included.
        self.shared.trim(before.max(checkpoint.superblock.length))
    }

    /// The figures of the moment.
    ///
    /// # Errors
    ///
    /// When the backing file does not tell its size.
    pub fn stats(&self) -> Result<Stats> {
        let shared = &*self.shared;
        let allocated_bytes = shared.file.allocated()?;
        let tail = shared.log.lock();
        let map = shared.map.lock();
        let free_segments = tail.allocator.available();
        let segments = tail.allocator.count.saturating_sub(free_segments);
        let counters = &shared.counters;
        Ok(Stats {
            mapped_blocks: map.mapped,
            live_bytes: map.usage.iter().map(|s| s.live_bytes()).sum(),
            stored_bytes: segments * u64::from(shared.geo.segment_size),
            allocated_bytes,
            segments,
            free_segments,
            table_memory: map.table.memory,
            bytes_written: counters.bytes_written.load(Ordering::Relaxed),
            bytes_read: counters.bytes_read.load(Ordering::Relaxed),
            log_bytes: tail.stats.bytes,
            flushes: counters.flushes.load(Ordering::Relaxed),
            syncs: tail.stats.syncs,
            checkpoints: counters.checkpoints.load(Ordering::Relaxed),
            damaged: counters.damaged.load(Ordering::Relaxed),
            errors: tail.stats.errors,
            replayed: self.replayed,
        })
    }

    /// How the volume is doing.
    pub fn state(&self) -> State {
        let error = self.shared.log.lock().error;
        State {
            clean_at_open: self.clean_at_open,
            error: error.filter(|_| !self.read_only),
        }
    }
}

impl<P: Platform> Drop for Volume<P> {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

/// Writes full chunks and reserves segments ahead, so that writers and flushes find less to do.
fn write_behind<P: Platform>(shared: &Shared<P>) {
    // After a failed reservation: wait for a while before the next try.
    let mut full = false;
    loop {
        {
            let mut tail = shared.log.lock();
            loop {
                if tail.stop {
                    return;
                }
                if Log::<P>::wants_writing(&tail) || (!full && Log::<P>::wants_segment(&tail)) {
                    break;
                }
                if full {
                    tail.wait_idle(1000);
                    full = false;
                } else {
                    tail.wait_idle(0);
                }
            }
        }
        shared.log.write_one(&shared.file);
        if !full {
            full = shared.log.reserve_ahead(&shared.file).is_err();
        }
    }
}

/// Writes a checkpoint whenever the log has grown enough.
fn write_checkpoints<P: Platform>(shared: &Shared<P>, state: &P::Monitor<Checkpoint<P>>) {
    let mut failed = false;
    loop {
        {
            let mut tail = shared.log.lock();
            loop {
                if tail.stop {
                    return;
                }
                if !failed && due(&shared.log, &tail) {
                    break;
                }
                if failed {
                    tail.wait_idle(1000);
                    failed = false;
                } else {
                    tail.wait_idle(0);
                }
            }
        }
        failed = shared.checkpoint(&mut state.lock(), false).is_err();
    }
}
