// SPDX-License-Identifier: GPL-2.0
//! [`DataRecord`]: blocks of data, encoded as one record of the log. Writes make them, and reclaim does when it relocates
//! live blocks.

use crate::engine::codec::{Codecs, Encoder};
use crate::engine::format::{Algorithm, Entry, Kind, RecordHeader, BLOCK_SIZE};
use crate::engine::log::{EncodedRecord, Placed};
use crate::engine::map::Map;
use crate::engine::Result;
use crate::platform::Platform;

/// A data record in its place.
pub(crate) struct Stored {
    /// First block that it covers.
    pub(crate) block: u64,
    /// Number of blocks that it covers.
    pub(crate) span: usize,
    /// The blocks that are stored: bit `i` for block `block + i`. The others are zero.
    pub(crate) mask: u32,
    /// Space of the record, in units of the log.
    pub(crate) units: u32,
    /// Byte offset in the image.
    pub(crate) address: u64,
}

impl Stored {
    /// Points the blocks of the record to it, and those that are zero to nothing. Their leaf must be loaded.
    ///
    /// # Errors
    ///
    /// Those of [`Map::replace`].
    pub(crate) fn map(&self, map: &mut Map) -> Result {
        let mut index = 0;
        map.replace(self.block, self.span, &mut |i| {
            if (self.mask >> i) & 1 == 0 {
                return Entry::HOLE;
            }
            index += 1;
            Entry::new(self.address, self.units, index - 1, self.mask.count_ones())
        })
    }
}

/// Neighbouring blocks of data, encoded as one record.
pub(crate) struct DataRecord<'a> {
    pub(crate) encoded: EncodedRecord<'a>,
    mask: u32,
}

impl<'a> DataRecord<'a> {
    /// Encodes `span` blocks from `block` on. `content` is the blocks of `mask`, one after the other.
    pub(crate) fn new<P: Platform>(
        encoder: &'a mut Encoder<P>,
        codecs: &Codecs<P>,
        block: u64,
        span: usize,
        mask: u32,
        content: &'a [u8],
    ) -> Self {
        let count = mask.count_ones() as usize;
        let (algorithm, payload) = encoder.encode(codecs, content);
        let header = RecordHeader {
            algorithm: algorithm.tag(),
            span: span as u8,
            count: count as u8,
            ..RecordHeader::plain(Kind::Data, block)
        };
        let mask_bytes = mask.to_le_bytes();
        let lead = &mask_bytes[..header.mask_len()];
        Self {
            encoded: EncodedRecord::new::<P>(header, lead, payload),
            mask,
        }
    }

    /// The same record again, with `payload` as it is stored.
    pub(crate) fn again<P: Platform>(header: &RecordHeader, mask: u32, payload: &'a [u8]) -> Self {
        Self {
            encoded: EncodedRecord::new::<P>(*header, &[], payload),
            mask,
        }
    }

    /// True if all blocks are stored, and none is compressed.
    pub(crate) fn is_plain(&self) -> bool {
        let header = self.encoded.header();
        header.algorithm == Algorithm::Raw.tag() && header.count == header.span
    }

    /// Number of blocks covered.
    pub(crate) fn span(&self) -> usize {
        usize::from(self.encoded.header().span)
    }

    /// The record at its place in the log.
    pub(crate) fn stored(&self, placed: &Placed) -> Stored {
        let header = self.encoded.header();
        Stored {
            block: header.number,
            span: self.span(),
            mask: self.mask,
            units: header.units(),
            address: placed.address,
        }
    }
}

/// Copies blocks to the beginning of `to`, one after the other, and returns them.
pub(crate) fn gather<'a, 'b>(blocks: impl Iterator<Item = &'b [u8]>, to: &'a mut [u8]) -> &'a [u8] {
    let mut len = 0;
    for (to, block) in to.chunks_exact_mut(BLOCK_SIZE).zip(blocks) {
        to.copy_from_slice(block);
        len += BLOCK_SIZE;
    }
    &to[..len]
}
