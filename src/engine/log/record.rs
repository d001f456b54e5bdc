// SPDX-License-Identifier: GPL-2.0
//! [`EncodedRecord`]: a record as the log stores it.

use crate::engine::format::{RecordHeader, RECORD_HEADER, UNIT};
use crate::platform::Platform;

/// Most bytes that come before the rest of a payload.
const LEAD: usize = 8;

/// A record as the log stores it. It can be placed more than once, because it is tied to its place only when it is
/// copied there.
pub(crate) struct EncodedRecord<'a> {
    header: RecordHeader,
    /// The encoded header, and the first bytes of the payload.
    head: [u8; RECORD_HEADER + LEAD],
    /// Bytes of `head`.
    head_len: usize,
    /// The rest of the payload.
    rest: &'a [u8],
}

impl<'a> EncodedRecord<'a> {
    /// Completes `header` with the length of the payload and encodes it. The payload is `lead`, at most 8 bytes, and
    /// `rest`. The checksum is computed here, outside of any lock.
    pub(crate) fn new<P: Platform>(mut header: RecordHeader, lead: &[u8], rest: &'a [u8]) -> Self {
        header.payload = lead.len() + rest.len();
        let mut head = [0; RECORD_HEADER + LEAD];
        let head_len = RECORD_HEADER + lead.len();
        head[..RECORD_HEADER].copy_from_slice(&header.encode::<P>(&[lead, rest]));
        head[RECORD_HEADER..head_len].copy_from_slice(lead);
        Self {
            header,
            head,
            head_len,
            rest,
        }
    }

    /// The header of the record.
    pub(crate) fn header(&self) -> &RecordHeader {
        &self.header
    }

    /// Writes the payload to `to`, which is as long.
    pub(crate) fn copy_payload(&self, to: &mut [u8]) {
        let (lead, rest) = to.split_at_mut(self.head_len - RECORD_HEADER);
        lead.copy_from_slice(&self.head[RECORD_HEADER..self.head_len]);
        rest.copy_from_slice(self.rest);
    }

    /// Bytes the record takes in the log.
    pub(super) fn bytes(&self) -> u32 {
        self.header.units() * UNIT as u32
    }

    /// Writes the record to the beginning of `to`, tied to byte `offset` of the segment with this seed, and clears
    /// the rest of its space.
    pub(super) fn copy_to(&self, to: &mut [u8], seed: u32, offset: u32) {
        let end = self.head_len + self.rest.len();
        to[..self.head_len].copy_from_slice(&self.head[..self.head_len]);
        RecordHeader::stamp(&mut to[..RECORD_HEADER], seed, offset);
        to[self.head_len..end].copy_from_slice(self.rest);
        to[end..self.bytes() as usize].fill(0);
    }
}
