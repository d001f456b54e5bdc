// SPDX-License-Identifier: GPL-2.0
//! [`SegmentHeader`]: the first 96 bytes of a segment that is or was in use.

use super::{le32, le64, put, Layout};
use crate::platform::Platform;

/// Bytes of a segment header; the first record follows it.
pub const SEGMENT_HEADER: usize = 96;

const MAGIC: &[u8; 8] = b"cloopSEG";

/// What tells one incarnation of a segment from the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IncarnationId {
    /// Its place in the log. 0 if it began before the image was opened.
    pub seq: u64,
    /// Checksum seed of its records.
    pub seed: u32,
}

impl IncarnationId {
    /// The incarnation with this seed, which began before the image was opened.
    pub fn before_opening(seed: u32) -> Self {
        Self { seq: 0, seed }
    }
}

/// Names one incarnation of a segment: from the log entering it until it is free again.
///
/// ```text
/// 0   magic "cloopSEG"
/// 8   u32  crc32c of these 96 bytes with this field zero
/// 12  u8   log2 segment_size   13 zero
/// 16  u64  index of the segment
/// 24  u64  sequence number: one more than the segment before it in the log
/// 32  u64  epoch: counts the times the image was opened for writing
/// 40  u64  salt: random, chosen for the epoch
/// 48  u8[16] uuid of the image
/// 64  u64  next: index of the segment that was reserved to follow
/// 72  u64  durable: the log was durable up to here when the incarnation began (a log position)
/// 80  u64  first: sequence number with which the epoch began
/// 88  zero
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// log2 of the image's segment size.
    pub segment_shift: u8,
    /// Index of the segment in the image.
    pub index: u64,
    /// Place in the log.
    pub seq: u64,
    /// Which opening of the image wrote it.
    pub epoch: u64,
    /// The epoch's random number; a guest that does not know it cannot forge records.
    pub salt: u64,
    /// Identity of the image.
    pub uuid: [u8; 16],
    /// The segment that was reserved to follow. Only evidence; the log goes where links lead.
    pub next: u64,
    /// The log was durable up to here when the incarnation began.
    pub durable: u64,
    /// The first sequence number of the epoch.
    pub first: u64,
}

impl SegmentHeader {
    /// The header's bytes.
    pub fn encode<P: Platform>(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        put(&mut bytes, 0, MAGIC);
        bytes[12] = self.segment_shift;
        put(&mut bytes, 16, &self.index.to_le_bytes());
        put(&mut bytes, 24, &self.seq.to_le_bytes());
        put(&mut bytes, 32, &self.epoch.to_le_bytes());
        put(&mut bytes, 40, &self.salt.to_le_bytes());
        put(&mut bytes, 48, &self.uuid);
        put(&mut bytes, 64, &self.next.to_le_bytes());
        put(&mut bytes, 72, &self.durable.to_le_bytes());
        put(&mut bytes, 80, &self.first.to_le_bytes());
        let crc = P::crc32c(0, &bytes);
        put(&mut bytes, 8, &crc.to_le_bytes());
        bytes
    }

    /// Reads and verifies the header at the start of `bytes`; `None` when there is no valid one.
    pub fn decode<P: Platform>(bytes: &[u8]) -> Option<Self> {
        let mut copy = [0; SEGMENT_HEADER];
        copy.copy_from_slice(bytes.get(..SEGMENT_HEADER)?);
        let stored = le32(&copy, 8);
        put(&mut copy, 8, &[0; 4]);
        if &copy[..8] != MAGIC || P::crc32c(0, &copy) != stored {
            return None;
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&copy[48..64]);
        Some(Self {
            segment_shift: copy[12],
            index: le64(&copy, 16),
            seq: le64(&copy, 24),
            epoch: le64(&copy, 32),
            salt: le64(&copy, 40),
            uuid,
            next: le64(&copy, 64),
            durable: le64(&copy, 72),
            first: le64(&copy, 80),
        })
    }

    /// Reads and verifies the header of segment `index` of this image.
    pub fn of_segment<P: Platform>(bytes: &[u8], layout: &Layout, index: u64) -> Option<Self> {
        Self::decode::<P>(bytes).filter(|header| {
            header.index == index
                && header.uuid == layout.uuid
                && u32::from(header.segment_shift) == layout.segment_shift()
        })
    }

    /// The seed of this incarnation's records.
    pub fn seed<P: Platform>(&self) -> u32 {
        seed::<P>(&self.uuid, self.salt, self.seq, self.index)
    }
}

/// The checksum seed of the records of one incarnation of a segment.
pub fn seed<P: Platform>(uuid: &[u8; 16], salt: u64, seq: u64, index: u64) -> u32 {
    let mut crc = P::crc32c(0, uuid);
    for word in [salt, seq, index] {
        crc = P::crc32c(crc, &word.to_le_bytes());
    }
    crc
}
