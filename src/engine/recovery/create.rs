// SPDX-License-Identifier: GPL-2.0
//! Creating an image: two superblocks, and nothing else.

use crate::engine::codec::{Compression, Recompression};
use crate::engine::format::{
    DeviceSize, Entry, Fingerprints, Layout, LogPosition, Superblock, BLOCK_SIZE, RECORD_SIZES,
    SEGMENT_HEADER, SEGMENT_SHIFTS, SUPERBLOCK_OFFSETS,
};
use crate::engine::{Error, Result};
use crate::platform::mem::Buf;
use crate::platform::{BackingFile, Platform};

/// The choices for a new image.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions {
    /// Device size in bytes: a multiple of 4096, at most 1 PiB.
    pub size: u64,
    /// Largest number of bytes one record holds: a power of two from 4096 to 131072.
    pub record_size: u32,
    /// Bytes of a log segment: a power of two from 256 KiB to 4 MiB;
    /// [`DEFAULT_SEGMENT_SIZE`](crate::engine::DEFAULT_SEGMENT_SIZE) suits all images but those of tests.
    pub segment_size: u32,
    /// Compression of the data.
    pub compression: Compression,
    /// How data is compressed again that has become cold.
    pub recompression: Recompression,
    /// Identity; random.
    pub uuid: [u8; 16],
}

impl CreateOptions {
    /// The layout of the image.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a record size or segment size that no image has.
    pub(crate) fn layout(&self) -> Result<Layout> {
        if !self.record_size.is_power_of_two() || !RECORD_SIZES.contains(&self.record_size) {
            return Err(Error::Invalid(
                "record size: it must be a power of two from 4096 to 131072 bytes",
            ));
        }
        let segment_shift = self.segment_size.trailing_zeros();
        if !self.segment_size.is_power_of_two() || !SEGMENT_SHIFTS.contains(&segment_shift) {
            return Err(Error::Invalid(
                "segment size: it must be a power of two from 256 KiB to 4 MiB",
            ));
        }
        Ok(Layout {
            record_size: self.record_size,
            segment_size: self.segment_size,
            uuid: self.uuid,
        })
    }

    /// The superblock of generation 1: a device without any block, closed cleanly.
    fn superblock<P: Platform>(&self, incomplete: bool) -> Result<Superblock> {
        let size = DeviceSize::from_bytes(self.size)?;
        self.recompression.check()?;
        Ok(Superblock {
            compatible: 0,
            read_only_compatible: 0,
            incomplete,
            layout: self.layout()?,
            zstd: false,
            marks: self.recompression.compression.is_some(),
            compression: self.compression,
            recompression: self.recompression,
            size,
            clean: true,
            detached: false,
            generation: 1,
            epoch: 0,
            salt: P::random_u64(),
            log_start: LogPosition {
                segment: 0,
                offset: SEGMENT_HEADER as u32,
                seq: 0,
            },
            log_end: 0,
            segments: 0,
            mapped: 0,
            height: size.table_height(),
            map_root: Entry::HOLE,
            usage_root: Entry::HOLE,
            usage_segments: 0,
            length: SUPERBLOCK_OFFSETS[1] + BLOCK_SIZE as u64,
        })
    }
}

/// Writes an empty image into `file`, marked as `incomplete` or not. The first MiB of a block device is lost, and all
/// of a regular file.
///
/// # Errors
///
/// [`Error::Invalid`] for options out of their domain; the file is unchanged then. Errors of the backing file.
pub(crate) fn create<P: Platform>(
    file: &P::File,
    options: &CreateOptions,
    incomplete: bool,
) -> Result {
    let mut superblock = options.superblock::<P>(incomplete)?;
    let fingerprints = Fingerprints::empty(superblock.size.blocks())?;
    let mut page = Buf::zeroed(BLOCK_SIZE)?;
    if !file.fixed_size() {
        file.truncate(0)?;
    }
    for generation in [1, 2] {
        superblock.generation = generation;
        superblock.encode::<P>(&mut page);
        fingerprints.encode::<P>(&superblock, &mut page);
        file.write_at(&page, superblock.offset())?;
    }
    file.sync()
}
