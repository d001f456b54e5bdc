// SPDX-License-Identifier: GPL-2.0
//! The bytes of an image. `Documentation/format.rst` is the same in prose, with the reasons.
//!
//! ```text
//! 0        superblock, even generations (4 KiB)
//! 64 KiB   superblock, odd generations (4 KiB)
//! 1 MiB    segment 0, segment 1, ... (`segment_size` bytes each)
//! ```
//!
//! A segment is a [`SegmentHeader`] followed by records ([`RecordHeader`] and payload) at multiples of
//! 16 bytes. Everything is little-endian, and every structure carries a CRC-32C.

mod entry;
mod fingerprints;
mod layout;
mod node;
mod record;
mod segment;
mod superblock;
mod usage;

pub use self::entry::Entry;
pub use self::fingerprints::{fingerprint, Fingerprints, FINGERPRINTS, RANGES, STRIPES};
pub use self::layout::{DeviceSize, Layout};
pub use self::node::{decode_node, encode_node, NodeId, NODE_BYTES, NODE_ENTRIES, NODE_SHIFT};
pub use self::record::{Kind, RecordHeader, MAX_SPAN, RECORD_HEADER};
pub use self::segment::{seed, IncarnationId, SegmentHeader, SEGMENT_HEADER};
pub use self::superblock::{LogPosition, Superblock, FORMAT_VERSION, SUPERBLOCK_RECORD};
pub use self::usage::SegmentUsage;

use super::{Error, Result};

/// Bytes of a logical block, of a committed unit of the log, and of I/O alignment.
pub const BLOCK_SIZE: usize = 4096;
/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 12;
/// Records start at, and their space is counted in, multiples of this many bytes.
pub const UNIT: usize = 16;
/// Smallest and largest `record_size`, in bytes.
pub const RECORD_SIZES: core::ops::RangeInclusive<u32> = 4096..=128 * 1024;
/// Largest `record_size`, in bytes.
pub const MAX_RECORD_SIZE: usize = 128 * 1024;
/// Bytes of a segment of an ordinary image.
pub const DEFAULT_SEGMENT_SIZE: u32 = 1 << 20;
/// Segment sizes a reader accepts, log2. A writer has eight buffers of one.
pub const SEGMENT_SHIFTS: core::ops::RangeInclusive<u32> = 18..=22;
/// Byte offset of segment 0.
pub const DATA_START: u64 = 1 << 20;
/// Byte offsets of the two superblock slots; generation `g` lives in slot `g % 2`.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 64 * 1024];
/// Largest device, in bytes (2^44 blocks would fit into a record header; 1 PiB is what is tested).
pub const MAX_SIZE: u64 = 1 << 50;
/// Largest image, in bytes: what [`Entry`] can address.
pub const MAX_IMAGE: u64 = 1 << 48;

/// Compression of a record's payload, as stored in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Stored as it is.
    Raw,
    /// LZ4 block format.
    Lz4,
    /// Zstandard: one frame.
    Zstd,
}

impl Algorithm {
    /// The byte on disk.
    pub const fn tag(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    /// The inverse of [`tag`](Self::tag); `None` for an algorithm this software does not know.
    pub fn from_tag(tag: u8) -> Option<Self> {
        [Self::Raw, Self::Lz4, Self::Zstd]
            .into_iter()
            .find(|a| a.tag() == tag)
    }
}

/// Levels a radix tree of [`NODE_ENTRIES`]-way nodes needs for `items` items; at least 1.
pub fn height_for(items: u64) -> u8 {
    let mut height = 1;
    let mut reach = NODE_ENTRIES as u64;
    while reach < items {
        reach <<= NODE_SHIFT;
        height += 1;
    }
    height
}

/// The little-endian `u32` at `at`. The caller passes a slice known to be long enough.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// The little-endian `u64` at `at`. The caller passes a slice known to be long enough.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Stores `bytes` at `at`.
pub(crate) fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    buf[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The error for a structure that failed its checks.
pub(crate) fn corrupt<T>(what: &'static str, offset: u64) -> Result<T> {
    Err(Error::Corrupt { what, offset })
}
