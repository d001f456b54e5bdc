// SPDX-License-Identifier: GPL-2.0
//! Compression of one payload, and the scratch memory for it.

use crate::engine::format::Algorithm;
use crate::platform::{Lz4, Platform};

/// Compresses `src` with `algorithm` into `dst` when that makes it smaller than `limit` bytes;
/// otherwise the answer is `None` and the caller stores `src` as it is.
pub(crate) fn compress<P: Platform>(
    algorithm: Algorithm,
    state: &mut P::Lz4,
    src: &[u8],
    dst: &mut [u8],
    limit: usize,
) -> Option<usize> {
    let limit = limit.min(dst.len());
    match algorithm {
        Algorithm::Raw => None,
        Algorithm::Lz4 => state.compress(src, &mut dst[..limit]),
    }
}

/// Decompresses `src`, stored with the algorithm `tag`, into all of `dst`; false when that does not fit
/// exactly, or the algorithm is unknown.
pub(crate) fn decompress<P: Platform>(tag: u8, src: &[u8], dst: &mut [u8]) -> bool {
    match Algorithm::from_tag(tag) {
        Some(Algorithm::Raw) if src.len() == dst.len() => {
            dst.copy_from_slice(src);
            true
        }
        Some(Algorithm::Lz4) => P::Lz4::decompress(src, dst) == Some(dst.len()),
        _ => false,
    }
}
