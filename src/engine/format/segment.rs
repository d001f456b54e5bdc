// SPDX-License-Identifier: GPL-2.0
//! [`SegmentHeader`]: the first 64 bytes of a segment that is or was in use.

use super::{le32, le64, put};
use crate::platform::Platform;

/// Bytes of a segment header; the first record follows it.
pub const SEGMENT_HEADER: usize = 64;

const MAGIC: &[u8; 8] = b"cloopSEG";

/// Names one life of a segment.
///
/// ```text
/// 0   magic "cloopSEG"
/// 8   u32  crc32c of the uuid and of these 64 bytes with this field zero
/// 12  u32  zero
/// 16  u64  index of the segment
/// 24  u64  sequence number: one more than the segment before it in the log
/// 32  u64  epoch: counts the times the image was opened for writing
/// 40  u64  salt: random, chosen for the epoch
/// 48  zero
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Index of the segment in the image.
    pub index: u64,
    /// Place in the log.
    pub seq: u64,
    /// Which opening of the image wrote it.
    pub epoch: u64,
    /// The epoch's random number; a guest that does not know it cannot forge records.
    pub salt: u64,
}

impl SegmentHeader {
    /// The header's bytes.
    pub fn encode<P: Platform>(&self, uuid: &[u8; 16]) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 16, &self.index.to_le_bytes());
        put(&mut bytes, 24, &self.seq.to_le_bytes());
        put(&mut bytes, 32, &self.epoch.to_le_bytes());
        put(&mut bytes, 40, &self.salt.to_le_bytes());
        let crc = P::crc32c(P::crc32c(0, uuid), &bytes);
        put(&mut bytes, 8, &crc.to_le_bytes());
        bytes
    }

    /// Reads and verifies the header at the start of `bytes`; `None` when there is no valid one.
    pub fn decode<P: Platform>(bytes: &[u8], uuid: &[u8; 16]) -> Option<Self> {
        let mut copy = [0; SEGMENT_HEADER];
        copy.copy_from_slice(bytes.get(..SEGMENT_HEADER)?);
        let stored = le32(&copy, 8);
        put(&mut copy, 8, &[0; 4]);
        let crc = P::crc32c(P::crc32c(0, uuid), &copy);
        (&copy[..8] == MAGIC && crc == stored).then(|| Self {
            index: le64(&copy, 16),
            seq: le64(&copy, 24),
            epoch: le64(&copy, 32),
            salt: le64(&copy, 40),
        })
    }

    /// The seed of this life's records.
    pub fn seed<P: Platform>(&self, uuid: &[u8; 16]) -> u32 {
        seed::<P>(uuid, self.salt, self.seq, self.index)
    }
}

/// The checksum seed of the records of one life of a segment.
pub fn seed<P: Platform>(uuid: &[u8; 16], salt: u64, seq: u64, index: u64) -> u32 {
    let mut crc = P::crc32c(0, uuid);
    for word in [salt, seq, index] {
        crc = P::crc32c(crc, &word.to_le_bytes());
    }
    crc
}
