// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The common part of import and export.

/// Bytes that a worker takes at a time; a multiple of every record size.
pub(crate) const CHUNK: usize = 1 << 20;

/// Whether all of `bytes` are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Compare words first: a loop over bytes that may end at each byte is not vectorised.
    let mut words = bytes.chunks_exact(64);
    words.all(|w| w.iter().fold(0, |all, b| all | b) == 0)
        && words.remainder().iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_every_byte() {
        for len in [0, 1, 63, 64, 65, 4096, 4100] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
