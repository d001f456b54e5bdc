// SPDX-License-Identifier: GPL-2.0
//! [`Workspace`]: the memory one request needs, allocated before it is needed.

use crate::engine::codec::Encoder;
use crate::engine::format::{Layout, NODE_BYTES, NODE_ENTRIES};
use crate::engine::records::ReadBuffers;
use crate::engine::Result;
use crate::platform::mem::{Buf, Need, Vec};
use crate::platform::Platform;

/// Scratch memory for one request at a time.
///
/// About four times the record size. Front ends keep a few and reuse them, so that no I/O path allocates.
pub struct Workspace<P: Platform> {
    /// To read records. Apart from what encodes them, so that nodes can be loaded while a record waits to be placed.
    pub(crate) read: ReadBuffers,
    /// To compress the payload of a record.
    pub(crate) encoder: Encoder<P>,
    /// The blocks of a record with holes, gathered.
    pub(crate) gather: Buf,
    /// Words of a node being written.
    pub(crate) words: Vec<u64>,
}

impl<P: Platform> Workspace<P> {
    /// For requests to an image of this geometry.
    // A stack frame of its own: opening an image has many.
    #[inline(never)]
    pub(crate) fn new(need: Need, layout: &Layout) -> Result<Self> {
        let blocks = (layout.record_size as usize).max(NODE_BYTES);
        Ok(Self {
            read: ReadBuffers::new(need, layout)?,
            encoder: Encoder::new(need, blocks)?,
            gather: Buf::zeroed_if(need, blocks)?,
            words: Vec::filled_if(need, 0, NODE_ENTRIES)?,
        })
    }

    /// Bytes of memory, near enough.
    pub fn memory(&self) -> u64 {
        let words = size_of_val(&self.words[..]);
        self.read.memory() + (self.encoder.memory() + self.gather.len() + words) as u64
    }
}

impl<P: Platform> AsMut<ReadBuffers> for Workspace<P> {
    fn as_mut(&mut self) -> &mut ReadBuffers {
        &mut self.read
    }
}
