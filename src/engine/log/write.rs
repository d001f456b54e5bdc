// SPDX-License-Identifier: GPL-2.0
//! Writing sealed chunks to the backing file, and reading what is not written yet.

use super::chunk::ChunkState;
use super::{Due, Log, LogGuard};
use crate::engine::format::IncarnationId;
use crate::engine::Result;
use crate::platform::{BackingFile, MonitorGuard, Platform, Sabotage};

impl<P: Platform> Log<P> {
    /// Writes the oldest queued chunk, or waits for one that is being written, as long as no chunk is open and there is no
    /// buffer for one.
    pub(super) fn write_or_wait(&self, file: &P::File) -> Result {
        if !self.write_one(file) {
            let mut state = self.lock();
            state.check()?;
            // All buffers belong to chunks then, one at least.
            if state.open.is_none() && state.buffers.is_empty() {
                Self::wait_for_write(&mut state, u64::MAX);
            }
        }
        Ok(())
    }

    /// Writes the oldest queued chunk. False when there is none, when writes have failed and it is too early to try again,
    /// or when the log has stopped.
    pub(crate) fn write_one(&self, file: &P::File) -> bool {
        let (lsn, offset, len, unused, buf) = {
            let mut state = self.lock();
            if state.due::<P>(u64::MAX) != Due::Now {
                return false;
            }
            let queued = state
                .chunks
                .iter_mut()
                .find(|c| c.state == ChunkState::Queued);
            let Some(chunk) = queued else { return false };
            chunk.state = ChunkState::Writing;
            let buf = chunk.buf.clone();
            (
                chunk.lsn,
                chunk.offset,
                chunk.len,
                chunk.unused.clone(),
                buf,
            )
        };
        let result = file.write_at(&buf[..len], offset);
        let mut punched = Ok(());
        if !unused.is_empty() && result.is_ok() {
            // As long as the chunk is listed the segment cannot become free, let alone be used again.
            punched = file.punch(unused.start, unused.end - unused.start);
        }
        // The lock is not held: readers of the chunk do not share it but look under the lock.
        drop(buf);
        let mut state = self.lock();
        let before = state.retrying();
        state.note(&punched);
        let at = state.chunks.iter().position(|c| c.lsn == lsn);
        match (result, at) {
            (Ok(()), Some(at)) => {
                state.write_succeeded();
                state.forget_chunk(at);
                self.publish_written(&state);
            }
            (Err(error), Some(at)) if state.try_again::<P>(error) => {
                if P::sabotaged(Sabotage::ForgottenRetry) {
                    state.forget_chunk(at);
                } else {
                    state.chunks[at].state = ChunkState::Queued;
                }
            }
            (Err(error), Some(at)) => {
                state.chunks[at].state = ChunkState::Failed;
                state.fail(error);
            }
            (_, None) => {}
        }
        let after = state.retrying();
        match result.is_ok() && before.is_none() {
            // Requests wait for the buffer, or for the chunk. Other chunks wait to be written as before.
            true => Self::notify_of_progress(&mut state),
            false => state.notify_all(),
        }
        drop(state);
        Self::tell_retry(file, before, after);
        true
    }

    /// Writes every chunk that begins before log position `end`, and waits for those that others are writing. Stops
    /// when the log does.
    pub(super) fn write_up_to<'a>(
        &'a self,
        file: &P::File,
        mut state: LogGuard<'a, P>,
        end: u64,
    ) -> LogGuard<'a, P> {
        while state.error.is_none() && state.chunks.iter().any(|c| c.lsn < end) {
            if state.due::<P>(end) == Due::Now {
                drop(state);
                self.write_one(file);
                state = self.lock();
            } else {
                Self::wait_for_write(&mut state, end);
            }
        }
        state
    }

    /// If byte `address` of the image, in this incarnation of its segment, lies in a part of the log that is still in
    /// memory, copies what follows it there to the start of `out` and returns how many bytes that were. Most records are
    /// in the backing file for long, and cost no lock.
    pub(crate) fn read_memory(
        &self,
        incarnation: IncarnationId,
        address: u64,
        out: &mut [u8],
    ) -> Option<usize> {
        if !self.may_hold(incarnation, address) {
            return None;
        }
        let state = self.lock();
        let mut copy = |bytes: &[u8], start: u64| {
            let at = (address - start) as usize;
            let n = out.len().min(bytes.len() - at);
            out[..n].copy_from_slice(&bytes[at..at + n]);
            n
        };
        if let (Some(open), Some(current)) = (state.open.as_ref(), state.current) {
            let base = self.layout.segment_offset(current.index);
            let (start, end) = (
                base + u64::from(open.start),
                base + u64::from(current.offset),
            );
            if (start..end).contains(&address) {
                return Some(copy(&open.buf[..(end - start) as usize], start));
            }
        }
        let chunk = state
            .chunks
            .iter()
            .find(|c| (c.offset..c.offset + c.len as u64).contains(&address))?;
        Some(copy(&chunk.buf[..chunk.len], chunk.offset))
    }
}
