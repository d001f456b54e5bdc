// SPDX-License-Identifier: GPL-2.0
//! [`LogState`]: everything about the log that its lock protects.

use super::chunk::{Chunk, ChunkState, OpenChunk};
use super::segment::Current;
use crate::engine::format::Layout;
use crate::engine::space::{Space, SpaceClass};
use crate::engine::spares::Spares;
use crate::engine::{Error, Result};
use crate::platform::mem::{Box, Buf, Unique, Vec};
use core::ops::Range;

/// The state of the log, under [`Rank::Log`](crate::platform::Rank::Log).
///
/// It is reached only through the guard of that lock. So a function that takes `&LogState` takes a proof that the
/// lock of the log is held, which everything needs that removes nodes from the sector table.
pub(crate) struct LogState {
    pub(super) current: Option<Current>,
    pub(super) open: Option<OpenChunk>,
    /// Sealed chunks, in the order of the log.
    pub(super) chunks: Vec<Chunk>,
    /// The buffers of chunks. Those that wait have no chunk.
    pub(super) buffers: Spares<Unique<Buf>>,
    pub(crate) space: Box<Space>,
    /// Log position behind the last record placed.
    pub(super) appended: u64,
    /// Log position up to which the log is durable.
    pub(super) durable: u64,
    /// Sequence number with which the epoch began.
    pub(super) first_seq: u64,
    /// One thread makes the backing file durable.
    pub(super) syncing: bool,
    /// Users have written something and flushed it.
    pub(super) flushed: bool,
    /// How often the log is made durable.
    pub(super) flushes: Flushes,
    /// The segment after the current one is being filled with zeros. The log does not enter it meanwhile.
    pub(super) filling_next: bool,
    /// The first error that made it unsafe to continue the log.
    pub(super) error: Option<Error>,
    /// The backing file refuses writes for a reason that passes.
    pub(super) retry: Option<Retry>,
    /// How long such writes are tried again.
    pub(super) patience: Patience,
    /// Only the closing checkpoint may still append.
    closing: bool,
    /// The background threads must end.
    stopping: bool,
    /// The maintenance thread has nothing to do for long, and sleeps until it is woken.
    pub(crate) resting: bool,
    /// Log position where the last stored checkpoint began.
    checkpoint: u64,
    /// Bytes that users had appended when the last checkpoint began.
    settled: u64,
    /// Checkpoints that were tried.
    checkpoints: u64,
    pub(super) stats: LogStats,
}

/// Times the log was made durable, in the current segment and in the one before it.
#[derive(Clone, Copy, Default)]
pub(super) struct Flushes {
    here: u32,
    before: u32,
}

impl Flushes {
    /// The log was made durable.
    pub(super) fn count(&mut self) {
        self.here += 1;
    }

    /// The log goes on in the next segment.
    pub(super) fn enter(&mut self) {
        (self.before, self.here) = (self.here, 0);
    }

    /// True if there is one for every 16 KiB of a segment at least: of the one before, or so far of the current one, `here`
    /// bytes of which are used.
    pub(super) fn are_frequent(&self, layout: &Layout, here: u32) -> bool {
        let often = |flushes, bytes| flushes >= bytes >> 14;
        // The first few flushes of a segment do not say much.
        let known = self.here >= layout.segment_size >> 16;
        often(self.before, layout.segment_size) || known && often(self.here, here)
    }
}

/// How long writes that fail for a reason that passes are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// For some seconds: the caller wants an answer.
    Bounded,
    /// Until the volume is closed.
    Endless,
}

/// The backing file refuses writes for a reason that passes. No write is tried before `at`.
#[derive(Clone, Copy)]
pub(super) struct Retry {
    /// The reason.
    pub(super) error: Error,
    /// Failures in a row. Writes that were under way together count as one.
    pub(super) failures: u32,
    /// The moment of the next try, by [`Platform::now_ms`](crate::platform::Platform::now_ms).
    pub(super) at: u64,
}

/// Counters of the log.
#[derive(Clone, Copy, Default)]
pub(crate) struct LogStats {
    /// Times the backing file was made durable.
    pub(crate) syncs: u64,
    /// Bytes appended.
    pub(crate) bytes: u64,
    /// The part of `bytes` that users appended.
    pub(crate) user_bytes: u64,
    /// Errors of the backing file.
    pub(crate) errors: u64,
    /// The part of `errors` after which a write was tried again.
    pub(crate) retries: u64,
}

impl LogState {
    /// A log without a segment. With `error` it is stopped from the beginning.
    pub(super) fn new(
        space: Box<Space>,
        buffers: Spares<Unique<Buf>>,
        chunks: Vec<Chunk>,
        error: Option<Error>,
    ) -> Self {
        Self {
            current: None,
            open: None,
            chunks,
            buffers,
            space,
            appended: 0,
            durable: 0,
            first_seq: 0,
            syncing: false,
            flushed: false,
            flushes: Flushes::default(),
            filling_next: false,
            error,
            retry: None,
            patience: Patience::Bounded,
            closing: false,
            stopping: false,
            resting: false,
            checkpoint: 0,
            settled: 0,
            checkpoints: 0,
            stats: LogStats::default(),
        }
    }

    /// The epoch begins at log position `lsn`, in the segment with sequence number `seq`.
    pub(super) fn begin_epoch(&mut self, seq: u64, lsn: u64) {
        self.first_seq = seq;
        self.appended = lsn;
        self.durable = lsn;
        self.checkpoint = lsn;
    }

    /// Sequence numbers of this epoch but for the last two: the segment usage knows which ends the log left unused in their
    /// segments.
    pub(crate) fn settled(&self) -> Range<u64> {
        let current = self.current.map_or(0, |current| current.seq);
        self.first_seq..current.saturating_sub(1)
    }

    /// Log position behind the last record placed.
    pub(crate) fn appended(&self) -> u64 {
        self.appended
    }

    /// Bytes that users have appended.
    pub(crate) fn user_bytes(&self) -> u64 {
        self.stats.user_bytes
    }

    /// The counters of the log.
    pub(crate) fn stats(&self) -> LogStats {
        self.stats
    }

    /// The first error that made it unsafe to continue the log, if there was one.
    pub(crate) fn error(&self) -> Option<Error> {
        self.error
    }

    /// Whether the log works.
    ///
    /// # Errors
    ///
    /// The first error that made it unsafe to continue the log.
    pub(crate) fn check(&self) -> Result {
        match self.error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Stops the log with `error`, unless an earlier one has stopped it.
    pub(crate) fn fail(&mut self, error: Error) {
        self.stats.errors += 1;
        if self.error.is_none() {
            self.error = Some(error);
        }
    }

    /// Counts the error of an operation that the log does not depend on, if it failed.
    pub(crate) fn note<T>(&mut self, result: &Result<T>) {
        self.stats.errors += u64::from(result.is_err());
    }

    /// From now on only the closing checkpoint may append.
    pub(crate) fn begin_closing(&mut self) {
        self.closing = true;
    }

    /// Whether only the closing checkpoint may still append.
    pub(crate) fn closing(&self) -> bool {
        self.closing
    }

    /// Asks the background threads to end.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether the background threads must end.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping
    }

    /// Log position where the last stored checkpoint began.
    pub(super) fn checkpoint(&self) -> u64 {
        self.checkpoint
    }

    /// A checkpoint begins that covers everything users have appended.
    pub(crate) fn begin_checkpoint(&mut self) {
        self.settled = self.stats.user_bytes;
    }

    /// A checkpoint is over. `stored` is the log position where it began, if it was stored.
    pub(crate) fn end_checkpoint(&mut self, stored: Option<u64>) {
        self.checkpoints += 1;
        self.checkpoint = stored.unwrap_or(self.checkpoint);
    }

    /// Number of checkpoints that were tried.
    pub(super) fn checkpoints(&self) -> u64 {
        self.checkpoints
    }

    /// Whether users have appended anything since the last checkpoint began.
    pub(crate) fn unsettled(&self) -> bool {
        self.settled != self.stats.user_bytes
    }

    /// Whether bytes `offset..offset + len` of the image hold the beginning of a chunk that is not known to be
    /// written.
    pub(crate) fn pending(&self, offset: u64, len: u64) -> bool {
        self.chunks
            .iter()
            .any(|c| (offset..offset + len).contains(&c.offset))
    }

    /// Whether a chunk that begins before log position `end` waits to be written.
    pub(super) fn queued(&self, end: u64) -> bool {
        self.chunks
            .iter()
            .any(|c| c.lsn < end && c.state == ChunkState::Queued)
    }

    /// Removes the chunk at place `at` of the list. Its buffer waits for the next one.
    pub(super) fn forget_chunk(&mut self, at: usize) {
        let chunk = self.chunks.remove(at);
        // This is the only reference: readers copy from chunks under the lock.
        if let Some(buf) = chunk.and_then(|chunk| Unique::reclaim(chunk.buf)) {
            self.buffers.put(buf);
        }
    }

    /// The current segment.
    pub(crate) fn current_segment(&self) -> Option<u64> {
        self.current.map(|current| current.index)
    }

    /// Whether segment `index` is the current one.
    pub(crate) fn is_current(&self, index: u64) -> bool {
        self.current.is_some_and(|c| c.index == index)
    }

    /// Whether segment `index` is the current one or the next.
    pub(crate) fn is_current_or_next(&self, index: u64) -> bool {
        self.current
            .is_some_and(|c| c.index == index || c.next == index)
    }

    /// The current segment and those that are reserved, the next one among them.
    pub(crate) fn held(&self) -> impl Iterator<Item = u64> + Clone + '_ {
        let used = self.current.iter().flat_map(|c| [c.index, c.next]);
        used.chain(self.space.reserve())
    }

    /// Whether segment `index` is the current one or reserved.
    pub(crate) fn holds(&self, index: u64) -> bool {
        self.held().any(|held| held == index)
    }

    /// Notes that `bytes` were appended for `class`.
    pub(super) fn count_appended(&mut self, bytes: u64, class: SpaceClass) {
        self.stats.bytes += bytes;
        if class.is_of_user() {
            self.stats.user_bytes += bytes;
        }
        self.space.appended(bytes, class);
    }
}
