// SPDX-License-Identifier: GPL-2.0
//! Whether a stored record is live: whether the sector table still points to it.

use crate::engine::format::{Entry, NodeId, RecordHeader, NODE_ENTRIES, NODE_SHIFT};
use crate::engine::map::load::Missing;
use crate::engine::map::table::Found;
use crate::engine::map::Map;
use crate::engine::records::ReadBuffers;
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::Platform;

/// Where the blocks of a record's span are by now, as the sector table says: a bit for each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Live {
    /// Blocks that are live in this record.
    pub(super) here: u32,
    /// Blocks that are holes.
    pub(super) holes: u32,
}

/// The live blocks of the data record at `address`, which stores those of `mask`. None if its leaf is not loaded.
pub(super) fn live_blocks(map: &Map, header: &RecordHeader, mask: u32, address: u64) -> Live {
    let first = header.number as usize % NODE_ENTRIES;
    let (mut here, mut holes) = (0, 0);
    if let Some(leaf) = map.leaf(header.number) {
        let words = leaf.iter().skip(first).take(usize::from(header.span));
        for (bit, &word) in words.enumerate() {
            let entry = Entry(word);
            let kept = (mask >> bit) & 1 == 1 && entry.address() == address;
            here |= u32::from(kept && !entry.is_hole()) << bit;
            holes |= u32::from(entry.is_hole()) << bit;
        }
    }
    Live { here, holes }
}

/// The node of which a record with this header holds a copy.
pub(super) fn node_of(header: &RecordHeader) -> NodeId {
    NodeId {
        level: header.count,
        index: header.number,
    }
}

/// True if the stored copy of a node of the sector table, if there is such a node, is at this address.
pub(super) fn node_is_live<P: Platform>(
    store: &Store<P>,
    buffers: &mut ReadBuffers,
    id: NodeId,
    address: u64,
) -> Result<bool> {
    let height = store.map.lock().height();
    let reach = NODE_SHIFT * u32::from(height);
    let shift = NODE_SHIFT * u32::from(id.level);
    if id.level >= height || id.index >= 1 << (reach - shift - NODE_SHIFT) {
        return Ok(false);
    }
    if id.level + 1 < height
        && store.loader().node(buffers, id.parent(), Missing::Leave)? != Found::Loaded
    {
        return Ok(false);
    }
    Ok(store.map.lock().stores(id, address))
}
