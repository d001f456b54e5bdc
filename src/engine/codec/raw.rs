// SPDX-License-Identifier: GPL-2.0
//! "none": content is stored as it is.

use super::{Codec, Levels};
use crate::engine::format::Algorithm;
use crate::engine::Result;
use crate::platform::mem::Need;
use crate::platform::Platform;
use core::marker::PhantomData;

pub(super) const CODEC: Codec = Codec {
    algorithm: Algorithm::Raw,
    name: "none",
    levels: Levels::ONE,
};

pub(super) struct Compressor<P: Platform>(PhantomData<P>);

impl<P: Platform> Compressor<P> {
    pub(super) fn new(_need: Need) -> Result<Self> {
        Ok(Self(PhantomData))
    }

    /// Never saves anything.
    pub(super) fn compress(&mut self, _level: i32, _src: &[u8], _dst: &mut [u8]) -> Option<usize> {
        None
    }
}

pub(super) struct Decompressor<P: Platform>(PhantomData<P>);

impl<P: Platform> Decompressor<P> {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(PhantomData))
    }

    pub(super) fn decompress(&mut self, src: &[u8], dst: &mut [u8]) -> bool {
        src.len() == dst.len() && self.decompress_start(src, dst)
    }

    pub(super) fn decompress_start(&mut self, src: &[u8], dst: &mut [u8]) -> bool {
        let Some(start) = src.get(..dst.len()) else {
            return false;
        };
        dst.copy_from_slice(start);
        true
    }
}
