// SPDX-License-Identifier: GPL-2.0
//! Table nodes on disk: 512 words of 64 bits, for the sector table and for the segment usage alike.

use crate::platform::mem::Vec;

/// Words in a node.
pub const NODE_ENTRIES: usize = 512;
/// log2 of [`NODE_ENTRIES`].
pub const NODE_SHIFT: u32 = 9;
/// Bytes of a node before compression.
pub const NODE_BYTES: usize = NODE_ENTRIES * 8;

/// Names a node of the sector table or of the segment usage, as the header of its record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId {
    /// Levels above the leaves.
    pub level: u8,
    /// Index in the level.
    pub index: u64,
}

impl NodeId {
    /// The leaf of a block.
    pub fn leaf(block: u64) -> Self {
        Self {
            level: 0,
            index: block >> NODE_SHIFT,
        }
    }

    /// The node above.
    pub(crate) fn parent(self) -> Self {
        Self {
            level: self.level + 1,
            index: self.index >> NODE_SHIFT,
        }
    }

    /// The node below in slot `at`. Not for a leaf.
    pub(crate) fn child(self, at: usize) -> Self {
        Self {
            level: self.level - 1,
            index: (self.index << NODE_SHIFT) | at as u64,
        }
    }

    /// The slot in the node at `level` + 1 above this one that leads to it.
    pub(crate) fn slot(self, level: u8) -> usize {
        (self.index >> (NODE_SHIFT * u32::from(level - self.level))) as usize & (NODE_ENTRIES - 1)
    }

    /// First slot of this node that leads to the node with index `from` of `level`, or to one after it. It is
    /// [`NODE_ENTRIES`] if there is none. Not for a leaf.
    pub(crate) fn first_slot(self, level: u8, from: u64) -> usize {
        let shift = NODE_SHIFT * u32::from(self.level - 1 - level);
        let first = (from >> shift).saturating_sub(self.index << NODE_SHIFT);
        (first as usize).min(NODE_ENTRIES)
    }

    /// First leaf in the reach of the node.
    pub(crate) fn first_leaf(self) -> u64 {
        self.index << (NODE_SHIFT * u32::from(self.level))
    }

    /// First leaf behind the reach of the node.
    pub(crate) fn end_leaf(self) -> u64 {
        (self.index + 1) << (NODE_SHIFT * u32::from(self.level))
    }

    /// First block in the reach of the node.
    pub(crate) fn first_block(self) -> u64 {
        self.first_leaf() << NODE_SHIFT
    }

    /// First block behind the reach of the node.
    pub(crate) fn end_block(self) -> u64 {
        self.end_leaf() << NODE_SHIFT
    }
}

/// Lays `words` out as eight planes of 512 bytes, lowest bytes first: neighbouring entries differ in
/// their low bytes only, so the high planes are long runs that any codec folds.
pub fn encode_node(words: &[u64], out: &mut [u8]) {
    for (i, word) in words.iter().enumerate() {
        for (plane, byte) in word.to_le_bytes().iter().enumerate() {
            out[plane * NODE_ENTRIES + i] = *byte;
        }
    }
}

/// The inverse of [`encode_node`].
pub fn decode_node(bytes: &[u8], words: &mut Vec<u64>) {
    for (i, word) in words.iter_mut().enumerate() {
        let mut le = [0; 8];
        for (plane, byte) in le.iter_mut().enumerate() {
            *byte = bytes[plane * NODE_ENTRIES + i];
        }
        *word = u64::from_le_bytes(le);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let mut words = Vec::filled(0u64, NODE_ENTRIES).unwrap();
        for (i, w) in words.iter_mut().enumerate() {
            *w = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        let mut bytes = [0; NODE_BYTES];
        encode_node(&words, &mut bytes);
        let mut back = Vec::filled(0u64, NODE_ENTRIES).unwrap();
        decode_node(&bytes, &mut back);
        assert_eq!(&*words, &*back);
    }
}
