// SPDX-License-Identifier: GPL-2.0
//! [`Workspace`]: the memory one request needs, allocated before it is needed.

use crate::engine::format::{Entry, Layout, BLOCK_SIZE, NODE_BYTES, NODE_ENTRIES, RECORD_HEADER};
use crate::engine::Result;
use crate::platform::mem::{Buf, Vec};
use crate::platform::{Lz4, Platform};

/// Scratch memory for one request at a time.
///
/// About four times the record size. Front ends keep a few and reuse them, so that no I/O path allocates.
pub struct Workspace<P: Platform> {
    /// A record as it is stored, with the sectors around it.
    pub(crate) record: Buf,
    /// A record's blocks, or a node's bytes.
    pub(crate) blocks: Buf,
    /// A compressed payload.
    pub(crate) packed: Buf,
    /// The blocks of a record with holes, gathered.
    pub(crate) gather: Buf,
    /// Entries and seeds of the blocks being read.
    pub(crate) run: Vec<(Entry, u32)>,
    /// Words of a node being written.
    pub(crate) words: Vec<u64>,
    pub(crate) lz4: P::Lz4,
}

impl<P: Platform> Workspace<P> {
    pub(crate) fn new(layout: &Layout) -> Result<Self> {
        let blocks = (layout.record_size as usize).max(NODE_BYTES);
        // A record's header and mask come first, and it may start at the end of a sector.
        let stored = blocks + RECORD_HEADER + 4 + 2 * BLOCK_SIZE;
        Ok(Self {
            record: Buf::zeroed(stored)?,
            blocks: Buf::zeroed(blocks)?,
            packed: Buf::zeroed(blocks)?,
            gather: Buf::zeroed(blocks)?,
            run: Vec::with_capacity(NODE_ENTRIES)?,
            words: Vec::filled(0, NODE_ENTRIES)?,
            lz4: P::Lz4::new()?,
        })
    }
}
