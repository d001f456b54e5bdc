// SPDX-License-Identifier: GPL-2.0
//! Table nodes on disk: 512 words of 64 bits, for the sector table and for the segment usage alike.

use crate::platform::mem::Vec;

/// Words in a node.
pub const NODE_ENTRIES: usize = 512;
/// log2 of [`NODE_ENTRIES`].
pub const NODE_SHIFT: u32 = 9;
/// Bytes of a node before compression.
pub const NODE_BYTES: usize = NODE_ENTRIES * 8;

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
