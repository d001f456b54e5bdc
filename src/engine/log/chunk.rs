// SPDX-License-Identifier: GPL-2.0
//! Chunks: the parts of a segment that lie between two seals, from the first record in a buffer to the backing file.

use super::slot::EncodedRecord;
use super::state::{Current, LogState};
use super::{Log, LogGuard};
use crate::engine::format::{
    Kind, RecordHeader, SegmentHeader, BLOCK_SIZE, RECORD_HEADER, SEGMENT_HEADER,
};
use crate::engine::{Error, Result};
use crate::platform::mem::{Arc, Buf, Unique};
use crate::platform::{BackingFile, MonitorGuard, Platform};

/// The chunk that records are copied to: the part of the current segment from the last seal on.
pub(super) struct OpenChunk {
    /// Byte offset in the segment where the chunk begins.
    start: u32,
    buf: Unique<Buf>,
}

impl OpenChunk {
    /// Copies a record to the present offset of its segment.
    fn append(&mut self, current: &mut Current, record: &EncodedRecord<'_>) {
        let at = (current.offset - self.start) as usize;
        record.copy_to(&mut self.buf[at..], current.seed, current.offset);
        current.offset += record.bytes();
    }

    /// Fills the segment up to byte `end` with a pad record, whose `header` lacks only its length.
    fn pad<P: Platform>(&mut self, current: &mut Current, header: RecordHeader, end: u32) {
        let header = RecordHeader {
            payload: (end - current.offset) as usize - RECORD_HEADER,
            ..header
        };
        let mut encoded = header.encode::<P>(&[]);
        RecordHeader::stamp(&mut encoded, current.seed, current.offset);
        let at = (current.offset - self.start) as usize;
        self.buf[at..at + encoded.len()].copy_from_slice(&encoded);
        current.offset += encoded.len() as u32;
        self.clear(current, end);
    }

    /// Fills the segment up to byte `end` with zeros: a reused buffer still holds an earlier chunk.
    fn clear(&mut self, current: &mut Current, end: u32) {
        let (from, to) = (current.offset - self.start, end - self.start);
        self.buf[from as usize..to as usize].fill(0);
        current.offset = end;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkState {
    Queued,
    Writing,
    /// The write failed. The chunk stays, so that its data can still be read.
    Failed,
}

/// A sealed part of the log that is not known to be written.
pub(super) struct Chunk {
    pub(super) state: ChunkState,
    /// Log position where it begins.
    pub(super) lsn: u64,
    /// Byte offset in the image.
    pub(super) offset: u64,
    /// Length in bytes.
    len: usize,
    /// Bytes that follow it in the segment and stay unused.
    unused: u64,
    buf: Arc<Buf>,
}

/// Why a chunk ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A flush needs it on the disk. The log goes on behind it.
    Flush,
    /// The next record does not fit into the segment. The log goes on in the next one.
    Segment,
}

impl<P: Platform> Log<P> {
    fn segment_header(&self, state: &LogState, current: &Current) -> SegmentHeader {
        SegmentHeader {
            segment_shift: self.layout.segment_shift() as u8,
            index: current.index,
            seq: current.seq,
            epoch: self.epoch,
            salt: self.salt,
            uuid: self.layout.uuid,
            next: current.next,
            durable: state.durable,
            first: state.first_seq,
        }
    }

    /// Opens a chunk at the present offset. The first one of a segment begins with the segment's header.
    pub(super) fn open_chunk(&self, state: &mut LogState, mut buf: Unique<Buf>) {
        let Some(current) = state.current else { return };
        let mut start = current.offset;
        if start == SEGMENT_HEADER as u32 {
            let header = self.segment_header(state, &current);
            buf[..SEGMENT_HEADER].copy_from_slice(&header.encode::<P>());
            start = 0;
        }
        state.open = Some(OpenChunk { start, buf });
    }

    /// Copies a record to the open chunk, which has room for it.
    pub(super) fn copy(&self, state: &mut LogState, record: &EncodedRecord<'_>) -> Result {
        let (Some(current), Some(open)) = (state.current.as_mut(), state.open.as_mut()) else {
            return Err(Error::ReadOnly);
        };
        open.append(current, record);
        state.appended = self.lsn(current.seq, current.offset);
        Ok(())
    }

    /// Ends the open chunk at a multiple of 4 KiB and queues it. It ends with a link if the log goes on in the next
    /// segment, and with a pad otherwise.
    pub(super) fn seal(&self, state: &mut LogState, end: End) -> Result {
        let (Some(mut open), Some(mut current)) = (state.open.take(), state.current) else {
            return Ok(());
        };
        if end == End::Flush && open.start == current.offset {
            state.open = Some(open);
            return Ok(());
        }
        let (size, lsn) = (
            self.layout.segment_size,
            self.lsn(current.seq, current.offset),
        );
        let ending = |kind| RecordHeader::ending(kind, lsn, state.durable);
        let aligned = |offset: u32| offset.next_multiple_of(BLOCK_SIZE as u32);
        let to = aligned(current.offset);
        if end == End::Segment || to == size {
            let next = current.next.to_le_bytes();
            let link = EncodedRecord::new::<P>(ending(Kind::Link), &next, &[]);
            open.append(&mut current, &link);
            let to = aligned(current.offset);
            open.clear(&mut current, to);
        } else if to != current.offset {
            open.pad::<P>(&mut current, ending(Kind::Pad), to);
        }
        // Behind a link the rest of the segment stays unused.
        let to = current.offset;
        if end == End::Segment {
            current.offset = size;
            current.unused_end = self.layout.unused_end(to);
        }
        // On a full file system others might take the unused end, and the segment could not be reserved again when
        // it is free.
        let unused = match state.space.crowded {
            true => 0,
            false => u64::from(current.offset - to),
        };
        let chunk = Chunk {
            state: ChunkState::Queued,
            lsn: self.lsn(current.seq, open.start),
            offset: self.layout.segment_offset(current.index) + u64::from(open.start),
            len: (to - open.start) as usize,
            unused,
            buf: open.buf.share(),
        };
        state.current = Some(current);
        // The capacity was allocated with the pool: there are never more chunks than buffers.
        state.chunks.push(chunk)
    }

    /// Writes the oldest queued chunk, or waits for one that is being written.
    pub(super) fn write_or_wait(&self, file: &P::File) -> Result {
        if !self.write_one(file) {
            let mut state = self.lock();
            state.check()?;
            if state.pool.is_empty() && !state.queued(u64::MAX) {
                state.wait();
            }
        }
        Ok(())
    }

    /// Writes the oldest queued chunk. False when there is none, or the log has stopped.
    pub(crate) fn write_one(&self, file: &P::File) -> bool {
        let (lsn, offset, len, unused, buf) = {
            let mut state = self.lock();
            if state.error.is_some() {
                return false;
            }
            let queued = state
                .chunks
                .iter_mut()
                .find(|c| c.state == ChunkState::Queued);
            let Some(chunk) = queued else { return false };
            chunk.state = ChunkState::Writing;
            let buf = chunk.buf.clone();
            (chunk.lsn, chunk.offset, chunk.len, chunk.unused, buf)
        };
        let result = file.write_at(&buf[..len], offset);
        let mut punched = Ok(());
        if unused > 0 {
            // As long as the chunk is listed the segment cannot become free, let alone be used again.
            punched = file.punch(offset + len as u64, unused);
        }
        // The lock is not held: readers of the chunk do not share it but look under the lock.
        drop(buf);
        let mut state = self.lock();
        state.note(&punched);
        let at = state.chunks.iter().position(|c| c.lsn == lsn);
        match (result, at) {
            (Ok(()), Some(at)) => {
                let buf = state.chunks.remove(at).and_then(|c| Unique::reclaim(c.buf));
                if let Some(buf) = buf {
                    // Within the capacity the pool was made with.
                    let _ = state.pool.push(buf);
                }
            }
            (Err(error), Some(at)) => {
                state.chunks[at].state = ChunkState::Failed;
                state.fail(error);
            }
            (_, None) => {}
        }
        state.notify_all();
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
            if state.queued(end) {
                drop(state);
                self.write_one(file);
                state = self.lock();
            } else {
                state.wait();
            }
        }
        state
    }

    /// If byte `address` of the image lies in a part of the log that is still in memory, copies what
    /// follows it there to the start of `out` and returns how many bytes that were.
    pub(crate) fn read_memory(&self, address: u64, out: &mut [u8]) -> Option<usize> {
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
