// SPDX-License-Identifier: GPL-2.0
//! Zstandard, by the library of the platform.
//!
//! A payload is one frame, as short as a frame can be: without size, checksum and dictionary, all of which the record has
//! or does not need. [`is_payload`] refuses all other frames before the library sees them.
//!
//! The contexts are large: one to compress takes up to 3 MiB. They belong to an image and not to its workers, are
//! made on demand, and given up when they were not needed for a while ([`Pool`]).

use super::{Codec, Levels};
use crate::engine::format::{le32, Algorithm, MAX_RECORD_SIZE};
use crate::engine::pool::Pool;
use crate::engine::Result;
use crate::platform::mem::Need;
use crate::platform::{Platform, ZstdCompressor, ZstdDecompressor};
use core::sync::atomic::AtomicU64;

pub(super) const CODEC: Codec = Codec {
    algorithm: Algorithm::Zstd,
    name: "zstd",
    levels: Levels {
        min: 1,
        max: 19,
        default: 3,
    },
};

/// Contexts of each kind that exist at most. A thread that holds one waits for nothing, so as many are in use as there are
/// CPUs that serve the image, and few more.
const MOST: usize = 64;

/// The first bytes of a frame.
const MAGIC: u32 = 0xfd2f_b528;
/// Bytes of the header of a frame: [`MAGIC`], a byte of flags, and one with the size of the window.
const FRAME_HEADER: usize = 6;
/// Bytes of the header of a block.
const BLOCK_HEADER: usize = 3;

/// Whether `src` has the form of a payload: one frame, without size, checksum and dictionary, with a window that is no larger
/// than the largest record, and nothing behind it.
fn is_payload(src: &[u8]) -> bool {
    if src.len() < FRAME_HEADER || le32(src, 0) != MAGIC || src[4] != 0 {
        return false;
    }
    // The exponent has five bits, and eighths of the power of two are added to it.
    let (exponent, eighths) = (10 + u32::from(src[5] >> 3), u64::from(src[5] & 7));
    let window = (8 + eighths) << (exponent - 3);
    window <= MAX_RECORD_SIZE as u64 && blocks_end(src) == Some(src.len())
}

/// The place behind the last block of a frame. None if the frame ends before.
fn blocks_end(src: &[u8]) -> Option<usize> {
    let mut at = FRAME_HEADER;
    loop {
        let header = src.get(at..at + BLOCK_HEADER)?;
        let word = header
            .iter()
            .rev()
            .fold(0, |word, &byte| (word << 8) | usize::from(byte));
        let (last, kind, size) = (word & 1 == 1, (word >> 1) & 3, word >> 3);
        at += BLOCK_HEADER;
        at += match kind {
            // The byte that is repeated.
            1 => 1,
            3 => return None,
            _ => size,
        };
        if last {
            return Some(at);
        }
    }
}

/// A context to compress at one level.
struct Compressor<P: Platform> {
    level: u8,
    context: P::ZstdCompressor,
}

/// What became of an attempt to compress.
pub(super) enum Compressed {
    /// The result has this many bytes.
    Into(usize),
    /// The result does not fit.
    TooLarge,
    /// There is no memory.
    NoMemory,
}

/// Contexts to compress at one level at a time.
pub(super) struct Compressors<P: Platform> {
    /// Bytes of the largest content.
    most: usize,
    pool: Pool<P, Compressor<P>>,
}

impl<P: Platform> Compressors<P> {
    fn new(most: usize) -> Result<Self> {
        let pool = Pool::without_reserve(MOST, 0)?;
        Ok(Self { most, pool })
    }

    /// From now on content is compressed at `level`. Contexts of another one are given up.
    pub(super) fn set_level(&self, level: u8) {
        let bytes = P::ZstdCompressor::bytes(level.into(), self.most);
        self.pool.set_bytes(bytes as u64);
        self.pool.shed(u64::MAX);
    }

    /// Compresses `src` into `dst`.
    pub(super) fn compress(&self, level: u8, src: &[u8], dst: &mut [u8]) -> Compressed {
        let Some(mut compressor) = self.compressor(level) else {
            return Compressed::NoMemory;
        };
        let len = compressor.context.compress(src, dst);
        self.pool.put(compressor);
        len.map_or(Compressed::TooLarge, Compressed::Into)
    }

    // A stack frame of its own: what compresses has a large one.
    #[inline(never)]
    fn compressor(&self, level: u8) -> Option<Compressor<P>> {
        let make = |need| {
            Ok(Compressor {
                level,
                context: P::ZstdCompressor::new(need, level.into(), self.most)?,
            })
        };
        loop {
            let compressor = self.pool.take_if_any(make)?;
            if compressor.level == level {
                return Some(compressor);
            }
            // Made before the level changed.
            self.pool.give_up(compressor);
        }
    }
}

/// The contexts of an image.
pub(super) struct Contexts<P: Platform> {
    /// Those for what users write.
    pub(super) written: Compressors<P>,
    /// Those for what is compressed again when the image is idle.
    pub(super) again: Compressors<P>,
    decompressors: Pool<P, P::ZstdDecompressor>,
    /// Records that were compressed otherwise, because there was no memory.
    pub(super) replaced: AtomicU64,
}

impl<P: Platform> Contexts<P> {
    /// No contexts, for records with contents of at most `most` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    #[inline(never)]
    pub(super) fn new(most: usize) -> Result<Self> {
        let bytes = P::ZstdDecompressor::bytes();
        Ok(Self {
            written: Compressors::new(most)?,
            again: Compressors::new(most)?,
            decompressors: Pool::without_reserve(MOST, bytes as u64)?,
            replaced: AtomicU64::new(0),
        })
    }

    /// Makes the context with which records can be decompressed when there is no memory for more.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(super) fn add_reserve(&self) -> Result {
        // An attempt before this one may have gone no further.
        if self.decompressors.memory() == 0 {
            let context = P::ZstdDecompressor::new(Need::Required)?;
            self.decompressors.add_reserve(context);
        }
        Ok(())
    }

    /// Decompresses `src` into all of `dst`. False when it is no payload of exactly this content. There is a
    /// [reserve](Self::add_reserve).
    pub(super) fn decompress(&self, src: &[u8], dst: &mut [u8]) -> bool {
        let len = dst.len();
        is_payload(src)
            && self
                .decompressors
                .with(P::ZstdDecompressor::new, |context| {
                    context.decompress(src, dst)
                })
                == Some(len)
    }

    /// Bytes of memory. Takes no lock.
    pub(super) fn memory(&self) -> u64 {
        self.written.pool.memory() + self.again.pool.memory() + self.decompressors.memory()
    }

    /// Bytes of memory that [`shed`](Self::shed) may give back. Takes no lock.
    pub(super) fn sheddable(&self) -> u64 {
        let compressors = self.written.pool.sheddable() + self.again.pool.sheddable();
        compressors + self.decompressors.sheddable()
    }

    /// Gives back about `bytes` bytes of memory that is not in use, and returns how many were.
    pub(super) fn shed(&self, bytes: u64) -> u64 {
        let mut given = self.again.pool.shed(bytes);
        given += self.written.pool.shed(bytes.saturating_sub(given));
        given + self.decompressors.shed(bytes.saturating_sub(given))
    }

    /// Gives back memory that was not needed since the last call.
    pub(super) fn trim(&self) {
        self.written.pool.trim();
        self.again.pool.trim();
        self.decompressors.trim();
    }
}
