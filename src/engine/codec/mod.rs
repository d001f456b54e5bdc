// SPDX-License-Identifier: GPL-2.0
//! The compression algorithms: one file, and one row of the table at the end of this one, for each.
//!
//! What is fixed about an algorithm is the same for all who use it: [`Codec`], and [`Params`] to choose one with a
//! level. The scratch memory of a compression or decompression is a context of its own, never shared between
//! threads: [`Compressor`] and [`Decompressor`]. Callers know neither the algorithms nor how many there are.

mod lz4;
mod raw;

use crate::engine::format::{Algorithm, UNIT};
use crate::engine::Result;
use crate::platform::mem::{Buf, Need};
use crate::platform::Platform;

/// What is fixed about an algorithm: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    /// The algorithm, as the disk names it.
    pub algorithm: Algorithm,
    /// The name users type and read.
    pub name: &'static str,
    /// The compression levels it has.
    pub levels: Levels,
}

/// Compression levels. A higher one takes more time to save more space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// The lowest level.
    pub min: i32,
    /// The highest level.
    pub max: i32,
    /// The level of those who do not ask for one.
    pub default: i32,
}

impl Levels {
    /// The levels of an algorithm that leaves nothing to choose.
    const ONE: Self = Self {
        min: 0,
        max: 0,
        default: 0,
    };
}

impl Codec {
    /// The algorithm with this name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|codec| codec.name == name)
    }
}

/// How to compress: an algorithm and one of its levels.
#[derive(Clone, Copy)]
pub(crate) struct Params {
    algorithm: Algorithm,
    level: i32,
}

impl Params {
    /// An algorithm at its default level.
    pub(crate) fn of(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            level: Codec::of(algorithm).levels.default,
        }
    }
}

/// Compresses payloads of records, one at a time.
pub(crate) struct Encoder<P: Platform> {
    compressor: Compressor<P>,
    packed: Buf,
}

impl<P: Platform> Encoder<P> {
    /// Allocates the memory to compress at most `most` bytes at once, which is needed this much.
    pub(crate) fn new(need: Need, most: usize) -> Result<Self> {
        Ok(Self {
            compressor: Compressor::new(need)?,
            packed: Buf::zeroed_if(need, most)?,
        })
    }

    /// Bytes of memory of the results; the scratch memory of the algorithms is less than that.
    pub(crate) fn memory(&self) -> usize {
        self.packed.len()
    }

    /// The payload to store for `content`, and the algorithm it is stored with: compressed if that saves space in
    /// the log, and as it is otherwise.
    pub(crate) fn encode<'a>(
        &'a mut self,
        params: Params,
        content: &'a [u8],
    ) -> (Algorithm, &'a [u8]) {
        // One unit covers the header of the record.
        let limit = content.len().saturating_sub(UNIT).min(self.packed.len());
        let packed = &mut self.packed[..limit];
        match self.compressor.compress(params, content, packed) {
            Some(len) => (params.algorithm, &self.packed[..len]),
            None => (Algorithm::Raw, content),
        }
    }
}

/// Makes the table from its rows: for each algorithm of the format the file that implements it. The file has a
/// `CODEC`, a `Compressor` and a `Decompressor`.
macro_rules! table {
    ($($algorithm:ident => $file:ident,)+) => {
        impl Codec {
            /// All algorithms. The first one is the default for new images.
            pub const ALL: &'static [Self] = &[$($file::CODEC),+];

            /// What is fixed about `algorithm`.
            pub fn of(algorithm: Algorithm) -> &'static Self {
                match algorithm {
                    $(Algorithm::$algorithm => &$file::CODEC,)+
                }
            }
        }

        /// Contexts to compress one payload at a time.
        struct Compressor<P: Platform> {
            $($file: $file::Compressor<P>,)+
        }

        impl<P: Platform> Compressor<P> {
            fn new(need: Need) -> Result<Self> {
                Ok(Self {
                    $($file: $file::Compressor::new(need)?,)+
                })
            }

            /// Compresses `src` into `dst`. Nothing is returned if the result does not fit there.
            fn compress(&mut self, params: Params, src: &[u8], dst: &mut [u8]) -> Option<usize> {
                match params.algorithm {
                    $(Algorithm::$algorithm => self.$file.compress(params.level, src, dst),)+
                }
            }
        }

        /// Contexts to decompress one payload at a time.
        pub(crate) struct Decompressor<P: Platform> {
            $($file: $file::Decompressor<P>,)+
        }

        impl<P: Platform> Decompressor<P> {
            /// Allocates the contexts.
            pub(crate) fn new() -> Result<Self> {
                Ok(Self {
                    $($file: $file::Decompressor::new()?,)+
                })
            }

            /// Decompresses `src`, stored with the algorithm `tag`, into all of `dst`. False when that does not
            /// fit exactly, or the algorithm is unknown.
            pub(crate) fn decompress(&mut self, tag: u8, src: &[u8], dst: &mut [u8]) -> bool {
                match Algorithm::from_tag(tag) {
                    $(Some(Algorithm::$algorithm) => self.$file.decompress(src, dst),)+
                    None => false,
                }
            }

            /// As [`decompress`](Self::decompress), but only the beginning of the content, as much as `dst` has room
            /// for. False when there is not as much.
            pub(crate) fn decompress_start(&mut self, tag: u8, src: &[u8], dst: &mut [u8]) -> bool {
                match Algorithm::from_tag(tag) {
                    $(Some(Algorithm::$algorithm) => self.$file.decompress_start(src, dst),)+
                    None => false,
                }
            }
        }
    };
}

table! {
    Lz4 => lz4,
    Raw => raw,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::std::Std;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn every_row_is_found_by_its_name_and_its_algorithm() {
        for codec in Codec::ALL {
            assert_eq!(Codec::by_name(codec.name), Some(codec));
            assert_eq!(Codec::of(codec.algorithm), codec);
            assert!((codec.levels.min..=codec.levels.max).contains(&codec.levels.default));
        }
        assert_eq!(Codec::by_name("LZ4"), None);
    }

    #[test]
    fn every_algorithm_gives_back_what_it_took() {
        let content: Vec<u8> = (0..8192u32).map(|i| (i / 64) as u8).collect();
        let mut encoder = Encoder::<Std>::new(Need::Required, content.len()).unwrap();
        let mut decompressor = Decompressor::<Std>::new().unwrap();
        for codec in Codec::ALL {
            let (algorithm, payload) = encoder.encode(Params::of(codec.algorithm), &content);
            assert_eq!(algorithm, codec.algorithm);
            let mut out = vec![0xff; content.len()];
            assert!(decompressor.decompress(algorithm.tag(), payload, &mut out));
            assert_eq!(out, content);
            // Not into less or more than it was.
            let short = content.len() - 1;
            assert!(!decompressor.decompress(algorithm.tag(), payload, &mut out[..short]));
            out.push(0);
            assert!(!decompressor.decompress(algorithm.tag(), payload, &mut out));
            // Its beginning alone, but not more than there is.
            assert!(!decompressor.decompress_start(algorithm.tag(), payload, &mut out));
            for len in [0, 1, 63, 64, 65, 4096, content.len() - 1, content.len()] {
                let mut start = vec![0xff; len];
                assert!(decompressor.decompress_start(algorithm.tag(), payload, &mut start));
                assert_eq!(start, content[..len]);
            }
        }
        assert!(!decompressor.decompress(0xff, &content, &mut content.clone()));
    }

    #[test]
    fn content_that_does_not_shrink_is_stored_as_it_is() {
        // A multiplicative generator: LZ4 finds no repetition.
        let noise: Vec<u8> = (0..4096u32)
            .scan(1u32, |x, _| {
                *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Some((*x >> 24) as u8)
            })
            .collect();
        let mut encoder = Encoder::<Std>::new(Need::Required, noise.len()).unwrap();
        let (algorithm, payload) = encoder.encode(Params::of(Algorithm::Lz4), &noise);
        assert_eq!((algorithm, payload), (Algorithm::Raw, &noise[..]));
    }
}
