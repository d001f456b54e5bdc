// SPDX-License-Identifier: GPL-2.0
//! LZ4 block format, by the library of the platform.

use super::{Codec, Levels};
use crate::engine::format::Algorithm;
use crate::platform::{Lz4, Platform};

pub(super) const CODEC: Codec = Codec {
    algorithm: Algorithm::Lz4,
    name: "lz4",
    levels: Levels::ONE,
};

/// Decompresses `src` into all of `dst`. False when that does not fit exactly.
pub(super) fn decompress<P: Platform>(src: &[u8], dst: &mut [u8]) -> bool {
    P::Lz4::decompress(src, dst) == Some(dst.len())
}

/// As [`decompress`], but only the beginning of the content, as much as `dst` has room for.
pub(super) fn decompress_start<P: Platform>(src: &[u8], dst: &mut [u8]) -> bool {
    P::Lz4::decompress_start(src, dst) == Some(dst.len())
}
