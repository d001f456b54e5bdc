// SPDX-License-Identifier: GPL-2.0
//! [`Superblock`]: one committed checkpoint and everything fixed about the image.

use super::{
    corrupt, height_for, le32, le64, put, Algorithm, DeviceSize, Entry, Layout, BLOCK_SHIFT,
    BLOCK_SIZE, MAX_SIZE, RECORD_SIZES, SEGMENT_HEADER, SEGMENT_SHIFTS, SUPERBLOCK_OFFSETS, UNIT,
};
use crate::engine::codec::{Compression, Recompression};
use crate::engine::{Error, Result};
use crate::platform::Platform;
use core::ops::RangeInclusive;

/// The version this software writes and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of the fields of a superblock; what a checkpoint record in the log holds of it. [`Fingerprints`] follow.
///
/// [`Fingerprints`]: super::Fingerprints
pub const SUPERBLOCK_RECORD: usize = 512;

// The fields end at byte 188.
const _: () = assert!(188 <= SUPERBLOCK_RECORD && SUPERBLOCK_RECORD <= BLOCK_SIZE);

const MAGIC: &[u8; 8] = b"cloopIMG";
const FLAG_CLEAN: u32 = 1;
const FLAG_DETACHED: u32 = 2;
/// Incompatible feature: the program that makes the image has not finished it.
const INCOMPLETE: u64 = 1;
/// Incompatible feature: records may be compressed with Zstandard.
const ZSTD: u64 = 2;
/// Incompatible feature: the segment usage may say of segments that their data was recompressed.
const RECOMPRESSED: u64 = 4;
/// The algorithms that byte 66 may name. Versions that know no others read the image until it has the feature of another one.
const BASIC: [Algorithm; 2] = [Algorithm::Raw, Algorithm::Lz4];

/// A place in the log: that of the next record, and where a checkpoint says that its replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// Segment index.
    pub segment: u64,
    /// Byte offset of a record in the segment.
    pub offset: u32,
    /// Sequence number the segment must have.
    pub seq: u64,
}

/// One of the two superblocks; the valid one with the higher generation counts.
///
/// ```text
/// 0    magic "cloopIMG"
/// 8    u32  format version
/// 12   u32  crc32c of these 4096 bytes with this field zero
/// 16   u64  compatible features: unknown ones are ignored
/// 24   u64  read-only-compatible features: unknown ones forbid writing
/// 32   u64  incompatible features: bit 0 the image is not finished, bit 1 records may be
///      compressed with Zstandard, bit 2 segments may be marked as recompressed; unknown ones
///      forbid opening
/// 40   u8[16] uuid
/// 56   u64  device size in bytes
/// 64   u8   log2 record_size   65 u8 log2 segment_size   66 u8 algorithm (LZ4 if bytes
///      176 and 177 say more)   67 u8 levels of the sector table
/// 68   u32  flags: bit 0 cleanly closed; bit 1 the sector table may have detached subtrees
/// 72   u64  generation
/// 80   u64  epoch    88 u64 salt (see SegmentHeader)
/// 96   u64  log start: segment   104 u32 offset   108 u32 zero   112 u64 sequence number
/// 120  u64  log end: the log was durable up to this position (sequence << log2 segment_size | offset)
/// 128  u64  segments in the image
/// 136  u64  blocks mapped in the checkpoint
/// 144  u64  entry of the sector table's root   152 u64 entry of the segment usage's root
/// 160  u64  segments the stored usage covers
/// 168  u64  bytes: the file is at least this long
/// 176  u8   algorithm   177 u8 level: of new records, where byte 66 cannot say it; else zero
/// 178  u8   algorithm, or 0 for off   179 u8 level   180 u32 seconds   184 u32 KiB a second:
///      of the recompression of cold data
/// 188  zero
/// 512  7 sectors of Fingerprints
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Unknown bits are ignored.
    pub compatible: u64,
    /// Unknown bits forbid writing.
    pub read_only_compatible: u64,
    /// The program that makes the image has not finished it: only that program may open it.
    pub incomplete: bool,
    /// What never changes.
    pub layout: Layout,
    /// Records may be compressed with Zstandard.
    pub zstd: bool,
    /// The segment usage may say of segments that compressing their data again gains nothing.
    pub marks: bool,
    /// Compression of new records.
    pub compression: Compression,
    /// How cold data is compressed again.
    pub recompression: Recompression,
    /// Size of the device.
    pub size: DeviceSize,
    /// Cleanly closed: nothing lies in the log after the checkpoint.
    pub clean: bool,
    /// The sector table may have [detached](Entry::detached) subtrees.
    pub detached: bool,
    /// Counts checkpoints; chooses the slot.
    pub generation: u64,
    /// Counts the times the image was opened for writing.
    pub epoch: u64,
    /// The epoch's random number.
    pub salt: u64,
    /// Where replay starts.
    pub log_start: LogPosition,
    /// The log was durable up to here when the superblock was written.
    pub log_end: u64,
    /// Number of segments that are or were in use.
    pub segments: u64,
    /// Blocks mapped by the checkpoint's table.
    pub mapped: u64,
    /// Levels of the sector table; a device that became smaller keeps those it had.
    pub height: u8,
    /// Root of the sector table.
    pub map_root: Entry,
    /// Root of the segment usage.
    pub usage_root: Entry,
    /// Segments the stored usage covers; later ones came into use after it was stored.
    pub usage_segments: u64,
    /// The image file is at least this long, in bytes; a shorter one was cut.
    pub length: u64,
}

impl Superblock {
    /// The slot this generation belongs to.
    pub fn slot(&self) -> usize {
        (self.generation & 1) as usize
    }

    /// Byte offset of the slot this generation belongs to.
    pub fn offset(&self) -> u64 {
        SUPERBLOCK_OFFSETS[self.slot()]
    }

    /// Whether a counter is so near to its bound that writing could pass it: no use brings it there.
    pub fn exhausted(&self) -> bool {
        let shift = self.layout.segment_shift();
        let seq = self.log_start.seq.max(self.log_end >> shift);
        self.generation.max(self.epoch) >= u64::MAX / 4 || seq >= 1 << (59 - shift)
    }

    /// Fills `bytes` (4096 of them) with the superblock, without fingerprints.
    pub fn encode<P: Platform>(&self, bytes: &mut [u8]) {
        let layout = &self.layout;
        bytes.fill(0);
        put(bytes, 0, MAGIC);
        put(bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(bytes, 16, &self.compatible.to_le_bytes());
        put(bytes, 24, &self.read_only_compatible.to_le_bytes());
        let features = [
            (self.incomplete, INCOMPLETE),
            (self.zstd, ZSTD),
            (self.marks, RECOMPRESSED),
        ];
        let incompatible = features
            .into_iter()
            .fold(0, |bits, (set, bit)| bits | if set { bit } else { 0 });
        put(bytes, 32, &incompatible.to_le_bytes());
        put(bytes, 40, &layout.uuid);
        put(bytes, 56, &self.size.bytes().to_le_bytes());
        bytes[64] = layout.record_size.trailing_zeros() as u8;
        bytes[65] = layout.segment_shift() as u8;
        let algorithm = self.compression.algorithm();
        if BASIC.contains(&algorithm) {
            bytes[66] = algorithm.tag();
        } else {
            bytes[66] = Algorithm::Lz4.tag();
            bytes[176] = algorithm.tag();
            bytes[177] = self.compression.level();
        }
        if let Some(compression) = self.recompression.compression {
            bytes[178] = compression.algorithm().tag();
            bytes[179] = compression.level();
            put(bytes, 180, &self.recompression.after.to_le_bytes());
            put(bytes, 184, &self.recompression.rate.to_le_bytes());
        }
        bytes[67] = self.height;
        let clean = if self.clean { FLAG_CLEAN } else { 0 };
        let flags = clean | if self.detached { FLAG_DETACHED } else { 0 };
        put(bytes, 68, &flags.to_le_bytes());
        put(bytes, 72, &self.generation.to_le_bytes());
        put(bytes, 80, &self.epoch.to_le_bytes());
        put(bytes, 88, &self.salt.to_le_bytes());
        put(bytes, 96, &self.log_start.segment.to_le_bytes());
        put(bytes, 104, &self.log_start.offset.to_le_bytes());
        put(bytes, 112, &self.log_start.seq.to_le_bytes());
        put(bytes, 120, &self.log_end.to_le_bytes());
        put(bytes, 128, &self.segments.to_le_bytes());
        put(bytes, 136, &self.mapped.to_le_bytes());
        put(bytes, 144, &self.map_root.0.to_le_bytes());
        put(bytes, 152, &self.usage_root.0.to_le_bytes());
        put(bytes, 160, &self.usage_segments.to_le_bytes());
        put(bytes, 168, &self.length.to_le_bytes());
        let crc = P::crc32c(0, bytes);
        put(bytes, 12, &crc.to_le_bytes());
    }

    /// Reads and checks the copy of a superblock in a checkpoint record, by way of `page` (4096 bytes).
    ///
    /// # Errors
    ///
    /// Those of [`decode`](Self::decode).
    pub fn from_record<P: Platform>(payload: &[u8], page: &mut [u8]) -> Result<Self> {
        page.fill(0);
        put(page, 0, &payload[..SUPERBLOCK_RECORD]);
        let slot = (le64(page, 72) & 1) as usize;
        Self::decode::<P>(page, SUPERBLOCK_OFFSETS[slot])
    }

    /// Reads and checks the superblock in `bytes` (4096 of them), which came from byte `offset` of the image.
    ///
    /// # Errors
    ///
    /// [`Error::NotAnImage`] without the magic, [`Error::Version`] and [`Error::Feature`] for what
    /// only newer software reads, [`Error::Corrupt`] for the rest.
    pub fn decode<P: Platform>(bytes: &mut [u8], offset: u64) -> Result<Self> {
        if &bytes[..8] != MAGIC {
            return Err(Error::NotAnImage);
        }
        let stored = le32(bytes, 12);
        put(bytes, 12, &[0; 4]);
        if P::crc32c(0, bytes) != stored {
            return corrupt("superblock", offset);
        }
        // The checksum holds, so these are what somebody wrote, not damage.
        let version = le32(bytes, 8);
        if version == 0 || version > FORMAT_VERSION {
            return Err(Error::Version(version));
        }
        let unknown = le64(bytes, 32) & !(INCOMPLETE | ZSTD | RECOMPRESSED);
        if unknown != 0 {
            return Err(Error::Feature(unknown));
        }
        let tags = [bytes[66].max(bytes[176]), bytes[178]];
        if tags
            .into_iter()
            .any(|tag| Algorithm::from_tag(tag).is_none())
        {
            return corrupt("superblock: unknown compression algorithm", offset);
        }
        match Self::fields(bytes).filter(Self::plausible) {
            Some(found) if found.offset() == offset => Ok(found),
            _ => corrupt("superblock", offset),
        }
    }

    /// The fields of a superblock with a right checksum; `None` if one has a value that its type cannot hold.
    fn fields(bytes: &[u8]) -> Option<Self> {
        let record_shifts =
            RECORD_SIZES.start().trailing_zeros()..=RECORD_SIZES.end().trailing_zeros();
        let shift = |at: usize, shifts: RangeInclusive<u32>| {
            let shift = u32::from(bytes[at]);
            shifts.contains(&shift).then(|| 1u32 << shift)
        };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[40..56]);
        let flags = le32(bytes, 68);
        Some(Self {
            compatible: le64(bytes, 16),
            read_only_compatible: le64(bytes, 24),
            incomplete: le64(bytes, 32) & INCOMPLETE != 0,
            zstd: le64(bytes, 32) & ZSTD != 0,
            marks: le64(bytes, 32) & RECOMPRESSED != 0,
            layout: Layout {
                record_size: shift(64, record_shifts)?,
                segment_size: shift(65, SEGMENT_SHIFTS)?,
                uuid,
            },
            compression: Self::compression_of(bytes)?,
            recompression: Self::recompression_of(bytes)?,
            size: DeviceSize::from_bytes(le64(bytes, 56)).ok()?,
            clean: flags & FLAG_CLEAN != 0,
            detached: flags & FLAG_DETACHED != 0,
            generation: le64(bytes, 72),
            epoch: le64(bytes, 80),
            salt: le64(bytes, 88),
            log_start: LogPosition {
                segment: le64(bytes, 96),
                offset: le32(bytes, 104),
                seq: le64(bytes, 112),
            },
            log_end: le64(bytes, 120),
            segments: le64(bytes, 128),
            mapped: le64(bytes, 136),
            height: bytes[67],
            map_root: Entry(le64(bytes, 144)),
            usage_root: Entry(le64(bytes, 152)),
            usage_segments: le64(bytes, 160),
            length: le64(bytes, 168),
        })
    }

    /// The compression of new records.
    fn compression_of(bytes: &[u8]) -> Option<Compression> {
        let basic = Algorithm::from_tag(bytes[66]).filter(|algorithm| BASIC.contains(algorithm))?;
        match bytes[176] {
            0 => Some(Compression::of(basic)),
            tag => Compression::new(Algorithm::from_tag(tag)?, bytes[177]),
        }
    }

    /// How cold data is compressed again.
    fn recompression_of(bytes: &[u8]) -> Option<Recompression> {
        if bytes[178] == 0 {
            return Some(Recompression::OFF);
        }
        let algorithm = Algorithm::from_tag(bytes[178])?;
        Some(Recompression {
            compression: Some(Compression::new(algorithm, bytes[179])?),
            after: le32(bytes, 180),
            rate: le32(bytes, 184),
        })
    }

    /// Whether the fields keep to their bounds and agree with each other.
    fn plausible(&self) -> bool {
        let (layout, start) = (&self.layout, &self.log_start);
        let most = layout.max_segments();
        // Sequence numbers stay far from overflow when shifted into log positions.
        let seq_limit = 1u64 << (60 - layout.segment_shift());
        let heights = self.size.table_height()..=height_for(MAX_SIZE >> BLOCK_SHIFT);
        let marks = self.marks || self.recompression.compression.is_none();
        marks
            && self.segments <= most
            && self.usage_segments <= self.segments
            && self.mapped <= self.size.blocks()
            && start.segment < most
            && start.seq < seq_limit
            && start.offset as usize >= SEGMENT_HEADER
            && start.offset <= layout.segment_size
            && start.offset as usize % UNIT == 0
            && self.log_end <= seq_limit << layout.segment_shift()
            && heights.contains(&self.height)
            && self.generation < u64::MAX / 2
            && self.epoch < u64::MAX / 2
            && self.map_root.plausible(layout, self.segments)
            && self.usage_root.plausible(layout, self.segments)
    }
}
