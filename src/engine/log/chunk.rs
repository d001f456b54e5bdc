// SPDX-License-Identifier: GPL-2.0
//! Chunks: the parts of a segment that lie between two seals, each in a buffer of its own.

use super::record::EncodedRecord;
use super::segment::Current;
use crate::engine::format::{RecordHeader, RECORD_HEADER};
use crate::platform::mem::{Arc, Buf, Unique};
use crate::platform::Platform;
use core::ops::Range;

/// The chunk that records are copied to: the part of the current segment from the last seal on.
pub(super) struct OpenChunk {
    /// Byte offset in the segment where the chunk begins.
    pub(super) start: u32,
    pub(super) buf: Unique<Buf>,
}

impl OpenChunk {
    /// Copies a record to the present offset of its segment.
    pub(super) fn append(&mut self, current: &mut Current, record: &EncodedRecord<'_>) {
        let at = (current.offset - self.start) as usize;
        record.copy_to(&mut self.buf[at..], current.seed, current.offset);
        current.offset += record.bytes();
    }

    /// Fills the segment up to byte `end` with a pad record, whose `header` lacks only its length.
    pub(super) fn pad<P: Platform>(
        &mut self,
        current: &mut Current,
        header: RecordHeader,
        end: u32,
    ) {
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
    pub(super) fn clear(&mut self, current: &mut Current, end: u32) {
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
    pub(super) len: usize,
    /// Byte range of the image that is to be punched: the end of the segment, which stays unused.
    pub(super) unused: Range<u64>,
    pub(super) buf: Arc<Buf>,
}
