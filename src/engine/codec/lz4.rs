// SPDX-License-Identifier: GPL-2.0
//! LZ4 block format, by the library of the platform.

use super::{Codec, Levels};
use crate::engine::format::Algorithm;
use crate::engine::Result;
use crate::platform::mem::Need;
use crate::platform::{Lz4, Platform};
use core::marker::PhantomData;

pub(super) const CODEC: Codec = Codec {
    algorithm: Algorithm::Lz4,
    name: "lz4",
    levels: Levels::ONE,
};

pub(super) struct Compressor<P: Platform>(P::Lz4);

impl<P: Platform> Compressor<P> {
    pub(super) fn new(need: Need) -> Result<Self> {
        P::Lz4::new(need).map(Self)
    }

    pub(super) fn compress(&mut self, _level: i32, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        self.0.compress(src, dst)
    }
}

/// LZ4 needs no memory to decompress.
pub(super) struct Decompressor<P: Platform>(PhantomData<P>);

impl<P: Platform> Decompressor<P> {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(PhantomData))
    }

    pub(super) fn decompress(&mut self, src: &[u8], dst: &mut [u8]) -> bool {
        P::Lz4::decompress(src, dst) == Some(dst.len())
    }

    pub(super) fn decompress_start(&mut self, src: &[u8], dst: &mut [u8]) -> bool {
        P::Lz4::decompress_start(src, dst) == Some(dst.len())
    }
}
