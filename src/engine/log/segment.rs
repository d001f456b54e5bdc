// SPDX-License-Identifier: GPL-2.0
//! The segments of the log in memory: the one that it fills, and the one that it left before.

use crate::engine::space::Backing;

/// The segment that the log fills.
#[derive(Clone, Copy)]
pub(super) struct Current {
    pub(super) index: u64,
    pub(super) seq: u64,
    pub(super) seed: u32,
    /// Where the next record goes: a byte offset in the segment.
    pub(super) offset: u32,
    /// The segment after this one, already reserved, and what the backing file holds of it.
    pub(super) next: u64,
    pub(super) next_backing: Backing,
    /// The segment before this one.
    pub(super) before: Option<LeftSegment>,
    /// The unused end of this segment once it is full, see [`LeftSegment::unused_end`].
    pub(super) unused_end: u8,
}

/// A segment that the log has filled and left.
#[derive(Clone, Copy)]
pub(crate) struct LeftSegment {
    /// Index of the segment.
    pub(crate) index: u64,
    /// Its end that stays unused, in 1/256 of a segment.
    pub(crate) unused_end: u8,
}

/// Where a record lies.
#[derive(Clone, Copy)]
pub(crate) struct Placed {
    /// Byte offset in the image.
    pub(crate) address: u64,
    /// The segment there, its sequence number and its seed.
    pub(crate) segment: u64,
    pub(crate) seq: u64,
    pub(crate) seed: u32,
    /// The segment before it in the log, if known.
    pub(crate) before: Option<LeftSegment>,
}
