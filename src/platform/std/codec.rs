// SPDX-License-Identifier: GPL-2.0 OR MIT
//! LZ4 and Zstandard, by their reference implementations.

use super::mem::{allocate_if, Need};
use crate::engine::format::MAX_RECORD_SIZE;
use crate::engine::Error;
use crate::platform::{Lz4, ZstdCompressor, ZstdDecompressor};
use core::fmt;
use std::sync::OnceLock;
use zstd_safe::{CCtx, CParameter, DCtx};

/// LZ4 by its reference implementation, whose scratch memory belongs to the thread.
#[derive(Debug)]
pub struct StdLz4;

impl Lz4 for StdLz4 {
    fn new(_need: Need) -> Result<Self, Error> {
        Ok(Self)
    }

    fn compress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        lzzzz::lz4::compress(src, dst, lzzzz::lz4::ACC_LEVEL_DEFAULT).ok()
    }

    fn decompress(src: &[u8], dst: &mut [u8]) -> Option<usize> {
        lzzzz::lz4::decompress(src, dst).ok()
    }

    fn decompress_start(src: &[u8], dst: &mut [u8]) -> Option<usize> {
        let whole = dst.len();
        lzzzz::lz4::decompress_partial(src, dst, whole).ok()
    }
}

/// A context to compress with Zstandard.
pub struct StdZstdCompressor(CCtx<'static>);

impl ZstdCompressor for StdZstdCompressor {
    fn new(need: Need, level: i32, _most: usize) -> Result<Self, Error> {
        allocate_if(need)?;
        let mut context = CCtx::try_create().ok_or(Error::NoMemory)?;
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ] {
            // Without a frame under way and within its bounds, no parameter is refused.
            context
                .set_parameter(parameter)
                .map_err(|_| Error::Invalid("compression level"))?;
        }
        Ok(Self(context))
    }

    /// The library allocates when it compresses first, as much as the largest record needs.
    fn bytes(level: i32, _most: usize) -> usize {
        static BYTES: [OnceLock<usize>; 20] = [const { OnceLock::new() }; 20];
        let measure = || {
            let context = Self::new(Need::Required, level, MAX_RECORD_SIZE);
            context.map_or(0, |mut context| {
                let content = std::vec![0; MAX_RECORD_SIZE];
                let _ = context.compress(&content, &mut [0; 64]);
                context.0.sizeof()
            })
        };
        *BYTES[level as usize % BYTES.len()].get_or_init(measure)
    }

    fn compress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        self.0.compress2(dst, src).ok()
    }
}

impl fmt::Debug for StdZstdCompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StdZstdCompressor")
    }
}

/// A context to decompress Zstandard.
pub struct StdZstdDecompressor(DCtx<'static>);

impl ZstdDecompressor for StdZstdDecompressor {
    fn new(need: Need) -> Result<Self, Error> {
        allocate_if(need)?;
        DCtx::try_create().map(Self).ok_or(Error::NoMemory)
    }

    fn bytes() -> usize {
        static BYTES: OnceLock<usize> = OnceLock::new();
        *BYTES.get_or_init(|| DCtx::try_create().map_or(0, |context| context.sizeof()))
    }

    fn decompress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        self.0.decompress(dst, src).ok()
    }
}

impl fmt::Debug for StdZstdDecompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StdZstdDecompressor")
    }
}
