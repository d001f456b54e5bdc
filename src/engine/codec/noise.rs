// SPDX-License-Identifier: GPL-2.0
//! A test for content that no algorithm shrinks, far cheaper than an algorithm.

/// Bytes that are looked at together.
const CHUNK: usize = 16;
/// Chunks that are looked at in a large content.
const CHUNKS: usize = 256;
/// Distance of the chunks in a small content.
const LEAST_STRIDE: usize = 64;

/// Whether the bytes of `content` are about as frequent as in noise: then nothing is gained by coding frequent bytes shorter,
/// and only repetitions can shrink it. It looks at up to 4096 bytes, some of each block.
// A stack frame of its own: what compresses has a large one.
#[inline(never)]
pub(super) fn looks_like_noise(content: &[u8]) -> bool {
    let stride = (content.len() / CHUNKS).max(LEAST_STRIDE);
    let mut counts = [0u16; 256];
    let mut seen = 0;
    for chunk in content.chunks_exact(stride) {
        for &byte in &chunk[..CHUNK] {
            counts[usize::from(byte)] += 1;
        }
        seen += CHUNK as u32;
    }
    let squares: u32 = counts.iter().map(|&n| u32::from(n) * u32::from(n)).sum();
    // In noise the sum of the squares is n + n² / 256 with a deviation of n / 11. Up to this bound the bytes would be coded in
    // 99 % of their space at best.
    squares <= seen * seen / 256 + seen + seen / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::sim::Rng;
    use std::vec;
    use std::vec::Vec;

    const SIZES: [usize; 6] = [4096, 8192, 16_384, 49_152, 65_536, 131_072];

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut rng = Rng(seed);
        (0..len / 8)
            .flat_map(|_| rng.next_u64().to_le_bytes())
            .collect()
    }

    #[test]
    fn noise_does() {
        for len in SIZES {
            let found = (0..1000).filter(|&seed| looks_like_noise(&noise(len, seed)));
            assert!(found.count() >= 998, "{len}");
        }
    }

    #[test]
    fn what_can_be_coded_shorter_does_not() {
        let make: [fn(u8) -> u8; 4] = [
            // Base 64, 7 bits, a bit that is mostly set, and a byte that is frequent.
            |byte| b'A' + byte % 64,
            |byte| byte & 127,
            |byte| if byte % 16 < 11 { byte | 1 } else { byte },
            |byte| if byte < 24 { 0 } else { byte },
        ];
        for len in SIZES {
            for (which, make) in make.iter().enumerate() {
                let found = (0..100).filter(|&seed| {
                    let content: Vec<u8> = noise(len, seed).iter().map(|&b| make(b)).collect();
                    looks_like_noise(&content)
                });
                assert!(found.count() <= 2, "{which} {len}");
            }
            assert!(!looks_like_noise(&vec![0; len]));
            let text = b"The log goes on in the next segment, which was reserved long before. ";
            let text: Vec<u8> = text.iter().cycle().take(len).copied().collect();
            assert!(!looks_like_noise(&text));
        }
    }

    /// One block among others that are noise is enough.
    #[test]
    fn every_block_counts() {
        for blocks in [2, 4, 16, 32] {
            for at in 0..blocks {
                let mut content = noise(blocks * 4096, at as u64);
                content[at * 4096..][..4096].fill(0);
                assert!(!looks_like_noise(&content), "{at} of {blocks}");
            }
        }
    }
}
