// SPDX-License-Identifier: GPL-2.0
//! [`Layout`]: where things lie in an image; [`DeviceSize`]: how large the device in it is.

use super::{height_for, BLOCK_SHIFT, BLOCK_SIZE, DATA_START, MAX_IMAGE, MAX_SIZE};
use crate::engine::{Error, Result};

/// What is fixed from the creation of an image on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Largest number of bytes one record holds; a power of two.
    pub record_size: u32,
    /// Bytes of a log segment; a power of two.
    pub segment_size: u32,
    /// Identity of the image.
    pub uuid: [u8; 16],
}

impl Layout {
    /// log2 of the segment size.
    pub fn segment_shift(&self) -> u32 {
        self.segment_size.trailing_zeros()
    }

    /// Byte offset of segment `index` in the image.
    pub fn segment_offset(&self, index: u64) -> u64 {
        DATA_START + (index << self.segment_shift())
    }

    /// Byte offset and length of the part of segment `index` that may be given back, if its first `used` bytes are needed.
    /// The first sector of segment 0 stays allocated when the segment is free: a whole header there tells that damage
    /// which begins at the superblocks ends before the log.
    pub fn dispensable(&self, index: u64, used: u64) -> (u64, u64) {
        let kept = match index {
            0 => used.max(BLOCK_SIZE as u64),
            _ => used,
        };
        (
            self.segment_offset(index) + kept,
            u64::from(self.segment_size) - kept,
        )
    }

    /// The segment that holds byte `offset` of the image; `None` before the first segment.
    pub fn segment_of(&self, offset: u64) -> Option<u64> {
        Some(offset.checked_sub(DATA_START)? >> self.segment_shift())
    }

    /// Where byte `offset` of the image, behind [`DATA_START`], lies in its segment.
    pub fn offset_in_segment(&self, offset: u64) -> u32 {
        offset.wrapping_sub(DATA_START) as u32 & (self.segment_size - 1)
    }

    /// Largest number of segments an image can have.
    pub fn max_segments(&self) -> u64 {
        (MAX_IMAGE - DATA_START) >> self.segment_shift()
    }

    /// The end of a segment that stays unused when its log ends at byte `offset`, in 1/256 of a segment.
    pub fn unused_end(&self, offset: u32) -> u8 {
        // A shift, because objtool takes the panic on a zero divisor for a function that returns.
        let parts = self.segment_size.saturating_sub(offset) >> (self.segment_shift() - 8);
        parts.min(255) as u8
    }

    /// Bytes that [`unused_end`](Self::unused_end) stands for.
    pub fn unused_bytes(&self, unused_end: u8) -> u64 {
        u64::from(unused_end) * u64::from(self.segment_size / 256)
    }

    /// Blocks in a record of full size.
    pub fn record_blocks(&self) -> u64 {
        u64::from(self.record_size >> BLOCK_SHIFT)
    }

    /// Number of blocks from `block` on to the end of its natural unit, see
    /// [`in_natural_unit`](Self::in_natural_unit).
    pub fn left_in_natural_unit(&self, block: u64) -> u64 {
        // Not a remainder: objtool takes the panic on a zero divisor for a function that returns.
        let record = self.record_blocks();
        record - (block & (record - 1))
    }

    /// Whether `span` blocks from `block` on lie within one natural unit: blocks that a record of full size covers.
    /// Each data record does, so each lies within one leaf of the sector table.
    pub fn in_natural_unit(&self, block: u64, span: u64) -> bool {
        let shift = self.record_blocks().trailing_zeros();
        block >> shift == (block + span - 1) >> shift
    }
}

/// Size of a device: a number of blocks. A resize changes it, so it is no part of the [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceSize {
    blocks: u64,
}

impl DeviceSize {
    /// The size of `blocks` blocks, which no bound is checked for.
    pub const fn from_blocks(blocks: u64) -> Self {
        Self { blocks }
    }

    /// The size of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if no device can have it: it is 0, not a multiple of a block, or above [`MAX_SIZE`].
    pub fn from_bytes(bytes: u64) -> Result<Self> {
        if bytes == 0 || bytes % BLOCK_SIZE as u64 != 0 || bytes > MAX_SIZE {
            return Err(Error::Invalid(
                "size: it must be a multiple of 4096 bytes, at most 1 PiB",
            ));
        }
        Ok(Self::from_blocks(bytes >> BLOCK_SHIFT))
    }

    /// Number of blocks of 4096 bytes.
    pub fn blocks(self) -> u64 {
        self.blocks
    }

    /// Number of bytes.
    pub fn bytes(self) -> u64 {
        self.blocks << BLOCK_SHIFT
    }

    /// Largest number of bytes that an image with a device of this size takes, whatever is written to the device:
    /// promise P3.
    pub fn image_bound(self) -> u64 {
        self.bytes() + self.bytes() / 100 + (16 << 20)
    }

    /// Levels of the sector table: each has [`NODE_ENTRIES`](super::NODE_ENTRIES) times the reach of the one below.
    pub fn table_height(self) -> u8 {
        height_for(self.blocks)
    }
}
