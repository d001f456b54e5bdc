// SPDX-License-Identifier: GPL-2.0
//! The log: the one place where records get their order, and the commit path that makes them durable.
//!
//! A record is copied to a buffer for the rest of the current segment, the open chunk. A chunk is
//! *sealed* when its segment is full or a flush asks for it: it is padded to a multiple of 4 KiB,
//! queued, and written by the first thread that comes: the write-behind thread, a flush, or a writer that
//! needs a buffer. A sealed byte of the log is never written again, and the next record goes after it.
//!
//! A log position (`lsn`) is `sequence number of the segment << log2 segment_size | offset`, so
//! positions grow with the log and never repeat.
//!
//! The files, each above those before it: [`record`], [`segment`] and [`chunk`] (types), [`state`] (what the lock
//! protects), [`buffers`] (their memory), [`seal`], [`retry`] and [`write`] (a chunk from the first record to the backing
//! file), [`reserve`] (segments ahead), [`slot`] (appending) and [`commit`] (the fsync).
//!
//! # Lock order
//!
//! [`Rank::Log`] is held while a record is placed and the sector table (under [`Rank::Map`]) changed
//! with it, which makes the order of the log the order of the table: see [`Slot`](slot::Slot). It is never held during I/O.

mod buffers;
mod chunk;
mod commit;
mod record;
mod reserve;
mod retry;
mod seal;
mod segment;
mod slot;
mod state;
mod write;

pub(crate) use self::commit::DurableLog;
pub(crate) use self::record::EncodedRecord;
pub(crate) use self::retry::Due;
pub(crate) use self::segment::{LeftSegment, Placed};
pub(crate) use self::state::LogState;

use self::reserve::Limit;
use self::segment::Current;
use crate::engine::access::Access;
use crate::engine::format::{
    self, IncarnationId, Layout, LogPosition, Superblock, BLOCK_SIZE, SEGMENT_HEADER,
};
use crate::engine::space::{Allocator, Backing, CheckpointCost, Space, SpaceClass};
use crate::engine::spares::Spares;
use crate::engine::{Error, Result};
use crate::platform::mem::{arc, Arc, Buf, Need, Unique, Vec};
use crate::platform::{Monitor, MonitorGuard, Platform, Rank};
use core::sync::atomic::{AtomicU64, Ordering};

/// Buffers of one segment each at most: the bound on what is dirty in memory.
const BUFFERS: usize = 8;
/// Buffers that a log keeps when it is idle, and goes on with when there is no memory for more.
const RESERVE: usize = 1;
/// Space of a link record in bytes, kept free at the end of every segment.
const LINK_BYTES: u32 = 32;

/// The log of an open volume.
pub(crate) struct Log<P: Platform> {
    state: P::Monitor<LogState>,
    /// Space the next checkpoint needs, see [`CheckpointCost`].
    pub(crate) checkpoint_cost: Arc<CheckpointCost>,
    layout: Layout,
    epoch: u64,
    salt: u64,
    /// Log position below which the buffers of the log hold nothing that is not in the backing file. It is read without
    /// the lock, and only grows.
    written: AtomicU64,
    /// Buffers that exist. It is written under the lock, and read without.
    buffers: AtomicU64,
}

/// The lock of the log, held. It gives access to the [`LogState`].
pub(crate) type LogGuard<'a, P> =
    <<P as Platform>::Monitor<LogState> as Monitor<LogState>>::Guard<'a>;

impl<P: Platform> Log<P> {
    /// A log that will [`start`](Self::start) in a fresh segment of `allocator`; the epoch and salt of `superblock`
    /// go into its segment headers. Without write access it only answers that it is read-only.
    // A frame of its own, beside that of the caller: the state is large.
    #[inline(never)]
    pub(crate) fn new(
        superblock: &Superblock,
        allocator: Allocator,
        access: Access,
    ) -> Result<Self> {
        let layout = superblock.layout;
        let (buffers, error, written) = match access {
            Access::Write => (BUFFERS, None, 0),
            Access::Read => (0, Some(Error::ReadOnly), u64::MAX),
        };
        let mut spares = Spares::new(buffers, RESERVE)?;
        for _ in 0..buffers.min(RESERVE) {
            spares.add(Self::buffer(&layout, Need::Required)?);
        }
        let made = spares.made() as u64;
        let chunks = Vec::with_capacity(buffers)?;
        let space = Space::new(allocator, layout, superblock.size)?;
        let state = LogState::new(space, spares, chunks, error);
        Ok(Self {
            state: P::Monitor::new(state, Rank::Log)?,
            checkpoint_cost: arc(CheckpointCost::default())?,
            layout,
            epoch: superblock.epoch,
            salt: superblock.salt,
            written: AtomicU64::new(written),
            buffers: AtomicU64::new(made),
        })
    }

    /// Allocates a buffer, for a chunk of a whole segment.
    fn buffer(layout: &Layout, need: Need) -> Result<Unique<Buf>> {
        Unique::new_if(need, Buf::zeroed_if(need, layout.segment_size as usize)?)
    }

    /// Takes the lock of the log.
    pub(crate) fn lock(&self) -> LogGuard<'_, P> {
        self.state.lock()
    }

    fn lsn(&self, seq: u64, offset: u32) -> u64 {
        (seq << self.layout.segment_shift()) + u64::from(offset)
    }

    /// The log position `position` stands for.
    pub(crate) fn lsn_of(&self, position: LogPosition) -> u64 {
        self.lsn(position.seq, position.offset)
    }

    /// Wakes those who wait for the log to be written or durable. It gives background threads nothing to do, and there may
    /// be a flush for each write; but one that rests does not know yet that users have come back.
    fn notify_of_progress(state: &mut LogGuard<'_, P>) {
        match core::mem::take(&mut state.resting) {
            true => state.notify_all(),
            false => state.notify_requests(),
        }
    }

    /// Publishes how much of the log is in the backing file.
    fn publish_written(&self, state: &LogState) {
        let open = match (&state.open, state.current) {
            (Some(open), Some(current)) => self.lsn(current.seq, open.start),
            _ => state.appended,
        };
        // Sealed chunks are in the order of the log, and before the open one.
        let written = state.chunks.first().map_or(open, |chunk| chunk.lsn);
        self.written.fetch_max(written, Ordering::Release);
    }

    /// Whether the record at byte `address` of the image, in this incarnation of its segment, may be in a buffer of the
    /// log only. Takes no lock.
    pub(crate) fn may_hold(&self, incarnation: IncarnationId, address: u64) -> bool {
        let lsn = self.lsn(incarnation.seq, self.layout.offset_in_segment(address));
        lsn >= self.written.load(Ordering::Acquire)
    }

    /// Reserves the first two segments and begins the log there with sequence number `seq`.
    pub(crate) fn start(&self, file: &P::File, seq: u64) -> Result {
        let (index, _) = self.reserve(file, Limit::Backing)?;
        let next = match self.reserve(file, Limit::Backing) {
            Ok(next) => next,
            Err(error) => {
                self.lock().space.release(index);
                return Err(error);
            }
        };
        let mut state = self.lock();
        self.begin(&mut state, index, seq, next, None);
        state.begin_epoch(seq, self.lsn(seq, SEGMENT_HEADER as u32));
        self.publish_written(&state);
        Ok(())
    }

    /// Makes segment `index` the current one.
    fn begin(
        &self,
        state: &mut LogState,
        index: u64,
        seq: u64,
        (next, next_backing): (u64, Backing),
        before: Option<LeftSegment>,
    ) {
        state.current = Some(Current {
            index,
            seq,
            seed: format::seed::<P>(&self.layout.uuid, self.salt, seq, index),
            offset: SEGMENT_HEADER as u32,
            next,
            next_backing,
            before,
            unused_end: 0,
        });
    }

    /// Goes on with a segment of which nothing is used yet.
    pub(crate) fn leave_segment(&self, file: &P::File) -> Result {
        let whole = self.layout.segment_size - SEGMENT_HEADER as u32 - LINK_BYTES;
        drop(self.make_room(file, whole, SpaceClass::Reclaim)?);
        // What is live in the segments that the log has left is going to be moved.
        self.write_all(file)
    }

    /// Writes what waits to be written.
    ///
    /// # Errors
    ///
    /// The error that stopped the log.
    pub(crate) fn write_all(&self, file: &P::File) -> Result {
        loop {
            if self.write_one(file) {
                continue;
            }
            let mut state = self.lock();
            state.check()?;
            if state.chunks.is_empty() {
                return Ok(());
            }
            Self::wait_for_write(&mut state, u64::MAX);
        }
    }

    /// Where the next record will go. A segment that was flushed to its last sector ends in a link, so
    /// that is the beginning of the next one.
    pub(crate) fn position(&self, state: &LogState) -> Option<LogPosition> {
        state.current.map(|c| {
            if c.offset == self.layout.segment_size {
                LogPosition {
                    segment: c.next,
                    offset: SEGMENT_HEADER as u32,
                    seq: c.seq + 1,
                }
            } else {
                LogPosition {
                    segment: c.index,
                    offset: c.offset,
                    seq: c.seq,
                }
            }
        })
    }

    /// Bytes a record that is placed now can take without leaving the segment.
    pub(crate) fn room(&self) -> u32 {
        self.left(&self.lock())
    }

    /// Segments since the last stored checkpoint began.
    pub(crate) fn segments_since_checkpoint(&self, state: &LogState) -> u64 {
        state.appended().saturating_sub(state.checkpoint()) >> self.layout.segment_shift()
    }

    /// Bytes written of segment `index`, if the log holds it: 0 for one that is only reserved.
    pub(crate) fn used(&self, state: &LogState, index: u64) -> Option<u64> {
        match state.current {
            Some(c) if c.index == index && c.offset > SEGMENT_HEADER as u32 => {
                Some(u64::from(c.offset).next_multiple_of(BLOCK_SIZE as u64))
            }
            _ => state.holds(index).then_some(0),
        }
    }
}
