// SPDX-License-Identifier: GPL-2.0
//! [`Batch`]: records that were encoded before their place in the log is due.
//!
//! Compressing takes longer than anything else about a write, and writers compress side by side. The one who fills an image
//! with several writers wants its records in the order of the device nevertheless, so that reading it in order reads the
//! image in order. So the two halves of a write can be called apart: encoding in any order, and placing in turn.

use crate::engine::format::{RecordHeader, BLOCK_SIZE};
use crate::engine::io::data::DataRecord;
use crate::engine::map::usage::Origin;
use crate::engine::Result;
use crate::platform::mem::{Buf, Vec};
use crate::platform::Platform;

/// Encoded records of some blocks, which are not written yet.
pub struct Batch {
    records: Vec<Encoded>,
    payloads: Buf,
    /// Bytes of `payloads` in use.
    filled: usize,
}

/// A record of a batch, or a range of zeros, the mask of which is 0.
#[derive(Clone, Copy)]
pub(super) struct Encoded {
    /// As it is stored.
    pub(super) header: RecordHeader,
    /// The blocks that are stored: bit `i` for the `i`th.
    pub(super) mask: u32,
    /// Where its payload begins in the batch.
    start: usize,
    /// What is known of its compression.
    origin: Origin,
}

impl Batch {
    /// Room for the records of `bytes` bytes of data.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        Ok(Self {
            // In the worst case each block is a record of its own.
            records: Vec::with_capacity(bytes.div_ceil(BLOCK_SIZE))?,
            payloads: Buf::zeroed(bytes)?,
            filled: 0,
        })
    }

    /// Drops all records.
    pub fn clear(&mut self) {
        self.records.clear();
        self.filled = 0;
    }

    /// Whether the records of so much data fit, whatever they compress to.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        // A payload is never longer than its data: one with a mask leaves out a block.
        self.payloads.len() - self.filled >= bytes
    }

    /// Adds a copy of a record, for which there [is room](Self::has_room).
    pub(super) fn add(&mut self, record: &DataRecord<'_>, mask: u32) -> Result {
        let start = self.filled;
        let end = start + record.encoded.header().payload;
        record.encoded.copy_payload(&mut self.payloads[start..end]);
        self.filled = end;
        self.records.push(Encoded {
            header: *record.encoded.header(),
            mask,
            start,
            origin: record.origin(),
        })
    }

    /// Adds a range of zeros.
    pub(super) fn add_zeros(&mut self, header: RecordHeader) -> Result {
        self.records.push(Encoded {
            header,
            mask: 0,
            start: self.filled,
            origin: Origin::Unknown,
        })
    }

    /// The records, in the order in which they were added.
    pub(super) fn records(&self) -> impl Iterator<Item = Encoded> + '_ {
        self.records.iter().copied()
    }

    /// A record as it is to be placed.
    pub(super) fn record<P: Platform>(&self, encoded: &Encoded) -> DataRecord<'_> {
        let payload = &self.payloads[encoded.start..][..encoded.header.payload];
        DataRecord::again::<P>(&encoded.header, encoded.mask, payload, encoded.origin)
    }
}

impl Encoded {
    /// Cuts a record that is plain behind `span` blocks.
    pub(super) fn cut(self, span: usize) -> (Self, Self) {
        let (mut head, mut tail) = (self, self);
        let bytes = span * BLOCK_SIZE;
        head.header.payload = bytes;
        tail.header.payload -= bytes;
        tail.header.number += span as u64;
        tail.start += bytes;
        for (part, span) in [
            (&mut head, span),
            (&mut tail, usize::from(self.header.span) - span),
        ] {
            (part.header.span, part.header.count) = (span as u8, span as u8);
            part.mask = (1u64 << span).wrapping_sub(1) as u32;
        }
        (head, tail)
    }
}
