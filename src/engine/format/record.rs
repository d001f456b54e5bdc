// SPDX-License-Identifier: GPL-2.0
//! [`RecordHeader`]: the 16 bytes in front of everything in a segment.

use super::{le32, le64, put, Algorithm, BLOCK_SHIFT, BLOCK_SIZE, MAX_RECORD_SIZE, MAX_SIZE, UNIT};
use crate::platform::{Platform, Sabotage};

/// Bytes of a record header.
pub const RECORD_HEADER: usize = 16;
/// Most blocks a record spans.
pub const MAX_SPAN: u32 = 32;
/// Bits of the last word that hold the number; the payload's length has the rest.
const NUMBER_BITS: u32 = 44;

// Each field has room for the largest value that the format allows.
const _: () = {
    assert!(MAX_SIZE >> BLOCK_SHIFT <= 1 << NUMBER_BITS);
    assert!(MAX_RECORD_SIZE + 4 < 1 << (u64::BITS - NUMBER_BITS));
    assert!(MAX_RECORD_SIZE == MAX_SPAN as usize * BLOCK_SIZE);
    assert!(MAX_SPAN <= u32::BITS && MAX_SPAN <= u8::MAX as u32);
};

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `span` neighbouring blocks, of which `count` are stored, compressed together. Where the two
    /// differ the payload begins with a 32-bit mask whose bit `i` says that block `number + i` is
    /// stored; the others of the span are zero.
    Data,
    /// A range of blocks that became zero; the payload is the number of blocks, 64 bits.
    Zero,
    /// Filler up to the next multiple of 4 KiB; its payload means nothing and is not checked. `number`
    /// says how far the log was durable, see [`RecordHeader::durable`].
    Pad,
    /// End of the segment; the payload is the index of the next one, 64 bits. `number` as for `Pad`.
    Link,
    /// A node of the sector table; `count` is its level, `number` its index in the level.
    MapNode,
    /// A node of the segment usage; as `MapNode`.
    UsageNode,
    /// A copy of the superblock that the checkpoint ending here is about to write: its first 512 bytes.
    Checkpoint,
}

impl Kind {
    const ALL: [(Self, u8); 7] = [
        (Self::Data, 1),
        (Self::Zero, 2),
        (Self::Pad, 3),
        (Self::Link, 4),
        (Self::MapNode, 5),
        (Self::UsageNode, 6),
        (Self::Checkpoint, 7),
    ];

    fn tag(self) -> u8 {
        Self::ALL.iter().find(|k| k.0 == self).map_or(0, |k| k.1)
    }

    fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.iter().find(|k| k.1 == tag).map(|k| k.0)
    }
}

/// What the checksum of a record at byte `offset` of its segment is tied to, besides the seed: different for
/// every unit of the segment, so that a write which lands elsewhere in it does not pass.
fn place(offset: u32) -> u32 {
    (offset / UNIT as u32).wrapping_mul(0x9e37_79b1)
}

/// The header of a record.
///
/// ```text
/// 0  u32  crc32c of bytes 4.. and the payload (for Pad: of bytes 4..16), XOR the segment's
///         seed, XOR offset in the segment / 16 * 0x9e3779b1
/// 4  u8   kind
/// 5  u8   algorithm of the payload
/// 6  u8   span: blocks covered (Data), else 0
/// 7  u8   count: blocks stored (Data), level (nodes), else 0
/// 8  u64  bits 0..44: number (first block, node index, or distance to what is durable);
///         bits 44..64: payload bytes
/// ```
///
/// The seed differs for every incarnation of a segment, so a record left over from an earlier one never
/// passes for a new one, nor does one that was written to the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub kind: Kind,
    /// Tag of the payload's [`Algorithm`](super::Algorithm).
    pub algorithm: u8,
    /// Blocks covered.
    pub span: u8,
    /// Blocks stored, or level.
    pub count: u8,
    /// First block, node index, or distance to what is durable.
    pub number: u64,
    /// Bytes of the payload.
    pub payload: usize,
}

impl RecordHeader {
    /// The header of an uncompressed record that covers no blocks; the payload's length is still 0.
    pub fn plain(kind: Kind, number: u64) -> Self {
        Self {
            kind,
            algorithm: Algorithm::Raw.tag(),
            span: 0,
            count: 0,
            number,
            payload: 0,
        }
    }

    /// The header of a pad or link at log position `lsn`, which says that the log is durable up to `durable`.
    pub fn ending(kind: Kind, lsn: u64, durable: u64) -> Self {
        let distance = lsn.saturating_sub(durable).div_ceil(UNIT as u64);
        // 0 says nothing.
        let number = Some(distance + 1).filter(|n| n >> NUMBER_BITS == 0);
        Self::plain(kind, number.unwrap_or(0))
    }

    /// How far the log was durable when this record was placed at log position `lsn`, if it says so.
    pub fn durable(&self, lsn: u64) -> Option<u64> {
        let distance = match self.kind {
            Kind::Pad | Kind::Link => self.number.checked_sub(1)? * UNIT as u64,
            _ => return None,
        };
        lsn.checked_sub(distance)
    }

    /// Space the record takes in the log, in units of 16 bytes; at least one for each block stored.
    pub fn units(&self) -> u32 {
        let units = (RECORD_HEADER + self.payload).div_ceil(UNIT) as u32;
        match self.kind {
            Kind::Data => units.max(u32::from(self.count)),
            _ => units,
        }
    }

    /// The header's bytes with the checksum over `parts`, not yet tied to a segment
    /// ([`stamp`](Self::stamp)).
    pub fn encode<P: Platform>(&self, parts: &[&[u8]]) -> [u8; RECORD_HEADER] {
        let mut bytes = [0; RECORD_HEADER];
        bytes[4] = self.kind.tag();
        bytes[5] = self.algorithm;
        bytes[6] = self.span;
        bytes[7] = self.count;
        let word = ((self.payload as u64) << NUMBER_BITS) | self.number;
        put(&mut bytes, 8, &word.to_le_bytes());
        let mut crc = P::crc32c(0, &bytes[4..]);
        if self.kind != Kind::Pad {
            for part in parts {
                crc = P::crc32c(crc, part);
            }
        }
        put(&mut bytes, 0, &crc.to_le_bytes());
        bytes
    }

    /// Ties encoded header bytes to a place: byte `offset` of the segment with this seed.
    pub fn stamp(bytes: &mut [u8], seed: u32, offset: u32) {
        let crc = le32(bytes, 0) ^ seed ^ place(offset);
        put(bytes, 0, &crc.to_le_bytes());
    }

    /// Reads and verifies the record at the start of `bytes` (header, payload and what follows), which
    /// lies at byte `offset` of a segment with this seed. `None` when it is not a whole, undamaged, sensible record.
    pub fn decode<P: Platform>(bytes: &[u8], seed: u32, offset: u32) -> Option<(Self, &[u8])> {
        let (header, found) = Self::measure::<P>(bytes, offset)?;
        let right = found == seed || P::sabotaged(Sabotage::IgnoreChecksum);
        right.then(|| {
            (
                header,
                &bytes[RECORD_HEADER..RECORD_HEADER + header.payload],
            )
        })
    }

    /// As [`decode`](Self::decode) for a seed that is not known: the one with which the checksum holds. Two
    /// records in a row that have the same are whole.
    pub fn measure<P: Platform>(bytes: &[u8], offset: u32) -> Option<(Self, u32)> {
        if bytes.len() < RECORD_HEADER {
            return None;
        }
        let word = le64(bytes, 8);
        let header = Self {
            kind: Kind::from_tag(bytes[4])?,
            algorithm: bytes[5],
            span: bytes[6],
            count: bytes[7],
            number: word & ((1 << NUMBER_BITS) - 1),
            payload: (word >> NUMBER_BITS) as usize,
        };
        let end = RECORD_HEADER + header.payload;
        if end > bytes.len() || !header.sensible() {
            return None;
        }
        let checked = if header.kind == Kind::Pad {
            RECORD_HEADER
        } else {
            end
        };
        let crc = P::crc32c(0, &bytes[4..checked]);
        Some((header, crc ^ le32(bytes, 0) ^ place(offset)))
    }

    /// As [`decode`](Self::decode), for pads and links alone: cheap enough to be tried at every unit.
    pub fn decode_ending<P: Platform>(
        bytes: &[u8],
        seed: u32,
        offset: u32,
    ) -> Option<(Self, &[u8])> {
        match Kind::from_tag(*bytes.get(4)?)? {
            Kind::Pad | Kind::Link => Self::decode::<P>(bytes, seed, offset),
            _ => None,
        }
    }

    /// Which blocks of the span are stored: bit `i` for block `number + i`. `None` when the mask
    /// contradicts the header, and for a record that is not one of data.
    pub fn mask(&self, payload: &[u8]) -> Option<u32> {
        if self.kind != Kind::Data {
            return None;
        }
        let span = u32::from(self.span);
        let all = u32::MAX >> (u32::BITS - span);
        if self.span == self.count {
            return Some(all);
        }
        let mask = le32(payload, 0);
        (mask & !all == 0 && mask.count_ones() == u32::from(self.count)).then_some(mask)
    }

    /// Bytes of the payload taken by the mask.
    pub fn mask_len(&self) -> usize {
        if self.span == self.count {
            0
        } else {
            4
        }
    }

    fn sensible(&self) -> bool {
        match self.kind {
            Kind::Data => {
                self.count > 0
                    && self.count <= self.span
                    && u32::from(self.span) <= MAX_SPAN
                    && (self.mask_len()..=self.mask_len() + usize::from(self.count) * BLOCK_SIZE)
                        .contains(&self.payload)
            }
            Kind::Zero | Kind::Link => self.payload == 8,
            Kind::Pad => self.payload < BLOCK_SIZE,
            Kind::MapNode | Kind::UsageNode => self.payload <= super::NODE_BYTES,
            Kind::Checkpoint => self.payload == super::SUPERBLOCK_RECORD,
        }
    }
}
