// SPDX-License-Identifier: GPL-2.0
//! "none": content is stored as it is.

use super::{Codec, Levels};
use crate::engine::format::Algorithm;

pub(super) const CODEC: Codec = Codec {
    algorithm: Algorithm::Raw,
    name: "none",
    levels: Levels::ONE,
};

/// Copies `src` into all of `dst`. False when that does not fit exactly.
pub(super) fn decompress(src: &[u8], dst: &mut [u8]) -> bool {
    src.len() == dst.len() && decompress_start(src, dst)
}

/// As [`decompress`], but only the beginning of the content, as much as `dst` has room for.
pub(super) fn decompress_start(src: &[u8], dst: &mut [u8]) -> bool {
    let Some(start) = src.get(..dst.len()) else {
        return false;
    };
    dst.copy_from_slice(start);
    true
}
