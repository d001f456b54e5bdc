// SPDX-License-Identifier: GPL-2.0
//! LZ4, by the library in the kernel.

use crate::c;
use crate::engine::Error;
use crate::platform::mem::{Need, Vec};
use crate::platform::Lz4;

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
