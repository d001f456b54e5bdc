// SPDX-License-Identifier: GPL-2.0
//! [`DataRecord`]: blocks of data, encoded as one record of the log. Writes make them, and reclaim does when it relocates
//! live blocks.

use crate::engine::codec::{Codecs, Compression, Encoder};
use crate::engine::format::{Algorithm, Entry, Kind, RecordHeader, BLOCK_SIZE};
use crate::engine::log::{EncodedRecord, Placed};
use crate::engine::map::usage::Origin;
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
    /// What is known of its compression.
    pub(crate) origin: Origin,
}

impl Stored {
    /// Points the blocks of the record to it, and those that are zero to nothing. Their leaf must be loaded.
    ///
    /// # Errors
    ///
    /// Those of [`Map::replace`].
    pub(crate) fn map(&self, map: &mut Map) -> Result {
        map.note_origin(self.address, self.origin);
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
    origin: Origin,
}

/// Neighbouring blocks that are to be a record.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    /// The first one.
    pub(crate) block: u64,
    /// Their number.
    pub(crate) span: usize,
    /// Those that are stored: bit `i` for block `block + i`. The others are zero.
    pub(crate) mask: u32,
}

impl<'a> DataRecord<'a> {
    /// Encodes the blocks of `extent` with the compression that is chosen for new records. `content` is those that are stored, one after the other.
    pub(crate) fn new<P: Platform>(
        encoder: &'a mut Encoder<P>,
        codecs: &Codecs<P>,
        extent: Extent,
        content: &'a [u8],
    ) -> Self {
        let chosen = codecs.next();
        let (algorithm, payload) = encoder.encode(codecs, content);
        // LZ4 may have replaced it for lack of memory.
        let as_chosen = [chosen.algorithm(), Algorithm::Raw].contains(&algorithm);
        let origin = match as_chosen {
            true => Origin::Compressed(chosen),
            false => Origin::Unknown,
        };
        Self::with_payload::<P>(extent, algorithm, payload, origin)
    }

    /// As [`new`](Self::new), for blocks that are compressed again, with `compression`.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(crate) fn recompressed<P: Platform>(
        encoder: &'a mut Encoder<P>,
        codecs: &Codecs<P>,
        compression: Compression,
        extent: Extent,
        content: &'a [u8],
    ) -> Result<Self> {
        let (algorithm, payload) = encoder.encode_again(codecs, compression, content)?;
        let origin = Origin::Compressed(compression);
        Ok(Self::with_payload::<P>(extent, algorithm, payload, origin))
    }

    fn with_payload<P: Platform>(
        extent: Extent,
        algorithm: Algorithm,
        payload: &'a [u8],
        origin: Origin,
    ) -> Self {
        let header = RecordHeader {
            algorithm: algorithm.tag(),
            span: extent.span as u8,
            count: extent.mask.count_ones() as u8,
            ..RecordHeader::plain(Kind::Data, extent.block)
        };
        let mask = extent.mask.to_le_bytes();
        let lead = &mask[..header.mask_len()];
        Self {
            encoded: EncodedRecord::new::<P>(header, lead, payload),
            mask: extent.mask,
            origin,
        }
    }

    /// The record of this header again, with `payload` as it is stored.
    pub(crate) fn again<P: Platform>(
        header: &RecordHeader,
        mask: u32,
        payload: &'a [u8],
        origin: Origin,
    ) -> Self {
        Self {
            encoded: EncodedRecord::new::<P>(*header, &[], payload),
            mask,
            origin,
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

    /// What is known of its compression.
    pub(super) fn origin(&self) -> Origin {
        self.origin
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
            origin: self.origin,
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
