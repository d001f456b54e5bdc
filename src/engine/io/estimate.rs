// SPDX-License-Identifier: GPL-2.0
//! [`Estimator`]: the space that data would take in an image, found by encoding it as a write does.

use crate::engine::checkpoint::node_record;
use crate::engine::codec::Codecs;
use crate::engine::format::{Entry, Kind, Layout, NodeId, DATA_START, NODE_ENTRIES, UNIT};
use crate::engine::io::write::{encode_blocks, stored_blocks};
use crate::engine::recovery::create::CreateOptions;
use crate::engine::workspace::Workspace;
use crate::engine::Result;
use crate::platform::mem::{Box, Need};
use crate::platform::Platform;

/// Blocks, and the space that they take in an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Blocks that are stored: those that are not all zeros.
    pub blocks: u64,
    /// Bytes of their records, headers included.
    pub bytes: u64,
}

/// Encodes data as an image with given properties would, and stores nothing.
pub struct Estimator<P: Platform> {
    layout: Layout,
    codecs: Box<Codecs<P>>,
    /// Its words are the leaf of the sector table that is being filled.
    ws: Workspace<P>,
    /// Blocks in that leaf.
    filled: usize,
    /// Where the next record would lie in the image.
    address: u64,
    /// The blocks in full leaves, and what the leaves take.
    leaves: Cost,
}

impl<P: Platform> Estimator<P> {
    /// For an image that is made with these options. Its size and its UUID have no influence.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::engine::Error::Invalid) for a record size that no image has, and
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub fn new(options: &CreateOptions) -> Result<Self> {
        let layout = options.layout()?;
        let ws = Workspace::new(Need::Required, &layout)?;
        Ok(Self {
            codecs: Codecs::new(options.compression, true, layout.record_size as usize)?,
            layout,
            ws,
            filled: 0,
            address: DATA_START,
            leaves: Cost::default(),
        })
    }

    /// The cost of `data`, whole blocks that begin at a multiple of the record size on the device.
    pub fn add(&mut self, data: &[u8]) -> Cost {
        let mut cost = Cost::default();
        for data in data.chunks(self.layout.record_size as usize) {
            let mask = stored_blocks(data);
            if mask == 0 {
                continue;
            }
            let ws = &mut self.ws;
            let record =
                encode_blocks(&self.codecs, &mut ws.encoder, &mut ws.gather, 0, data, mask);
            let (units, count) = (record.encoded.header().units(), mask.count_ones());
            for index in 0..count {
                self.ws.words[self.filled] = Entry::new(self.address, units, index, count).0;
                self.filled += 1;
                if self.filled == NODE_ENTRIES {
                    self.end_leaf();
                }
            }
            let bytes = u64::from(units) * UNIT as u64;
            self.address += bytes;
            cost.blocks += u64::from(count);
            cost.bytes += bytes;
        }
        cost
    }

    /// What the sector table takes for the data that was added: bytes for a number of its blocks. Both are 0 if there was
    /// none.
    pub fn table(&mut self) -> Cost {
        if self.leaves.blocks == 0 && self.filled > 0 {
            self.end_leaf();
        }
        self.leaves
    }

    /// Counts the leaf, and begins the next one.
    fn end_leaf(&mut self) {
        self.leaves.blocks += self.filled as u64;
        let leaf = NodeId { level: 0, index: 0 };
        let record = node_record(&mut self.ws, Kind::MapNode, leaf);
        self.leaves.bytes += u64::from(record.header().units()) * UNIT as u64;
        self.ws.words.fill(0);
        self.filled = 0;
    }
}
