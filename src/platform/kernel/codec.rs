// SPDX-License-Identifier: GPL-2.0
//! LZ4 and Zstandard, by the libraries in the kernel.

use crate::c;
use crate::engine::{Error, BLOCK_SIZE};
use crate::platform::mem::{Need, Vec};
use crate::platform::{Lz4, ZstdCompressor, ZstdDecompressor};
use core::ptr::NonNull;

/// The work memory of one compression.
///
/// # Invariants
///
/// `work` has at least `LZ4_MEM_COMPRESS` bytes.
pub(crate) struct KernelLz4 {
    work: Vec<u64>,
}

impl Lz4 for KernelLz4 {
    fn new(need: Need) -> Result<Self, Error> {
        // INVARIANT: The length is `LZ4_MEM_COMPRESS`, rounded up.
        Ok(Self {
            work: Vec::filled_if(need, 0, c::LZ4_MEM_COMPRESS.div_ceil(size_of::<u64>()))?,
        })
    }

    fn compress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        let (src_len, dst_len) = (src.len().try_into().ok()?, dst.len().try_into().ok()?);
        // SAFETY: `src` is readable and `dst` writable for the given lengths, and by the type
        // invariant the work memory is large enough. `u64` aligns it.
        let n = unsafe {
            c::LZ4_compress_default(
                src.as_ptr().cast(),
                dst.as_mut_ptr().cast(),
                src_len,
                dst_len,
                self.work.as_mut_ptr().cast(),
            )
        };
        // The function returns zero if the result does not fit.
        usize::try_from(n).ok().filter(|&n| n > 0)
    }

    fn decompress(src: &[u8], dst: &mut [u8]) -> Option<usize> {
        let (src_len, dst_len) = (src.len().try_into().ok()?, dst.len().try_into().ok()?);
        // SAFETY: `src` is readable and `dst` writable for the given lengths, and the function checks
        // every length in its input against them.
        let n = unsafe {
            c::LZ4_decompress_safe(
                src.as_ptr().cast(),
                dst.as_mut_ptr().cast(),
                src_len,
                dst_len,
            )
        };
        usize::try_from(n).ok()
    }

    fn decompress_start(src: &[u8], dst: &mut [u8]) -> Option<usize> {
        let (src_len, dst_len) = (src.len().try_into().ok()?, dst.len().try_into().ok()?);
        // SAFETY: As in `decompress`. `dst` is writable for the last length, and the one before it says where to stop.
        let n = unsafe {
            c::LZ4_decompress_safe_partial(
                src.as_ptr().cast(),
                dst.as_mut_ptr().cast(),
                src_len,
                dst_len,
                dst_len,
            )
        };
        usize::try_from(n).ok()
    }
}

/// The parameters of a level for a content of `len` bytes. Its frame has nothing but what is needed to decompress it.
fn parameters(level: i32, len: usize) -> c::zstd_parameters {
    // SAFETY: The function has no preconditions.
    let mut parameters = unsafe { c::zstd_get_params(level, len as u64) };
    parameters.fParams = c::ZSTD_frameParameters {
        contentSizeFlag: 0,
        checksumFlag: 0,
        noDictIDFlag: 1,
    };
    parameters
}

/// The result of a function of the library, which returns a length or an error.
fn length(result: usize) -> Option<usize> {
    // SAFETY: The function has no preconditions.
    (unsafe { c::zstd_is_error(result) } == 0).then_some(result)
}

/// Memory for a context of the library, of `bytes` bytes.
fn memory(need: Need, bytes: usize) -> Result<Vec<u64>, Error> {
    Vec::filled_if(need, 0, bytes.div_ceil(size_of::<u64>()))
}

/// A context to compress with Zstandard.
///
/// # Invariants
///
/// `context` is a context in `work`, which has the memory that contents of at most `most` bytes need at `level`.
pub(crate) struct KernelZstdCompressor {
    level: i32,
    most: usize,
    context: NonNull<c::zstd_cctx>,
    /// Only the library uses it.
    _work: Vec<u64>,
}

// SAFETY: The context is memory of this object alone, and belongs to no thread.
unsafe impl Send for KernelZstdCompressor {}

impl ZstdCompressor for KernelZstdCompressor {
    fn new(need: Need, level: i32, most: usize) -> Result<Self, Error> {
        let mut work = memory(need, Self::bytes(level, most))?;
        // SAFETY: `work` is writable for its length and aligned by `u64`. A move of the vector does not move its memory,
        // and the context is used only as long as this object has it.
        let context =
            unsafe { c::zstd_init_cctx(work.as_mut_ptr().cast(), size_of_val(&work[..])) };
        // INVARIANT: `bytes` is what the library asks for.
        Ok(Self {
            level,
            most,
            context: NonNull::new(context).ok_or(Error::NoMemory)?,
            _work: work,
        })
    }

    fn bytes(level: i32, most: usize) -> usize {
        // Short contents have parameters of their own, which may need more memory. All lengths between two powers of
        // two have the parameters of the longer one.
        let lengths = core::iter::successors(Some(BLOCK_SIZE), |len| Some(len * 2));
        lengths
            .take_while(|&len| len < 2 * most)
            .map(|len| {
                let parameters = parameters(level, len);
                // SAFETY: The argument points to valid parameters.
                unsafe { c::zstd_cctx_workspace_bound(&parameters.cParams) }
            })
            .fold(0, usize::max)
    }

    fn compress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        if src.len() > self.most {
            return None;
        }
        let parameters = parameters(self.level, src.len());
        // SAFETY: `src` is readable and `dst` writable for the given lengths, the parameters are valid, and by the type
        // invariant the context is, and has enough memory for them.
        length(unsafe {
            c::zstd_compress_cctx(
                self.context.as_ptr(),
                dst.as_mut_ptr().cast(),
                dst.len(),
                src.as_ptr().cast(),
                src.len(),
                &parameters,
            )
        })
    }
}

/// A context to decompress Zstandard.
///
/// # Invariants
///
/// `context` is a context in `work`.
pub(crate) struct KernelZstdDecompressor {
    context: NonNull<c::zstd_dctx>,
    /// Only the library uses it.
    _work: Vec<u64>,
}

// SAFETY: The context is memory of this object alone, and belongs to no thread.
unsafe impl Send for KernelZstdDecompressor {}

impl ZstdDecompressor for KernelZstdDecompressor {
    fn new(need: Need) -> Result<Self, Error> {
        let mut work = memory(need, Self::bytes())?;
        // SAFETY: As in `KernelZstdCompressor::new`.
        let context =
            unsafe { c::zstd_init_dctx(work.as_mut_ptr().cast(), size_of_val(&work[..])) };
        // INVARIANT: The library has made the context in `work`.
        Ok(Self {
            context: NonNull::new(context).ok_or(Error::NoMemory)?,
            _work: work,
        })
    }

    fn bytes() -> usize {
        // SAFETY: The function has no preconditions.
        unsafe { c::zstd_dctx_workspace_bound() }
    }

    fn decompress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize> {
        // SAFETY: `src` is readable and `dst` writable for the given lengths, by the type invariant the context is valid,
        // and the function checks every length in its input against them.
        length(unsafe {
            c::zstd_decompress_dctx(
                self.context.as_ptr(),
                dst.as_mut_ptr().cast(),
                dst.len(),
                src.as_ptr().cast(),
                src.len(),
            )
        })
    }
}
