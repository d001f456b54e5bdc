// SPDX-License-Identifier: GPL-2.0
//! Filling and sealing the open chunk.

use super::chunk::{Chunk, ChunkState, OpenChunk};
use super::record::EncodedRecord;
use super::segment::Current;
use super::state::LogState;
use super::Log;
use crate::engine::format::{Kind, RecordHeader, SegmentHeader, BLOCK_SIZE, SEGMENT_HEADER};
use crate::engine::{Error, Result};
use crate::platform::mem::{Buf, Unique};
use crate::platform::{Platform, Sabotage};
use core::sync::atomic::Ordering;

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
        let unused = match state.space.backing_full() {
            true => 0,
            false => self.layout.unused_bytes(current.unused_end),
        };
        let end_of_segment = self.layout.segment_offset(current.index) + u64::from(size);
        let chunk = Chunk {
            state: ChunkState::Queued,
            lsn: self.lsn(current.seq, open.start),
            offset: self.layout.segment_offset(current.index) + u64::from(open.start),
            len: (to - open.start) as usize,
            unused: end_of_segment - unused..end_of_segment,
            buf: open.buf.share(),
        };
        if P::sabotaged(Sabotage::EarlyWritten) {
            self.written.fetch_max(lsn, Ordering::Release);
        }
        state.current = Some(current);
        // The capacity was allocated with the log: there are never more chunks than buffers.
        state.chunks.push(chunk)
    }
}
